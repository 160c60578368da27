"""Metrics of a clip's motion against the true one: ST-SSIM and GMSD-T, whole or inside a region.

Both work on luminance (ITU-R BT.601) in 8-bit levels and compare a video with its truth frame by
frame, so a right motion at the wrong time counts as wrong. Inside a region, what is outside is
first replaced by the truth (ST-SSIM: the frames, ``metrics.composite``; GMSD-T: their changes): it
cannot contribute, though windows and filters reach over the border.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import correlate1d, uniform_filter1d

from ego_world_model.evaluation.metrics import SSIM_C1, SSIM_C2, composite

LINE = 11
"""Pixels along which ST-SSIM's windows extend in the image."""

WINDOW = 11
"""Frames over which ST-SSIM's windows extend in time: 1.1 s at 10 Hz, as the published 33 frames
are at 30 Hz."""

BLOCK = 8
"""Pixels of the square blocks whose motion is estimated."""

SEARCH = 7
"""Largest motion of a block from one frame to the next that is looked for, in pixels per axis."""

REST_LEVELS = 2.0
"""A block whose mean absolute change is below this many levels counts as at rest (the threshold of
Nie and Ma's rood search, 2002, which the published ST-SSIM uses)."""

GMS_CONSTANT = 170.0
"""Stabiliser of gradient magnitude similarity on 8-bit levels (Xue et al., 2014)."""

_STEPS = ((0, 1), (1, 1), (1, 0), (1, -1))
"""(dy, dx) of the four directions: along x, falling diagonal, along y, rising diagonal."""

_REST = len(_STEPS)


def st_ssim(
    frames: ArrayLike,
    truth: ArrayLike,
    region: ArrayLike | None = None,
    *,
    motion: NDArray[np.int8] | None = None,
) -> float:
    """Spatio-temporal structural similarity: ``st_ssim_map`` averaged over ``region``.

    Args:
        frames, truth: (T, H, W, 3) uint8.
        region: (T, H, W) bool, or None for all pixels; empty gives NaN.
        motion: ``motion_direction(truth)``, where several videos share a truth.

    Returns:
        1 for a copy of the truth.
    """
    if region is None:
        return float(st_ssim_map(frames, truth, motion=motion).mean(dtype=np.float64))
    region = np.asarray(region, bool)
    frames = composite(frames, truth, region)
    if not region.any():
        return float("nan")
    return float(st_ssim_map(frames, truth, motion=motion)[region].mean(dtype=np.float64))


def st_ssim_map(
    frames: ArrayLike, truth: ArrayLike, *, motion: NDArray[np.int8] | None = None
) -> NDArray[np.float32]:
    """(T, H, W) similarity in space-time windows that follow the truth's motion.

    After Moorthy and Bovik, 2010 (Efficient motion weighted spatio-temporal video SSIM index). A
    pixel's SSIM is taken over a plane of space-time that holds the time axis and one direction of
    the image, the one of its block's motion in the truth: ``LINE`` pixels by ``WINDOW`` frames,
    equal weights, mirrored at the clip's ends and borders. Where the truth is at rest, the mean
    over the four directions. K1 = 0.01 and K2 = 0.03 as in SSIM.

    Args:
        frames, truth: (T, H, W, 3) uint8.
        motion: ``motion_direction(truth)``, where several videos share a truth.

    Raises:
        ValueError: if the shapes differ.
    """
    frames, truth = _videos(frames, truth)
    motion = motion_direction(truth) if motion is None else motion
    x, y = luminance(frames), luminance(truth)
    if motion.shape != x.shape:
        raise ValueError(f"motion {motion.shape} must match the truth {x.shape}")
    moments = uniform_filter1d(np.stack([x, y, x * x, y * y, x * y]), WINDOW, axis=1)
    maps = [_similarity(_mean_along(moments, step)) for step in _STEPS]
    return np.choose(motion, [*maps, np.mean(maps, axis=0)])


def motion_direction(truth: ArrayLike) -> NDArray[np.int8]:
    """(T, H, W) direction of the truth's motion: 0 to 3 along x, falling diagonal, along y, rising
    diagonal; 4 at rest.

    Motion is that of ``BLOCK`` by ``BLOCK`` blocks from the frame before, by full search for the
    smallest sum of absolute differences within ``SEARCH`` pixels; of equals, the shortest. The
    first frame moves as the second.

    Args:
        truth: (T, H, W, 3) uint8.
    """
    video = luminance(truth)
    length, height, width = video.shape
    if length < 2:
        return np.full(video.shape, _REST, np.int8)
    fill = (-height % BLOCK, -width % BLOCK)
    video = np.pad(video, ((0, 0), (0, fill[0]), (0, fill[1])), mode="edge")
    now = video[1:]
    before = np.pad(video[:-1], ((0, 0), (SEARCH, SEARCH), (SEARCH, SEARCH)), mode="edge")
    reach = range(-SEARCH, SEARCH + 1)
    shifts = sorted(((dy, dx) for dy in reach for dx in reach), key=lambda s: s[0] ** 2 + s[1] ** 2)
    rows, columns = now.shape[1:]
    direction, lowest = None, None
    for dy, dx in shifts:  # the first is no motion at all
        top, left = SEARCH - dy, SEARCH - dx
        change = np.abs(now - before[:, top : top + rows, left : left + columns])
        blocks = change.reshape(length - 1, rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
        cost = blocks.mean(axis=(2, 4))
        if direction is None or lowest is None:
            direction = np.full(cost.shape, _REST, np.int8)
            lowest = np.where(cost < REST_LEVELS, -1.0, cost)  # at rest, whatever comes
            continue
        better = cost < lowest
        direction[better] = round(np.arctan2(dy, dx) / (np.pi / 4)) % len(_STEPS)
        lowest = np.where(better, cost, lowest)
    assert direction is not None  # SEARCH >= 0 gives at least one shift
    pixels = direction.repeat(BLOCK, axis=1).repeat(BLOCK, axis=2)[:, :height, :width]
    return np.concatenate([pixels[:1], pixels])


def gmsd_t(frames: ArrayLike, truth: ArrayLike, region: ArrayLike | None = None) -> float:
    """Gradient magnitude similarity deviation of the changes from frame to frame; lower is better.

    GMSD (Xue et al., 2014) with the difference of each two consecutive frames in place of an
    image: the difference is averaged over 2x2 pixels and halved, its gradient magnitude is taken
    with Prewitt filters, the similarity to the truth's is (2 m n + c) / (m² + n² + c) with
    c = ``GMS_CONSTANT``, and the score is its standard deviation over the pixels, averaged over
    the pairs of frames. Being a deviation, it is blind to an error that is alike everywhere: read
    it beside ST-SSIM.

    Args:
        frames, truth: (T, H, W, 3) uint8.
        region: (T, H, W) bool, or None for all pixels. That of a change is the region of either of
            its frames; a halved pixel counts where at least half of it is inside.

    Returns:
        0 for a copy of the truth; NaN if no pair of frames has two pixels in the region.

    Raises:
        ValueError: if the shapes differ or there is only one frame.
    """
    frames, truth = _videos(frames, truth)
    if len(truth) < 2:
        raise ValueError("GMSD-T compares changes between frames: a clip needs at least 2 frames")
    change, true_change = (np.diff(luminance(video), axis=0) for video in (frames, truth))
    inside = np.ones(change.shape, bool)
    if region is not None:
        region = np.asarray(region, bool)
        if region.shape != truth.shape[:-1]:
            raise ValueError(f"region {region.shape} must match frames {truth.shape[:-1]}")
        inside = region[1:] | region[:-1]
        change = np.where(inside, change, true_change)
    m, n = _gradient_magnitude(_halved(change)), _gradient_magnitude(_halved(true_change))
    similarity = (2 * m * n + GMS_CONSTANT) / (m * m + n * n + GMS_CONSTANT)
    inside = _halved(inside.astype(np.float32)) >= 0.5
    deviations = [
        values[where].std(dtype=np.float64)
        for values, where in zip(similarity, inside, strict=True)
        if where.sum() >= 2
    ]
    return float(np.mean(deviations)) if deviations else float("nan")


def luminance(frames: ArrayLike) -> NDArray[np.float32]:
    """(..., 3) RGB → (...) luminance of ITU-R BT.601, in the same levels."""
    return np.asarray(frames, np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def _videos(frames: ArrayLike, truth: ArrayLike) -> tuple[NDArray, NDArray]:
    frames, truth = np.asarray(frames), np.asarray(truth)
    if frames.shape != truth.shape or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(
            f"frames and truth must share a shape (T, H, W, 3), got {frames.shape} and "
            f"{truth.shape}"
        )
    return frames, truth


def _mean_along(values: NDArray[np.float32], step: tuple[int, int]) -> NDArray[np.float32]:
    """Mean of (..., H, W) over ``LINE`` pixels along a direction, mirrored at the borders."""
    half = LINE // 2
    height, width = values.shape[-2:]
    still = [(0, 0)] * (values.ndim - 2)
    padded = np.pad(values, [*still, (half, half), (half, half)], mode="symmetric")
    total = np.zeros_like(values)
    for k in range(-half, half + 1):
        top, left = half + k * step[0], half + k * step[1]
        total += padded[..., top : top + height, left : left + width]
    return total / LINE


def _similarity(moments: NDArray[np.float32]) -> NDArray[np.float32]:
    """SSIM from the windowed means of x, y, x², y² and xy: (5, T, H, W) → (T, H, W)."""
    x, y, xx, yy, xy = moments
    return ((2 * x * y + SSIM_C1) * (2 * (xy - x * y) + SSIM_C2)) / (
        (x * x + y * y + SSIM_C1) * ((xx - x * x) + (yy - y * y) + SSIM_C2)
    )


def _halved(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(T, H, W) → (T, H // 2, W // 2), means of 2x2 pixels."""
    length, height, width = values.shape
    even = values[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(length, height // 2, 2, width // 2, 2).mean(axis=(2, 4))


def _gradient_magnitude(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of (T, H, W), image by image; Prewitt filters whose weights sum to 1 on either side."""
    down = uniform_filter1d(correlate1d(values, [-1, 0, 1], axis=1), 3, axis=2)
    across = uniform_filter1d(correlate1d(values, [-1, 0, 1], axis=2), 3, axis=1)
    return np.hypot(down, across)
