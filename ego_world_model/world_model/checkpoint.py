"""A world-model checkpoint folder: config.json, one safetensors file per part, checked by hash.

``config.json`` declares the clock, the size, the parts by name and arguments, the SHA-256 of every
weights file, and what identifies the published models that parts are built on, so that a truncated
download, a mixed-up folder or another base is found before it imagines. A model card, README.md,
says the same to people.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ego_world_model.hands import NUM_SLOTS
from ego_world_model.world_model.acceleration import Acceleration
from ego_world_model.world_model.card import write_card

CONFIG = "config.json"
FORMAT = "ego_world_model/1"
PARTS = ("autoencoder", "control", "backbone")
BASE_FOLDERS: dict[str, tuple[str, ...]] = {
    "autoencoder": ("vae",),
    "backbone": ("transformer", "unet"),
    "encoders": ("text_encoder", "image_encoder"),
}
"""Part → sub-folders of a base, in diffusers' layout, that it is built on."""


class CheckpointError(Exception):
    """A checkpoint is missing, incomplete, corrupt or made for another version."""


@runtime_checkable
class BasedPart(Protocol):
    """A part whose weights partly live in the folder of a published model."""

    def stored_state(self) -> dict[str, Tensor]:
        """What this checkpoint stores of it; empty when the base holds all."""
        ...

    def load_stored_state(self, tensors: dict[str, Tensor]) -> None:
        """Read back ``stored_state``; RuntimeError if the tensors do not fit."""
        ...


@dataclass(frozen=True, kw_only=True)
class PartSpec:
    """A part by its registered name and constructor arguments.

    An argument ``base`` is a folder of a published model that the part is built on. Its weights
    stay there; the checkpoint adds what was trained on top.
    """

    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)

    def relative_to(self, folder: Path) -> PartSpec:
        """The same part with ``base``, where it is a relative path, taken from ``folder``."""
        base = self.kwargs.get("base")
        if base is None:
            return self
        return replace(self, kwargs=self.kwargs | {"base": str(folder.resolve() / base)})


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """A LoRA file on the base's transformer, beside the LoRA layers of the checkpoint itself.

    Attributes:
        path: safetensors file; a relative path is taken from the checkpoint's folder.
        name: of the adapter.
        scale: factor of what it adds.
    """

    path: str
    name: str
    scale: float = 1.0

    def relative_to(self, folder: Path) -> LoraFile:
        """The same file with ``path``, where it is relative, taken from ``folder``."""
        return replace(self, path=str(folder.resolve() / self.path))


@dataclass(frozen=True, kw_only=True)
class WorldModelConfig:
    """What a checkpoint declares.

    Attributes:
        fps: frames per second of a rollout.
        num_frames: frames of a rollout, the reference included.
        height, width: pixels.
        extra_slots: slots after the 42 that the control was trained with.
        autoencoder, backbone: see ``parts.AUTOENCODERS`` and ``parts.BACKBONES``.
        encoders: text and image encoders, see ``ENCODERS``; None: the model reads no text.
        control: how the hands steer, see ``parts.CONTROLS``; its arguments beyond those that follow
            from the rest.
        steps: default number of denoising steps.
        shift: flow shift of the noise levels.
        sigmas: noise levels of the steps, instead of ``steps`` and ``shift``; see
            ``sampler.explicit_sigmas``.
        solver: see ``sampler.SOLVERS``.
        guidance: default guidance scale; 1 means none.
        control_guidance: default scale of guidance on the joints; 1 means none.
        max_batch: most candidates computed at a time; None: all.
        loras: published LoRA files, active beside our own.
        acceleration: levers for speed and memory.
    """

    fps: float
    num_frames: int
    height: int
    width: int
    extra_slots: tuple[str, ...] = ()
    autoencoder: PartSpec
    backbone: PartSpec
    encoders: PartSpec | None = None
    control: PartSpec = field(default_factory=lambda: PartSpec(name="joint"))
    steps: int = 1
    shift: float = 1.0
    sigmas: tuple[float, ...] | None = None
    solver: str = "euler"
    guidance: float = 1.0
    control_guidance: float = 1.0
    max_batch: int | None = None
    loras: tuple[LoraFile, ...] = ()
    acceleration: Acceleration = field(default_factory=Acceleration)

    @property
    def num_slots(self) -> int:
        """J that the control reads."""
        return NUM_SLOTS + len(self.extra_slots)

    @property
    def horizon(self) -> float:
        """Seconds from the reference to the last frame."""
        return (self.num_frames - 1) / self.fps

    def relative_to(self, folder: Path) -> WorldModelConfig:
        """The same config with files and bases, where relative paths, taken from ``folder``."""
        declared = {name: getattr(self, name) for name in ("autoencoder", "backbone", "encoders")}
        loras = tuple(file.relative_to(folder) for file in self.loras)
        parts = {n: p.relative_to(folder) for n, p in declared.items() if p}
        return replace(self, loras=loras, **parts)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> WorldModelConfig:
        """From the JSON object; unknown and missing fields are errors that name them."""
        known = {f.name for f in fields(cls)}
        required = {"fps", "num_frames", "height", "width", "autoencoder", "backbone"}
        if unknown := sorted(set(data) - known):
            raise CheckpointError(f"unknown fields in the model config: {', '.join(unknown)}")
        if missing := sorted(required - set(data)):
            raise CheckpointError(f"fields missing in the model config: {', '.join(missing)}")
        data = dict(data, extra_slots=tuple(data.get("extra_slots", ())))
        for part in ("autoencoder", "backbone", "control", "encoders"):
            if data.get(part) is not None:
                data[part] = PartSpec(**data[part])
        data["loras"] = tuple(LoraFile(**file) for file in data.get("loras", ()))
        data["acceleration"] = Acceleration.from_dict(data.get("acceleration") or {})
        if data.get("sigmas") is not None:
            data["sigmas"] = tuple(data["sigmas"])
        return cls(**data)


def save_checkpoint(
    folder: Path,
    config: WorldModelConfig,
    parts: dict[str, nn.Module],
    *,
    dtype: torch.dtype | None = torch.float32,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Write config.json, ``<part>.safetensors`` for each part of ``PARTS``, and a model card.

    A part that a published base holds completely has no file. A README.md written by hand is kept.

    Args:
        dtype: of the stored floating-point weights, None: each as it is; loading always gives
            float32.
        metadata: JSON kept beside the config; ``card.model_card`` says which of it the card knows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hashes = {}
    for part in PARTS:
        path = folder / f"{part}.safetensors"
        tensors = {
            name: value.detach()
            .to(dtype if dtype and value.is_floating_point() else value.dtype)
            .contiguous()
            for name, value in _stored_state(parts[part]).items()
        }
        if not tensors:
            path.unlink(missing_ok=True)
            continue
        save_file(tensors, path)
        hashes[path.name] = _sha256(path)
    document = {
        "format": FORMAT,
        "model": asdict(config),
        "sha256": hashes,
        "bases": _identify_bases(folder, config),
        "metadata": metadata or {},
    }
    (folder / CONFIG).write_text(json.dumps(document, indent=2) + "\n")
    parameters = {part: sum(p.numel() for p in parts[part].parameters()) for part in PARTS}
    write_card(folder, document, parameters)


def read_config(folder: Path) -> tuple[WorldModelConfig, dict[str, str], dict[str, Any]]:
    """(config, sha256 of each weights file, metadata) of a checkpoint folder.

    Raises:
        CheckpointError: if the folder or config.json is missing or not understood, or if a base is
            not the one that the checkpoint was saved with.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"no world-model checkpoint at {folder}: {CONFIG} is missing; give a folder written by "
            "WorldModel.save_pretrained, or the name of a shipped model ('tiny')"
        )
    try:
        document = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); restore the file") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise CheckpointError(f"{path}: format must be {FORMAT!r}, got {found!r}")
    try:
        config = WorldModelConfig.from_dict(document["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: field 'model' is not understood ({type(error).__name__}: {error}); restore "
            "the file, or save the checkpoint again with WorldModel.save_pretrained"
        ) from error
    _check_bases(folder, config, document.get("bases", {}))
    return config, document.get("sha256", {}), document.get("metadata", {})


def load_weights(folder: Path, part: str, module: nn.Module, hashes: dict[str, str]) -> None:
    """Fill ``module`` from ``<part>.safetensors`` after checking its hash.

    Raises:
        CheckpointError: naming the file and what to do, if it is missing, corrupt or does not fit.
    """
    path = folder / f"{part}.safetensors"
    if not _stored_state(module):
        return
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; the checkpoint folder is incomplete")
    expected, found = hashes.get(path.name), _sha256(path)
    if expected != found:
        raise CheckpointError(
            f"{path} is corrupt or not the file that {CONFIG} describes (sha256 {found[:12]}…, "
            f"expected {str(expected)[:12]}…); restore the checkpoint folder"
        )
    try:
        tensors = load_file(path)
        tensors = {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
        if isinstance(module, BasedPart):
            module.load_stored_state(tensors)
        else:
            module.load_state_dict(tensors)
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not fit what {CONFIG} declares: {error}") from error


def _base_of(part: str, config: WorldModelConfig) -> Path | None:
    """The folder of the published model that a part is built on, if it is and if it is here."""
    spec: PartSpec | None = getattr(config, part)
    base = spec.kwargs.get("base") if spec else None
    return Path(base) if base is not None and Path(base).is_dir() else None


def _identify_bases(folder: Path, config: WorldModelConfig) -> dict[str, dict[str, str]]:
    """Part → its base's files → hash; a base that is not on this machine cannot be identified."""
    bases = {part: _base_of(part, config.relative_to(folder)) for part in BASE_FOLDERS}
    return {part: _identify(base, part) for part, base in bases.items() if base}


def _identify(base: Path, part: str) -> dict[str, str]:
    """File below ``base`` → hash: SHA-256 of configs and indices, a sample of each weights file.

    Models of one family share their configs and differ by their weights alone, which are too large
    to be hashed at every start: of those, the size and 64 KiB from the middle count.
    """
    found = {}
    for path in sorted(p for name in BASE_FOLDERS[part] for p in (base / name).glob("*")):
        name = path.relative_to(base).as_posix()
        if path.name == CONFIG or path.name.endswith(".index.json"):
            found[name] = _sha256(path)
        elif path.suffix == ".safetensors":
            size = path.stat().st_size
            with path.open("rb") as file:
                file.seek(size // 2)
                sample = file.read(1 << 16)
            found[name] = "sample:" + hashlib.sha256(str(size).encode() + sample).hexdigest()
    return found


def _check_bases(
    folder: Path, config: WorldModelConfig, recorded: dict[str, dict[str, str]]
) -> None:
    """Compare the bases with what was recorded; one that is absent is named where it is loaded.

    Raises:
        CheckpointError: naming the base and the first file that differs.
    """
    for part, files in recorded.items():
        base = _base_of(part, config.relative_to(folder))
        if base is None:
            continue
        found = _identify(base, part)
        for name, expected in files.items():
            if found.get(name) != expected:
                state = "differs from" if name in found else "is missing, unlike in"
                raise CheckpointError(
                    f"{base} is not the base that {folder} was made on: {name} {state} the base "
                    f"recorded for its {part}; set `base` in {folder / CONFIG} to the folder of "
                    "that model, or make the checkpoint again on this one"
                )


def _stored_state(module: nn.Module) -> dict[str, Tensor]:
    return module.stored_state() if isinstance(module, BasedPart) else module.state_dict()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
