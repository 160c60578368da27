"""Lens models, rectified images and stereo halves, against pictures that a lens really bent."""

from __future__ import annotations

import numpy as np
import pytest
from lenses import LENSES, Lens, apart, share_on_hands

from ego_world_model.camera import PinholeCamera
from ego_world_model.embodiment import Embodiment, load_embodiment
from ego_world_model.kinematics import HandKinematics
from ego_world_model.media import decode_picture, encode_jpeg, encode_png, picture_size
from ego_world_model.rectification import Rectifier, rectified, rectified_depth
from ego_world_model.stereo import eye_width, one_eye

lenses = pytest.mark.parametrize("lens", LENSES.values(), ids=LENSES)
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def robot() -> Embodiment:
    return load_embodiment("g1_dex3")


@lenses
def test_every_pixel_of_a_lens_has_one_ray(lens: PinholeCamera) -> None:
    """Unprojection inverts projection up to the image's corners."""
    columns, rows = np.meshgrid(np.linspace(0, 319, 33), np.linspace(0, 239, 25))
    pixels = np.stack([columns, rows], axis=-1)
    points = lens.unproject(pixels, RNG.uniform(0.3, 2.0, rows.shape))
    assert np.abs(lens.project(points) - pixels).max() < 1e-9
    assert np.abs(lens.ideal().project(points) - pixels).max() > 8, "the lens bends"


@lenses
def test_what_lies_far_outside_the_image_stays_outside(lens: PinholeCamera) -> None:
    """A polynomial that turns back must not show a hand at the hip in the middle of the image."""
    angles = np.linspace(0, 2 * np.pi, 60)
    for radius in (2.0, 4.0, 10.0, 100.0):
        ring = radius * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        points = np.concatenate([ring, np.ones((60, 1))], axis=-1)
        assert not lens.contains(lens.project(points)).any()


def test_an_equidistant_lens_without_coefficients_counts_angles() -> None:
    fisheye = PinholeCamera(640, 480, 300, 300, 320, 240, (0.0,) * 4, "equidistant")
    pixel = fisheye.project([np.tan(1.0), 0.0, 1.0])
    assert pixel == pytest.approx((320 + 300 * 1.0, 240))


def test_a_model_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="distortion model 'spherical' is not supported"):
        PinholeCamera(640, 480, 300, 300, 320, 240, (0.1,) * 4, "spherical")


@lenses
def test_joints_lie_on_the_hands_that_the_lens_shows(robot: Embodiment, lens) -> None:
    """In the raw image through the lens, in the rectified one through its ideal pinhole; and the
    rectified image is the one that an ideal pinhole takes."""
    with Lens(robot, lens) as camera:
        bent, ideal = camera.see(apart(robot))
    hands = HandKinematics(robot).hand_joints(apart(robot))
    flat, pinhole = rectified(bent.rgb, lens)
    assert not pinhole.distortion and (pinhole.matrix == lens.matrix).all()
    assert np.abs(flat.astype(int) - ideal.rgb).mean() < 3
    assert np.abs(bent.rgb.astype(int) - ideal.rgb).mean() > 8, "the lens bends"
    assert share_on_hands(bent.masks, lens, hands) > 0.9
    assert share_on_hands(ideal.masks, pinhole, hands) > 0.9
    assert share_on_hands(bent.masks, pinhole, hands) < 0.7, "a projection without the lens misses"


def test_rectified_images_continue_the_lens_picture_beyond_its_edge() -> None:
    """A pincushion lens shows less than the pinhole's corners: no black wedges are invented."""
    lens = PinholeCamera(64, 48, 50, 50, 31.5, 23.5, (0.4, 0.0, 0.0, 0.0))
    grey = np.full((48, 64, 3), 120, np.uint8)
    assert (Rectifier(lens)(grey) == 120).all()
    with pytest.raises(ValueError, match=r"image must be \(48, 64, 3\)"):
        Rectifier(lens)(grey[:, 1:])


@lenses
def test_rectified_depth_stays_where_the_rectified_image_puts_it(lens: PinholeCamera) -> None:
    """A near disc before a far wall: in depth it covers the same pixels as in the picture, nothing
    lies between the two, and what the lens did not see is unknown."""
    columns, rows = np.meshgrid(np.arange(lens.width), np.arange(lens.height))
    disc = np.hypot(columns - 0.7 * lens.width, rows - 0.4 * lens.height) < 0.15 * lens.height
    metres = rectified_depth(np.where(disc, 0.5, 2.0).astype(np.float32), lens)
    assert set(np.unique(metres)) <= {np.float32(0), np.float32(0.5), np.float32(2)}
    picture = rectified(np.repeat(255 * disc[..., None].astype(np.uint8), 3, axis=2), lens)[0]
    near = picture[..., 0] > 127
    assert (near == (metres == 0.5)).mean() > 0.998
    assert near.sum() > 200
    with pytest.raises(ValueError, match="depth must be"):
        rectified_depth(metres[:, 1:], lens)


def test_an_image_without_a_lens_is_left_alone() -> None:
    image = RNG.integers(0, 256, (48, 64, 3), np.uint8)
    camera = PinholeCamera(64, 48, 50, 50, 31.5, 23.5)
    assert rectified(image, camera)[0] is image


def test_one_eye_is_half_of_the_frame() -> None:
    frame = RNG.integers(0, 256, (4, 10, 3), np.uint8)
    np.testing.assert_array_equal(one_eye(frame, "left"), frame[:, :5])
    np.testing.assert_array_equal(one_eye(frame, "right"), frame[:, 5:])
    assert one_eye(frame, "none") is frame or (one_eye(frame, "none") == frame).all()
    with pytest.raises(ValueError, match="is 11, odd"):
        eye_width(11, "left")


def test_encoded_pictures_come_back() -> None:
    smooth = np.repeat(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], 48, axis=0)
    colour = np.concatenate([smooth, smooth[:, ::-1], smooth // 2], axis=2)
    assert picture_size(encode_jpeg(colour)) == picture_size(encode_png(colour)) == (64, 48)
    np.testing.assert_array_equal(decode_picture(encode_png(colour)), colour)
    assert np.abs(decode_picture(encode_jpeg(colour)).astype(int) - colour).max() < 12
    grey = decode_picture(encode_png(smooth[..., 0].astype(np.uint16) << 8))
    np.testing.assert_array_equal(grey, np.repeat(smooth, 3, axis=2))


def test_damaged_pictures_raise_nothing_but_a_value_error() -> None:
    """Whatever a broken link makes of a JPEG or PNG, a node must be able to count it."""
    image = RNG.integers(0, 256, (24, 32, 3), np.uint8)
    refused = 0
    for data in (encode_jpeg(image), encode_png(image)):
        for _ in range(300):
            damaged = bytearray(data)
            for at in RNG.integers(0, len(data), 4):
                damaged[at] = RNG.integers(0, 256)
            for broken in (bytes(damaged), bytes(damaged[: RNG.integers(0, len(data))])):
                try:
                    picture_size(broken)
                    decode_picture(broken)
                except ValueError:
                    refused += 1
    assert refused > 300
