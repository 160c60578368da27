"""Kinematics of the built-in robots against the published models, and inverse kinematics."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
import pytest
from transforms3d.quaternions import quat2mat

from ego_world_model.embodiment import Embodiment, load_embodiment
from ego_world_model.hands import EXTRA_SLOTS, slot_index
from ego_world_model.kinematics import (
    HandKinematics,
    UnreachableError,
    matrix_from_6d,
    rotation_6d,
)


@pytest.fixture(scope="module")
def robot() -> Embodiment:
    return load_embodiment("g1_dex3")


@pytest.fixture(scope="module")
def fk(robot: Embodiment) -> HandKinematics:
    return HandKinematics(robot)


@pytest.fixture(scope="module")
def reference(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "robots/g1_dex3/fk_reference.npz") as file:
        return dict(file)


def _random_q(robot: Embodiment, count: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(robot.lower, robot.upper, (count, len(robot.lower)))


def test_every_link_agrees_with_the_published_robot(
    fk: HandKinematics, reference: dict[str, np.ndarray]
) -> None:
    links = list(reference["link_names"])
    for q, positions, quaternions in zip(
        reference["q"], reference["pos"], reference["quat_wxyz"], strict=True
    ):
        named = dict(zip(reference["joint_names"], q, strict=True))
        poses = fk.link_poses(named, links)
        assert np.abs(poses[:, :3, 3] - positions).max() < 1e-6
        rotations = np.array([quat2mat(quaternion) for quaternion in quaternions])
        assert np.abs(poses[:, :3, :3] - rotations).max() < 1e-6


def test_fingertips_agree_with_the_published_hands(
    fk: HandKinematics, reference: dict[str, np.ndarray]
) -> None:
    points = fk.slot_positions(reference["q"], list(reference["tip_names"]))
    assert np.abs(points - reference["tip_pos"]).max() < 1e-6


def test_mujoco_agrees_on_the_same_model(
    robot: Embodiment, reference: dict[str, np.ndarray]
) -> None:
    model = mujoco.MjModel.from_xml_path(str(robot.model_path))
    data = mujoco.MjData(model)
    order = [model.joint(name).qposadr[0] for name in reference["joint_names"]]
    for q, positions in zip(reference["q"], reference["pos"], strict=True):
        data.qpos[order] = q
        mujoco.mj_kinematics(model, data)
        found = np.array([data.body(name).xpos for name in reference["link_names"]])
        assert np.abs(found - positions).max() < 1e-6


def test_limits_are_the_published_ones(robot: Embodiment, reference: dict[str, np.ndarray]) -> None:
    names = list(reference["joint_names"])
    order = [names.index(name) for name in robot.joint_names]
    assert np.abs(robot.lower - reference["lower"][order]).max() < 1e-6
    assert np.abs(robot.upper - reference["upper"][order]).max() < 1e-6


def test_batch_equals_single_states(robot: Embodiment, fk: HandKinematics) -> None:
    q = _random_q(robot, 20)
    batch, valid = fk.hand_joints_batch(q, extra_slots=EXTRA_SLOTS)
    for state, positions in zip(q, batch, strict=True):
        single = fk.hand_joints(state, extra_slots=EXTRA_SLOTS)
        assert np.array_equal(single.valid, valid)
        assert np.abs(single.positions - positions).max() < 1e-6


def test_dex3_fills_eleven_slots_a_hand(robot: Embodiment, fk: HandKinematics) -> None:
    joints = fk.hand_joints(robot.neutral)
    assert joints.positions.shape == (42, 3) and joints.valid.sum() == 22
    assert not joints.valid[slot_index("left_index_dip")]
    assert not joints.valid[slot_index("right_ring_tip")]


def test_neutral_pose_shows_both_hands(robot: Embodiment, fk: HandKinematics) -> None:
    joints = fk.hand_joints(robot.neutral)
    assert robot.camera.contains(robot.camera.project(joints.positions[joints.valid])).all()
    left, right = joints.positions[slot_index("left_wrist")], joints.positions[21]
    assert left[0] < right[0]  # the left hand is on the left of the image


def test_colour_sensor_sits_left_of_the_camera_link(fk: HandKinematics) -> None:
    """15 mm to the left of the depth origin moves every point 15 mm to the right."""
    mount = fk.robot.camera_pose
    at_link = type(mount).from_body(mount.link)
    difference = fk.hand_joints({}).positions - fk.hand_joints({}, at_link).positions
    assert np.allclose(difference[fk.robot.valid_slots], (0.015, 0, 0), atol=1e-6)


def test_trajectory_includes_camera_motion(robot: Embodiment, fk: HandKinematics) -> None:
    """Only the waist turns, so in the reference camera hands swing; in their own they rest."""
    q = np.repeat(robot.neutral[None], 3, axis=0)
    q[:, robot.joint_names.index("waist_yaw_joint")] = (0.0, 0.1, 0.2)
    trajectory = fk.trajectory([0.0, 0.1, 0.2], q)
    assert np.abs(trajectory.positions - trajectory.positions[0]).max() < 1e-6
    moved = trajectory.in_reference().positions
    assert np.abs(moved[2] - moved[0])[robot.valid_slots].max() > 0.05
    pose = np.linalg.inv(fk.camera_pose(q[0])) @ fk.camera_pose(q[2])
    assert np.allclose(trajectory.camera_pose[2], pose)


def test_a_still_torso_gives_the_exact_identity(robot: Embodiment, fk: HandKinematics) -> None:
    q = np.repeat(robot.neutral[None], 3, axis=0)
    q[2, robot.joint_names.index("left_elbow_joint")] += 0.3
    trajectory = fk.trajectory([0.0, 0.1, 0.2], q)
    assert np.array_equal(trajectory.camera_pose, np.repeat(np.eye(4)[None], 3, axis=0))


def test_inverse_kinematics_returns_the_hand_state(robot: Embodiment, fk: HandKinematics) -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        q = robot.neutral.copy()
        for hand in robot.hands.values():
            q[robot.indices(hand.arm)] += rng.uniform(-0.35, 0.35, 7)
            fingers = robot.indices(hand.fingers)
            q[fingers] = rng.uniform(robot.lower[fingers], robot.upper[fingers])
        q = np.clip(q, robot.lower, robot.upper)
        wanted = fk.hand_state(q)
        solved = fk.solve(wanted, robot.neutral)
        got = fk.hand_state(solved)
        assert np.abs(got.translation - wanted.translation).max() < 1e-3
        assert np.abs(got.rotation - wanted.rotation).max() < 1e-2
        assert np.abs(got.fingers - wanted.fingers).max() < 1e-9
        assert (solved >= robot.lower - 1e-9).all() and (solved <= robot.upper + 1e-9).all()


@pytest.mark.parametrize("name", ["g1_dex3", "h1_2_inspire"])
def test_wrists_and_fingers_alone_place_the_slots(name: str) -> None:
    """Slots from wrist poses and finger angles are those of the whole robot's kinematics."""
    robot = load_embodiment(name)
    fk = HandKinematics(robot)
    q = robot.coupled(_random_q(robot, 3))
    states = [fk.hand_state(one) for one in q]
    positions, valid = fk.slots_from_wrist(
        np.stack([s.translation for s in states]),
        matrix_from_6d(np.stack([s.rotation for s in states])),
        np.stack([s.fingers for s in states]),
        states[0].finger_names,
    )
    whole, whole_valid = fk.hand_joints_batch(q)
    assert (valid == whole_valid).all()
    np.testing.assert_allclose(positions, whole, atol=1e-6)


def test_fingers_of_another_robot_are_refused(robot: Embodiment, fk: HandKinematics) -> None:
    """Finger angles under names that the robot lacks would bend other joints."""
    names = load_embodiment("h1_2_inspire").hands
    with pytest.raises(ValueError, match="left finger joints"):
        fk.slots_from_wrist(
            np.zeros((1, 2, 3)),
            np.tile(np.eye(3), (1, 2, 1, 1)),
            np.zeros((1, 2, 7)),
            (names["left"].fingers, names["right"].fingers),
        )


def test_unreachable_targets_say_how_far_off(robot: Embodiment, fk: HandKinematics) -> None:
    state = fk.hand_state(robot.neutral)
    state.translation[0] += (0.0, 0.0, 1.0)
    with pytest.raises(UnreachableError, match="left wrist target is out of reach: .* mm"):
        fk.solve(state, robot.neutral)


def test_rotation_6d_round_trip() -> None:
    rotation = np.array([quat2mat(v) for v in np.random.default_rng(0).normal(size=(8, 4))])
    assert np.allclose(matrix_from_6d(rotation_6d(rotation)), rotation)
    noisy = rotation_6d(rotation) + np.random.default_rng(1).normal(0, 0.1, (8, 6))
    assert np.allclose(np.linalg.det(matrix_from_6d(noisy)), 1)


def test_wrong_joints_are_named(fk: HandKinematics) -> None:
    with pytest.raises(ValueError, match="no joint 'left_pinky_joint'"):
        fk.link_positions({"left_pinky_joint": 0.1}, ["left_hand_palm_link"])
    with pytest.raises(ValueError, match="'left_elbow_joint' is nan"):
        fk.link_positions({"left_elbow_joint": float("nan")}, ["left_hand_palm_link"])
    with pytest.raises(ValueError, match="no link 'left_hand'"):
        fk.link_positions({}, ["left_hand"])
    with pytest.raises(ValueError, match=r"shape \(43,\)"):
        fk.hand_joints(np.zeros(29))
