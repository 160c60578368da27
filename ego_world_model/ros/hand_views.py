"""Pictures of the hands for people: markers, overlay, point cloud, camera TF; all lazy.

Nothing here is computed without a subscriber, and pixels are touched in threads of their own, so
that looking at the hands does not delay them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from sensor_msgs.msg import Image, PointCloud2
from visualization_msgs.msg import MarkerArray

from ego_world_model.camera import CameraPose, PinholeCamera
from ego_world_model.drawing import draw_hands
from ego_world_model.hands import HandJoints
from ego_world_model.kinematics import HandKinematics
from ego_world_model.ros.camera_frames import CameraFrame
from ego_world_model.ros.camera_tf import CameraTransform
from ego_world_model.ros.conversions import (
    depth_from_image,
    image_from_array,
)
from ego_world_model.ros.depth_frames import DepthFrames
from ego_world_model.ros.diagnostics import Diagnostics
from ego_world_model.ros.frame_pairing import PairedFrame
from ego_world_model.ros.hand_markers import HandMarkers
from ego_world_model.ros.parameters import declare
from ego_world_model.ros.points import cloud_from_depth
from ego_world_model.ros.qos import advertise, send, wanted
from ego_world_model.ros.raw_image import RawImage
from ego_world_model.ros.run import StartError
from ego_world_model.ros.worker import LatestWorker


@dataclass(frozen=True)
class _Overlay:
    """What the overlay thread draws."""

    image: CameraFrame
    pixels: NDArray[np.float64]
    valid: NDArray[np.bool_]
    visibility: NDArray[np.float32]


@dataclass(frozen=True)
class _Cloud:
    """What the point-cloud thread converts."""

    image: CameraFrame
    depth: RawImage
    camera: PinholeCamera


class HandViews:
    """Publishes markers, overlay and point cloud while somebody subscribes, and the camera's TF.

    Args:
        node: declares the parameters and owns the publishers.
        mount: the camera's place on the robot.
        depth: the depth images that points are made of.
    """

    def __init__(
        self,
        node: Node,
        diagnostics: Diagnostics,
        kinematics: HandKinematics,
        mount: CameraPose,
        depth: DepthFrames,
    ) -> None:
        self._node = node
        self._diagnostics = diagnostics
        self._stride = declare(
            node,
            "points_stride",
            2,
            "every n-th row and column of the depth image becomes a point",
            minimum=1,
            maximum=32,
            read_only=True,
        )
        self._markers_publisher = advertise(node, MarkerArray, "hands/markers")
        self._overlay_publisher = advertise(node, Image, "hands/overlay/image_raw")
        self._points_publisher = advertise(node, PointCloud2, "hands/points", depth=2)
        self._markers = HandMarkers("hands")
        self._overlay_worker: LatestWorker[_Overlay] = LatestWorker(
            self._draw, name="overlay", on_error=lambda error: self._failed("overlay", error)
        )
        self._points_worker: LatestWorker[_Cloud] = LatestWorker(
            self._make_cloud, name="points", on_error=lambda error: self._failed("points", error)
        )
        self._transform = _camera_transform(node, kinematics, mount)
        self._recent: deque[CameraFrame] = deque(maxlen=4)  # not yet made into points
        self._camera: PinholeCamera | None = None
        self._depth = depth
        self._points_wanted = False
        self._timer = node.create_timer(
            0.5, self._follow_demand, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    def add_image(self, image: CameraFrame, camera: PinholeCamera | None) -> None:
        """Every colour image and the intrinsics known with it."""
        self._camera = camera
        if self._points_wanted:
            self._recent.append(image)
            self.match_depth()

    def match_depth(self) -> None:
        """Hands depth and the colour image of the same instant to the point-cloud thread."""
        if self._camera is None:
            return
        for image in reversed(self._recent):
            found = self._depth.of(image)
            if found is not None:
                while self._recent.popleft() is not image:
                    pass
                self._points_worker.submit(_Cloud(image, found[0], self._camera))
                return

    def close(self) -> None:
        """Ends the threads, before their publishers go."""
        self._overlay_worker.close()
        self._points_worker.close()

    def show(
        self,
        frame: PairedFrame,
        hands: HandJoints,
        pixels: NDArray[np.float64],
        seen: NDArray[np.float32],
    ) -> None:
        """The hands of one frame: pixels (J, 2), seen (J,) visibility."""
        header = frame.image.header()
        if wanted(self._markers_publisher):
            self._markers_publisher.publish(self._markers.message(hands, header, seen))
        if wanted(self._overlay_publisher):
            self._overlay_worker.submit(_Overlay(frame.image, pixels, hands.valid, seen))
        if self._transform is not None:
            self._transform.publish(header, frame.q)

    def _draw(self, item: _Overlay) -> None:
        drawn = draw_hands(item.image.rgb(), item.pixels, item.valid, item.visibility)
        message = image_from_array(drawn, "rgb8", header=item.image.header())
        send(self._node, self._overlay_publisher, message)
        self._diagnostics.tick("overlay")

    def _follow_demand(self) -> None:
        """Receives depth for points only while somebody wants points."""
        self._points_wanted = wanted(self._points_publisher)
        self._depth.follow(self._points_wanted)
        if not self._points_wanted:
            self._recent.clear()

    def _make_cloud(self, item: _Cloud) -> None:
        depth = depth_from_image(item.depth, topic=self._depth.topic)
        cloud = cloud_from_depth(
            depth, item.image.rgb(), item.camera, header=item.image.header(), stride=self._stride
        )
        send(self._node, self._points_publisher, cloud)
        self._diagnostics.tick("points")

    def _failed(self, what: str, error: Exception) -> None:
        self._diagnostics.warn(f"{what} failed", str(error))


def _camera_transform(
    node: Node, kinematics: HandKinematics, mount: CameraPose
) -> CameraTransform | None:
    """The camera's TF edge, unless it is turned off or tf2 is not installed."""
    links = "a link of the robot"
    root = kinematics.robot.root
    enabled = declare(
        node,
        "publish_camera_tf",
        True,
        "publish the camera's TF edge (needs tf2_ros); turn off where another node owns it",
        read_only=True,
    )
    parent = declare(
        node, "camera_tf_parent", root, f"parent frame of that edge, {links}", read_only=True
    )
    child = declare(
        node,
        "camera_tf_child",
        "",
        "child frame: empty for the image's optical frame, or the root frame of a RealSense "
        "driver, which publishes its own tree (camera_link)",
        read_only=True,
    )
    if not enabled:
        return None
    try:
        kinematics.link_poses(kinematics.robot.neutral, [parent])
        return CameraTransform(node, kinematics, mount, parent, child)
    except ValueError as error:
        raise StartError(f"parameter 'camera_tf_parent' must be {links}: {error}") from None
    except ImportError:
        node.get_logger().info("tf2_ros is not installed: camera TF is not published")
        return None
