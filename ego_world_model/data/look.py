"""Pictures of episodes for people: what a dataset holds, at a glance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ego_world_model.data.schema import MASK_CLASSES, Episode
from ego_world_model.drawing import draw_hands
from ego_world_model.media import strip

MASK_COLOURS: NDArray[np.uint8] = np.array(
    [
        (24, 24, 28),
        (255, 140, 26),
        (30, 150, 255),
        (150, 84, 20),
        (20, 84, 150),
        (120, 220, 80),
        (130, 130, 136),
    ],
    dtype=np.uint8,
)
"""A colour for each of ``MASK_CLASSES``: left warm, right cool, the manipulated object green."""

assert len(MASK_COLOURS) == len(MASK_CLASSES)


def colour_masks(masks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(..., H, W) class numbers → (..., H, W, 3) colours."""
    return MASK_COLOURS[masks]


def colour_depth(
    depth: NDArray[np.uint16], near_mm: float = 200.0, far_mm: float = 1200.0
) -> NDArray[np.uint8]:
    """(..., H, W) millimetres → (..., H, W, 3) grey: near is bright, unknown is dark red."""
    grey = 255 - 255 * np.clip((depth.astype(np.float32) - near_mm) / (far_mm - near_mm), 0, 1)
    picture = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
    picture[depth == 0] = (80, 0, 0)
    return picture


def episode_strip(episode: Episode, *, count: int = 8, scale: int = 1) -> NDArray[np.uint8]:
    """A sheet of ``count`` frames, evenly spread: images, hand joints, masks and depth."""
    chosen = np.linspace(0, len(episode) - 1, min(count, len(episode))).round().astype(int)
    images = episode.images[chosen].repeat(scale, axis=1).repeat(scale, axis=2)
    camera = episode.camera.resized(scale * episode.camera.width, scale * episode.camera.height)
    overlay = [
        draw_hands(image, camera.project(episode.hand_positions[k]), episode.hand_valid[k])
        for image, k in zip(images, chosen, strict=True)
    ]
    rows, labels = [images, overlay], ["image", "joints"]
    if episode.masks is not None:
        masks = episode.masks[chosen].repeat(scale, axis=1).repeat(scale, axis=2)
        rows.append(colour_masks(masks))
        labels.append("masks")
    if episode.depth is not None:
        depth = episode.depth[chosen].repeat(scale, axis=1).repeat(scale, axis=2)
        rows.append(colour_depth(depth))
        labels.append("depth")
    return strip(rows, labels, columns=[f"{k / episode.fps:.1f} s" for k in chosen])
