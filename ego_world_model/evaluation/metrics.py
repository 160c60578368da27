"""Metrics of imagined frames against true ones, whole or inside a region, with their definitions.

Frames are uint8 RGB; every metric of a clip pools the pixels of all its frames, and a region that
is empty in a clip gives NaN, which ``estimate`` leaves out (and counts). Sources: PSNR and L1 in
their plain form on 8-bit levels; SSIM after Wang et al., 2004 (Gaussian window, sigma 1.5).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_dilation, gaussian_filter

from ego_world_model.data.schema import MASK_CLASSES

PSNR_CAP = 60.0
"""dB given to frames that are (nearly) identical, so that means over clips stay finite."""

BACKGROUND_MARGIN = 3
"""Pixels around everything that moves which do not count as background."""

SSIM_C1, SSIM_C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
"""Stabilisers of SSIM on 8-bit levels: K1 = 0.01, K2 = 0.03."""

_HANDS = [MASK_CLASSES.index(name) for name in ("left_hand", "right_hand")]
_ARMS = [MASK_CLASSES.index(name) for name in ("left_arm", "right_arm")]
_OBJECT = [MASK_CLASSES.index("manipulated_object")]
_ANY_OBJECT = [*_OBJECT, MASK_CLASSES.index("other_objects")]


def regions(reference: ArrayLike, target: ArrayLike) -> dict[str, NDArray[np.bool_]]:
    """Regions in which a clip's frames are compared, from simulator masks.

    Args:
        reference: (H, W) uint8 mask of the reference frame.
        target: (T, H, W) uint8 masks of the true frames to compare with.

    Returns:
        (T, H, W) bool each:
        ``all``: every pixel;
        ``hand``: hands in the true frame (the primary region of every report);
        ``changed``: hands in the true frame or in the reference frame, so that a hand left behind
        as a ghost counts too;
        ``arms``: arms in the true frame;
        ``object``: the manipulated object in the true frame;
        ``hand_object``: hands or the manipulated object in the true frame;
        ``background``: at least ``BACKGROUND_MARGIN`` pixels away from hands, arms and manipulated
        objects of both the true and the reference frame, and from what is an object in only one of
        them (an object is "manipulated" from the moment it is touched, so it may not be yet).
    """
    reference, target = np.asarray(reference), np.asarray(target)
    if target.ndim != 3 or reference.shape != target.shape[1:]:
        raise ValueError(
            f"expected masks (H, W) and (T, H, W), got {reference.shape} and {target.shape}"
        )
    moving = np.isin(target, _HANDS + _ARMS + _OBJECT)
    moving |= np.isin(reference, _HANDS + _ARMS + _OBJECT)
    moving |= np.isin(target, _ANY_OBJECT) != np.isin(reference, _ANY_OBJECT)
    square = np.ones((1, 2 * BACKGROUND_MARGIN + 1, 2 * BACKGROUND_MARGIN + 1), bool)
    hand = np.isin(target, _HANDS)
    return {
        "all": np.ones(target.shape, bool),
        "hand": hand,
        "changed": hand | np.isin(reference, _HANDS),
        "arms": np.isin(target, _ARMS),
        "object": np.isin(target, _OBJECT),
        "hand_object": np.isin(target, _HANDS + _OBJECT),
        "background": ~binary_dilation(moving, square),
    }


def l1(frames: ArrayLike, truth: ArrayLike, region: ArrayLike | None = None) -> float:
    """Mean absolute difference in 8-bit levels, over the pixels of ``region`` and 3 channels.

    Args:
        frames, truth: (..., H, W, 3) uint8.
        region: (..., H, W) bool, or None for all pixels.
    """
    return pooled(np.abs(_difference(frames, truth)), region)


def psnr(frames: ArrayLike, truth: ArrayLike, region: ArrayLike | None = None) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(255² / MSE), capped at ``PSNR_CAP``.

    The MSE is pooled over all pixels of ``region`` in all frames before the logarithm.
    """
    mse = pooled(np.square(_difference(frames, truth)), region)
    if np.isnan(mse):
        return float("nan")
    return float(min(PSNR_CAP, 10 * np.log10(255.0**2 / max(mse, 1e-12))))


def ssim(frames: ArrayLike, truth: ArrayLike, region: ArrayLike | None = None) -> float:
    """Structural similarity, ``ssim_map`` averaged over channels and over ``region``."""
    return pooled(ssim_map(frames, truth), region)


def ssim_map(frames: ArrayLike, truth: ArrayLike) -> NDArray[np.float32]:
    """(..., H, W, 3) similarity: 11x11 Gaussian window (sigma 1.5), K1 = 0.01, K2 = 0.03.

    Computed per channel, on 8-bit levels.
    """
    x, y = np.asarray(frames, np.float32), np.asarray(truth, np.float32)
    if x.shape != y.shape:
        raise ValueError(f"frames {x.shape} and truth {y.shape} must have the same shape")
    sigma = (0.0,) * (x.ndim - 3) + (1.5, 1.5, 0.0)

    def blur(image: NDArray[np.float32]) -> NDArray[np.float32]:
        return gaussian_filter(image, sigma, truncate=3.5)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    cov = blur(x * y) - mean_x * mean_y
    similarity = ((2 * mean_x * mean_y + SSIM_C1) * (2 * cov + SSIM_C2)) / (
        (mean_x**2 + mean_y**2 + SSIM_C1) * (var_x + var_y + SSIM_C2)
    )
    return similarity


def composite(frames: ArrayLike, truth: ArrayLike, region: ArrayLike) -> NDArray[np.uint8]:
    """``frames`` inside ``region``, ``truth`` outside: what a metric with windows or a network is
    shown when it is asked about a region.

    A copy of the truth stays one, and nothing outside the region can contribute.

    Args:
        frames, truth: (..., H, W, 3) uint8.
        region: (..., H, W) bool.

    Raises:
        ValueError: if the shapes do not fit.
    """
    frames, truth = np.asarray(frames), np.asarray(truth)
    region = np.asarray(region, bool)
    if frames.shape != truth.shape or region.shape != frames.shape[:-1]:
        raise ValueError(
            f"expected frames and truth (..., H, W, 3) and a region (..., H, W), got "
            f"{frames.shape}, {truth.shape} and {region.shape}"
        )
    return np.where(region[..., None], frames, truth)


def iou(said: ArrayLike, truth: ArrayLike) -> float:
    """Intersection over union of two bool masks, pooled over all their frames.

    NaN where the true mask is empty: nothing was there to be found.
    """
    said, truth = np.asarray(said, bool), np.asarray(truth, bool)
    if said.shape != truth.shape:
        raise ValueError(f"masks differ in shape: {said.shape} and {truth.shape}")
    if not truth.any():
        return float("nan")
    return float((said & truth).sum() / (said | truth).sum())


def counted_joints(
    commanded: ArrayLike, visible: ArrayLike, *, moved: float = 0.0
) -> NDArray[np.bool_]:
    """(T, K) joints that a control error counts; arguments as for ``control_error``."""
    commanded, counted = np.asarray(commanded, np.float64), np.asarray(visible, bool)
    if moved > 0:
        with np.errstate(invalid="ignore"):  # a joint that starts behind the camera has moved
            still = np.linalg.norm(commanded[1:] - commanded[:1], axis=-1) < moved
        counted = counted & ~still
    return counted


def control_error(
    found: ArrayLike, commanded: ArrayLike, visible: ArrayLike, *, moved: float = 0.0
) -> NDArray[np.float64]:
    """Pixel distances between keypoints found in imagined frames and the commanded joints.

    Args:
        found: (T, K, 2) pixels found in the frames.
        commanded: (T + 1, K, 2) projected joints; ``commanded[0]`` belongs to the reference frame.
        visible: (T, K) bool, joints that can be seen in the true frame.
        moved: count only joints whose commanded pixel lies at least this far from its place in
            the reference frame; a joint at rest is right for free.

    Returns:
        (n,) distance of each counted joint in each counted frame.
    """
    found, commanded = np.asarray(found, np.float64), np.asarray(commanded, np.float64)
    visible = np.asarray(visible, bool)
    if commanded.shape[0] != found.shape[0] + 1 or visible.shape != found.shape[:2]:
        raise ValueError(
            "expected found (T, K, 2), commanded (T + 1, K, 2) and visible (T, K), got "
            f"{found.shape}, {commanded.shape} and {visible.shape}"
        )
    counted = counted_joints(commanded, visible, moved=moved)
    return np.linalg.norm(found - commanded[1:], axis=-1)[counted]


@dataclass(frozen=True)
class Estimate:
    """A mean over clips with its 95 % bootstrap interval.

    Attributes:
        mean, low, high: NaN where no clip could be measured.
        n: clips measured; clips that gave NaN are not among them.
    """

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if self.n == 0:
            return "n/a"
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def estimate(
    values: Iterable[float],
    *,
    groups: Iterable[Any] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean of per-clip values and the percentile interval of ``resamples`` bootstrap means.

    Args:
        values: one per clip; NaN is left out.
        groups: one per clip, what is drawn as a whole: clips of one episode resemble each other, so
            drawing them apart would make the interval too narrow. None: each clip is a group.
    """
    array = np.asarray(list(values), dtype=np.float64)
    known = np.isfinite(array)
    number = np.arange(len(array))
    if groups is not None:
        _, number = np.unique(np.asarray(list(groups)), return_inverse=True)
    if not known.any():
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    array = array[known]
    _, group = np.unique(number[known], return_inverse=True)
    total, size = np.bincount(group, weights=array), np.bincount(group)
    draws = np.random.default_rng(seed).integers(len(size), size=(resamples, len(size)))
    means = total[draws].sum(axis=1) / size[draws].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(array.mean()), float(low), float(high), len(array))


def _difference(frames: ArrayLike, truth: ArrayLike) -> NDArray[np.float32]:
    frames, truth = np.asarray(frames), np.asarray(truth)
    if frames.shape != truth.shape or frames.shape[-1] != 3:
        raise ValueError(
            f"frames and truth must share a shape (..., H, W, 3), got {frames.shape} and "
            f"{truth.shape}"
        )
    return frames.astype(np.float32) - truth.astype(np.float32)


def pooled(values: NDArray[np.float32], region: ArrayLike | None) -> float:
    """Mean of (..., H, W, 3) over the pixels of (..., H, W); NaN if there are none."""
    if region is None:
        return float(values.mean(dtype=np.float64))
    region = np.asarray(region, bool)
    if region.shape != values.shape[:-1]:
        raise ValueError(f"region {region.shape} must match frames {values.shape[:-1]}")
    return float(values[region].mean(dtype=np.float64)) if region.any() else float("nan")
