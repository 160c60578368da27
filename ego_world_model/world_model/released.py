"""Use the published joint-control bundle: its weights on a Wan 2.1 I2V base, as a checkpoint.

The bundle is ``dit.safetensors`` (LoRA and the widened patch embedding, in the names of the
original Wan code) and ``hand-controller.safetensors`` (the control module). What the published
inference code does with them, and a checkpoint made here declares: LoRA at scale 1 (B A x is added
as it is), 50 Euler steps at shift 5, guidance 5 away from an empty prompt, both branches seeing the
control.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ego_world_model.world_model.checkpoint import (
    CheckpointError,
    PartSpec,
    WorldModelConfig,
    save_checkpoint,
)
from ego_world_model.world_model.controls import JointControl
from ego_world_model.world_model.model import WorldModel
from ego_world_model.world_model.pretrained import LORA_NAME
from ego_world_model.world_model.wan import MASK_CHANNELS

DIT = "dit.safetensors"
CONTROLS = ("hand-controller.safetensors", "hand_controller.safetensors")
"""The control module's file as the bundle and as the published script name it."""

_LAYERS = {
    "self_attn.q": "attn1.to_q",
    "self_attn.k": "attn1.to_k",
    "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "cross_attn.q": "attn2.to_q",
    "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
"""Adapted layers of a block, original name → diffusers' name. The projections of image tokens in
cross attention (``k_img``, ``v_img``) are not adapted."""

_LORA = re.compile(r"(?:^|\.)blocks\.(\d+)\.(.+)\.lora_([AB])(?:\.default)?\.weight$")
_PATCH = re.compile(r"(?:^|\.)patch_embedding\.(weight|bias)$")
_CONTROL = re.compile(r"(?:^|\.)hand_controler\.")  # in a whole training checkpoint


def backbone_state(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Tensors of ``dit.safetensors`` under the names of our Wan backbone, and the LoRA rank.

    Names may start with ``pipe.dit.`` or another prefix, and LoRA names may hold ``.default.``.
    The control module's tensors, which a whole training checkpoint holds too, are left out.

    Raises:
        ValueError: naming tensors that are neither LoRA of a known layer nor patch embedding, that
            are there twice, or whose LoRA rank is not that of the others.
    """
    state: dict[str, Tensor] = {}
    ranks: dict[int, str] = {}  # rank → the first tensor that has it
    unknown = []
    for key, tensor in tensors.items():
        if _CONTROL.search(key):
            continue
        if match := _PATCH.search(key):
            name = f"transformer.patch_embedding.{match[1]}"
        elif (match := _LORA.search(key)) and match[2] in _LAYERS:
            layer, side = _LAYERS[match[2]], match[3]
            name = f"transformer.blocks.{match[1]}.{layer}.lora_{side}.{LORA_NAME}.weight"
            ranks.setdefault(tensor.shape[0 if side == "A" else 1], key)
        else:
            unknown.append(key)
            continue
        if name in state:
            raise ValueError(f"{DIT} holds {key} twice, with and without a prefix")
        state[name] = tensor
    if unknown:
        raise ValueError(f"{DIT} holds tensors of an unknown kind: {sorted(unknown)[:5]}")
    if not ranks or "transformer.patch_embedding.weight" not in state:
        raise ValueError(f"{DIT} must hold LoRA layers and the widened patch embedding")
    if len(ranks) > 1:
        raise ValueError(f"{DIT} holds LoRA layers of several ranks: {ranks}")
    return state, next(iter(ranks))


def import_released(
    bundle: str | Path,
    base: str | Path,
    folder: str | Path,
    *,
    alpha: float | None = None,
    negative_prompt: str = "",
    dtype: str | None = "bfloat16",
    **config: Any,
) -> WorldModelConfig:
    """Make a checkpoint folder of the published bundle on a Wan 2.1 I2V base.

    Of the base only the configs and the tokenizer are read, to check that names and shapes fit; its
    weights need not fit into memory, nor be on this machine, until the checkpoint is loaded.

    Args:
        bundle: folder with ``dit.safetensors`` and ``hand-controller.safetensors``.
        base: diffusers folder of Wan 2.1 I2V. It is referenced, not copied.
        folder: where the checkpoint (config.json, control, LoRA, card) is written; new or empty.
        alpha: LoRA scale times rank; None: the rank, as in the published inference.
        negative_prompt: what guidance leads away from; published: nothing.
        dtype: of the base's transformer and encoders, when the checkpoint is loaded.
        config: other fields of WorldModelConfig, e.g. ``height=480, width=832``.

    Returns:
        What the checkpoint declares.

    Raises:
        CheckpointError, ValueError: naming the file that is missing or does not fit.
    """
    bundle, base, folder = Path(bundle), Path(base).resolve(), Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} is in use; give a new or empty folder for the checkpoint")
    control = JointControl.from_released(_control_file(bundle))
    state, rank = backbone_state(_read(bundle / DIT))
    _check_base(base, state["transformer.patch_embedding.weight"], control)
    declared = WorldModelConfig(
        **_published(control, base, rank, alpha, negative_prompt, dtype) | config
    )
    with torch.device("meta"):
        model = WorldModel(declared)
    model.control = control
    _check_names(state, model.backbone.stored_state(), f"{bundle / DIT} does not fit {base}")
    model.backbone.load_state_dict(state, strict=False, assign=True)
    metadata = {
        "source": "the published joint-control bundle (arXiv 2603.11755)",
        "limits": [
            "A joint that is marked invalid counts as the point (0, 0, 0), as it did in training.",
            "Which frame rate it was trained at is not known: clips of any length were spread over "
            "the same number of frames.",
        ],
    }
    save_checkpoint(folder, declared, model.parts, dtype=None, metadata=metadata)
    return declared


def _published(
    control: JointControl,
    base: Path,
    rank: int,
    alpha: float | None,
    negative_prompt: str,
    dtype: str | None,
) -> dict[str, Any]:
    """Fields of the config, with the defaults of the published inference."""
    inherited = ("compat", "occlusion", "geometry_channels", "hidden_channels", "embed_channels")
    backbone = {
        "base": str(base),
        "geometry_channels": control.config.geometry_channels,
        "lora": {"rank": rank, "alpha": alpha or rank},
        "dtype": dtype,
    }
    encoders = {"base": str(base), "negative_prompt": negative_prompt, "dtype": dtype}
    return {
        "fps": 16,
        "num_frames": 81,
        "height": 480,
        "width": 832,
        "steps": 50,
        "shift": 5.0,
        "guidance": 5.0,
        "autoencoder": PartSpec(name="wan", kwargs={"base": str(base)}),
        "backbone": PartSpec(name="wan_i2v", kwargs=backbone),
        "encoders": PartSpec(name="wan", kwargs=encoders),
        "control": PartSpec(
            name="joint", kwargs={name: getattr(control.config, name) for name in inherited}
        ),
    }


def _check_base(base: Path, patch: Tensor, control: JointControl) -> None:
    """That the base is the Wan 2.1 image-to-video model, by what its transformer reads.

    Raises:
        CheckpointError: naming its config and what is different.
    """
    path = base / "transformer" / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing; the base must be Wan 2.1 I2V in diffusers' layout"
        )
    found = json.loads(path.read_text())
    latent, geometry = control.config.latent_channels, control.config.geometry_channels
    expected = 2 * latent + MASK_CHANNELS
    if found.get("in_channels") != expected or found.get("image_dim") is None:
        raise CheckpointError(
            f"{path}: in_channels {found.get('in_channels')} and image_dim "
            f"{found.get('image_dim')} are not those of Wan 2.1 image-to-video, whose transformer "
            f"reads {expected} channels and image tokens; give that model as the base"
        )
    if patch.ndim != 5 or patch.shape[1] != expected + geometry:
        raise CheckpointError(
            f"patch_embedding.weight of {DIT} has shape {tuple(patch.shape)}; it must read "
            f"{expected + geometry} channels: {latent} of noise, {MASK_CHANNELS} of the mask, "
            f"{latent} of the condition, {geometry} of geometry"
        )


def _check_names(state: dict[str, Tensor], expected: dict[str, Tensor], where: str) -> None:
    missing, surplus = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    shapes = [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if missing or surplus or shapes:
        raise CheckpointError(
            f"{where}: missing {missing[:4]}, unexpected {surplus[:4]}, wrong shapes {shapes[:4]}"
        )


def _control_file(bundle: Path) -> Path:
    for name in CONTROLS:
        if (bundle / name).is_file():
            return bundle / name
    raise CheckpointError(f"{bundle / CONTROLS[0]} not found; the bundle holds {DIT} and that file")


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path} not found; the bundle holds {DIT} and {CONTROLS[0]}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
