"""Side-by-side stereo frames: two eyes in one picture of double width; one of them is used."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EYES = ("none", "left", "right")
"""Which half of a frame is the camera's image; ``none``: the whole frame."""


def eye_width(frame_width: int, eye: str) -> int:
    """Columns of one eye in a frame of ``frame_width`` columns.

    Raises:
        ValueError: an odd width, which no two eyes share.
    """
    if eye == "none":
        return frame_width
    if frame_width % 2:
        raise ValueError(f"is {frame_width}, odd: two eyes side by side have an even width")
    return frame_width // 2


def one_eye(frame: NDArray[np.uint8], eye: str) -> NDArray[np.uint8]:
    """(H, W, 3) frame → (H, W, 3) or (H, W / 2, 3): the eye asked for (a view)."""
    width = eye_width(frame.shape[1], eye)
    return frame[:, width:] if eye == "right" else frame[:, :width]
