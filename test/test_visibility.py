"""A joint counts as visible exactly where a person would see it."""

from __future__ import annotations

import numpy as np
import pytest

from ego_world_model.camera import PinholeCamera
from ego_world_model.hands import SLOTS_PER_HAND, HandJoints
from ego_world_model.visibility import visibility

CAMERA = PinholeCamera(640, 480, 610.0, 610.0, 319.5, 239.5)


def flat_hand(x: float = 0.0, z: float = 0.45) -> np.ndarray:
    """(21, 3) an open hand that faces the camera: wrist below, five fingers up, metres."""
    points = [(0.0, 0.09, 0.0)]
    for finger, side in enumerate((-0.05, -0.025, 0.0, 0.025, 0.045)):
        reach = (0.05, 0.0, -0.01, 0.0, 0.02)[finger]
        points += [(side, reach - 0.03 * joint, 0.0) for joint in range(4)]
    return np.array(points) + (x, 0.0, z)


def hands(left: np.ndarray, right: np.ndarray | None = None) -> HandJoints:
    positions = np.zeros((42, 3))
    valid = np.zeros(42, bool)
    positions[:SLOTS_PER_HAND], valid[:SLOTS_PER_HAND] = left, True
    if right is not None:
        positions[SLOTS_PER_HAND:], valid[SLOTS_PER_HAND:] = right, True
    return HandJoints(positions, valid)


@pytest.mark.parametrize("distance", [0.3, 0.45, 0.8])
def test_open_flat_hand_is_visible_at_every_joint(distance):
    seen = visibility(hands(flat_hand(z=distance)), CAMERA)
    assert seen[:SLOTS_PER_HAND].min() > 0.9
    assert not seen[SLOTS_PER_HAND:].any(), "joints that are not there are not visible"


def test_hand_behind_a_hand_is_hidden():
    front, behind = flat_hand(z=0.40), flat_hand(z=0.50)
    behind[:, :2] *= 0.50 / 0.40  # the same rays
    seen = visibility(hands(front, behind), CAMERA)
    assert seen[:SLOTS_PER_HAND].min() > 0.9
    assert seen[SLOTS_PER_HAND:].max() < 0.1


def test_hand_beside_a_nearer_hand_stays_visible():
    seen = visibility(hands(flat_hand(x=-0.1, z=0.35), flat_hand(x=0.12, z=0.5)), CAMERA)
    assert seen.min() > 0.9


def test_visibility_does_not_depend_on_the_image_size():
    both = hands(flat_hand(x=-0.02, z=0.4), flat_hand(x=0.02, z=0.5))
    small = CAMERA.resized(128, 96)
    np.testing.assert_allclose(visibility(both, CAMERA), visibility(both, small), atol=1e-6)


def test_joints_outside_the_image_or_behind_the_camera_are_not_visible():
    out = hands(flat_hand(x=2.0), flat_hand() * (1, 1, -1))
    assert not visibility(out, CAMERA).any()
