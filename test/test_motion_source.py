"""Motions on the absolute clock become conditioning that starts at the reference frame."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run script/setup")
pytest.importorskip("ego_world_model.msg", reason="needs the built interfaces: run script/setup")

from std_msgs.msg import Header

from ego_world_model.embodiment import load_embodiment
from ego_world_model.hands import SLOT_NAMES, HandTrajectory
from ego_world_model.kinematics import HandKinematics
from ego_world_model.ros.conversions import (
    MessageError,
    hand_trajectory_to_message,
    joint_trajectory_to_message,
    stamp_from_nanoseconds,
)
from ego_world_model.ros.motion_source import HandMotion, JointPlan

START = 1_000_000_000_000
TIMES = np.arange(17) / 10
OPTICAL = "camera_color_optical_frame"


@pytest.fixture(scope="module")
def kinematics() -> HandKinematics:
    return HandKinematics(load_embodiment("g1_dex3"))


def plan(kinematics: HandKinematics, times: np.ndarray, *, stamp: int = START, **joints: float):
    """A plan in which each named joint moves by its rate (rad/s) from the neutral pose."""
    robot = kinematics.robot
    columns = [robot.joint_names.index(name) for name in joints]
    q = robot.neutral[columns] + times[:, None] * np.array(list(joints.values()))
    header = Header(stamp=stamp_from_nanoseconds(stamp))
    message = joint_trajectory_to_message(times, q, list(joints), header=header)
    return JointPlan.from_message(message, kinematics, received=START, topic="plan")


def test_plan_times_are_absolute_and_start_from_the_measured_state(
    kinematics: HandKinematics,
) -> None:
    """A plan stamped 0.25 s before the frame is entered 0.25 s in, from where the robot is."""
    elbow = kinematics.robot.joint_names.index("left_elbow_joint")
    moving = plan(kinematics, np.arange(0.0, 3.0, 0.05), left_elbow_joint=0.4)
    q = kinematics.robot.neutral.copy()
    q[elbow] += 0.03  # the controller lags
    got = moving.trajectory(START + 250_000_000, TIMES, q)
    expected = np.repeat(q[None], len(TIMES), axis=0)
    expected[1:, elbow] = kinematics.robot.neutral[elbow] + 0.4 * (0.25 + TIMES[1:])
    wanted = kinematics.trajectory(TIMES, expected)
    np.testing.assert_allclose(got.positions, wanted.positions, atol=1e-5)
    np.testing.assert_array_equal(got.times, TIMES)


def test_joints_that_a_plan_does_not_name_keep_their_current_value(
    kinematics: HandKinematics,
) -> None:
    right = kinematics.robot.joint_names.index("right_elbow_joint")
    q = kinematics.robot.neutral.copy()
    q[right] += 0.3
    got = plan(kinematics, np.arange(0.1, 2.0, 0.1), left_elbow_joint=0.4).trajectory(
        START, TIMES, q
    )
    wrist = SLOT_NAMES.index("right_wrist")
    here = kinematics.hand_joints(q).positions[wrist]
    np.testing.assert_allclose(got.positions[:, wrist], np.tile(here, (17, 1)), atol=1e-6)


def test_camera_moves_with_the_waist(kinematics: HandKinematics) -> None:
    """The head turns with the waist, and with it the camera: poses say so, frame by frame."""
    q = kinematics.robot.neutral
    got = plan(kinematics, np.arange(0.1, 2.0, 0.1), waist_yaw_joint=0.2).trajectory(
        START, TIMES, q
    )
    turned = q.copy()
    turned[kinematics.robot.joint_names.index("waist_yaw_joint")] += 0.2 * 1.6
    expected = np.linalg.inv(kinematics.camera_pose(q)) @ kinematics.camera_pose(turned)
    np.testing.assert_allclose(got.camera_pose[-1], expected, atol=1e-6)
    assert np.degrees(np.arccos((np.trace(expected[:3, :3]) - 1) / 2)) == pytest.approx(18.3, abs=1)


def test_frame_older_than_a_new_plan_moves_as_the_old_plan_said(
    kinematics: HandKinematics,
) -> None:
    """The old plan bends the elbow until the new one, 0.4 s after the frame, holds it there."""
    robot = kinematics.robot
    elbow = robot.joint_names.index("left_elbow_joint")
    old = plan(kinematics, np.arange(0.0, 3.0, 0.05), left_elbow_joint=0.4)
    header = Header(stamp=stamp_from_nanoseconds(START + 400_000_000))
    target = np.array([[robot.neutral[elbow] + 0.4], [robot.neutral[elbow] + 0.4]])
    message = joint_trajectory_to_message([1.0, 3.0], target, ["left_elbow_joint"], header=header)
    new = JointPlan.from_message(message, kinematics, received=START, topic="plan").after(old)
    got = new.trajectory(START, TIMES, robot.neutral)
    expected = np.repeat(robot.neutral[None], len(TIMES), axis=0)
    # the old plan until the new one's first point at 1.4 s, which jumps down to 0.4 rad
    expected[:14, elbow] += 0.4 * TIMES[:14]
    expected[14:, elbow] += 0.4
    wanted = kinematics.trajectory(TIMES, expected)
    np.testing.assert_allclose(got.positions, wanted.positions, atol=1e-5)


def test_zero_stamp_means_from_now(kinematics: HandKinematics) -> None:
    moving = plan(kinematics, np.arange(0.1, 2.0, 0.1), stamp=0, left_elbow_joint=0.1)
    assert moving.stamp == START


def test_plan_that_ends_before_the_horizon_is_refused(kinematics: HandKinematics) -> None:
    short = plan(kinematics, np.arange(0.1, 1.25, 0.1), left_elbow_joint=0.1)
    with pytest.raises(MessageError, match=r"plan: points end 1.10 s after .* imagines 1.60 s"):
        short.check(START + 100_000_000, OPTICAL, 1.6)


def hand_motion(*, turn: float = 0.0, duration: float = 2.0, **message: object) -> HandMotion:
    """Hands that move right by 0.1 m/s before a camera that turns left by ``turn`` rad/s."""
    times = np.arange(0.0, duration + 1e-9, 0.1)
    positions = np.full((len(times), 42, 3), (0.0, 0.1, 0.5), np.float32)
    positions[..., 0] += 0.1 * times[:, None]
    pose = np.repeat(np.eye(4)[None], len(times), axis=0)
    pose[:, 0, 0] = pose[:, 2, 2] = np.cos(turn * times)
    pose[:, 0, 2], pose[:, 2, 0] = -np.sin(turn * times), np.sin(turn * times)
    header = Header(stamp=stamp_from_nanoseconds(START), frame_id=OPTICAL)
    sent = hand_trajectory_to_message(
        HandTrajectory(times, positions, None, pose), header=header, source="policy"
    )
    for field, value in message.items():
        setattr(sent, field, value)
    return HandMotion.from_message(sent, topic="hands", slot_names=SLOT_NAMES, stamped=True)


def test_hand_trajectory_is_entered_late_with_the_later_camera_as_reference() -> None:
    """0.3 s after its own frame: positions from 0.3 s on, camera poses relative to that camera."""
    motion = hand_motion(turn=0.2)
    got = motion.trajectory(START + 300_000_000, TIMES)
    assert got.positions[0, 0] == pytest.approx((0.03, 0.1, 0.5), abs=1e-5)
    assert got.positions[16, 0] == pytest.approx((0.19, 0.1, 0.5), abs=1e-5)
    np.testing.assert_allclose(got.camera_pose[0], np.eye(4), atol=1e-9)
    assert np.arctan2(got.camera_pose[16, 2, 0], got.camera_pose[16, 0, 0]) == pytest.approx(0.32)


@pytest.mark.parametrize(
    ("frame_id", "offset", "said"),
    [
        ("pelvis", 0.0, "header.frame_id is 'camera_color_optical_frame' but .* 'pelvis'"),
        (OPTICAL, -0.2, "header.stamp is 0.200 s after the reference frame"),
        (OPTICAL, 0.6, "times end 1.40 s after the reference frame .* imagines 1.60 s"),
    ],
)
def test_hand_trajectory_that_does_not_fit_the_frame(
    frame_id: str, offset: float, said: str
) -> None:
    with pytest.raises(MessageError, match=f"hands: {said}"):
        hand_motion().check(START + round(offset * 1e9), frame_id, 1.6)


def test_stream_of_hand_trajectories_must_be_stamped() -> None:
    """Without a stamp an old motion would be imagined from every new frame for ever."""
    with pytest.raises(MessageError, match=r"hands: header.stamp is 0"):
        hand_motion(header=Header(frame_id=OPTICAL))
