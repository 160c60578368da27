"""trajectory_msgs/JointTrajectory ↔ times and joint vectors, matched by joint name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from std_msgs.msg import Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from ego_world_model.ros.conversions.errors import MessageError
from ego_world_model.ros.conversions.stamps import duration_from_seconds, nanoseconds


def joint_trajectory_from_message(
    message: JointTrajectory,
    joint_names: Sequence[str],
    *,
    hold: ArrayLike | None = None,
    topic: str = "joint_trajectory",
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A joint trajectory as times (T,) s after its header stamp, and q (T, nq) rad.

    Args:
        joint_names: order of the columns of q; every joint in the message must be one of them.
        hold: (nq,) rad, the value of joints that the message does not name. Without it, a
            message that leaves out a joint is an error.

    Raises:
        MessageError: unknown, repeated or missing joints, NaN, wrong lengths, times that do not
            rise.
    """
    columns = _columns(message, joint_names, hold is not None, topic)
    steps, joints = len(message.points), len(message.joint_names)
    if steps == 0:
        raise MessageError(topic, "points", "is empty", "send at least one point")
    for k, point in enumerate(message.points):
        if len(point.positions) != joints:
            raise MessageError(
                topic,
                f"points[{k}].positions",
                f"has {len(point.positions)} values for {joints} joint_names",
                "send one position in radians per named joint",
            )
    values = np.array([point.positions for point in message.points], dtype=np.float64)
    times = np.array([nanoseconds(point.time_from_start) for point in message.points]) * 1e-9
    if not np.isfinite(values).all():
        k, j = np.argwhere(~np.isfinite(values))[0]
        raise MessageError(
            topic,
            f"points[{k}].positions",
            f"is {values[k, j]} for joint {message.joint_names[j]!r}",
            "send finite radians",
        )
    if times[0] < 0 or (np.diff(times) <= 0).any():
        k = 0 if times[0] < 0 else int(np.argmax(np.diff(times) <= 0)) + 1
        raise MessageError(
            topic,
            f"points[{k}].time_from_start",
            f"is {times[k]:.3f} s",
            "times must be at least 0 and strictly rise from point to point",
        )
    q = np.empty((steps, len(joint_names)))
    q[:] = 0.0 if hold is None else np.asarray(hold, dtype=np.float64)
    q[:, columns] = values
    return times, q


def _columns(
    message: JointTrajectory, joint_names: Sequence[str], may_omit: bool, topic: str
) -> list[int]:
    """Column of q of each named joint, after the names were checked."""
    known = {name: i for i, name in enumerate(joint_names)}
    unknown = [name for name in message.joint_names if name not in known]
    if unknown:
        raise MessageError(
            topic,
            "joint_names",
            f"holds unknown joints {', '.join(map(repr, unknown))}",
            f"this robot's joints are {', '.join(joint_names)}",
        )
    columns = [known[name] for name in message.joint_names]
    if len(set(columns)) != len(columns):
        raise MessageError(topic, "joint_names", "names a joint twice", "name each joint once")
    if not columns:
        raise MessageError(topic, "joint_names", "is empty", "name the joints that move")
    missing = [name for name in joint_names if name not in set(message.joint_names)]
    if missing and not may_omit:
        raise MessageError(
            topic,
            "joint_names",
            f"lacks {', '.join(missing)}",
            "name every joint of the robot",
        )
    return columns


def joint_trajectory_to_message(
    times: ArrayLike, q: ArrayLike, joint_names: Sequence[str], *, header: Header | None = None
) -> JointTrajectory:
    """Times (T,) seconds after ``header.stamp`` and q (T, nq) rad as a joint trajectory."""
    times = np.asarray(times, dtype=np.float64)
    q = np.asarray(q, dtype=np.float64)
    if q.shape != (len(times), len(joint_names)):
        raise ValueError(f"q must have shape ({len(times)}, {len(joint_names)}), got {q.shape}")
    return JointTrajectory(
        header=Header() if header is None else header,
        joint_names=list(joint_names),
        points=[
            JointTrajectoryPoint(positions=row, time_from_start=duration_from_seconds(t))
            for t, row in zip(times.tolist(), q.tolist(), strict=True)
        ],
    )
