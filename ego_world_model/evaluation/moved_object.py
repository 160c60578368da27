"""Which object was moved in a clip, from simulator masks that name classes but not objects.

An object counts as manipulated from the moment it is touched; before that its mask says "other",
and afterwards it may lie still again. So the moved object is followed backwards through the clip,
from the manipulated objects seen at its end.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, label

from ego_world_model.data.schema import MASK_CLASSES

SMALLEST = 20
"""Pixels that a moved object must have in the first and the last frame to be judged."""
OVERLAP = 0.5
"""A moved object's masks in the first and the last frame overlap (IoU) less than this, so that
an object left where it was cannot count as found where it went."""
_REACH = np.ones((7, 7), bool)
_MANIPULATED = MASK_CLASSES.index("manipulated_object")
_OTHER = MASK_CLASSES.index("other_objects")


def moved_object(masks: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
    """(T, H, W) mask of what was manipulated and moved between the ends, or None.

    Args:
        masks: (T, H, W) simulator masks.
    """
    moved = np.zeros(masks.shape, bool)
    parts, count = label(masks[-1] == _MANIPULATED, np.ones((3, 3)))
    for number in range(1, count + 1):
        track = _followed(masks, parts == number)
        if track is None or min(track[0].sum(), track[-1].sum()) < SMALLEST:
            continue
        if (track[0] & track[-1]).sum() < OVERLAP * (track[0] | track[-1]).sum():
            moved |= track
    return moved if moved.any() else None


def _followed(masks: NDArray[np.uint8], last: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """An object's mask in all frames, given its mask in the last one; None if it is lost."""
    track = np.zeros(masks.shape, bool)
    track[-1] = last
    for k in range(len(masks) - 2, -1, -1):
        near = binary_dilation(track[k + 1], _REACH)
        for kind in (_MANIPULATED, _OTHER):
            track[k] = _parts_within(masks[k] == kind, near)
            if track[k].any():
                break
        else:
            return None
    return track


def _parts_within(mask: NDArray[np.bool_], near: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Connected parts of ``mask`` that lie in ``near`` to at least a third."""
    parts, count = label(mask, np.ones((3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    inside = np.bincount(parts[near], minlength=count + 1)
    keep = 3 * inside >= sizes
    keep[0] = False
    return keep[parts]
