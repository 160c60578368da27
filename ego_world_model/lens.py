"""What a real lens does to a ray, and back: the distortion models of ROS CameraInfo.

A ray is given by its normalised image coordinates (x / z, y / z). Coefficients come in ROS order:

- ``plumb_bob``: k1, k2, p1, p2[, k3] (Brown-Conrady)
- ``rational_polynomial``: k1, k2, p1, p2, k3, k4, k5, k6
- ``equidistant``: k1, k2, k3, k4 of the angle (Kannala-Brandt fisheye); all zero is a lens, too
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

DISTORTION_MODELS: dict[str, tuple[int, ...]] = {
    "plumb_bob": (4, 5),
    "rational_polynomial": (8,),
    "equidistant": (4,),
}
"""Model → how many coefficients it may have."""

_NO_LENS = ("", "none")  # what drivers without a lens model write

# Table of the radial map; tan(87.5 degrees) and beyond is no part of a rectified picture.
_SAMPLES = 4000
_FARTHEST = 23.0

Coefficients = tuple[float, ...]
Rays = NDArray[np.float64]


def model_named(name: str, coefficients: NDArray[np.float64]) -> str:
    """The key of ``DISTORTION_MODELS`` that a CameraInfo or calibration file means by ``name``.

    Raises:
        ValueError: none of them.
    """
    if name == "" or (name in _NO_LENS and not coefficients.any()):
        return "plumb_bob"
    if name not in DISTORTION_MODELS:
        raise ValueError(f"{name!r} is not supported")
    return name


def fitted(model: str, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
    """As many coefficients as ``model`` has, of what a driver wrote: zeros behind them are cut off,
    and those that were left out are filled in where the model has one length only.

    Raises:
        ValueError: more coefficients than the model has.
    """
    most = max(DISTORTION_MODELS[model])
    if coefficients[most:].any():
        raise ValueError(f"holds {len(coefficients)} coefficients but {model} has {most}")
    if model != "plumb_bob":
        coefficients = np.pad(coefficients, (0, max(0, most - len(coefficients))))
    return coefficients[:most]


def distort(rays: Rays, model: str, coefficients: Coefficients) -> Rays:
    """Ideal rays (..., 2) → where the lens shows them, (..., 2).

    A polynomial means nothing beyond the angle at which it turns back towards the centre: from
    there on the picture goes on straight outwards, so that what lies far outside stays outside.
    """
    reach = _radial_map(model, coefficients)[0][-1]
    radius = np.linalg.norm(rays, axis=-1, keepdims=True)
    beyond = np.maximum(radius / reach, 1.0)
    return _polynomial(rays / beyond, model, coefficients) * beyond


def undistort(rays: Rays, model: str, coefficients: Coefficients) -> Rays:
    """The inverse of :func:`distort`: shown rays (..., 2) → ideal rays (..., 2)."""
    radius, shown = _radial_map(model, coefficients)
    length = np.linalg.norm(rays, axis=-1, keepdims=True)
    beyond = np.maximum(length / shown[-1], 1.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        stretch = np.interp(length / beyond, shown, radius) * beyond / length
    ideal = rays * np.where(length > 0, stretch, 1.0)
    step = 1e-6
    for _ in range(3):  # Newton, for what is not radial and for the table's coarseness
        error = distort(ideal, model, coefficients) - rays
        jacobian = np.stack(
            [
                (
                    distort(ideal + offset, model, coefficients)
                    - distort(ideal - offset, model, coefficients)
                )
                / (2 * step)
                for offset in (np.array([step, 0.0]), np.array([0.0, step]))
            ],
            axis=-1,
        )  # (..., shown axis, ideal axis)
        (a, b), (c, d) = np.moveaxis(jacobian, (-2, -1), (0, 1))
        determinant = a * d - b * c
        ideal = ideal - np.stack(
            [
                (d * error[..., 0] - b * error[..., 1]) / determinant,
                (a * error[..., 1] - c * error[..., 0]) / determinant,
            ],
            axis=-1,
        )
    return ideal


def _polynomial(rays: Rays, model: str, coefficients: Coefficients) -> Rays:
    x, y = rays[..., 0], rays[..., 1]
    r2 = x * x + y * y
    if model == "equidistant":
        k1, k2, k3, k4 = coefficients
        r = np.sqrt(r2)
        angle = np.arctan(r)
        a2 = angle * angle
        shown = angle * (1 + a2 * (k1 + a2 * (k2 + a2 * (k3 + a2 * k4))))
        with np.errstate(invalid="ignore", divide="ignore"):
            return rays * np.where(r > 0, shown / r, 1.0)[..., None]
    k1, k2, p1, p2, k3, k4, k5, k6 = (*coefficients, *[0.0] * (8 - len(coefficients)))
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    if model == "rational_polynomial":
        radial = radial / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    return np.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
        ],
        axis=-1,
    )


@functools.lru_cache(maxsize=32)
def _radial_map(
    model: str, coefficients: Coefficients
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N,) radii of ideal rays, and of what the lens shows of them; both rise strictly."""
    # evenly spaced angles: dense where the picture is
    radius = np.tan(np.linspace(0.0, np.arctan(_FARTHEST), _SAMPLES))
    radial = coefficients
    if model != "equidistant":  # without the tangential part
        radial = (*coefficients[:2], 0.0, 0.0, *coefficients[4:])
    rays = np.stack([radius, np.zeros_like(radius)], axis=-1)
    shown = _polynomial(rays, model, radial)[:, 0]
    falls = np.flatnonzero(~(np.diff(shown) > 0))
    end = falls[0] + 1 if len(falls) else len(radius)
    return radius[:end], shown[:end]
