"""Nodes that read a bag which is played slowly, or halted, wait for its messages by its clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run script/setup")
pytest.importorskip("ego_world_model.msg", reason="needs the built interfaces: run script/setup")

from rclpy.parameter import Parameter
from robot_player import FRAME, ROBOT
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Header
from support import wait_until
from trajectory_msgs.msg import JointTrajectory

from ego_world_model.kinematics import HandKinematics
from ego_world_model.ros.camera_frames import CameraIntake
from ego_world_model.ros.conversions import (
    MessageError,
    image_from_array,
    info_from_camera,
    joint_trajectory_to_message,
    stamp_from_nanoseconds,
)
from ego_world_model.ros.diagnostics import Diagnostics
from ego_world_model.ros.motion_policy_settings import Settings
from ego_world_model.ros.policy_inputs import PolicyInputs
from ego_world_model.ros.qos import advertise
from ego_world_model.ros.rollout_inputs import RolloutInputs
from ego_world_model.world_model import ImaginationCancelled

CAMERA = ROBOT.camera.resized(64, 48)
LONG = 1.0  # seconds of the wall clock: many times what inputs wait for each other


class SlowBag:
    """A frame at 10 s of the bag whose joint states around it are 10 ms off, and a plan."""

    def __init__(self, node: Any) -> None:
        node.set_parameters([Parameter("use_sim_time", value=True)])
        self._now = node.get_clock().now
        self._publish: dict[type, Callable[[Any], None]] = {
            kind: advertise(node, kind, topic, depth=10).publish
            for kind, topic in (
                (Clock, "/clock"),
                (JointState, "joint_states"),
                (Image, "camera/color/image_raw"),
                (CameraInfo, "camera/color/camera_info"),
                (JointTrajectory, "joint_trajectory/planned"),
            )
        }

    def clock(self, seconds: float) -> int:
        """Sets the bag's clock; nanoseconds."""
        stamp = round(seconds * 1e9)

        def arrived() -> bool:
            self._publish[Clock](Clock(clock=stamp_from_nanoseconds(stamp)))
            return self._now().nanoseconds == stamp

        wait_until(arrived, timeout=30, what="/clock arrives")
        return stamp

    def header(self, seconds: float) -> Header:
        return Header(stamp=stamp_from_nanoseconds(round(seconds * 1e9)), frame_id=FRAME)

    def joints(self, seconds: float) -> None:
        q = ROBOT.neutral + seconds - 10.0
        self._publish[JointState](
            JointState(header=self.header(seconds), name=ROBOT.joint_names, position=q.tolist())
        )

    def frame(self, seconds: float) -> None:
        header = self.header(seconds)
        self._publish[CameraInfo](info_from_camera(CAMERA, header=header))
        picture = np.zeros((CAMERA.height, CAMERA.width, 3), np.uint8)
        self._publish[Image](image_from_array(picture, "rgb8", header=header))

    def plan(self, seconds: float) -> None:
        ahead = np.arange(0, 4.0, 0.1)
        q = np.tile(ROBOT.neutral, (len(ahead), 1))
        header = self.header(seconds)
        self._publish[JointTrajectory](
            joint_trajectory_to_message(ahead, q, ROBOT.joint_names, header=header)
        )


class Rollout:
    """RolloutInputs that a thread asks for the frame at 10 s, as the model's thread does."""

    def __init__(self, node: Any, bag: SlowBag) -> None:
        self.goal = threading.Event()
        arrived = threading.Event()
        self._inputs = RolloutInputs(
            node,
            Diagnostics(node),
            images=CameraIntake(node),
            motion_source="planned",
            kinematics=HandKinematics(ROBOT),
            camera=ROBOT.camera_pose,
            max_staleness=2.0,
            joint_tolerance=0.05,
            joint_time_offset=0.0,
            silence_timeout=60.0,
            on_image=arrived.set,
            give_way=self.goal.is_set,
        )
        self._inputs.expect((), 1.0)
        self._now = bag.clock(10.0)
        bag.joints(9.99)
        bag.plan(10.0)
        bag.frame(10.0)
        assert arrived.wait(30.0)
        self._pool = ThreadPoolExecutor(1)

    def start(self) -> Future:
        """Asks; what it gives, once it does."""
        time.sleep(0.5)  # the topics have no order among each other
        return self._pool.submit(self._inputs.assemble, self._now)


@pytest.fixture
def bag(ros_node: Any) -> SlowBag:
    return SlowBag(ros_node)


def test_a_rollout_waits_for_the_joint_states_of_a_slow_bag(ros_node, bag) -> None:
    """The bag's clock stands for a second and goes on by 10 ms: the newest frame is used."""
    answer = Rollout(ros_node, bag).start()
    time.sleep(LONG)
    assert not answer.done()
    bag.clock(10.01)
    bag.joints(10.01)
    assembled = answer.result(30.0)
    assert assembled.reference.stamp == 10_000_000_000
    np.testing.assert_allclose(assembled.q, ROBOT.neutral, atol=1e-6)


def test_a_rollout_gives_up_where_the_bag_goes_on_without_joint_states(ros_node, bag) -> None:
    answer = Rollout(ros_node, bag).start()
    bag.clock(10.2)
    with pytest.raises(MessageError, match="newer than the newest joint state"):
        answer.result(30.0)


def test_a_rollout_that_waits_for_a_halted_bag_gives_way_to_a_goal(ros_node, bag) -> None:
    rollout = Rollout(ros_node, bag)
    answer = rollout.start()
    time.sleep(LONG)
    assert not answer.done()
    rollout.goal.set()
    with pytest.raises(ImaginationCancelled):
        answer.result(30.0)


def test_the_policy_waits_for_the_joint_states_of_a_slow_bag(ros_node, bag) -> None:
    """The frame is kept while the bag's clock stands, and paired with what comes then."""
    complete = threading.Event()
    wanted = {
        "use_depth": False,
        "depth_wait": 0.1,
        "joint_tolerance": 0.05,
        "joint_wait": 0.1,
        "joint_time_offset": 0.0,
        "silence_timeout": 60.0,
    }
    inputs = PolicyInputs(
        ros_node,
        Diagnostics(ros_node),
        images=CameraIntake(ros_node),
        kinematics=HandKinematics(ROBOT),
        camera=ROBOT.camera_pose,
        settings=Settings(**{f.name: wanted.get(f.name) for f in fields(Settings)}),
        on_frame=complete.set,
    )
    bag.clock(10.0)
    bag.joints(9.99)
    bag.frame(10.0)
    assert not complete.wait(LONG)
    bag.clock(10.01)
    bag.joints(10.01)
    assert complete.wait(30.0), "the frame was dropped"
    observation = inputs.take()
    assert observation is not None and observation.frame.stamp == 10_000_000_000
    np.testing.assert_allclose(observation.q, ROBOT.neutral, atol=1e-6)
