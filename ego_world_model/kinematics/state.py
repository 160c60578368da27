"""The state of both hands as the motion policy sees it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


def rotation_6d(rotation: ArrayLike) -> NDArray[np.float64]:
    """(..., 3, 3) rotation → (..., 6): its first two columns, one after the other."""
    rotation = np.asarray(rotation, dtype=np.float64)
    return np.concatenate([rotation[..., :, 0], rotation[..., :, 1]], axis=-1)


def matrix_from_6d(six: ArrayLike) -> NDArray[np.float64]:
    """(..., 6) → (..., 3, 3) rotation by Gram-Schmidt on the two columns (determinant +1)."""
    six = np.asarray(six, dtype=np.float64)
    first, second = six[..., :3], six[..., 3:]
    x = first / np.linalg.norm(first, axis=-1, keepdims=True)
    second = second - np.sum(x * second, axis=-1, keepdims=True) * x
    y = second / np.linalg.norm(second, axis=-1, keepdims=True)
    return np.stack([x, y, np.cross(x, y)], axis=-1)


@dataclass(frozen=True)
class HandState:
    """Both hands at one instant; row 0 is the left hand, row 1 the right.

    Attributes:
        translation: (2, 3) metres, wrist origin in the camera optical frame.
        rotation: (2, 6) wrist orientation in the camera optical frame, 6-D (see ``rotation_6d``).
        fingers: (2, F) radians, finger joints in the order of the embodiment's hand chain.
        valid: (2,) bool, whether the robot has that hand.
        finger_names: per hand, the joints that ``fingers`` holds; () where nobody said.
    """

    translation: NDArray[np.float64]
    rotation: NDArray[np.float64]
    fingers: NDArray[np.float64]
    valid: NDArray[np.bool_]
    finger_names: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    def __post_init__(self) -> None:
        for name, width in (("translation", 3), ("rotation", 6), ("fingers", None)):
            value = np.asarray(getattr(self, name), dtype=np.float64)
            if value.ndim != 2 or value.shape[0] != 2 or (width and value.shape[1] != width):
                raise ValueError(
                    f"HandState.{name} must have shape (2, {width or 'F'}), got {value.shape}"
                )
            object.__setattr__(self, name, value)
        valid = np.asarray(self.valid, dtype=bool)
        if valid.shape != (2,):
            raise ValueError(f"HandState.valid must have shape (2,), got {valid.shape}")
        object.__setattr__(self, "valid", valid)
        for side, names in zip(("left", "right"), self.finger_names, strict=True):
            if len(names) > self.fingers.shape[1]:
                raise ValueError(
                    f"HandState.finger_names has {len(names)} {side} joints, but fingers has "
                    f"{self.fingers.shape[1]} columns"
                )
