"""ROS messages ↔ arrays and dataclasses. Every error names topic, field and remedy."""

from ego_world_model.ros.conversions.camera import camera_from_info, info_from_camera
from ego_world_model.ros.conversions.errors import MessageError
from ego_world_model.ros.conversions.hands import (
    hand_joints_from_message,
    hand_joints_to_message,
    hand_trajectory_from_message,
    hand_trajectory_to_message,
)
from ego_world_model.ros.conversions.images import (
    SUPPORTED_ENCODINGS,
    array_from_image,
    depth_from_image,
    image_from_array,
    rgb_from_image,
)
from ego_world_model.ros.conversions.joints import (
    joint_trajectory_from_message,
    joint_trajectory_to_message,
)
from ego_world_model.ros.conversions.poses import (
    matrix_from_pose,
    matrix_from_transform,
    pose_from_matrix,
    transform_from_matrix,
)
from ego_world_model.ros.conversions.stamps import (
    duration_from_seconds,
    nanoseconds,
    stamp_from_nanoseconds,
)

__all__ = [
    "SUPPORTED_ENCODINGS",
    "MessageError",
    "array_from_image",
    "camera_from_info",
    "depth_from_image",
    "duration_from_seconds",
    "hand_joints_from_message",
    "hand_joints_to_message",
    "hand_trajectory_from_message",
    "hand_trajectory_to_message",
    "image_from_array",
    "info_from_camera",
    "joint_trajectory_from_message",
    "joint_trajectory_to_message",
    "matrix_from_pose",
    "matrix_from_transform",
    "nanoseconds",
    "pose_from_matrix",
    "rgb_from_image",
    "stamp_from_nanoseconds",
    "transform_from_matrix",
]
