"""Which hand joints does the camera see? Soft occlusion between joints, and measured depth.

The world model's control asks the same question on its latent grid. Here the answer must not
depend on any grid: a joint hides what lies behind it as a ball of a finger's thickness would,
so the same hand has the same visibility in every image size. A depth image knows more: what else
lies in front, an object or the robot's own arm.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ego_world_model.camera import PinholeCamera
from ego_world_model.hands import HandJoints, bones

THICKNESS = 0.014
"""Standard deviation in metres of the blur that stands for a finger's or palm's width."""

DEPTH_MARGIN = 0.03
"""Metres that an occluder must be in front: neighbours in one flat hand do not hide each other."""

DEPTH_SOFTNESS = 0.005
"""Metres over which being in front fades in."""

DEPTH_TOLERANCE = 0.06
"""Metres in front of a joint at which a measured surface may still be the hand's own: joints lie
inside of it, a finger's 5 to 15 mm deep, those of the palm up to 50 mm (Dex3's thumb base)."""

# Bones hide too; points this far along each stand for them.
_ALONG = np.array([0.25, 0.5, 0.75])


def visibility(
    hands: HandJoints, camera: PinholeCamera, pixels: ArrayLike | None = None
) -> NDArray[np.float32]:
    """(J,) visibility 0..1: 1 in the image and in front, 0 hidden, outside the image or invalid.

    v_j = prod_k (1 - G_k(j) * sigmoid((z_j - z_k - margin) / softness)): G_k is near 1 where the
    occluder k, at its own depth, lies on the ray to joint j.

    Args:
        pixels: (J, 2) the joints' projections, where already known.
    """
    if pixels is None:
        pixels = camera.project(hands.positions)
    seen = hands.valid & camera.contains(pixels)
    out = np.zeros(len(seen), np.float32)
    targets = np.flatnonzero(seen)
    if not len(targets):
        return out
    occluders = _occluders(hands)
    depth = hands.positions[targets, 2]
    ray = hands.positions[targets, :2] / depth[:, None]
    hides_ray = occluders[:, :2] / occluders[:, 2:]
    apart = (hides_ray[None] - ray[:, None]) * occluders[None, :, 2:]  # (targets, occluders, 2)
    near = np.exp((apart**2).sum(axis=2) / (-2 * THICKNESS**2))
    behind = (depth[:, None] - occluders[None, :, 2] - DEPTH_MARGIN) / DEPTH_SOFTNESS
    in_front = 0.5 + 0.5 * np.tanh(0.5 * behind)  # the logistic function, without overflow
    out[targets] = (1.0 - near * in_front).prod(axis=1)
    return out


def measured_visibility(
    hands: HandJoints,
    pixels: ArrayLike,
    depth: NDArray[np.float32],
    *,
    tolerance: float = DEPTH_TOLERANCE,
) -> NDArray[np.float32]:
    """(J,) factors 0..1 on :func:`visibility`: 0 where something is measured in front of a joint.

    What counts is the median of the 3 x 3 pixels about a joint, without those that have no depth:
    the edges of depth images are ragged. A joint without measured depth keeps its 1.

    Args:
        pixels: (J, 2) the joints' projections in the depth image.
        depth: (H, W) metres along z, 0 where nothing was measured; aligned to the colour image.
        tolerance: metres that a surface must be in front of a joint to hide it.
    """
    pixels = np.asarray(pixels, np.float64)
    height, width = depth.shape
    out = np.ones(len(pixels), np.float32)
    with np.errstate(invalid="ignore"):
        inside = (pixels > -0.5) & (pixels < (width - 0.5, height - 0.5))
    joints = np.flatnonzero(hands.valid & inside.all(axis=1))
    if not len(joints):
        return out
    column, row = np.round(pixels[joints]).astype(np.intp).T
    around = np.arange(-1, 2)
    rows = np.clip(row[:, None, None] + around[:, None], 0, height - 1)
    columns = np.clip(column[:, None, None] + around, 0, width - 1)
    patch = depth[rows, columns].reshape(len(joints), 9).astype(np.float64)
    measured = (patch > 0).any(axis=1)
    patch[patch <= 0] = np.nan
    joints, patch = joints[measured], patch[measured]
    if len(joints):
        in_front = hands.positions[joints, 2] - np.nanmedian(patch, axis=1) - tolerance
        out[joints] = 0.5 - 0.5 * np.tanh(0.5 * in_front / DEPTH_SOFTNESS)
    return out


def _occluders(hands: HandJoints) -> NDArray[np.float32]:
    """(N, 3) points in front of the camera that hide what is behind: joints and bones."""
    pairs = _pairs(hands.valid.tobytes())
    points = hands.positions[hands.valid]
    if len(pairs):
        start, end = hands.positions[pairs[:, 0]], hands.positions[pairs[:, 1]]
        along = _ALONG[:, None, None] * (end - start) + start
        points = np.concatenate([points, along.reshape(-1, 3).astype(np.float32)])
    return points[points[:, 2] > 0.05]


@functools.lru_cache(maxsize=64)
def _pairs(valid: bytes) -> NDArray[np.intp]:
    return np.array(bones(np.frombuffer(valid, bool)), np.intp).reshape(-1, 2)
