"""A policy checkpoint folder: config.json, model.safetensors checked by hash, and the tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ego_world_model.policy.cerebellum import CerebellumConfig
from ego_world_model.policy.cerebrum import CerebrumConfig
from ego_world_model.world_model.checkpoint import CheckpointError

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer"
FORMAT = "ego_world_model_policy/1"


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """What a policy checkpoint declares.

    Attributes:
        fps: steps of a chunk per second. chunk: steps.
        fingers: kinds of finger joints it knows, see ``spaces.Layout``.
        steps: Euler steps from noise to data.
        temperature: scale of the noise that motion is made from. 1 draws from what was learned;
            towards 0 chunks approach their mean: less varied, less jittery.
        depth_range: metres that stand for 1 in the depth image; farther is unknown.
        prompt: what the language model reads; {instruction} is put in.
    """

    fps: float
    fingers: tuple[str, ...]
    cerebrum: CerebrumConfig
    cerebellum: CerebellumConfig
    chunk: int = 16
    steps: int = 10
    temperature: float = 1.0
    depth_range: float = 2.0
    prompt: str = "{instruction}"

    @property
    def horizon(self) -> float:
        """Seconds from the observation to the last step."""
        return self.chunk / self.fps

    def relative_to(self, folder: Path) -> PolicyConfig:
        """The same config with bases, where relative paths, taken from ``folder``."""
        cerebrum = self.cerebrum
        for name in ("base", "depth_base"):
            if getattr(cerebrum, name) is not None:
                path = str(folder.resolve() / getattr(cerebrum, name))
                cerebrum = replace(cerebrum, **{name: path})
        return replace(self, cerebrum=cerebrum)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PolicyConfig:
        """From JSON; CheckpointError names what is unknown or missing."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise CheckpointError(f"unknown fields in the policy config: {', '.join(unknown)}")
        if missing := sorted({"fps", "fingers", "cerebrum", "cerebellum"} - set(data)):
            raise CheckpointError(f"fields missing in the policy config: {', '.join(missing)}")
        return cls(
            **{
                **data,
                "fingers": tuple(data["fingers"]),
                "cerebrum": CerebrumConfig(**data["cerebrum"]),
                "cerebellum": CerebellumConfig(**data["cerebellum"]),
            }
        )


def save_policy(
    folder: Path,
    config: PolicyConfig,
    tensors: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder.

    Args:
        dtype: of the stored floating-point weights; loading always gives float32.
        metadata: JSON kept beside the config: data, steps, measured numbers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = {
        name: value.detach().to(dtype if dtype and value.is_floating_point() else value.dtype)
        for name, value in tensors.items()
    }
    save_file({name: value.contiguous() for name, value in stored.items()}, folder / WEIGHTS)
    tokenizer.save_pretrained(folder / TOKENIZER)
    document = {
        "format": FORMAT,
        "policy": asdict(config),
        "sha256": {WEIGHTS: _sha256(folder / WEIGHTS)},
        "metadata": dict(metadata or {}),
    }
    (folder / CONFIG).write_text(json.dumps(document, indent=2) + "\n")


def read_policy_config(folder: Path) -> tuple[PolicyConfig, str, dict[str, Any]]:
    """(config, SHA-256 of the weights, metadata) of a checkpoint folder.

    Raises:
        CheckpointError: if the folder or its config.json is missing or not understood.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"no policy checkpoint at {folder}: {CONFIG} is missing; give a folder written by "
            "MotionPolicy.save_pretrained, or the name of a shipped policy ('tiny')"
        )
    try:
        document = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); restore the file") from error
    found = document.get("format") if isinstance(document, dict) else type(document).__name__
    if found != FORMAT:
        raise CheckpointError(f"{path}: format must be {FORMAT!r}, got {found!r}")
    try:
        config = PolicyConfig.from_dict(document["policy"])
        return config, document["sha256"][WEIGHTS], document.get("metadata", {})
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: field 'policy' is not understood ({type(error).__name__}: {error}); restore "
            "the file"
        ) from error


def read_weights(folder: Path, sha256: str) -> dict[str, Tensor]:
    """The stored tensors in float32, after checking the file's hash.

    Raises:
        CheckpointError: if the file is missing, corrupt or another one.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; the checkpoint folder is incomplete")
    if (found := _sha256(path)) != sha256:
        raise CheckpointError(
            f"{path} is corrupt or not the file that {CONFIG} describes (sha256 {found[:12]}…, "
            f"expected {sha256[:12]}…); restore the checkpoint folder"
        )
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
    return {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, or of a published model's folder.

    Raises:
        CheckpointError: if there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no tokenizer: {error}") from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
