"""geometry_msgs Pose and Transform ↔ (4, 4) matrices."""

from __future__ import annotations

import numpy as np
from geometry_msgs.msg import Point, Pose, Quaternion, Transform, Vector3
from numpy.typing import NDArray
from transforms3d.quaternions import mat2quat, quat2mat

from ego_world_model.ros.conversions.errors import MessageError


def matrix_from_pose(
    message: Pose, *, topic: str = "pose", field: str = "pose"
) -> NDArray[np.float64]:
    """A pose as (4, 4), metres.

    Raises:
        MessageError: values that are not finite, or a quaternion that is not of unit length.
    """
    return _matrix(message.position, message.orientation, topic, field)


def matrix_from_transform(
    message: Transform, *, topic: str = "tf", field: str = "transform"
) -> NDArray[np.float64]:
    """A transform as (4, 4), metres; errors as ``matrix_from_pose``."""
    return _matrix(message.translation, message.rotation, topic, field)


def pose_from_matrix(matrix: NDArray[np.float64]) -> Pose:
    """(4, 4), metres, as a pose."""
    x, y, z = map(float, matrix[:3, 3])
    return Pose(position=Point(x=x, y=y, z=z), orientation=_quaternion(matrix))


def transform_from_matrix(matrix: NDArray[np.float64]) -> Transform:
    """(4, 4), metres, as a transform."""
    x, y, z = map(float, matrix[:3, 3])
    return Transform(translation=Vector3(x=x, y=y, z=z), rotation=_quaternion(matrix))


def _quaternion(matrix: NDArray[np.float64]) -> Quaternion:
    w, x, y, z = map(float, mat2quat(matrix[:3, :3]))
    return Quaternion(x=x, y=y, z=z, w=w)


def _matrix(
    position: Point | Vector3, rotation: Quaternion, topic: str, field: str
) -> NDArray[np.float64]:
    translation = np.array([position.x, position.y, position.z])
    quaternion = np.array([rotation.w, rotation.x, rotation.y, rotation.z])
    length = np.linalg.norm(quaternion)
    if not np.isfinite(translation).all():
        raise MessageError(topic, field, "holds NaN or infinity", "publish finite poses")
    if not abs(length - 1.0) < 1e-2:
        raise MessageError(
            topic,
            field,
            f"has a quaternion of length {length:.3g}",
            "normalise it (no rotation is x=y=z=0, w=1)",
        )
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = quat2mat(quaternion), translation
    return out
