"""Gradient energy: how much fine structure imagined frames have, beside the true ones.

An average of possible futures is blurred, and blur lowers the squared error: PSNR prefers it to
sharp frames that are off by a pixel. So sharpness is reported beside PSNR. The measure is the
Tenengrad of autofocus (Tenenbaum, 1970; compared by Pertuz et al., 2013): the mean squared gradient
of luminance, here with Prewitt filters, as a share of the true frames' in the same pixels. It says
nothing about where edges are, and noise raises it: read it beside the control error.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import correlate1d, uniform_filter1d

from ego_world_model.evaluation.temporal import luminance


def gradient_energy(frames: ArrayLike) -> NDArray[np.float32]:
    """(T, H, W) squared spatial gradient of luminance, in squared 8-bit levels per pixel.

    Args:
        frames: (T, H, W, 3) uint8.

    Raises:
        ValueError: if the shape is another.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be (T, H, W, 3), got {frames.shape}")
    grey = luminance(frames)
    return np.square(_slope(grey, 1, 2)) + np.square(_slope(grey, 2, 1))


def energy_ratio(energy: ArrayLike, true: ArrayLike, region: ArrayLike | None = None) -> float:
    """Mean gradient energy of frames over that of the true ones: 1 for a copy, less for blur.

    Args:
        energy, true: (T, H, W), ``gradient_energy`` of both.
        region: (T, H, W) bool, or None for all pixels.

    Returns:
        NaN where the region is empty or the truth is flat in it.

    Raises:
        ValueError: if the shapes differ.
    """
    energy, true = np.asarray(energy), np.asarray(true)
    region = np.ones(true.shape, bool) if region is None else np.asarray(region, bool)
    if energy.shape != true.shape or region.shape != true.shape:
        raise ValueError(
            f"energies and region differ in shape: {energy.shape}, {true.shape}, {region.shape}"
        )
    whole = true[region].sum(dtype=np.float64)
    return float(energy[region].sum(dtype=np.float64) / whole) if whole > 0 else float("nan")


def _slope(grey: NDArray[np.float32], along: int, across: int) -> NDArray[np.float32]:
    """Levels per pixel along one axis of the image, averaged over three pixels across it.

    SciPy's own Prewitt filter would average over the frames before and after as well.
    """
    difference = correlate1d(grey, [-0.5, 0, 0.5], axis=along)
    return uniform_filter1d(difference, 3, axis=across)
