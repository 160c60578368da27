"""A joint counts as visible exactly where a person would see it."""

from __future__ import annotations

import numpy as np
import pytest

from ego_world_model.camera import PinholeCamera
from ego_world_model.embodiment import load_embodiment
from ego_world_model.hands import SLOTS_PER_HAND, HandJoints
from ego_world_model.kinematics import HandKinematics
from ego_world_model.simulation import TableTop
from ego_world_model.visibility import measured_visibility, visibility

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


def test_measured_depth_hides_what_is_clearly_behind_it():
    """A surface 2 cm in front of a joint is the hand's own, one 10 cm in front hides it; a single
    ragged pixel, and pixels without depth, decide nothing."""
    hand = hands(flat_hand(z=0.5))
    pixels = CAMERA.project(hand.positions)
    depth = np.full((480, 640), 0.48, np.float32)
    assert measured_visibility(hand, pixels, depth)[:SLOTS_PER_HAND].min() > 0.99
    column, row = np.round(pixels[8]).astype(int)
    depth[row, column] = 0.2
    assert measured_visibility(hand, pixels, depth)[8] > 0.99
    depth[row - 2 : row + 3, column - 2 : column + 3] = 0.4
    assert measured_visibility(hand, pixels, depth)[8] < 0.01
    depth[row - 1 : row + 2, column - 1 : column + 2] = 0.0
    assert measured_visibility(hand, pixels, depth)[8] == 1
    outside = hands(flat_hand(x=2.0, z=0.5))
    assert (measured_visibility(outside, CAMERA.project(outside.positions), depth) == 1).all()


def test_measured_depth_of_the_hands_themselves_hides_nothing_and_that_of_others_does():
    """Rendered depth of the simulated robot at work: joints on their own hand's pixels stay
    visible, joints under the other hand, an arm or an object do not."""
    robot = load_embodiment("g1_dex3")
    fk = HandKinematics(robot)
    sim = TableTop(robot, seed=2, task="cross", width=320, height=240)
    own, covered = [], []
    for _ in range(25):
        sim.advance(0.2)
        seen = sim.render(masks=True)
        joints = fk.hand_joints(sim.joint_positions, sim.camera_pose)
        pixels = sim.camera.project(joints.positions)
        depth = np.asarray(seen.depth, np.float32)
        factors = measured_visibility(joints, pixels, depth)
        geometric = visibility(joints, sim.camera, pixels)
        for slot in np.flatnonzero(joints.valid & sim.camera.contains(pixels)):
            column, row = np.round(pixels[slot]).astype(int)
            side = 1 + slot // SLOTS_PER_HAND
            mask = seen.masks[row, column]
            if mask == side and geometric[slot] > 0.9:
                own.append(factors[slot])
            elif mask not in (0, side) and joints.positions[slot, 2] - depth[row, column] > 0.08:
                covered.append(factors[slot])
    sim.close()
    assert len(own) > 200 and len(covered) > 10
    assert np.mean(np.array(own) > 0.8) > 0.99
    assert np.mean(np.array(covered) < 0.1) > 0.9
