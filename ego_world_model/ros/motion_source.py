"""Turns the motion messages of the graph into the conditioning of one rollout.

Both kinds of motion live on an absolute clock and answer the same two questions: does it reach a
rollout's end, and what are the hand joints at these times after this reference frame? Nothing is
ever padded: a motion that ends before the model's horizon is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from trajectory_msgs.msg import JointTrajectory

from ego_world_model import msg
from ego_world_model.camera import CameraPose
from ego_world_model.hands import HandTrajectory
from ego_world_model.kinematics import HandKinematics
from ego_world_model.ros.conversions import (
    MessageError,
    hand_trajectory_from_message,
    joint_trajectory_from_message,
    nanoseconds,
)

# Stamps of one frame may differ by the rounding of seconds held in double precision.
_TOLERANCE = 1e-4
# Seconds of a replaced plan that are kept, for camera frames that are older than the new one.
_REMEMBERED = 1.0


class Motion(Protocol):
    """A motion of the hands on the absolute clock."""

    source: str
    needs_joint_state: bool

    def check(self, stamp: int, frame_id: str, horizon: float) -> None:
        """Raise MessageError unless a rollout of ``horizon`` seconds can start at the camera
        frame of ``stamp`` nanoseconds in the optical frame ``frame_id``."""

    def trajectory(
        self, stamp: int, times: NDArray[np.float64], q: NDArray[np.float64] | None
    ) -> HandTrajectory:
        """Hand joints at ``times`` (T,) seconds after the reference frame of ``stamp`` ns, in the
        model's slots; ``q`` (nq,) rad is the robot's state at that frame."""


@dataclass(frozen=True)
class JointPlan:
    """A planned joint trajectory of the robot.

    Attributes:
        stamp: nanoseconds at which the plan's clock starts: its header stamp, or its arrival
            where that is zero, which ROS reads as "now".
        times: (N,) seconds after ``stamp``, strictly rising; negative before it (see ``after``).
        q: (N, nq) rad; NaN in the columns of joints that the plan does not name.
        topic: where it came from, named in errors.
    """

    stamp: int
    times: NDArray[np.float64]
    q: NDArray[np.float64]
    kinematics: HandKinematics
    extra_slots: tuple[str, ...] = ()
    camera: CameraPose | None = None
    topic: str = "joint_trajectory/planned"
    source: str = "planned"
    needs_joint_state: bool = True

    @classmethod
    def from_message(
        cls,
        message: JointTrajectory,
        kinematics: HandKinematics,
        *,
        received: int,
        topic: str,
        extra_slots: tuple[str, ...] = (),
        camera: CameraPose | None = None,
    ) -> JointPlan:
        """Check a message wholly; ``received`` is its arrival in nanoseconds.

        Raises:
            MessageError: naming the field that is wrong and the remedy.
        """
        names = kinematics.robot.joint_names
        times, q = joint_trajectory_from_message(
            message, names, hold=np.full(len(names), np.nan), topic=topic
        )
        stamp = nanoseconds(message.header.stamp) or received
        return cls(stamp, times, q, kinematics, extra_slots, camera, topic)

    def after(self, previous: JointPlan | None) -> JointPlan:
        """This plan, with what ``previous`` said about the last second before it begins.

        A plan replaces an older one from its first point on. Frames that are older than the plan
        still move as the older one said, not straight to the new one's first point.
        """
        if previous is None or (np.isfinite(previous.q[0]) != np.isfinite(self.q[0])).any():
            return self
        earlier = previous.times + (previous.stamp - self.stamp) * 1e-9
        kept = (earlier < self.times[0] - 1e-6) & (earlier > self.times[0] - _REMEMBERED)
        return replace(
            self,
            times=np.concatenate([earlier[kept], self.times]),
            q=np.concatenate([previous.q[kept], self.q]),
        )

    def check(self, stamp: int, frame_id: str, horizon: float) -> None:
        end = self.times[-1] - (stamp - self.stamp) * 1e-9
        if end < horizon - _TOLERANCE:
            raise MessageError(
                self.topic,
                "points",
                f"end {end:.2f} s after the camera frame but the model imagines {horizon:.2f} s",
                f"plan at least {horizon:.2f} s ahead and publish the next plan in time",
            )

    def trajectory(
        self, stamp: int, times: NDArray[np.float64], q: NDArray[np.float64] | None
    ) -> HandTrajectory:
        if q is None:
            raise ValueError("a joint plan needs the robot's joint state at the reference frame")
        after = self.times - (stamp - self.stamp) * 1e-9
        future = after > 1e-6
        # The robot is where it is measured to be at the reference frame, and then moves to the
        # plan's next point, as a trajectory controller would; joints the plan does not name stay.
        knots = np.concatenate([[0.0], after[future]])
        joints = np.repeat(np.asarray(q, dtype=np.float64)[None], len(times), axis=0)
        for column in np.flatnonzero(np.isfinite(self.q[0])):
            planned = np.concatenate([[q[column]], self.q[future, column]])
            joints[:, column] = np.interp(times, knots, planned)
        self._move_followers(joints)
        return self.kinematics.trajectory(times, joints, self.camera, extra_slots=self.extra_slots)

    def _move_followers(self, joints: NDArray[np.float64]) -> None:
        """Coupled joints that the plan leaves out follow their driver where the plan moves it."""
        robot = self.kinematics.robot
        named = np.isfinite(self.q[0])
        column = {name: i for i, name in enumerate(robot.joint_names)}
        for coupling in robot.couplings:
            driver, follower = column[coupling.driver], column[coupling.follower]
            if named[driver] and not named[follower]:
                joints[:, follower] = coupling.multiplier * joints[:, driver] + coupling.offset


@dataclass(frozen=True)
class HandMotion:
    """A hand trajectory whose clock starts at ``stamp`` ns; 0 means "at the reference frame"."""

    stamp: int
    frame_id: str
    motion: HandTrajectory
    topic: str = "hands/predicted"
    source: str = ""
    needs_joint_state: bool = False

    @classmethod
    def from_message(
        cls,
        message: msg.HandTrajectory,
        *,
        topic: str,
        slot_names: tuple[str, ...],
        stamped: bool = False,
    ) -> HandMotion:
        """Check a message wholly and put its slots in the order of ``slot_names``.

        Args:
            stamped: refuse a zero stamp, where a motion outlives the frame that it was made for.

        Raises:
            MessageError: naming the field that is wrong and the remedy.
        """
        motion = hand_trajectory_from_message(message, slot_names=slot_names, topic=topic)
        stamp = nanoseconds(message.header.stamp)
        if stamped and stamp == 0:
            raise MessageError(
                topic,
                "header.stamp",
                "is 0",
                "stamp the trajectory with the camera frame that its times count from",
            )
        return cls(stamp, message.header.frame_id, motion, topic, message.source or topic)

    def check(self, stamp: int, frame_id: str, horizon: float) -> None:
        if self.frame_id != frame_id:
            raise MessageError(
                self.topic,
                "header.frame_id",
                f"is {self.frame_id!r} but the camera's optical frame is {frame_id!r}",
                "express the hands in the camera's optical frame and name it",
            )
        offset = self._offset(stamp)
        if offset < -_TOLERANCE:
            raise MessageError(
                self.topic,
                "header.stamp",
                f"is {-offset:.3f} s after the reference frame",
                "stamp the trajectory with the camera frame that its times count from (or with 0)",
            )
        end = self.motion.duration - offset
        if end < horizon - _TOLERANCE:
            raise MessageError(
                self.topic,
                "times",
                f"end {end:.2f} s after the reference frame but the model imagines {horizon:.2f} s",
                f"send a trajectory whose times reach {horizon:.2f} s",
            )

    def trajectory(
        self, stamp: int, times: NDArray[np.float64], q: NDArray[np.float64] | None = None
    ) -> HandTrajectory:
        offset = self._offset(stamp)
        if offset <= _TOLERANCE:
            now = self.motion.resample(np.minimum(times, self.motion.duration))
            return HandTrajectory(times, now.positions, now.valid, now.camera_pose)
        # Later than the motion's own reference: sample from there, then make that camera the
        # reference of the camera motion (joint positions are in camera k already).
        wanted = np.minimum(np.concatenate([[0.0], offset + times]), self.motion.duration)
        later = self.motion.resample(wanted)
        pose = np.linalg.inv(later.camera_pose[1]) @ later.camera_pose[1:]
        return HandTrajectory(times, later.positions[1:], later.valid[1:], pose)

    def _offset(self, stamp: int) -> float:
        """Seconds from the motion's own start to the reference frame."""
        return 0.0 if self.stamp == 0 else (stamp - self.stamp) * 1e-9
