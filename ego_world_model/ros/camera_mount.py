"""Where the camera sits on the robot: the nominal mount and the user's calibration of it."""

from __future__ import annotations

import numpy as np
from rclpy.node import Node
from transforms3d.euler import euler2mat

from ego_world_model.camera import CameraPose
from ego_world_model.embodiment import Embodiment
from ego_world_model.ros.parameters import declare


def declare_camera_mount(node: Node, robot: Embodiment) -> CameraPose:
    """The robot's camera, corrected by the parameters ``camera_correction_{xyz,rpy}``."""
    shift = declare(
        node,
        "camera_correction_xyz",
        [0.0, 0.0, 0.0],
        "calibration: metres that the camera sits off its nominal place, in the nominal optical "
        "frame",
        length=3,
        read_only=True,
    )
    turn = declare(
        node,
        "camera_correction_rpy",
        [0.0, 0.0, 0.0],
        "calibration: radians (roll, pitch, yaw about the nominal optical axes x, y, z)",
        length=3,
        read_only=True,
    )
    correction = np.eye(4)
    correction[:3, :3], correction[:3, 3] = euler2mat(*turn), shift
    mount = robot.camera_pose.matrix @ correction
    return CameraPose(robot.camera_pose.link, mount[:3, :3], mount[:3, 3])
