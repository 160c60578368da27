"""Pinhole projection, and what resizing an image does to its intrinsics."""

from __future__ import annotations

import numpy as np
import pytest

from ego_world_model.camera import OPTICAL_FROM_BODY, CameraPose, PinholeCamera

CAMERA = PinholeCamera(640, 480, 606.3, 606.29, 330.77, 252.65)


def test_axis_directions_follow_rep_103() -> None:
    forward, left, up = OPTICAL_FROM_BODY @ np.eye(3)
    assert (OPTICAL_FROM_BODY @ (1, 0, 0) == (0, 0, 1)).all()  # x forward is the optical axis
    pixel = CAMERA.project(OPTICAL_FROM_BODY @ (1.0, 0.2, 0.1))
    assert pixel[0] < CAMERA.cx and pixel[1] < CAMERA.cy  # left and up


def test_a_point_behind_the_camera_has_no_pixel() -> None:
    pixels = CAMERA.project([[0.1, 0.0, -0.5], [0.1, 0.0, 0.5]])
    assert np.isnan(pixels[0]).all() and np.isfinite(pixels[1]).all()
    assert CAMERA.contains(pixels).tolist() == [False, True]


def test_unprojection_inverts_projection_with_distortion() -> None:
    lens = PinholeCamera(640, 480, 600, 600, 320, 240, (-0.2, 0.05, 0.001, -0.002, 0.01))
    points = np.random.default_rng(0).uniform((-0.2, -0.15, 0.4), (0.2, 0.15, 0.9), (50, 3))
    pixels = lens.project(points)
    assert np.abs(pixels - CAMERA.project(points)).max() > 1  # the lens really bends
    assert np.abs(lens.unproject(pixels, points[:, 2]) - points).max() < 1e-6


def test_resizing_moves_pixels_as_area_averaging_does() -> None:
    """Pixel centres at integers: a 2x2 block's centre is half a pixel off its first pixel."""
    small = CAMERA.resized(320, 240)
    point = [0.05, -0.02, 0.5]
    big, little = CAMERA.project(point), small.project(point)
    assert np.allclose((big + 0.5) / 2 - 0.5, little)
    back = small.resized(640, 480)
    assert np.allclose(back.matrix, CAMERA.matrix)


def test_bad_intrinsics_are_refused() -> None:
    with pytest.raises(ValueError, match="positive size"):
        PinholeCamera(640, 480, 0.0, 600, 320, 240)
    with pytest.raises(ValueError, match="plumb_bob distortion has 4 or 5"):
        PinholeCamera(640, 480, 600, 600, 320, 240, (0.1, 0.2))
    with pytest.raises(ValueError, match="right-handed"):
        CameraPose("head", np.diag([1.0, 1.0, -1.0]), np.zeros(3))
