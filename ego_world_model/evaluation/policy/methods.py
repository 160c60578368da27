"""The methods that are compared, named so that any process can build them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ego_world_model.embodiment import Embodiment, load_embodiment
from ego_world_model.evaluation.policy.expert import ScriptedExpert
from ego_world_model.evaluation.policy.predictors import (
    MODALITIES,
    ConstantPosition,
    ConstantVelocity,
    MeanMotion,
    PolicyPredictor,
    Predictor,
)
from ego_world_model.kinematics import HandKinematics
from ego_world_model.simulation import TableTop

BASELINES = ("constant position", "constant velocity", "mean motion")
EXPERT = "scripted expert"


@dataclass(frozen=True)
class Method:
    """A way to predict.

    Attributes:
        kind: "policy", ``EXPERT`` or one of ``BASELINES``.
        model: of a policy, its name or folder; of the mean motion, the folder of its files.
        modality: of a policy, which inputs it is given.
    """

    kind: str
    model: str = ""
    modality: str = ""

    def __post_init__(self) -> None:
        if self.kind not in ("policy", EXPERT, *BASELINES):
            raise ValueError(f"unknown method {self.kind!r}")
        if self.kind == "policy" and self.modality not in MODALITIES:
            raise ValueError(f"unknown modality {self.modality!r}; known: {', '.join(MODALITIES)}")

    @property
    def label(self) -> str:
        """Its name in tables."""
        return f"policy {self.modality}" if self.kind == "policy" else self.kind

    @property
    def sees_depth(self) -> bool:
        """Whether it looks at depth."""
        return "D" in self.modality

    def predictor(self, robot: str, sim: TableTop | None = None) -> Predictor:
        """Ready to predict for a robot; the expert needs the simulation, its plan still in place.

        Raises:
            ValueError: for the expert without a simulation.
        """
        if self.kind == "policy":
            return PolicyPredictor(_policy(self.model), self.modality)
        if self.kind == "constant position":
            return ConstantPosition()
        if self.kind == "constant velocity":
            return ConstantVelocity()
        if self.kind == "mean motion":
            return _mean_motion(str(mean_file(Path(self.model), robot)))
        if sim is None:
            raise ValueError("the scripted expert has no plan outside the simulation")
        return ScriptedExpert.of(sim, body(robot)[1])


@lru_cache(maxsize=4)
def body(robot: str) -> tuple[Embodiment, HandKinematics]:
    """An embodiment and its kinematics, made once per process."""
    embodiment = load_embodiment(robot)
    return embodiment, HandKinematics(embodiment)


def mean_file(folder: Path, robot: str) -> Path:
    """Where the mean motion of a robot is kept."""
    return folder / f"mean_motion_{robot}.json"


def chunk_times(model: str) -> np.ndarray:
    """(N,) seconds of a policy's chunk."""
    config = _policy(model).config
    return (np.arange(config.chunk) + 1) / config.fps


def fingerprint(model: str) -> str:
    """The first digits of the weights' SHA-256, which tell one checkpoint from another."""
    from ego_world_model.policy.checkpoint import read_policy_config
    from ego_world_model.policy.policy import policy_folder

    return read_policy_config(policy_folder(model))[1][:12]


@lru_cache(maxsize=1)
def _policy(model: str) -> Any:
    import torch

    from ego_world_model.policy.policy import MotionPolicy

    torch.set_num_threads(1)  # a process per core runs episodes of its own
    return MotionPolicy.from_pretrained(model)


@lru_cache(maxsize=4)
def _mean_motion(file: str) -> MeanMotion:
    return MeanMotion.from_document(json.loads(Path(file).read_text()))


def sensed_depth(depth: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Rendered depth (H, W) metres with the documented noise of a depth sensor."""
    import torch

    from ego_world_model.perception.depth_noise import noisy_depth

    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    return noisy_depth(torch.from_numpy(depth)[None, None], generator=generator)[0, 0].numpy()
