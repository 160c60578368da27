"""Labels for the estimator from what the simulator knows: mask classes, projected joints, depth.

The estimator's classes merge the simulator's two arms, and its two kinds of object: which of two
objects will be manipulated cannot be seen in a single frame.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ego_world_model.camera import PinholeCamera
from ego_world_model.data.schema import HAND_CLASSES, MASK_CLASSES
from ego_world_model.hands import NUM_SLOTS, SLOTS_PER_HAND, bones

CLASS_NAMES: tuple[str, ...] = ("background", "left_hand", "right_hand", "arms", "objects")
"""The estimator's classes, in order of their number."""

_MERGED = {"left_arm": "arms", "right_arm": "arms"} | dict.fromkeys(
    ("manipulated_object", "other_objects"), "objects"
)
_CLASS_OF_MASK = np.array(
    [CLASS_NAMES.index(_MERGED.get(name, name)) for name in MASK_CLASSES], dtype=np.uint8
)

FINGER_RADIUS, PALM_RADIUS = 0.012, 0.022
"""Metres: half the thickness of a finger, and of the palm around the lines wrist to knuckles."""

IN_FRONT = 0.03
"""Metres by which a bone must be nearer than a joint to hide it."""

_ARM_CLASSES = (MASK_CLASSES.index("left_arm"), MASK_CLASSES.index("right_arm"))

VISIBLE_DEPTH_MARGIN = 0.055
"""Metres that a joint's centre may lie behind the surface seen at its pixel and still be visible:
joints sit inside their links, the palm's deepest."""


def class_labels(masks: ArrayLike) -> NDArray[np.uint8]:
    """Simulator masks (...) uint8 → estimator classes (...) uint8, see ``CLASS_NAMES``.

    Raises:
        ValueError: if a mask value is not one of 0 to 6.
    """
    masks = np.asarray(masks)
    if masks.size and masks.max() >= len(_CLASS_OF_MASK):
        raise ValueError(
            f"masks hold the value {int(masks.max())}; classes are 0 to {len(MASK_CLASSES) - 1} "
            f"({', '.join(MASK_CLASSES)})"
        )
    return _CLASS_OF_MASK[masks]


def visible_joints(
    positions: ArrayLike,
    valid: ArrayLike,
    masks: ArrayLike,
    camera: PinholeCamera,
    depth: ArrayLike | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Pixels of the hand joints of T frames, and whether each can be seen in its frame.

    A joint is visible if it is valid, projects into the image onto its own hand or arm, and is not
    behind another part of it: with depth, it lies no more than ``VISIBLE_DEPTH_MARGIN`` behind the
    surface seen there; without, no finger or palm passes in front of it (see ``_behind_bones``).

    Args:
        positions: (T, J, 3) metres in the camera of each frame; slots beyond the 42 are ignored.
        valid: (T, J) bool.
        masks: (T, H, W) uint8 simulator masks of the size that ``camera`` describes.
        depth: (T, H, W) uint16 millimetres along z, 0 where unknown.

    Returns:
        pixels (T, 42, 2) float32, NaN behind the camera; visible (T, 42) bool.
    """
    positions = np.asarray(positions, dtype=np.float64)[:, :NUM_SLOTS]
    valid = np.asarray(valid, dtype=bool)[:, :NUM_SLOTS]
    masks = np.asarray(masks)
    if masks.shape[1:] != (camera.height, camera.width):
        raise ValueError(
            f"masks are {masks.shape[2]}x{masks.shape[1]} but the camera is "
            f"{camera.width}x{camera.height}; resize one of them"
        )
    pixels = camera.project(positions)  # (T, 42, 2)
    inside = camera.contains(pixels) & valid
    u = np.where(inside, np.rint(pixels[..., 0]), 0).astype(np.intp).clip(0, camera.width - 1)
    v = np.where(inside, np.rint(pixels[..., 1]), 0).astype(np.intp).clip(0, camera.height - 1)
    frame = np.arange(len(masks))[:, None]
    left = np.arange(NUM_SLOTS) < SLOTS_PER_HAND
    seen = masks[frame, v, u]
    # The wrist's centre lies where hand and forearm meet, and may fall on either.
    visible = inside & (
        (seen == np.where(left, *HAND_CLASSES)) | (seen == np.where(left, *_ARM_CLASSES))
    )
    if depth is None:
        visible &= ~_behind_bones(positions, pixels, valid, camera)
    else:
        surface = np.asarray(depth)[frame, v, u].astype(np.float64) / 1000.0
        visible &= (surface == 0) | (positions[..., 2] - surface <= VISIBLE_DEPTH_MARGIN)
    return pixels.astype(np.float32), visible


def _behind_bones(
    positions: NDArray[np.float64],
    pixels: NDArray[np.float64],
    valid: NDArray[np.bool_],
    camera: PinholeCamera,
) -> NDArray[np.bool_]:
    """(T, J) whether a thick line between two other joints covers each joint.

    Args:
        positions: (T, J, 3) metres. pixels: (T, J, 2). valid: (T, J).
    """
    hidden = np.zeros(valid.shape, bool)
    depth = positions[..., 2]
    for a, b in bones(valid.any(axis=0)):
        palm = a % SLOTS_PER_HAND == 0
        start, along = pixels[:, a, None], (pixels[:, b] - pixels[:, a])[:, None]  # (T, 1, 2)
        length = np.maximum((along**2).sum(-1), 1e-9)
        share = (((pixels - start) * along).sum(-1) / length).clip(0, 1)  # (T, J)
        away = np.linalg.norm(pixels - start - share[..., None] * along, axis=-1)
        nearer = (1 - share) * depth[:, a, None] + share * depth[:, b, None]
        radius = (PALM_RADIUS if palm else FINGER_RADIUS) * camera.fx / np.maximum(nearer, 1e-3)
        covers = (away < radius) & (depth - nearer > IN_FRONT) & (nearer > 0)
        covers[:, [a, b]] = False
        hidden |= covers & (valid[:, a] & valid[:, b])[:, None]
    return hidden
