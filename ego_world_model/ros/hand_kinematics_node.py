"""Where are the hands in this camera frame? Image stamp + joint states → hand joints.

For every camera frame: joint states interpolated to its stamp, forward kinematics into the camera,
projection, visibility. Pixels are touched only for the overlay and the point cloud, and only while
somebody subscribes to them.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image, JointState, PointCloud2
from transforms3d.euler import euler2mat
from visualization_msgs.msg import MarkerArray

from ego_world_model import msg
from ego_world_model.camera import CameraPose, PinholeCamera
from ego_world_model.drawing import draw_hands
from ego_world_model.embodiment import load_embodiment
from ego_world_model.hands import SLOT_NAMES, HandJoints
from ego_world_model.kinematics import HandKinematics
from ego_world_model.ros.camera_tf import CameraTransform
from ego_world_model.ros.conversions import (
    MessageError,
    camera_from_info,
    depth_from_image,
    hand_joints_to_message,
    image_from_array,
    nanoseconds,
    rgb_from_image,
)
from ego_world_model.ros.diagnostics import Diagnostics
from ego_world_model.ros.frame_pairing import FramePairer, PairedFrame
from ego_world_model.ros.hand_markers import HandMarkers
from ego_world_model.ros.input_watch import InputWatch
from ego_world_model.ros.joint_buffer import JointBuffer, influential_joints
from ego_world_model.ros.parameters import declare
from ego_world_model.ros.points import cloud_from_depth
from ego_world_model.ros.priority import set_nice
from ego_world_model.ros.qos import advertise, subscribe, wanted
from ego_world_model.ros.raw_image import RawImage
from ego_world_model.ros.run import StartError, run_node
from ego_world_model.ros.worker import LatestWorker
from ego_world_model.visibility import visibility

IMAGE = "camera/color/image_raw"
CAMERA_INFO = "camera/color/camera_info"
DEPTH = "camera/aligned_depth_to_color/image_raw"
JOINT_STATES = "joint_states"
_DEPTH_SYNC_NS = 20_000_000  # colour and depth of one capture have equal or nearly equal stamps


@dataclass(frozen=True)
class _Overlay:
    """What the overlay thread draws."""

    image: RawImage
    pixels: NDArray[np.float64]
    valid: NDArray[np.bool_]
    visibility: NDArray[np.float32]


@dataclass(frozen=True)
class _Cloud:
    """What the point-cloud thread converts."""

    image: RawImage
    depth: RawImage
    camera: PinholeCamera


class HandKinematicsNode(Node):
    """Publishes ``hands/joints`` for every camera frame; see the module."""

    def __init__(self) -> None:
        super().__init__("hand_kinematics")
        self._declare()
        self._diagnostics = Diagnostics(self)
        self._pairer = FramePairer(self._buffer, wait=self._wait, on_drop=self._dropped)
        self._watch = InputWatch(
            self,
            self._diagnostics,
            {
                IMAGE: "camera images",
                CAMERA_INFO: "camera intrinsics",
                JOINT_STATES: "joint states",
            },
            after=self._silence,
        )
        self._advertise()
        self._recent: deque[RawImage] = deque(maxlen=4)
        self._depth: RawImage | None = None
        self._depth_subscription = None
        self._info_content: tuple[object, ...] = ()
        self._camera: PinholeCamera | None = None
        self._unknown: tuple[str, ...] = ()
        # Frames are taken by the depth of 10 so that a stall of this process loses none.
        self._subscriptions_kept = [
            subscribe(self, Image, IMAGE, self._on_image, depth=10, raw=True),
            subscribe(self, CameraInfo, CAMERA_INFO, self._on_info, depth=10),
            subscribe(self, JointState, JOINT_STATES, self._on_joints, depth=100),
        ]
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timers_kept = [
            self.create_timer(0.05, self._process, clock=steady),
            self.create_timer(0.5, self._follow_demand, clock=steady),
        ]
        self._apply_nice()
        self.get_logger().info(
            f"waiting for {', '.join(map(self.resolve_topic_name, self._inputs()))}"
        )

    @staticmethod
    def _inputs() -> tuple[str, str, str]:
        return IMAGE, CAMERA_INFO, JOINT_STATES

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
        shift = declare(
            self,
            "camera_correction_xyz",
            [0.0, 0.0, 0.0],
            "calibration: metres that the camera sits off its nominal place, in the nominal "
            "optical frame",
            length=3,
            read_only=True,
        )
        turn = declare(
            self,
            "camera_correction_rpy",
            [0.0, 0.0, 0.0],
            "calibration: radians (roll, pitch, yaw about the nominal optical axes x, y, z)",
            length=3,
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
        self._stride = declare(
            self,
            "points_stride",
            2,
            "every n-th row and column of the depth image becomes a point",
            minimum=1,
            maximum=32,
            read_only=True,
        )
        self._silence = declare(
            self,
            "silence_timeout",
            5.0,
            "seconds without an input after which the node says what is missing",
            minimum=0.5,
            maximum=600.0,
            read_only=True,
        )
        try:
            robot = load_embodiment(name)
        except (ValueError, OSError) as error:
            raise StartError(f"parameter 'embodiment': {error}") from None
        self._robot_name = robot.name
        self._kinematics = HandKinematics(robot)
        self._extra = robot.extra_slots if arms else ()
        self._slot_names = SLOT_NAMES + self._extra
        correction = np.eye(4)
        correction[:3, :3], correction[:3, 3] = euler2mat(*turn), shift
        mount = robot.camera_pose.matrix @ correction
        self._mount = CameraPose(robot.camera_pose.link, mount[:3, :3], mount[:3, 3])
        self._buffer = JointBuffer(
            robot.joint_names,
            required=influential_joints(self._kinematics, self._mount, self._extra),
            couplings=robot.couplings,
            tolerance=tolerance,
        )

    def _advertise(self) -> None:
        self._joints_publisher = advertise(self, msg.HandJoints, "hands/joints", depth=10)
        self._markers_publisher = advertise(self, MarkerArray, "hands/markers")
        self._overlay_publisher = advertise(self, Image, "hands/overlay/image_raw")
        self._points_publisher = advertise(self, PointCloud2, "hands/points", depth=2)
        self._markers = HandMarkers("hands")
        self._overlay_worker: LatestWorker[_Overlay] = LatestWorker(
            self._draw, name="overlay", on_error=lambda error: self._failed("overlay", error)
        )
        self._points_worker: LatestWorker[_Cloud] = LatestWorker(
            self._make_cloud, name="points", on_error=lambda error: self._failed("points", error)
        )
        self._transform = self._camera_transform()

    def _camera_transform(self) -> CameraTransform | None:
        links = "a link of the robot"
        root = self._kinematics.robot.root
        enabled = declare(
            self,
            "publish_camera_tf",
            True,
            "publish the camera's TF edge (needs tf2_ros); turn off where another node owns it",
            read_only=True,
        )
        parent = declare(
            self, "camera_tf_parent", root, f"parent frame of that edge, {links}", read_only=True
        )
        child = declare(
            self,
            "camera_tf_child",
            "",
            "child frame: empty for the image's optical frame, or the root frame of a camera "
            "driver that publishes its own tree (camera_link)",
            read_only=True,
        )
        if not enabled:
            return None
        try:
            self._kinematics.link_poses(self._kinematics.robot.neutral, [parent])
            return CameraTransform(self, self._kinematics, self._mount, parent, child)
        except ValueError as error:
            raise StartError(f"parameter 'camera_tf_parent' must be {links}: {error}") from None
        except ImportError:
            self.get_logger().info("tf2_ros is not installed: camera TF is not published")
            return None

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

    def _on_image(self, serialised: bytes) -> None:
        now = time.monotonic()
        try:
            image = RawImage.from_serialised(serialised, topic=IMAGE)
        except MessageError as error:
            self._diagnostics.warn("images rejected", str(error))
            return
        self._watch.seen(IMAGE)
        self._diagnostics.tick("image")
        self._pairer.add(image, now)
        self._process()
        if self._depth_subscription is not None:
            self._recent.append(image)
            self._match_depth()

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
            self._camera = camera_from_info(message, topic=CAMERA_INFO)
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

    def _failed(self, what: str, error: Exception) -> None:
        self._diagnostics.warn(f"{what} failed", str(error))

    # ----------------------------------------------------------------- outputs

    def _process(self) -> None:
        """Publishes every frame that has become complete."""
        for frame in self._pairer.take(time.monotonic()):
            self._publish(frame)

    def _publish(self, frame: PairedFrame) -> None:
        hands = self._kinematics.hand_joints(frame.q, self._mount, extra_slots=self._extra)
        pixels = frame.camera.project(hands.positions)
        seen = visibility(hands, frame.camera, pixels)
        header = frame.image.header()
        self._joints_publisher.publish(
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
        self._diagnostics.latency("latency", time.monotonic() - frame.ready)
        self._diagnostics.tick("hands")
        self._publish_extras(frame, hands, pixels, seen)

    def _publish_extras(
        self,
        frame: PairedFrame,
        hands: HandJoints,
        pixels: NDArray[np.float64],
        seen: NDArray[np.float32],
    ) -> None:
        """Everything that nobody may be looking at."""
        header = frame.image.header()
        if wanted(self._markers_publisher):
            self._markers_publisher.publish(self._markers.message(hands, header, seen))
        if wanted(self._overlay_publisher):
            self._overlay_worker.submit(_Overlay(frame.image, pixels, hands.valid, seen))
        if self._transform is not None:
            self._transform.publish(header, frame.q)

    def _draw(self, item: _Overlay) -> None:
        rgb = rgb_from_image(item.image.decode(), topic=self.resolve_topic_name(IMAGE))
        drawn = draw_hands(rgb, item.pixels, item.valid, item.visibility)
        message = image_from_array(drawn, "rgb8", header=item.image.header())
        if self.context.ok():
            self._overlay_publisher.publish(message)
            self._diagnostics.tick("overlay")

    def _follow_demand(self) -> None:
        """Receives depth only while somebody wants points."""
        demand = wanted(self._points_publisher)
        if demand and self._depth_subscription is None:
            self._depth_subscription = subscribe(
                self, Image, DEPTH, self._on_depth, depth=2, raw=True
            )
        elif not demand and self._depth_subscription is not None:
            self.destroy_subscription(self._depth_subscription)
            self._depth_subscription = None
            self._recent.clear()

    def _on_depth(self, serialised: bytes) -> None:
        try:
            self._depth = RawImage.from_serialised(serialised, topic=DEPTH)
        except MessageError as error:
            self._diagnostics.warn("depth rejected", str(error))
            return
        self._match_depth()

    def _match_depth(self) -> None:
        """Hands depth and the colour image of the same instant to the point-cloud thread."""
        depth, camera = self._depth, self._camera
        if depth is None or camera is None:
            return
        for image in self._recent:
            if abs(image.stamp - depth.stamp) <= _DEPTH_SYNC_NS:
                self._depth = None
                self._points_worker.submit(_Cloud(image, depth, camera))
                return

    def _make_cloud(self, item: _Cloud) -> None:
        depth = depth_from_image(item.depth.decode(), topic=self.resolve_topic_name(DEPTH))
        rgb = rgb_from_image(item.image.decode(), topic=self.resolve_topic_name(IMAGE))
        cloud = cloud_from_depth(
            depth, rgb, item.camera, header=item.image.header(), stride=self._stride
        )
        if self.context.ok():
            self._points_publisher.publish(cloud)
            self._diagnostics.tick("points")

    def destroy_node(self) -> None:
        """Ends the threads before the publishers they use."""
        self._overlay_worker.close()
        self._points_worker.close()
        super().destroy_node()


def main(args: list[str] | None = None) -> int:
    """Runs the node until it is interrupted."""
    return run_node(HandKinematicsNode, args)


if __name__ == "__main__":
    sys.exit(main())
