"""Hand joints and bones drawn onto images: the live overlay, the strips and the browser page.

One palette serves every picture, two- or three-dimensional: the left hand is warm, the right hand
cool, and each finger has its own hue, so that crossed hands and neighbouring fingers stay apart.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from ego_world_model.hands import EXTRA_SLOTS, NUM_SLOTS, SLOTS_PER_HAND, bones

# Wrist and forearm, then thumb, index, middle, ring, pinky.
_LEFT = (
    (255, 243, 224),
    (255, 214, 10),
    (255, 140, 26),
    (244, 63, 54),
    (236, 64, 170),
    (255, 160, 200),
)
_RIGHT = (
    (224, 244, 255),
    (118, 230, 60),
    (20, 224, 200),
    (30, 150, 255),
    (110, 96, 255),
    (190, 150, 255),
)

HIDDEN_ALPHA = 0.25
"""Opacity of a joint with visibility 0; a visible one is opaque."""


def slot_colours(num_slots: int = NUM_SLOTS) -> NDArray[np.uint8]:
    """(J, 3) uint8 RGB colour of each slot; extra slots have their hand's wrist colour."""
    rows = []
    for palette in (_LEFT, _RIGHT):
        rows += [palette[0]] + [palette[1 + joint // 4] for joint in range(SLOTS_PER_HAND - 1)]
    rows += [_LEFT[0] if name.startswith("left") else _RIGHT[0] for name in EXTRA_SLOTS]
    if not NUM_SLOTS <= num_slots <= len(rows):
        raise ValueError(f"num_slots must be {NUM_SLOTS} to {len(rows)}, got {num_slots}")
    return np.array(rows[:num_slots], dtype=np.uint8)


def bone_colours(pairs: list[tuple[int, int]], num_slots: int = NUM_SLOTS) -> NDArray[np.uint8]:
    """(B, 3) uint8 RGB colour of each bone: that of its outer end, so a finger is one hue."""
    colours = slot_colours(num_slots)
    return colours[[end for _, end in pairs]].reshape(-1, 3)


def draw_hands(
    image: ArrayLike,
    pixels: ArrayLike,
    valid: ArrayLike,
    visibility: ArrayLike | None = None,
    *,
    line_width: int | None = None,
) -> NDArray[np.uint8]:
    """A (read-only) copy of the image with hand joints and bones drawn on it.

    Args:
        image: (H, W, 3) uint8 RGB.
        pixels: (J, 2) columns and rows, J = 42 or more; NaN or outside the image is allowed.
        valid: (J,) bool; invalid slots are left out.
        visibility: (J,) 0..1, where known; hidden joints and their bones are drawn faintly.
        line_width: pixels of a bone's coloured core; grows with the image where not given.

    Raises:
        ValueError: if a shape does not fit.
    """
    image = np.asarray(image)
    pixels = np.asarray(pixels, dtype=np.float64)
    valid = np.asarray(valid, dtype=bool)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
    if valid.ndim != 1 or len(valid) < NUM_SLOTS or pixels.shape != (len(valid), 2):
        raise ValueError(
            f"pixels must be (J, 2) and valid (J,) with J >= {NUM_SLOTS}, "
            f"got {pixels.shape} and {valid.shape}"
        )
    alpha = _alpha(visibility, len(valid))
    height, width = image.shape[:2]
    core = line_width or max(1, round(min(height, width) / 130))
    drawn = valid & np.isfinite(pixels).all(axis=1)
    # Plain lists from here on: indexing numpy arrays joint by joint costs more than the drawing.
    colours = slot_colours(len(valid)).tolist()
    opacity = (255 * alpha).astype(int).tolist()
    points = pixels.tolist()

    canvas = Image.fromarray(np.ascontiguousarray(image))
    draw = ImageDraw.Draw(canvas, "RGBA")  # blends semi-transparent colours into the RGB image
    segments = []
    for a, b in _bones(drawn.tobytes()):
        clipped = _clip(points[a], points[b], width, height, margin=4 * core)
        if clipped is not None:
            segments.append((clipped, (*colours[b], min(opacity[a], opacity[b]))))
    # All dark rims first: a rim drawn later would cut through a bone that crosses it.
    for line, colour in segments:
        draw.line(line, fill=(0, 0, 0, colour[3] * 3 // 5), width=core + 2)
    for line, colour in segments:
        draw.line(line, fill=colour, width=core)
    radius = max(1.0, 1.1 * core)
    near = drawn & (np.abs(pixels - (width / 2, height / 2)) < (width, height)).all(axis=1)
    for slot in np.flatnonzero(near).tolist():
        u, v = points[slot]
        size = radius * (1.5 if slot in (0, SLOTS_PER_HAND) else 1.0)
        draw.ellipse(
            (u - size, v - size, u + size, v + size),
            fill=(*colours[slot], opacity[slot]),
            outline=(0, 0, 0, opacity[slot]),
        )
    return np.asarray(canvas)


def _alpha(visibility: ArrayLike | None, num_slots: int) -> NDArray[np.float64]:
    """(J,) opacity from visibility; unknown visibility counts as visible."""
    if visibility is None:
        return np.ones(num_slots)
    visibility = np.asarray(visibility, dtype=np.float64)
    if visibility.shape != (num_slots,):
        raise ValueError(f"visibility must be ({num_slots},), got {visibility.shape}")
    return HIDDEN_ALPHA + (1 - HIDDEN_ALPHA) * np.clip(np.nan_to_num(visibility), 0, 1)


@functools.lru_cache(maxsize=64)
def _bones(drawn: bytes) -> list[tuple[int, int]]:
    """Bones of a validity pattern, remembered: a robot's pattern rarely changes."""
    return bones(np.frombuffer(drawn, dtype=bool))


def _clip(
    start: list[float], end: list[float], width: int, height: int, margin: int
) -> tuple[float, float, float, float] | None:
    """The part of a segment inside the image (plus margin), or None (Liang-Barsky clipping).

    A joint close to the camera's plane projects thousands of pixels away; Pillow would walk there.
    """
    u, v = start
    du, dv = end[0] - u, end[1] - v
    enter, leave = 0.0, 1.0
    for direction, room in (
        (-du, u + margin),
        (du, width + margin - u),
        (-dv, v + margin),
        (dv, height + margin - v),
    ):
        if direction == 0:
            if room < 0:
                return None
        elif direction < 0:
            enter = max(enter, room / direction)
        else:
            leave = min(leave, room / direction)
    if enter > leave:
        return None
    return (u + enter * du, v + enter * dv, u + leave * du, v + leave * dv)
