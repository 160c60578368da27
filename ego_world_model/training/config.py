"""What a training YAML file may say; every section is a dataclass, unknown keys are errors."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ego_world_model.training.clips import Augmentation
from ego_world_model.training.loop import LoopSettings
from ego_world_model.training.losses import RegionWeights
from ego_world_model.training.objectives import NoiseSettings
from ego_world_model.world_model.checkpoint import PartSpec

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which episodes, at which size.

    Attributes:
        train, validation: dataset folders, disjoint in scenes.
        width, height: pixels that frames are resized to.
        extra_slots: slots after the 42 that the control reads.
    """

    train: str
    validation: str
    width: int = 128
    height: int = 96
    extra_slots: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How clips are drawn until the run has progressed to ``until``.

    Attributes:
        frames: frames per clip, the reference included.
        batch: clips per step.
        max_stride: frames are every n-th of the episode, n random up to this.
        carried: share of clips drawn from those in which the manipulated object moves.
    """

    until: float = 1.0
    frames: int = 17
    batch: int = 8
    max_stride: int = 1
    carried: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ValidationSettings:
    """What is measured on held-out clips while training.

    Attributes:
        clips: how many clips.
        baselines_every: the model is also run under wrong joints on every n-th validation.
    """

    clips: int = 24
    baselines_every: int = 4


@dataclass(frozen=True, kw_only=True)
class AutoencoderTraining:
    """``ego-world-model train autoencoder``.

    Attributes:
        latent_noise: largest deviation of the noise put on latents.
        autoencoder: name and arguments of the part.
    """

    data: DataSettings
    autoencoder: PartSpec
    loop: LoopSettings
    stages: tuple[Stage, ...]
    latent_noise: float = 0.3
    augmentation: Augmentation = field(default_factory=Augmentation)
    weights: RegionWeights = field(default_factory=RegionWeights)
    validation: ValidationSettings = field(default_factory=ValidationSettings)


@dataclass(frozen=True, kw_only=True)
class WorldModelTraining:
    """``ego-world-model train world-model``.

    Attributes:
        init: checkpoint (name or folder) whose weights the run starts from, its autoencoder
            included; empty to start from nothing.
        num_frames: frames of a rollout of the checkpoint, the reference included.
        steps: its default number of denoising steps.
        shift: flow shift of its noise levels.
        backbone: name and arguments of the part.
        control: name and arguments of the part, beyond those that follow from the rest.
        pixel_frames, pixel_weight, decoder_from: see ``WorldModelObjective``.
    """

    data: DataSettings
    backbone: PartSpec
    loop: LoopSettings
    stages: tuple[Stage, ...]
    init: str = ""
    num_frames: int = 17
    steps: int = 1
    shift: float = 1.0
    control: PartSpec = field(default_factory=lambda: PartSpec(name="joint"))
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    pixel_frames: int = 2
    pixel_weight: float = 1.0
    decoder_from: float = 0.5
    augmentation: Augmentation = field(default_factory=Augmentation)
    weights: RegionWeights = field(default_factory=RegionWeights)
    validation: ValidationSettings = field(default_factory=ValidationSettings)


def load(kind: type[T], path: Path, overrides: Mapping[str, Mapping[str, Any]]) -> T:
    """Read a YAML file; ``overrides`` is {section: {key: value}}, None values are left out.

    Raises:
        ValueError: naming the file, the section and the key that is not understood.
    """
    if not path.is_file():
        raise ValueError(f"training config {path} does not exist")
    document = yaml.safe_load(path.read_text())
    for section, values in overrides.items():
        given = {key: value for key, value in values.items() if value is not None}
        document[section] = {**document.get(section, {}), **given}
    return parse(kind, document, str(path))


def parse(kind: type[T], document: Any, where: str) -> T:
    """A (nested) dataclass from plain YAML data."""
    if not isinstance(document, Mapping):
        raise ValueError(f"{where}: expected a mapping, got {type(document).__name__}")
    known = {f.name for f in fields(kind)}
    if unknown := sorted(set(document) - known):
        raise ValueError(
            f"{where}: unknown keys {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )
    hints = typing.get_type_hints(kind)
    values = {}
    for name, value in document.items():
        hint = hints[name]
        if is_dataclass(hint):
            value = parse(hint, value, f"{where}: {name}")
        elif typing.get_origin(hint) is tuple:
            (item, *_) = typing.get_args(hint)
            if is_dataclass(item):
                value = tuple(
                    parse(item, entry, f"{where}: {name}[{i}]") for i, entry in enumerate(value)
                )
            else:
                value = tuple(value)
        values[name] = value
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error
