"""A chunk of future hand motion: what the policy predicts, whatever the robot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ego_world_model.kinematics.state import HandState, rotation_6d


@dataclass(frozen=True)
class HandChunk:
    """N future steps of both hands; row 0 is the left hand, row 1 the right.

    Attributes:
        times: (N,) seconds from the observation, above 0, rising.
        translation: (N, 2, 3) metres, wrist origin in the camera of the observation.
        rotation: (N, 2, 3, 3) wrist orientation in that camera.
        fingers: (N, 2, F) radians, finger joints as ``finger_names`` lists them, 0 beyond.
        valid: (2,) bool, whether the robot has that hand.
        finger_names: per hand, the finger joints.

    Raises:
        ValueError: naming the field whose shape does not fit.
    """

    times: NDArray[np.float64]
    translation: NDArray[np.float64]
    rotation: NDArray[np.float64]
    fingers: NDArray[np.float64]
    valid: NDArray[np.bool_]
    finger_names: tuple[tuple[str, ...], tuple[str, ...]]

    def __post_init__(self) -> None:
        for name in ("times", "translation", "rotation", "fingers"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        object.__setattr__(self, "valid", np.asarray(self.valid, dtype=bool))
        steps = len(self.times)
        width = max((len(names) for names in self.finger_names), default=0)
        for name, shape in (
            ("times", (steps,)),
            ("translation", (steps, 2, 3)),
            ("rotation", (steps, 2, 3, 3)),
            ("valid", (2,)),
        ):
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {getattr(self, name).shape}")
        if self.fingers.shape[:2] != (steps, 2) or self.fingers.shape[2] < width:
            raise ValueError(
                f"fingers must have shape ({steps}, 2, F) with F >= {width}, got "
                f"{self.fingers.shape}"
            )
        if not steps or self.times[0] <= 0 or (np.diff(self.times) <= 0).any():
            raise ValueError(f"times must be above 0 and rise, got {self.times}")

    def __len__(self) -> int:
        return len(self.times)

    def state(self, step: int) -> HandState:
        """Both hands at one step, in the camera of the observation."""
        return HandState(
            self.translation[step],
            rotation_6d(self.rotation[step]),
            self.fingers[step],
            self.valid,
            self.finger_names,
        )
