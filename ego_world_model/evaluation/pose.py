"""Errors of 3-D joints: MPJPE, PA-MPJPE, and pixels lifted to the depth that was commanded.

All positions and errors are in metres; reports print millimetres.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ego_world_model.camera import PinholeCamera

MIN_ALIGNED = 3
"""Joints that a frame needs for an alignment to leave an error worth having."""


def joint_distances(
    found: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None
) -> NDArray[np.float64]:
    """(..., J) distances in metres between joints; NaN where a joint does not count.

    Args:
        found, truth: (..., J, 3) metres, in the same frame.
        valid: (..., J) bool, joints that count; None for all. A joint without a finite position in
            both does not count either.

    Raises:
        ValueError: if the shapes do not fit.
    """
    found, truth, counts = _checked(found, truth, valid)
    distances = np.linalg.norm(found - truth, axis=-1)
    return np.where(counts, distances, np.nan)


def mpjpe(found: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> float:
    """Mean per-joint position error in metres, over all joints that count (``joint_distances``);
    NaN if there are none."""
    return _mean(joint_distances(found, truth, valid))


def pa_mpjpe(found: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> float:
    """MPJPE in metres after each frame's joints were aligned to the true ones by ``procrustes``.

    Frames with fewer than ``MIN_ALIGNED`` joints that count are left out; NaN if none remain. One
    alignment for a whole trajectory, which some papers report, is that of its joints reshaped to a
    single frame, (T * J, 3).
    """
    return _mean(joint_distances(procrustes(found, truth, valid), truth, valid))


def procrustes(
    found: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Joints moved onto the true ones by the best similarity transform of each frame.

    Rotation, translation and scale that minimise the squared distances of the joints that count
    (Umeyama, 1991); mirror images are excluded.

    Args:
        found, truth: (..., J, 3) metres.
        valid: (..., J) bool, or None for all.

    Returns:
        (..., J, 3) metres, in the frame of ``truth``; NaN for joints that do not count, and in
        frames with fewer than ``MIN_ALIGNED`` that do.

    Raises:
        ValueError: if the shapes do not fit.
    """
    found, truth, counts = _checked(found, truth, valid)
    weight = counts[..., None].astype(np.float64)
    number = np.maximum(weight.sum(axis=-2, keepdims=True), 1)  # (..., 1, 1)
    found_mean = (weight * found).sum(axis=-2, keepdims=True) / number
    truth_mean = (weight * truth).sum(axis=-2, keepdims=True) / number
    x, y = weight * (found - found_mean), weight * (truth - truth_mean)
    u, stretch, v = np.linalg.svd(np.swapaxes(y, -1, -2) @ x)  # of sum y xᵀ, (..., 3, 3)
    signs = np.ones_like(stretch)
    signs[..., -1] = np.where(np.linalg.det(u) * np.linalg.det(v) < 0, -1.0, 1.0)
    rotation = (u * signs[..., None, :]) @ v
    spread = np.square(x).sum(axis=(-1, -2))
    scale = np.divide(
        (stretch * signs).sum(-1), spread, out=np.zeros_like(spread), where=spread > 0
    )
    aligned = scale[..., None, None] * (x @ np.swapaxes(rotation, -1, -2)) + truth_mean
    enough = counts.sum(axis=-1, keepdims=True) >= MIN_ALIGNED
    return np.where((counts & enough)[..., None], aligned, np.nan)


def lift(pixels: ArrayLike, depth: ArrayLike, camera: PinholeCamera) -> NDArray[np.float64]:
    """Keypoints found in an image, put at a given depth: (..., 2) pixels → (..., 3) metres.

    With the commanded joints' depths, ``mpjpe(lift(pixels, joints[..., 2], camera), joints)`` is
    the control error in metres *at the commanded depth*: the error across the line of sight. What
    is wrong along it cannot be seen in one image and is not in the number, so it is a lower bound
    of the 3-D error.

    Args:
        pixels: (..., 2), pixel centres at integers, in the image that ``camera`` describes.
        depth: (...) metres along z of the camera's optical frame.
        camera: of that image; resized images need ``camera.resized``.

    Returns:
        (..., 3) metres in the optical frame; NaN where the depth is not positive or not known.

    Raises:
        ValueError: if the shapes do not fit.
    """
    pixels, depth = np.asarray(pixels, np.float64), np.asarray(depth, np.float64)
    if pixels.shape[-1:] != (2,) or depth.shape != pixels.shape[:-1]:
        raise ValueError(
            f"expected pixels (..., 2) and depth (...), got {pixels.shape} and {depth.shape}"
        )
    with np.errstate(invalid="ignore"):
        return camera.unproject(pixels, np.where(depth > 0, depth, np.nan))


def _checked(
    found: ArrayLike, truth: ArrayLike, valid: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Both as float64 with zeros where a joint does not count, and which ones count."""
    found, truth = np.asarray(found, np.float64), np.asarray(truth, np.float64)
    if found.shape != truth.shape or found.ndim < 2 or found.shape[-1] != 3:
        raise ValueError(
            f"found and truth must share a shape (..., J, 3), got {found.shape} and {truth.shape}"
        )
    counts = np.isfinite(found).all(axis=-1) & np.isfinite(truth).all(axis=-1)
    if valid is not None:
        valid = np.asarray(valid, bool)
        if valid.shape != found.shape[:-1]:
            raise ValueError(f"valid {valid.shape} must match the joints {found.shape[:-1]}")
        counts &= valid
    there = counts[..., None]
    return np.where(there, found, 0.0), np.where(there, truth, 0.0), counts


def _mean(distances: NDArray[np.float64]) -> float:
    known = distances[np.isfinite(distances)]
    return float(known.mean()) if len(known) else float("nan")
