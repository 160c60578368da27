"""What a training YAML file may say; every section is a dataclass, unknown keys are errors."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

import yaml

from ego_world_model.training.augmentation import Augmentation
from ego_world_model.training.loop import LoopSettings
from ego_world_model.training.losses import RegionWeights
from ego_world_model.training.objectives import Loss, NoiseSettings
from ego_world_model.training.windows import WindowSettings
from ego_world_model.world_model.checkpoint import PartSpec

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which episodes, at which size.

    Attributes:
        train, validation: dataset folders, disjoint in scenes; one or several each, of several
            robots perhaps.
        width, height: pixels that frames are resized to.
        extra_slots: slots after the 42 that the control reads.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    width: int = 128
    height: int = 96
    extra_slots: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How clips are drawn until the run has progressed to ``until``.

    Attributes:
        frames: frames per clip, the reference included.
        batch: clips per step, in each process and each accumulated part of a step.
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
        baselines_every: the model is also run under wrong joints on every n-th validation; 0 for
            never.
        steps: denoising steps; None for the checkpoint's default.
    """

    clips: int = 24
    baselines_every: int = 4
    steps: int | None = None


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
    """``ego-world-model train world-model``, of any size.

    Folders, a ``base`` among them, are taken from the current directory.

    Attributes:
        init: checkpoint (name or folder) whose weights the run starts from, its autoencoder
            included; empty to start from nothing, or from what the parts' bases hold.
        autoencoder: name and arguments of the part, where a published base holds its weights; None
            for one that was trained before (``--autoencoder``), or that of ``init``.
        encoders: name and arguments of the text and image encoders; None: the model reads no text.
            They need ``windows``.
        num_frames: frames of a rollout of the checkpoint, the reference included.
        steps: its default number of denoising steps.
        shift: flow shift of its noise levels.
        solver: its default solver, see ``sampler.SOLVERS``.
        guidance: its default guidance scale on text; 1 means none.
        control_guidance: its default guidance scale on the joints; train with
            ``augmentation.hide_all`` for it.
        backbone: name and arguments of the part. On a base, only what the checkpoint stores is
            trained: LoRA layers and the widened input layer, in float32 whatever the base is in.
        control: name and arguments of the part, beyond those that follow from the rest.
        windows: cut the data into fixed windows and cache their latents and embeddings; None draws
            clips at random and encodes their frames in every step.
        gradient_checkpointing: compute activations twice to hold fewer of them.
        loss, reference_weight, pixel_frames, pixel_weight, decoder_from: see
            ``WorldModelObjective``.
        weights: of regions; null weighs all pixels alike, and data then need no masks.
    """

    data: DataSettings
    backbone: PartSpec
    loop: LoopSettings
    stages: tuple[Stage, ...]
    init: str = ""
    autoencoder: PartSpec | None = None
    encoders: PartSpec | None = None
    num_frames: int = 17
    steps: int = 1
    shift: float = 1.0
    solver: str = "euler"
    guidance: float = 1.0
    control_guidance: float = 1.0
    control: PartSpec = field(default_factory=lambda: PartSpec(name="joint"))
    windows: WindowSettings | None = None
    gradient_checkpointing: bool = False
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    loss: Loss = "clean"
    reference_weight: float = 0.0
    pixel_frames: int = 2
    pixel_weight: float = 1.0
    decoder_from: float = 0.5
    augmentation: Augmentation = field(default_factory=Augmentation)
    weights: RegionWeights | None = field(default_factory=RegionWeights)
    validation: ValidationSettings = field(default_factory=ValidationSettings)

    def __post_init__(self) -> None:
        if self.encoders is not None and self.windows is None:
            raise ValueError("encoders need `windows`: embeddings are cached with the latents")
        if self.windows is None and self.augmentation.drop_prompt:
            raise ValueError("augmentation: drop_prompt needs `encoders`; nothing reads prompts")
        for number, stage in enumerate(self.stages if self.windows else ()):
            if (stage.frames, stage.max_stride, stage.carried) != (self.num_frames, 1, 0):
                raise ValueError(
                    f"stages[{number}]: with `windows` every clip is a window: frames must be "
                    f"num_frames ({self.num_frames}), max_stride 1 and carried 0"
                )


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
        if NoneType in typing.get_args(hint) and value is not None:
            (hint,) = (option for option in typing.get_args(hint) if option is not NoneType)
        if is_dataclass(hint):
            value = parse(hint, value, f"{where}: {name}")
        elif typing.get_origin(hint) is tuple:
            (item, *_) = typing.get_args(hint)
            if isinstance(value, str):  # one needs no list
                value = (value,)
            elif is_dataclass(item):
                value = tuple(
                    parse(item, entry, f"{where}: {name}[{i}]") for i, entry in enumerate(value)
                )
            else:
                value = tuple(value)
        values[name] = value
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
