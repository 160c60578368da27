"""Gradient energy: how much fine structure imagined frames have, beside the true ones.

An average of possible futures is blurred, and blur lowers the squared error: PSNR prefers it to
sharp frames that are off by a pixel. So sharpness is reported beside PSNR. The measure is the
Tenengrad of autofocus (Tenenbaum, 1970; compared by Pertuz et al., 2013): the mean squared gradient
of luminance, here with Prewitt filters, as a share of the true frames' in the same pixels. It says
nothing about where edges are, and noise raises it: read it beside the control error.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import prewitt

from ego_world_model.evaluation.temporal import luminance


def gradient_energy(frames: ArrayLike, region: ArrayLike | None = None) -> float:
    """Mean squared spatial gradient of luminance, in squared 8-bit levels per pixel.

    Args:
        frames: (T, H, W, 3) uint8.
        region: (T, H, W) bool, or None for all pixels; empty gives NaN. Gradients at its border
            reach one pixel beyond.

    Raises:
        ValueError: if the shapes do not fit.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be (T, H, W, 3), got {frames.shape}")
    grey = luminance(frames)
    # Prewitt sums three differences over two pixels: divided by six it is a slope per pixel.
    energy = sum(np.square(prewitt(grey, axis=axis) / 6) for axis in (1, 2))
    if region is None:
        return float(energy.mean(dtype=np.float64))
    region = np.asarray(region, bool)
    if region.shape != grey.shape:
        raise ValueError(f"region {region.shape} must match frames {grey.shape}")
    return float(energy[region].mean(dtype=np.float64)) if region.any() else float("nan")


def gradient_energy_ratio(
    frames: ArrayLike, truth: ArrayLike, region: ArrayLike | None = None
) -> float:
    """``gradient_energy`` of the frames over that of the true frames: 1 for a copy, less for blur.

    NaN where the region is empty or the truth is flat in it.
    """
    true = gradient_energy(truth, region)
    return gradient_energy(frames, region) / true if true > 0 else float("nan")
