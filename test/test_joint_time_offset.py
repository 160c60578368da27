"""The parameter joint_time_offset: which joint states belong to an image that is stamped late."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run script/setup")
pytest.importorskip("ego_world_model.msg", reason="needs the built interfaces: run script/setup")

from robot_player import FRAME, ROBOT, Inbox
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Header
from support import node, wait_until
from trajectory_msgs.msg import JointTrajectory

from ego_world_model.kinematics import HandKinematics
from ego_world_model.kinematics.joint_buffer import JointBuffer, Match
from ego_world_model.msg import HandJoints
from ego_world_model.ros.camera_frames import CameraFrame, CameraIntake
from ego_world_model.ros.conversions import (
    MessageError,
    hand_joints_from_message,
    image_from_array,
    info_from_camera,
    joint_trajectory_to_message,
    nanoseconds,
    stamp_from_nanoseconds,
)
from ego_world_model.ros.diagnostics import Diagnostics
from ego_world_model.ros.frame_pairing import FramePairer
from ego_world_model.ros.qos import advertise
from ego_world_model.ros.rollout_inputs import RolloutInputs

MS = 1_000_000
JOINT = "left_shoulder_pitch_joint"


def pose(stamp: int) -> np.ndarray:
    """(nq,) rad that the robot has by its joint states at ``stamp`` ns: an arm that swings."""
    q = ROBOT.neutral.copy()
    q[ROBOT.joint_names.index(JOINT)] += 0.3 * math.sin(stamp * 1e-9 * 2.0)
    return q


@contextmanager
def swinging(ros_node: Any) -> Iterator[None]:
    """Joint states at 100 Hz and images at 20 Hz, stamped by one clock, and a plan of the swing."""
    camera = ROBOT.camera.resized(64, 48)
    publish = {
        kind: advertise(ros_node, kind, topic, depth=50).publish
        for kind, topic in (
            (JointState, "joint_states"),
            (Image, "camera/color/image_raw"),
            (CameraInfo, "camera/color/camera_info"),
            (JointTrajectory, "joint_trajectory/planned"),
        )
    }
    stop = threading.Event()

    def play() -> None:
        count = 0
        while not stop.wait(0.01):
            stamp = time.time_ns()
            header = Header(stamp=stamp_from_nanoseconds(stamp), frame_id=FRAME)
            state = JointState(header=header, name=ROBOT.joint_names, position=pose(stamp).tolist())
            publish[JointState](state)
            if count % 5 == 0:
                publish[CameraInfo](info_from_camera(camera, header=header))
                pixels = np.zeros((48, 64, 3), np.uint8)
                publish[Image](image_from_array(pixels, "rgb8", header=header))
            if count % 50 == 0:
                ahead = np.arange(0, 4.0, 0.02)
                q = np.stack([pose(stamp + round(t * 1e9)) for t in ahead])
                plan = joint_trajectory_to_message(ahead, q, ROBOT.joint_names, header=header)
                publish[JointTrajectory](plan)
            count += 1

    thread = threading.Thread(target=play, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5.0)


@pytest.mark.parametrize("offset", [0.04, -0.04])
def test_offset_is_added_to_the_stamps_of_joint_states(offset):
    """A joint state stamped s belongs to the image stamped s + offset."""
    buffer = JointBuffer(("a",), time_offset=offset)
    for ms in range(0, 200, 10):
        buffer.add(ms * MS, ["a"], [ms * 1e-3])
    found = buffer.at(105 * MS)
    assert found.match is Match.FOUND and found.q is not None
    np.testing.assert_allclose(found.q, 0.105 - offset)


@pytest.mark.parametrize(
    ("ms", "words"),
    [(2200, "an image is 2.000 s newer than"), (-1800, "an image is 2.000 s older than")],
)
def test_clocks_that_differ_point_to_the_offset(ms, words):
    """A frame that no joint state can be paired with is dropped, and the parameter named."""
    buffer = JointBuffer(("a",))
    for stamp in range(0, 201, 10):
        buffer.add(stamp * MS, ["a"], [0.0])
    dropped: list[str] = []
    pairer = FramePairer(
        buffer, wait=0.1, info_topic="/info", on_drop=lambda _, why: dropped.append(why)
    )
    pairer.add(CameraFrame(ms * MS, FRAME, 64, 48, memoryview(b"")), 0.0)
    assert pairer.take(1.0) == []
    (why,) = dropped
    assert words in why and "differ (a constant delay belongs into joint_time_offset)" in why


@pytest.mark.parametrize("offset", [0.2, -0.2])
def test_hands_are_those_of_the_joint_states_that_the_offset_names(ros_node, offset):
    """hand_kinematics pairs an image with the joint states of its stamp minus the offset; where
    those come after the image, it waits for them."""
    hands = Inbox(ros_node).listen(HandJoints, "hands/joints")
    settings = {"joint_time_offset": offset, "joint_tolerance": 0.5}
    with node("hand_kinematics_node", parameters=settings) as process, swinging(ros_node):
        process.wait_for("waiting for", timeout=200)
        wait_until(lambda: len(hands) >= 10, timeout=60, what="hands flow")
    kinematics = HandKinematics(ROBOT)
    errors = []
    for message in hands:
        stamp = nanoseconds(message.header.stamp)
        expected = kinematics.hand_joints(
            pose(stamp - round(offset * 1e9)), extra_slots=ROBOT.extra_slots
        )
        positions = hand_joints_from_message(message).positions
        errors.append(np.abs(positions - expected.positions)[expected.valid].max())
    # Linear interpolation between joint states that a busy machine may space by tens of ms; the
    # hand moves up to 50 mm in the 0.2 s that a wrong pairing would be off.
    assert np.median(errors) < 1e-3 and max(errors) < 5e-3


def test_rollouts_shift_measured_and_planned_joints_alike(ros_node):
    """world_model starts from the joint state and follows the plan by the camera's clock."""
    offset = 0.2
    inputs = RolloutInputs(
        ros_node,
        Diagnostics(ros_node),
        images=CameraIntake(ros_node),
        motion_source="planned",
        kinematics=HandKinematics(ROBOT),
        camera=ROBOT.camera_pose,
        max_staleness=2.0,
        joint_tolerance=0.5,
        joint_time_offset=offset,
        silence_timeout=60.0,
        on_image=lambda: None,
        give_way=lambda: False,
    )
    inputs.expect(tuple(), 1.0)
    assembled = None
    with swinging(ros_node):
        deadline = time.monotonic() + 30
        while assembled is None and time.monotonic() < deadline:
            time.sleep(0.5)
            try:
                assembled = inputs.assemble(ros_node.get_clock().now().nanoseconds)
            except MessageError as error:  # an input that has not come yet
                last = error
    assert assembled is not None, last
    by_joints = assembled.reference.stamp - round(offset * 1e9)
    np.testing.assert_allclose(assembled.q, pose(by_joints), atol=2e-3)
    planned = assembled.motion
    times = planned.times - (assembled.reference.stamp - planned.stamp) * 1e-9
    column = ROBOT.joint_names.index(JOINT)
    after = np.interp(0.5, times, planned.q[:, column])
    np.testing.assert_allclose(after, pose(by_joints + 500 * MS)[column], atol=2e-3)
