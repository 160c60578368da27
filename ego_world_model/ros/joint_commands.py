"""Checks joint trajectories before a simulated robot obeys them, as a real controller would."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from trajectory_msgs.msg import JointTrajectory

from ego_world_model.embodiment import Embodiment
from ego_world_model.ros.conversions import (
    MessageError,
    joint_trajectory_from_message,
    nanoseconds,
)

_NOW = 0.02  # seconds; points closer than this are reached already


def checked_trajectory(
    message: JointTrajectory,
    robot: Embodiment,
    *,
    q: NDArray[np.float64],
    topic: str,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A whole trajectory: times (T,) seconds from its stamp and q (T, nq) rad within the limits.

    Args:
        q: (nq,) rad, what joints that are not named keep.

    Raises:
        MessageError: also for positions beyond the joint limits.
    """
    times, positions = joint_trajectory_from_message(
        message, robot.joint_names, hold=q, topic=topic
    )
    named = [name in set(message.joint_names) for name in robot.joint_names]
    outside = ((positions < robot.lower - 1e-3) | (positions > robot.upper + 1e-3)) & named
    if outside.any():
        k, j = np.argwhere(outside)[0]
        raise MessageError(
            topic,
            f"points[{k}].positions",
            f"is {positions[k, j]:.3f} rad for joint {robot.joint_names[j]!r}",
            f"its limits are {robot.lower[j]:.3f} to {robot.upper[j]:.3f} rad",
        )
    return times, positions


def executable_trajectory(
    message: JointTrajectory,
    robot: Embodiment,
    *,
    now: int,
    q: NDArray[np.float64],
    max_speed: float,
    topic: str,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The part of a trajectory that lies ahead, from the present position on.

    Args:
        now: when the robot begins, nanoseconds on the clock of ``header.stamp``; a zero stamp
            means "as soon as possible".
        q: (nq,) rad at that time; joints that are not named keep it.
        max_speed: rad/s that no joint may exceed, on the way to the first point too.

    Returns:
        times (T,) seconds from ``now`` with times[0] = 0, and q (T, nq) rad.

    Raises:
        MessageError: as ``checked_trajectory``, and for a trajectory that is over or too fast.
    """
    times, positions = checked_trajectory(message, robot, q=q, topic=topic)
    stamp = nanoseconds(message.header.stamp)
    late = (now - stamp) * 1e-9 if stamp else 0.0
    ahead = times - late > _NOW
    if not ahead.any():
        raise MessageError(
            topic,
            "header.stamp",
            f"lies {late:.2f} s in the past, and all {len(times)} points with it",
            "stamp with the robot's clock and send points that lie ahead (stamp 0 starts now)",
        )
    times = np.concatenate([[0.0], times[ahead] - late])
    positions = np.vstack([q, positions[ahead]])
    first = int(np.flatnonzero(ahead)[0])
    check_speed(times, positions, robot, max_speed=max_speed, topic=topic, first=first)
    return times, positions


def check_speed(
    times: NDArray[np.float64],
    positions: NDArray[np.float64],
    robot: Embodiment,
    *,
    max_speed: float,
    topic: str,
    first: int = 1,
) -> None:
    """Raise MessageError where a joint would have to be faster than ``max_speed`` rad/s.

    Args:
        first: number in the message of the point behind row 1 of ``positions`` (T, nq).
    """
    speed = np.abs(np.diff(positions, axis=0)) / np.maximum(np.diff(times), _NOW)[:, None]
    if speed.size and speed.max() > max_speed:
        k, j = np.unravel_index(int(speed.argmax()), speed.shape)
        raise MessageError(
            topic,
            f"points[{first + k}].positions",
            f"asks {speed[k, j]:.1f} rad/s of joint {robot.joint_names[j]!r}",
            f"stay below {max_speed:.1f} rad/s, also from the present position to the first point",
        )
