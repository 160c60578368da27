"""Rectified images: what an ideal pinhole would have seen where a real lens looked."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from ego_world_model.camera import PinholeCamera


class Rectifier:
    """Resamples the images of one camera (bilinear) as its ``ideal()`` pinhole sees them.

    Size and camera matrix stay. Where the pinhole sees past the edge of the lens's picture, the
    picture's outermost pixels are continued.

    Args:
        camera: intrinsics and distortion of the images that come.
    """

    def __init__(self, camera: PinholeCamera) -> None:
        self.camera = camera.ideal()
        columns, rows = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
        pixels = np.stack([columns, rows], axis=-1)  # (H, W, 2)
        source = camera.project(self.camera.unproject(pixels, np.ones(rows.shape)))
        last = np.array([camera.width - 1, camera.height - 1])
        source = np.clip(source, 0, last)
        corner = np.minimum(source.astype(np.intp), np.maximum(last - 1, 0))
        fraction = (source - corner).astype(np.float32)
        right, below = int(camera.width > 1), camera.width * int(camera.height > 1)
        top_left = corner[..., 1] * camera.width + corner[..., 0]  # in the flat image
        x, y = fraction[..., 0], fraction[..., 1]
        # Row by row: the four neighbours of a source pixel, and how much each counts.
        count = rows.size
        neighbours = np.stack([top_left + n for n in (0, right, below, right + below)], axis=-1)
        weights = np.stack([(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y], axis=-1)
        self._resample = csr_matrix(
            (weights.ravel(), neighbours.ravel(), np.arange(0, 4 * count + 1, 4)), (count, count)
        )

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 of the lens → (H, W, 3) uint8 of the pinhole.

        Raises:
            ValueError: an image of another size.
        """
        size = (self.camera.height, self.camera.width, 3)
        if image.shape != size:
            raise ValueError(f"the image must be {size}, as its camera, got {image.shape}")
        flat = image.reshape(-1, 3).astype(np.float32)
        return (self._resample @ flat + np.float32(0.5)).astype(np.uint8).reshape(size)


def rectified(
    image: NDArray[np.uint8], camera: PinholeCamera
) -> tuple[NDArray[np.uint8], PinholeCamera]:
    """The image as an ideal pinhole sees it, and that pinhole; unchanged where there is no lens."""
    if not camera.distortion:
        return image, camera
    return _rectifier(camera)(image), camera.ideal()


def rectified_depth(depth: NDArray[Any], camera: PinholeCamera) -> NDArray[Any]:
    """Depth (H, W) in any unit, aligned to images of ``camera``, as its ideal pinhole sees it.

    Every pixel takes the nearest one's value, since a mean over an edge lies nowhere; what the lens
    did not see is 0, unknown.

    Raises:
        ValueError: depth of another size.
    """
    if not camera.distortion:
        return depth
    if depth.shape != (camera.height, camera.width):
        raise ValueError(
            f"depth must be {(camera.height, camera.width)}, as its camera, got {depth.shape}"
        )
    nearest, seen = _nearest_pixels(camera)
    return np.where(seen, depth.reshape(-1)[nearest], depth.dtype.type(0))


@functools.lru_cache(maxsize=2)
def _nearest_pixels(camera: PinholeCamera) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """(H, W) flat index of the lens's pixel behind each of the pinhole's, and whether it saw it."""
    columns, rows = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    pixels = np.stack([columns, rows], axis=-1)
    source = camera.project(camera.ideal().unproject(pixels, np.ones(rows.shape)))
    last = np.array([camera.width - 1, camera.height - 1])
    seen = ((source >= -0.5) & (source <= last + 0.5)).all(axis=-1)
    column, row = np.moveaxis(np.rint(np.clip(source, 0, last)).astype(np.intp), -1, 0)
    return row * camera.width + column, seen


# One camera is rectified again and again; its table takes 11 MB at 640x480.
@functools.lru_cache(maxsize=2)
def _rectifier(camera: PinholeCamera) -> Rectifier:
    return Rectifier(camera)
