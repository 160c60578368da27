"""Who predicts: the motion policy, whole or with inputs withheld, and what it has to beat."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from transforms3d.axangles import axangle2mat, mat2axangle

from ego_world_model.evaluation.policy.chunks import chunk_from_states
from ego_world_model.kinematics.state import HandState, matrix_from_6d, rotation_6d
from ego_world_model.policy.chunk import HandChunk

MODALITIES: tuple[str, ...] = ("T", "I", "ID", "TI", "TID")
"""Inputs that are given beside the state: T the instruction, I the image, D the depth."""

STEPS, FPS = 16, 10.0
"""Steps and rate of the baselines' chunks."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What can be known when a chunk is asked for.

    Attributes:
        image: (H, W, 3) uint8. depth: (H, W) float32 metres, 0 where unknown, or None.
        intrinsics: (3, 3) pixels of ``image``.
        state: the hands now; previous: ``interval`` seconds ago, in the camera of now, or None at
            the start.
        instruction: in plain words.
        seed: of whatever a predictor draws.
        time: seconds since the episode began.
    """

    image: NDArray[np.uint8]
    depth: NDArray[np.float32] | None
    intrinsics: NDArray[np.float64]
    state: HandState
    previous: HandState | None
    interval: float
    instruction: str
    seed: int
    time: float


class Predictor(Protocol):
    """Anything that predicts hand motion."""

    def predict(self, moment: Moment) -> HandChunk:
        """The hands' next steps, in the camera of the moment."""
        ...


class Policy(Protocol):
    """The part of ``MotionPolicy`` that is evaluated."""

    def predict(
        self,
        image: NDArray[np.uint8] | None,
        state: HandState,
        intrinsics: NDArray[np.float64],
        *,
        instruction: str | None = None,
        depth: NDArray[np.float32] | None = None,
        seed: int | None = None,
        steps: int | None = None,
    ) -> HandChunk: ...


@dataclass(frozen=True)
class PolicyPredictor:
    """A motion policy that is given some of its inputs.

    Attributes:
        modality: one of ``MODALITIES``; what it does not name is withheld.
        steps: Euler steps; None for the policy's own.
    """

    policy: Policy
    modality: str = "TID"
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.modality not in MODALITIES:
            raise ValueError(f"unknown modality {self.modality!r}; known: {', '.join(MODALITIES)}")

    def predict(self, moment: Moment) -> HandChunk:
        if "D" in self.modality and moment.depth is None:
            raise ValueError(f"modality {self.modality} needs depth, and there is none")
        options: dict[str, Any] = {} if self.steps is None else {"steps": self.steps}
        return self.policy.predict(
            moment.image if "I" in self.modality else None,
            moment.state,
            moment.intrinsics,
            instruction=moment.instruction if "T" in self.modality else None,
            depth=moment.depth if "D" in self.modality else None,
            seed=moment.seed,
            **options,
        )


@dataclass(frozen=True)
class ConstantPosition:
    """The hands stay as they are."""

    times: NDArray[np.float64] = field(default_factory=lambda: np.arange(1, STEPS + 1) / FPS)

    def predict(self, moment: Moment) -> HandChunk:
        return chunk_from_states(self.times, [moment.state] * len(self.times))


@dataclass(frozen=True)
class ConstantVelocity:
    """Wrists move and turn, and fingers bend, as they did over the last frame."""

    times: NDArray[np.float64] = field(default_factory=lambda: np.arange(1, STEPS + 1) / FPS)

    def predict(self, moment: Moment) -> HandChunk:
        now, before = moment.state, moment.previous or moment.state
        turn, turn_before = matrix_from_6d(now.rotation), matrix_from_6d(before.rotation)
        spins = [mat2axangle(turn[row] @ turn_before[row].T) for row in range(2)]
        states = []
        for ahead in self.times / moment.interval:
            turned = [axangle2mat(axis, ahead * angle) for axis, angle in spins]
            states.append(
                HandState(
                    now.translation + ahead * (now.translation - before.translation),
                    rotation_6d(np.stack(turned) @ turn),
                    now.fingers + ahead * (now.fingers - before.fingers),
                    now.valid,
                    now.finger_names,
                )
            )
        return chunk_from_states(self.times, states)


@dataclass(frozen=True)
class MeanMotion:
    """The training set's mean motion relative to the present wrist, whatever is seen or said.

    Attributes:
        times: (N,) seconds.
        translation: (N, 2, 3) metres in the frame of the present wrist.
        rotation: (N, 2, 3, 3) relative to the present wrist.
        fingers: (N, 2, F) radians added to the present angles.
    """

    times: NDArray[np.float64]
    translation: NDArray[np.float64]
    rotation: NDArray[np.float64]
    fingers: NDArray[np.float64]

    def predict(self, moment: Moment) -> HandChunk:
        now = moment.state
        turn = matrix_from_6d(now.rotation)  # (2, 3, 3)
        moved = np.einsum("hij,nhj->nhi", turn, self.translation)
        return HandChunk(
            self.times,
            now.translation + moved,
            turn @ self.rotation,
            now.fingers + self.fingers,
            now.valid,
            now.finger_names,
        )

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {name: np.asarray(getattr(self, name)).tolist() for name in self.__annotations__}

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> MeanMotion:
        """The inverse of ``document``."""
        return cls(**{name: np.array(document[name]) for name in cls.__annotations__})


def mean_motion(chunks: list[tuple[HandState, HandChunk, NDArray[np.bool_]]]) -> MeanMotion:
    """Mean over (state, what followed, (N,) bool which of its steps are known).

    Rotations are averaged as matrices and brought back to SO(3).

    Raises:
        ValueError: if there is no chunk, or some step is known in none.
    """
    if not chunks:
        raise ValueError("no motion to take the mean of: the dataset has no window")
    times = chunks[0][1].times
    total = np.zeros(len(times))
    translation = np.zeros((len(times), 2, 3))
    rotation = np.zeros((len(times), 2, 3, 3))
    fingers = np.zeros_like(chunks[0][1].fingers)
    for state, future, known in chunks:
        turn = matrix_from_6d(state.rotation)
        weight = known.astype(float)
        total += weight
        moved = future.translation - state.translation
        translation += weight[:, None, None] * np.einsum("hji,nhj->nhi", turn, moved)
        rotation += weight[:, None, None, None] * (np.swapaxes(turn, -1, -2) @ future.rotation)
        fingers += weight[:, None, None] * (future.fingers - state.fingers)
    if not total.all():
        raise ValueError(f"no window knows the steps {np.flatnonzero(total == 0).tolist()}")
    u, _, v = np.linalg.svd(rotation)
    u[..., :, -1] *= np.sign(np.linalg.det(u @ v))[..., None]
    share = total[:, None, None]
    return MeanMotion(times, translation / share, u @ v, fingers / share)
