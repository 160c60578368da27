"""Overlays show each valid joint where it projects, in its finger's colour, and stay cheap."""

from __future__ import annotations

import time

import numpy as np
import pytest

from ego_world_model.drawing import bone_colours, draw_hands, slot_colours
from ego_world_model.hands import EXTRA_SLOTS, NUM_SLOTS, bones, slot_index


@pytest.fixture
def spread() -> np.ndarray:
    """(46, 2) pixels: two open hands with fingers spread out, and their forearms."""
    pixels = np.zeros((NUM_SLOTS + len(EXTRA_SLOTS), 2))
    for base, wrist, turn in ((0, (200, 400), 1), (21, (430, 400), -1)):
        pixels[base] = wrist
        for finger in range(5):
            angle = np.deg2rad(-90 + turn * (60 - finger * 25))
            direction = np.array([np.cos(angle), np.sin(angle)])
            for joint in range(4):
                pixels[base + 1 + 4 * finger + joint] = wrist + (60 + 30 * joint) * direction
    pixels[NUM_SLOTS:] = [(100, 470), (520, 470), (150, 440), (480, 440)]
    return pixels


def at(image: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    u, v = np.rint(pixel).astype(int)
    return image[v, u].astype(int)


def test_every_joint_has_its_colour_at_its_pixel(spread):
    image = np.zeros((480, 640, 3), np.uint8)
    drawn = draw_hands(image, spread, np.ones(46, bool))
    colours = slot_colours(46).astype(int)
    for slot in range(46):
        assert np.abs(at(drawn, spread[slot]) - colours[slot]).max() <= 2, slot
    assert not image.any(), "the input image must stay untouched"
    middle = (spread[slot_index("right_index_pip")] + spread[slot_index("right_index_dip")]) / 2
    assert np.abs(at(drawn, middle) - colours[slot_index("right_index_tip")]).max() <= 2


def test_fingers_and_hands_differ_in_colour():
    colours = slot_colours()
    tips = [i for i in range(NUM_SLOTS) if i % 21 and (i % 21) % 4 == 0]
    gaps = np.abs(colours[tips][:, None].astype(int) - colours[tips][None]).sum(-1)
    assert gaps[~np.eye(10, dtype=bool)].min() > 60
    pairs = bones(np.ones(NUM_SLOTS, bool))
    assert bone_colours(pairs).shape == (len(pairs), 3)


def test_invalid_and_unknown_joints_are_left_out(spread):
    valid = np.zeros(46, bool)
    assert not draw_hands(np.zeros((480, 640, 3), np.uint8), spread, valid).any()
    valid[[0, 4]] = True
    spread[4] = np.nan
    drawn = draw_hands(np.zeros((480, 640, 3), np.uint8), spread, valid)
    ys, xs = np.nonzero(drawn.any(axis=2))
    assert len(xs) and np.hypot(xs - 200, ys - 400).max() < 10


def test_hidden_joints_are_faint(spread):
    visibility = np.ones(46)
    tip = slot_index("left_index_tip")
    visibility[tip] = 0.0
    drawn = draw_hands(np.zeros((480, 640, 3), np.uint8), spread, np.ones(46, bool), visibility)
    full = slot_colours()[tip].max()
    assert 0.1 * full < at(drawn, spread[tip]).max() < 0.5 * full


def test_bone_to_a_far_away_joint_keeps_its_direction_and_costs_nothing(spread):
    """An elbow beside the camera projects far outside; the forearm still points to it."""
    valid = np.zeros(46, bool)
    valid[[0, slot_index("left_forearm")]] = True
    spread[slot_index("left_forearm")] = spread[0] + 1e6 * np.array([-1.0, 0.25])
    start = time.perf_counter()
    drawn = draw_hands(np.zeros((480, 640, 3), np.uint8), spread, valid)
    assert time.perf_counter() - start < 0.1
    assert at(drawn, spread[0] + (-120, 30)).max() > 200
    assert drawn[:, 230:].max() == 0


def test_overlay_costs_less_than_a_frame_can_spare(spread):
    """3 ms at 640x480 on an idle core; the best of many runs, since test machines are shared."""
    image = np.full((480, 640, 3), 120, np.uint8)
    visibility = np.linspace(0, 1, 46)
    best = np.inf
    for _ in range(30):
        start = time.perf_counter()
        draw_hands(image, spread, np.ones(46, bool), visibility)
        best = min(best, time.perf_counter() - start)
    assert best < 3e-3


@pytest.mark.parametrize(
    "image, pixels, valid, visibility, field",
    [
        (np.zeros((4, 4), np.uint8), np.zeros((42, 2)), np.ones(42, bool), None, "image"),
        (np.zeros((4, 4, 3), float), np.zeros((42, 2)), np.ones(42, bool), None, "image"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((21, 2)), np.ones(21, bool), None, "pixels"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((42, 2)), np.ones(42), np.ones(3), "visibility"),
    ],
)
def test_wrong_shapes_are_named(image, pixels, valid, visibility, field):
    with pytest.raises(ValueError, match=field):
        draw_hands(image, pixels, valid, visibility)
