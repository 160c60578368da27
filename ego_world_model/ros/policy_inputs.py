"""What the policy reads from the graph: camera frames with the robot's state, and depth if any."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, JointState

from ego_world_model.camera import CameraPose, PinholeCamera
from ego_world_model.kinematics import HandKinematics
from ego_world_model.kinematics.joint_buffer import JointBuffer, influential_joints
from ego_world_model.rectification import rectified, rectified_depth
from ego_world_model.ros.camera_frames import CameraFrame, CameraIntake
from ego_world_model.ros.conversions import (
    MessageError,
    camera_from_info,
    depth_from_image,
    nanoseconds,
)
from ego_world_model.ros.depth_frames import DepthFrames
from ego_world_model.ros.diagnostics import Diagnostics
from ego_world_model.ros.frame_pairing import FramePairer, PairedFrame
from ego_world_model.ros.input_watch import InputWatch
from ego_world_model.ros.motion_policy_settings import Settings
from ego_world_model.ros.pace import pace
from ego_world_model.ros.qos import subscribe
from ego_world_model.ros.raw_image import RawImage
from ego_world_model.ros.topics import CAMERA_INFO, JOINT_STATES


@dataclass(frozen=True)
class Observation:
    """What the policy acts on, rectified: it knows no lens.

    Attributes:
        frame: the camera frame, whose stamp and frame id the prediction takes.
        image: (H, W, 3) uint8 RGB.
        camera: the ideal pinhole that sees ``image``.
        q: (nq,) rad at the frame's stamp.
        depth: (H, W) float32 metres aligned to ``image``, or None.
    """

    frame: CameraFrame
    image: NDArray[np.uint8]
    camera: PinholeCamera
    q: NDArray[np.float64]
    depth: NDArray[np.float32] | None


@dataclass(frozen=True)
class _Waiting:
    paired: PairedFrame
    depth: RawImage | None


class PolicyInputs:
    """Subscribes to what a chunk starts from and keeps the newest complete frame.

    Args:
        images: how the camera's images come.
        kinematics: of the robot whose joints the graph speaks of; used while constructing only.
        camera: mount of the camera.
        on_frame: called for every frame that is complete.
    """

    def __init__(
        self,
        node: Node,
        diagnostics: Diagnostics,
        *,
        images: CameraIntake,
        kinematics: HandKinematics,
        camera: CameraPose,
        settings: Settings,
        on_frame: Callable[[], None],
    ) -> None:
        self._node = node
        self._diagnostics = diagnostics
        self._images = images
        self._on_frame = on_frame
        self._use_depth = settings.use_depth
        self._newest: _Waiting | None = None
        self._info_topic = node.resolve_topic_name(CAMERA_INFO)
        self._joint_topic = node.resolve_topic_name(JOINT_STATES)
        robot = kinematics.robot
        self._robot_name = robot.name
        self._unknown: tuple[str, ...] = ()
        self._buffer = JointBuffer(
            robot.joint_names,
            required=influential_joints(kinematics, camera, robot.extra_slots),
            couplings=robot.couplings,
            tolerance=settings.joint_tolerance,
            time_offset=settings.joint_time_offset,
        )
        self._depth = DepthFrames(
            node,
            diagnostics,
            always=settings.use_depth,
            on_depth=self._pair,
            wait=settings.depth_wait,
        )
        self._pairer = FramePairer(
            self._buffer,
            # Where joint states are stamped late, so is the one behind a frame.
            wait=settings.joint_wait + max(0.0, -settings.joint_time_offset),
            info_topic=self._info_topic,
            on_drop=diagnostics.warn,
            settled=self._depth_settled,
            pace=partial(pace, node),
        )
        self._watch = InputWatch(
            node,
            diagnostics,
            {
                images.topic: images.description,
                CAMERA_INFO: "camera intrinsics",
                JOINT_STATES: "joint states",
            },
            after=settings.silence_timeout,
        )
        self._kept = [
            images.subscribe(self._take_image, self._rejected, depth=5),
            subscribe(node, CameraInfo, CAMERA_INFO, self._take_info, depth=5),
            subscribe(node, JointState, JOINT_STATES, self._take_joints, depth=100),
            # What waits is dropped in time, also while nothing else arrives.
            node.create_timer(0.05, self._pair, clock=Clock(clock_type=ClockType.STEADY_TIME)),
        ]

    def take(self) -> Observation | None:
        """The newest complete frame, decoded; None where it was taken already.

        Raises:
            MessageError: pixels or intrinsics that cannot be used.
        """
        waiting, self._newest = self._newest, None
        if waiting is None:
            return None
        frame, camera = waiting.paired.image, waiting.paired.camera
        image, pinhole = rectified(frame.rgb(), camera)
        return Observation(
            frame, image, pinhole, waiting.paired.q, self._metres(waiting.depth, frame, camera)
        )

    def clear(self) -> None:
        """Forget the frame that waits."""
        self._newest = None

    # ---------------------------------------------------------------- callbacks

    def _take_image(self, image: CameraFrame) -> None:
        self._watch.seen(self._images.topic)
        self._diagnostics.tick("image")
        self._pairer.add(image, time.monotonic())
        self._pair()

    def _rejected(self, error: MessageError) -> None:
        self._diagnostics.warn("images rejected", str(error))

    def _take_info(self, message: CameraInfo) -> None:
        self._watch.seen(CAMERA_INFO)
        try:
            camera = camera_from_info(message, topic=self._info_topic)
        except MessageError as error:
            self._diagnostics.warn("camera_info rejected", str(error))
            return
        self._pairer.set_camera(camera, time.monotonic())

    def _take_joints(self, message: JointState) -> None:
        now = time.monotonic()
        self._watch.seen(JOINT_STATES)
        try:
            self._buffer.add(nanoseconds(message.header.stamp), message.name, message.position, now)
        except ValueError as error:
            self._diagnostics.warn("joint states rejected", f"{self._joint_topic}: {error}")
            return
        self._diagnostics.tick("joint state")
        if self._buffer.unknown != self._unknown:
            self._unknown = self._buffer.unknown
            if self._unknown:
                self._diagnostics.warn(
                    "joints ignored",
                    f"{self._joint_topic} holds joints unknown to {self._robot_name}, ignored: "
                    f"{', '.join(self._unknown[:6])}",
                )
        self._pair()

    def _pair(self) -> None:
        """Keep the newest of the frames that have become complete."""
        complete = self._pairer.take(time.monotonic())
        if not complete:
            return
        found = self._depth.of(complete[-1].image) if self._use_depth else None
        skipped = len(complete) - 1 + (self._newest is not None)
        self._newest = _Waiting(complete[-1], None if found is None else found[0])
        if skipped:
            self._diagnostics.count("frames skipped: a newer one came", skipped)
        self._on_frame()

    # ---------------------------------------------------------------- depth

    def _depth_settled(self, frame: CameraFrame, arrival: float, now: float) -> bool:
        return not self._use_depth or self._depth.settled(frame, arrival, now)

    def _metres(
        self, depth: RawImage | None, frame: CameraFrame, camera: PinholeCamera
    ) -> NDArray[np.float32] | None:
        """Metres of the frame's depth image; None where there is none that can be used."""
        if depth is None:
            return None
        try:
            self._depth.check(depth, frame)
            metres = depth_from_image(depth, topic=self._depth.topic)
        except MessageError as error:
            self._diagnostics.warn("depth rejected", str(error))
            return None
        self._diagnostics.tick("depth used")
        return rectified_depth(metres, camera)
