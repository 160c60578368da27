"""Where are the hands in this camera frame? Image stamp + joint states → hand joints.

For every camera frame: joint states interpolated to its stamp, forward kinematics into the camera,
projection, visibility. Pixels are touched only for the overlay and the point cloud, and only while
somebody subscribes to them.
"""

from __future__ import annotations

import sys
import time
from functools import partial

import numpy as np
from numpy.typing import NDArray
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, JointState

from ego_world_model import msg
from ego_world_model.camera import PinholeCamera
from ego_world_model.hands import SLOT_NAMES, HandJoints
from ego_world_model.kinematics import HandKinematics
from ego_world_model.kinematics.joint_buffer import JointBuffer, influential_joints
from ego_world_model.ros.camera_frames import CameraFrame, CameraIntake
from ego_world_model.ros.camera_mount import declare_camera_mount
from ego_world_model.ros.conversions import (
    MessageError,
    camera_from_info,
    depth_from_image,
    hand_joints_to_message,
    nanoseconds,
)
from ego_world_model.ros.depth_frames import DepthFrames
from ego_world_model.ros.diagnostics import Diagnostics
from ego_world_model.ros.frame_pairing import FramePairer, PairedFrame
from ego_world_model.ros.hand_views import HandViews
from ego_world_model.ros.input_watch import InputWatch
from ego_world_model.ros.joint_time_offset import declare_joint_time_offset
from ego_world_model.ros.pace import pace
from ego_world_model.ros.parameters import declare
from ego_world_model.ros.priority import set_nice
from ego_world_model.ros.qos import advertise, subscribe
from ego_world_model.ros.raw_image import RawImage
from ego_world_model.ros.robot_description import load_robot
from ego_world_model.ros.run import run_node
from ego_world_model.ros.topics import CAMERA_INFO, HAND_JOINTS, JOINT_STATES
from ego_world_model.visibility import DEPTH_TOLERANCE, measured_visibility, visibility


class HandKinematicsNode(Node):
    """Publishes ``hands/joints`` for every camera frame; see the module."""

    def __init__(self) -> None:
        super().__init__("hand_kinematics")
        self._diagnostics = Diagnostics(self)
        self._declare()
        self._images = CameraIntake(self)
        self._depth = self._open_depth()
        self._pairer = FramePairer(
            self._buffer,
            wait=self._wait,
            info_topic=self.resolve_topic_name(CAMERA_INFO),
            on_drop=self._dropped,
            settled=self._depth_settled,
            pace=partial(pace, self),
        )
        self._watch = InputWatch(
            self,
            self._diagnostics,
            {
                self._images.topic: self._images.description,
                CAMERA_INFO: "camera intrinsics",
                JOINT_STATES: "joint states",
            },
            after=self._silence,
        )
        self._publisher = advertise(self, msg.HandJoints, HAND_JOINTS, depth=10)
        self._views = HandViews(self, self._diagnostics, self._kinematics, self._mount, self._depth)
        self._info_content: tuple[object, ...] = ()
        self._camera: PinholeCamera | None = None
        self._unknown: tuple[str, ...] = ()
        # Frames are taken by the depth of 10 so that a stall of this process loses none.
        self._subscriptions_kept = [
            self._images.subscribe(self._on_image, self._image_rejected, depth=10),
            subscribe(self, CameraInfo, CAMERA_INFO, self._on_info, depth=10),
            subscribe(self, JointState, JOINT_STATES, self._on_joints, depth=100),
        ]
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(0.05, self._process, clock=steady)
        self._apply_nice()
        inputs = map(self.resolve_topic_name, (self._images.topic, CAMERA_INFO, JOINT_STATES))
        self.get_logger().info(f"waiting for {', '.join(inputs)}")

    def _declare(self) -> None:
        """Parameters, and the kinematics that they choose."""
        name = declare(
            self,
            "embodiment",
            "g1_dex3",
            "robot: a built-in name, or the path of an embodiment YAML",
            read_only=True,
        )
        arms = declare(
            self,
            "include_arms",
            True,
            "append elbow and forearm slots behind the 42 hand slots",
            read_only=True,
        )
        tolerance = declare(
            self,
            "joint_tolerance",
            0.05,
            "seconds: joint states further apart are not interpolated, the frame is dropped",
            minimum=0.001,
            maximum=1.0,
            read_only=True,
        )
        self._wait = declare(
            self,
            "joint_wait",
            0.1,
            "seconds that a frame waits for the joint state behind its stamp",
            minimum=0.0,
            maximum=2.0,
            read_only=True,
        )
        offset = declare_joint_time_offset(self)
        # Where joint states are stamped late, so is the one behind a frame.
        self._wait += max(0.0, -offset)
        self._silence = declare(
            self,
            "silence_timeout",
            5.0,
            "seconds without an input after which the node says what is missing",
            minimum=0.5,
            maximum=600.0,
            read_only=True,
        )
        robot = load_robot(self, self._diagnostics, name, silence=self._silence)
        self._robot_name = robot.name
        self._kinematics = HandKinematics(robot)
        self._extra = robot.extra_slots if arms else ()
        self._slot_names = SLOT_NAMES + self._extra
        self._mount = declare_camera_mount(self, robot)
        self._buffer = JointBuffer(
            robot.joint_names,
            required=influential_joints(self._kinematics, self._mount, self._extra),
            couplings=robot.couplings,
            tolerance=tolerance,
            time_offset=offset,
        )

    def _open_depth(self) -> DepthFrames:
        self._use_depth = declare(
            self,
            "use_depth",
            True,
            "joints behind what the aligned depth image measures are not visible, where such "
            "images come; false: visibility comes from the hands' geometry alone",
            read_only=True,
        )
        self._depth_tolerance = declare(
            self,
            "depth_tolerance",
            DEPTH_TOLERANCE,
            "metres that something measured must be in front of a joint to hide it",
            minimum=0.0,
            maximum=1.0,
            read_only=True,
        )
        wait = declare(
            self,
            "depth_wait",
            0.03,
            "seconds that a frame waits for its depth image, where depth images come",
            minimum=0.0,
            maximum=1.0,
            read_only=True,
        )
        return DepthFrames(
            self,
            self._diagnostics,
            always=self._use_depth,
            on_depth=self._on_depth,
            wait=wait,
        )

    def _apply_nice(self) -> None:
        nice = declare(
            self,
            "nice",
            0,
            "scheduling niceness of this process; below 0 (needs CAP_SYS_NICE) keeps latency low "
            "beside a model that fills the cores",
            minimum=-20,
            maximum=19,
            read_only=True,
        )
        if nice:
            try:
                set_nice(nice)
            except PermissionError:
                self._diagnostics.warn(
                    "nice refused",
                    f"parameter nice={nice} needs CAP_SYS_NICE or a 'nice' entry in "
                    "/etc/security/limits.conf; running at the default priority",
                )

    # ------------------------------------------------------------------ inputs

    def _on_image(self, image: CameraFrame) -> None:
        self._watch.seen(self._images.topic)
        self._diagnostics.tick("image")
        self._pairer.add(image, time.monotonic())
        self._process()
        self._views.add_image(image, self._camera)

    def _image_rejected(self, error: MessageError) -> None:
        self._diagnostics.warn("images rejected", str(error))

    def _on_depth(self) -> None:
        self._process()
        self._views.match_depth()

    def _on_info(self, message: CameraInfo) -> None:
        self._watch.seen(CAMERA_INFO)
        content = (
            message.width,
            message.height,
            message.k.tobytes(),
            tuple(message.d),
            message.distortion_model,
            (message.binning_x, message.binning_y),
            (message.roi.x_offset, message.roi.y_offset, message.roi.width, message.roi.height),
        )
        if content == self._info_content:
            return
        try:
            self._camera = camera_from_info(message, topic=self.resolve_topic_name(CAMERA_INFO))
        except MessageError as error:
            self._diagnostics.warn("camera_info rejected", str(error))
            return
        self._info_content = content
        self._pairer.set_camera(self._camera, time.monotonic())
        self._diagnostics.value("camera", f"{self._camera.width}x{self._camera.height}")

    def _on_joints(self, message: JointState) -> None:
        now = time.monotonic()
        self._watch.seen(JOINT_STATES)
        try:
            self._buffer.add(nanoseconds(message.header.stamp), message.name, message.position, now)
        except ValueError as error:
            name = self.resolve_topic_name(JOINT_STATES)
            self._diagnostics.warn("joint states rejected", f"{name}: {error}")
            return
        self._diagnostics.tick("joint state")
        if self._buffer.unknown != self._unknown:
            self._unknown = self._buffer.unknown
            if self._unknown:
                self._diagnostics.warn(
                    "joints ignored",
                    f"{self.resolve_topic_name(JOINT_STATES)} holds joints unknown to "
                    f"{self._robot_name}, ignored: {', '.join(self._unknown[:6])}",
                )
        self._process()

    def _dropped(self, counter: str, reason: str) -> None:
        self._diagnostics.warn(counter, reason)

    # ----------------------------------------------------------------- outputs

    def _process(self) -> None:
        """Publishes every frame that has become complete."""
        for frame in self._pairer.take(time.monotonic()):
            self._publish(frame)

    def _publish(self, frame: PairedFrame) -> None:
        hands = self._kinematics.hand_joints(frame.q, self._mount, extra_slots=self._extra)
        pixels = frame.camera.project(hands.positions)
        seen = visibility(hands, frame.camera, pixels)
        ready = frame.ready
        found = self._depth.of(frame.image) if self._use_depth else None
        if found is not None:
            depth, arrival = found
            ready = max(ready, arrival)
            seen = seen * self._measured(hands, pixels, depth, frame.image)
        elif self._use_depth and self._depth.flows(time.monotonic()):
            self._diagnostics.count("frames without their depth")
        header = frame.image.header()
        self._publisher.publish(
            hand_joints_to_message(
                hands,
                header=header,
                embodiment=self._robot_name,
                slot_names=self._slot_names,
                pixels=pixels,
                visibility=seen,
                image_size=frame.image.size,
            )
        )
        self._diagnostics.latency("latency", time.monotonic() - ready)
        self._diagnostics.tick("hands")
        self._views.show(frame, hands, pixels, seen)

    def _measured(
        self, hands: HandJoints, pixels: NDArray[np.float64], depth: RawImage, image: CameraFrame
    ) -> NDArray[np.float32]:
        """(J,) factors on the visibility; 1 where depth cannot be used."""
        try:
            self._depth.check(depth, image)
            metres = depth_from_image(depth, topic=self._depth.topic)
        except MessageError as error:
            self._diagnostics.warn("depth rejected", str(error))
            return np.ones(len(pixels), np.float32)
        self._diagnostics.tick("depth in visibility")
        return measured_visibility(hands, pixels, metres, tolerance=self._depth_tolerance)

    def _depth_settled(self, frame: CameraFrame, arrival: float, now: float) -> bool:
        return not self._use_depth or self._depth.settled(frame, arrival, now)

    def destroy_node(self) -> None:
        """Ends the threads before the publishers they use."""
        self._views.close()
        super().destroy_node()


def main(args: list[str] | None = None) -> int:
    """Runs the node until it is interrupted."""
    return run_node(HandKinematicsNode, args)


if __name__ == "__main__":
    sys.exit(main())
