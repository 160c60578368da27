"""The camera's place in the TF tree, where tf2 is installed."""

from __future__ import annotations

import numpy as np
from geometry_msgs.msg import TransformStamped
from numpy.typing import NDArray
from rclpy.node import Node
from std_msgs.msg import Header

from ego_world_model.camera import CameraPose
from ego_world_model.kinematics import HandKinematics
from ego_world_model.ros.conversions import transform_from_matrix

# A RealSense D435's colour camera in the tree of its driver, whose root is the left imager.
_OPTICAL_IN_DRIVER = CameraPose.from_body("camera_link", (0.0, 0.015, 0.0))


class CameraTransform:
    """Publishes parent → child at each frame's stamp.

    A RealSense driver publishes a tree of its own, which holds the optical frame; then ``child``
    names the root of that tree. It is placed so that the optical frame comes to lie where the
    mount, calibrated perhaps, says.

    Args:
        mount: the camera's place on the robot.
        parent: a link of the robot.
        child: frame to place; empty for the optical frame that the image names.

    Raises:
        ImportError: tf2 is not installed.
    """

    def __init__(
        self, node: Node, kinematics: HandKinematics, mount: CameraPose, parent: str, child: str
    ) -> None:
        from tf2_ros import TransformBroadcaster

        self._kinematics = kinematics
        self._mount = mount
        self._parent = parent
        self._child = child
        self._broadcaster = TransformBroadcaster(node)

    def publish(self, header: Header, q: NDArray[np.float64]) -> None:
        """Places the camera for the image of this header; q (nq,) rad at its stamp."""
        parent, link = self._kinematics.link_poses(q, [self._parent, self._mount.link])
        matrix = np.linalg.solve(parent, link @ self._mount.matrix)
        if self._child:
            matrix = matrix @ np.linalg.inv(_OPTICAL_IN_DRIVER.matrix)
        message = TransformStamped(
            header=Header(stamp=header.stamp, frame_id=self._parent),
            child_frame_id=self._child or header.frame_id,
            transform=transform_from_matrix(matrix),
        )
        self._broadcaster.sendTransform(message)
