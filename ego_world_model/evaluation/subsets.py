"""How occluded the hands of a clip are, and which clips count as occlusion-heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ego_world_model.data.schema import MASK_CLASSES, Episode
from ego_world_model.hands import NUM_SLOTS
from ego_world_model.perception import visible_joints

if TYPE_CHECKING:
    from ego_world_model.camera import PinholeCamera

HEAVY = 0.25
"""Share of hidden joints from which a clip counts as occlusion-heavy: about the upper third of
simulated held-out clips. A Dex3 hand hides some 0.17 of the joints by itself, since its index
finger runs in front of its middle one. Fixed, so that a clip's subset does not depend on which
other clips are evaluated."""


def occlusion(clip: Episode) -> float:
    """Share of a clip's joints that something hides from the camera, in 0..1.

    Counted are the valid joints among the 42 slots that project into the image, in all frames, the
    reference frame included. One is hidden if an object, an arm of the other side or the other hand
    is drawn at its pixel, or another finger or palm of its own hand passes in front of it
    (``perception.visible_joints``). Depth images are not used, so that data with and without them
    is divided alike. NaN if no joint projects into the image.

    Raises:
        ValueError: if the clip has no masks, which only simulated episodes have.
    """
    if clip.masks is None:
        raise ValueError(
            "occlusion is measured by masks and this clip has none; use simulated episodes"
        )
    pixels, visible = visible_joints(clip.hand_positions, clip.hand_valid, clip.masks, clip.camera)
    inside = clip.camera.contains(pixels) & clip.hand_valid[:, :NUM_SLOTS]
    # A joint at the edge of its finger may round to a pixel of the table; nothing hides it.
    covered = _at(clip.masks, pixels, inside, clip.camera) != MASK_CLASSES.index("background")
    hidden = inside & covered & ~visible
    return float(hidden.sum() / inside.sum()) if inside.any() else float("nan")


def is_heavy(clip: Episode) -> bool:
    """Whether at least ``HEAVY`` of a clip's joints are hidden; else it is a plain one.

    Raises:
        ValueError: if the clip has no masks.
    """
    return occlusion(clip) >= HEAVY


def _at(
    masks: NDArray[np.uint8],
    pixels: NDArray[np.float32],
    inside: NDArray[np.bool_],
    camera: PinholeCamera,
) -> NDArray[np.uint8]:
    """(T, J) mask classes (T, H, W) at the pixels (T, J, 2) that lie inside; elsewhere anything."""
    where = np.rint(np.where(inside[..., None], pixels, 0)).astype(np.intp)
    u = where[..., 0].clip(0, camera.width - 1)
    v = where[..., 1].clip(0, camera.height - 1)
    return masks[np.arange(len(masks))[:, None], v, u]
