"""Pinhole cameras: projection, distortion, and what resizing an image does to intrinsics.

Frames follow REP-103: an *optical* frame has x right, y down, z forward; a *body* frame (a camera
link) has x forward, y left, z up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ego_world_model.lens import DISTORTION_MODELS, distort, undistort

OPTICAL_FROM_BODY: NDArray[np.float64] = np.array(
    [[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]]
)
"""Rotation that takes body-frame coordinates to optical-frame coordinates (R_optical_body)."""


@dataclass(frozen=True)
class PinholeCamera:
    """Intrinsics of one image size, in pixels; a pixel's centre lies at its integer coordinate.

    Attributes:
        distortion: the lens's coefficients in the order of ``lens``; empty for an ideal pinhole.
        distortion_model: a key of ``lens.DISTORTION_MODELS``; means nothing without coefficients.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...] = ()
    distortion_model: str = "plumb_bob"

    def __post_init__(self) -> None:
        numbers = (self.fx, self.fy, self.cx, self.cy, *self.distortion)
        if not np.isfinite(numbers).all():
            raise ValueError(f"camera intrinsics must be finite, got {numbers}")
        if self.width <= 0 or self.height <= 0 or self.fx <= 0 or self.fy <= 0:
            raise ValueError(
                f"camera needs positive size and focal lengths, got {self.width}x{self.height} "
                f"fx={self.fx} fy={self.fy}"
            )
        if self.distortion_model not in DISTORTION_MODELS:
            raise ValueError(
                f"distortion model {self.distortion_model!r} is not supported, only "
                f"{', '.join(DISTORTION_MODELS)}"
            )
        counts = DISTORTION_MODELS[self.distortion_model]
        if self.distortion and len(self.distortion) not in counts:
            raise ValueError(
                f"{self.distortion_model} distortion has {' or '.join(map(str, counts))} "
                f"coefficients, got {len(self.distortion)}"
            )

    @classmethod
    def from_matrix(
        cls,
        k: ArrayLike,
        width: int,
        height: int,
        distortion: ArrayLike = (),
        *,
        model: str = "plumb_bob",
    ) -> PinholeCamera:
        """From a 3x3 camera matrix in pixels; all-zero distortion counts as none, save of the
        equidistant model, whose angles are no pinhole's even then."""
        k = np.asarray(k, dtype=np.float64).reshape(3, 3)
        coefficients = tuple(float(d) for d in np.asarray(distortion, dtype=np.float64).ravel())
        if not any(coefficients) and model != "equidistant":
            coefficients, model = (), "plumb_bob"
        return cls(width, height, k[0, 0], k[1, 1], k[0, 2], k[1, 2], coefficients, model)

    @property
    def matrix(self) -> NDArray[np.float64]:
        """(3, 3) camera matrix K."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1.0]])

    def ideal(self) -> PinholeCamera:
        """The pinhole with these intrinsics and no lens: what a rectified image is seen by."""
        return replace(self, distortion=(), distortion_model="plumb_bob")

    def resized(self, width: int, height: int) -> PinholeCamera:
        """Intrinsics after the image is resized (pixel centres at integers, so the half-pixel
        shift of the image's corner is included)."""
        sx, sy = width / self.width, height / self.height
        return replace(
            self,
            width=width,
            height=height,
            fx=self.fx * sx,
            fy=self.fy * sy,
            cx=(self.cx + 0.5) * sx - 0.5,
            cy=(self.cy + 0.5) * sy - 0.5,
        )

    def cropped(self, left: int, top: int, width: int, height: int) -> PinholeCamera:
        """Intrinsics of the sub-image whose top-left pixel is (left, top)."""
        return replace(self, width=width, height=height, cx=self.cx - left, cy=self.cy - top)

    def project(self, points: ArrayLike) -> NDArray[np.float64]:
        """(..., 3) metres in the optical frame → (..., 2) pixels (u right, v down).

        Points with z <= 0 have no image and give NaN.
        """
        points = np.asarray(points, dtype=np.float64)
        z = points[..., 2:]
        with np.errstate(divide="ignore", invalid="ignore"):
            ray = np.where(z > 0, points[..., :2] / z, np.nan)
        if self.distortion:
            ray = distort(ray, self.distortion_model, self.distortion)
        return ray * (self.fx, self.fy) + (self.cx, self.cy)

    def unproject(self, pixels: ArrayLike, depth: ArrayLike) -> NDArray[np.float64]:
        """(..., 2) pixels and (...) depth along z in metres → (..., 3) points, optical frame."""
        pixels = np.asarray(pixels, dtype=np.float64)
        ray = (pixels - (self.cx, self.cy)) / (self.fx, self.fy)
        if self.distortion:
            ray = undistort(ray, self.distortion_model, self.distortion)
        depth = np.asarray(depth, dtype=np.float64)[..., None]
        return np.concatenate([ray * depth, depth], axis=-1)

    def contains(self, pixels: ArrayLike) -> NDArray[np.bool_]:
        """(..., 2) pixels → (...) whether they lie inside the image; NaN does not."""
        pixels = np.asarray(pixels, dtype=np.float64)
        with np.errstate(invalid="ignore"):
            inside = (pixels > -0.5) & (pixels < (self.width - 0.5, self.height - 0.5))
        return inside.all(axis=-1)


@dataclass(frozen=True)
class CameraPose:
    """Where a camera's optical frame sits on a link of the robot.

    Attributes:
        link: name of the link (or frame) that carries the camera.
        rotation: (3, 3) R_link_optical: optical-frame coordinates → link coordinates.
        translation: (3,) metres, origin of the optical frame in the link.
    """

    link: str
    rotation: NDArray[np.float64]
    translation: NDArray[np.float64]

    def __post_init__(self) -> None:
        rotation = np.asarray(self.rotation, dtype=np.float64)
        translation = np.asarray(self.translation, dtype=np.float64)
        if rotation.shape != (3, 3) or np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-5:
            raise ValueError("camera rotation must be a 3x3 rotation matrix")
        if np.linalg.det(rotation) < 0:
            raise ValueError("camera rotation must be right-handed (determinant +1)")
        if translation.shape != (3,) or not np.isfinite(translation).all():
            raise ValueError(f"camera translation must be 3 finite numbers, got {translation}")
        object.__setattr__(self, "rotation", rotation)
        object.__setattr__(self, "translation", translation)

    @property
    def matrix(self) -> NDArray[np.float64]:
        """(4, 4) T_link_optical."""
        out = np.eye(4)
        out[:3, :3], out[:3, 3] = self.rotation, self.translation
        return out

    @classmethod
    def from_body(cls, link: str, offset: ArrayLike = (0.0, 0.0, 0.0)) -> CameraPose:
        """A camera on a body-convention link (x forward, z up), moved by ``offset`` metres."""
        return cls(link, OPTICAL_FROM_BODY.T, np.asarray(offset, dtype=np.float64))
