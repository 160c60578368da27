"""Messages as they were received → camera frames with the joints of their instants.

A bag that is read and a live graph that is recorded both go through here, so that a frame is paired
by the same rules: joint positions interpolated to its stamp, depth of the same capture, the
intrinsics and the instruction that hold; a frame that has no joints of its own is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ego_world_model.camera import PinholeCamera
from ego_world_model.data.importers import joints as naming
from ego_world_model.data.importers.bag_messages import (
    HAND_STATE,
    JOINT_STATE,
    LOW_STATE,
    MOTOR_STATES,
    camera_from_message,
    depth_from_message,
    rgb_from_message,
    stamp_of,
)
from ego_world_model.data.importers.bag_topics import TopicOptions, Topics, hand_side
from ego_world_model.data.importers.base import RejectedError, SourceFrame, Tally
from ego_world_model.kinematics import HandKinematics
from ego_world_model.kinematics.joint_buffer import JointBuffer, Match
from ego_world_model.stereo import one_eye

_WAIT_NS = 1_000_000_000
"""Nanoseconds of recording that a frame waits for the joint states behind its stamp."""

_SAMPLES = 4096
"""Joint states kept per topic: several seconds at the 500 Hz of Unitree's robots."""

_SYNC_NS = 20_000_000
"""Colour and depth of one capture have equal or nearly equal stamps."""

_DEPTHS = 64
"""Depth images kept: two seconds at 30 Hz."""

_REASONS = {
    Match.EMPTY: "no joint states around the frame",
    Match.WAIT: "joint states end before the frame",
    Match.TOO_OLD: "joint states begin after the frame",
    Match.GAP: "joint states around the frame are too far apart",
}


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    """A frame whose joint states may still come."""

    stamp: int
    received: int
    message: Any
    number: int
    task: str | None


class FrameAssembler:
    """Takes messages in the order in which they were received, gives frames.

    Args:
        topics: what each topic holds; messages of other topics must not be given.
        camera: intrinsics of frames that come before the first CameraInfo.
        tally: counts the frames read and those that are dropped.
    """

    def __init__(
        self,
        kinematics: HandKinematics,
        topics: Topics,
        options: TopicOptions,
        tally: Tally,
        *,
        camera: PinholeCamera | None = None,
    ) -> None:
        self._topics, self._options, self._tally = topics, options, tally
        self._camera = camera
        self._task: str | None = None
        self._states = RecordedJoints(kinematics, options, tally)
        self._waiting: deque[_Waiting] = deque()
        self._depths: deque[tuple[int, Any]] = deque(maxlen=_DEPTHS)

    def add(self, topic: str, kind: str, message: Any, received: int) -> Iterator[SourceFrame]:
        """Takes a message; the frames that are complete with it.

        Args:
            kind: message type, such as ``sensor_msgs/msg/Image``.
            message: deserialised by ``rosbags``.
            received: nanoseconds.

        Raises:
            RejectedError: the message cannot be from this robot or camera.
        """
        topics = self._topics
        stamp = received if self._options.use_received else stamp_of(message, received)
        if topic == topics.camera_info:
            self._camera = read_camera(message, topic)
        elif topic == topics.image:
            self._waiting.append(
                _Waiting(
                    stamp=stamp,
                    received=received,
                    message=message,
                    number=self._tally.read,
                    task=self._task,
                )
            )
            self._tally.read += 1
        elif topic == topics.depth:
            self._depths.append((stamp, message))
        elif topic == topics.instruction:
            self._task = " ".join(message.data.split()) or None
        else:
            self._states.add(topic, kind, message, stamp)
        while self._waiting and (
            self._ready(self._waiting[0].stamp) or received - self._waiting[0].received > _WAIT_NS
        ):
            yield from self._pair(self._waiting.popleft())

    def finish(self) -> Iterator[SourceFrame]:
        """The frames that still wait, with what there is; then as ``close``."""
        while self._waiting:
            yield from self._pair(self._waiting.popleft())
        self.close()

    def close(self) -> None:
        """Notes what was left out and assumed.

        Raises:
            RejectedError: hands cannot be placed, since joints were never recorded.
        """
        self._states.finish()

    def _ready(self, stamp: int) -> bool:
        """Whether nothing that is still to come belongs to a frame of this stamp."""
        if self._topics.depth is not None and not (self._depths and self._depths[-1][0] >= stamp):
            return False
        return self._states.reach(stamp)

    def _pair(self, frame: _Waiting) -> Iterator[SourceFrame]:
        example = f"frame {frame.number}, stamp {frame.stamp * 1e-9:.3f} s"
        q = self._states.at(frame.stamp)
        if isinstance(q, str):
            self._tally.drop(q, example)
            return
        load_depth = None
        if self._topics.depth is not None:
            depth = self._depth_at(frame.stamp)
            if depth is None:
                self._tally.drop("no depth image of the frame's stamp", example)
                return
            load_depth = partial(depth_from_message, depth)
        yield SourceFrame(
            stamp=frame.stamp,
            load=partial(_picture, frame.message, self._options.eye),
            load_depth=load_depth,
            q=q,
            number=frame.number,
            camera=self._camera,
            task=frame.task,
        )

    def _depth_at(self, stamp: int) -> Any | None:
        """The depth image taken with the frame of this stamp."""
        if not self._depths:
            return None
        nearest = min(self._depths, key=lambda entry: abs(entry[0] - stamp))
        return nearest[1] if abs(nearest[0] - stamp) <= _SYNC_NS else None


def _picture(message: Any, eye: str) -> NDArray[np.uint8]:
    """(H, W, 3) RGB of an image message, or of one eye of it."""
    return np.ascontiguousarray(one_eye(rgb_from_message(message), eye))


def read_camera(message: Any, topic: str) -> PinholeCamera:
    """Intrinsics from a CameraInfo.

    Raises:
        RejectedError: the camera is not calibrated, or of an unknown distortion model.
    """
    try:
        return camera_from_message(message)
    except ValueError as error:
        raise RejectedError(
            f"{topic}: {error}", "give the camera's calibration file with --camera-info"
        ) from error


class RecordedJoints:
    """Joint states of all topics; each topic's set of names is interpolated on its own."""

    def __init__(
        self,
        kinematics: HandKinematics,
        options: TopicOptions,
        tally: Tally,
        *,
        capacity: int = _SAMPLES,
    ) -> None:
        self._capacity = capacity
        self._robot, self._required = kinematics.robot, naming.required_joints(kinematics)
        self._options, self._tally = options, tally
        self._buffers: dict[tuple[str, tuple[str, ...]], JointBuffer] = {}
        self._maps: dict[tuple[str, tuple[str, ...]], naming.JointMap] = {}
        self._left_out: dict[str, tuple[int, str]] = {}
        self._counted, self._absent = 0, True

    def add(self, topic: str, kind: str, message: Any, stamp: int) -> None:
        """Adds a message of any of the joint topics.

        Raises:
            RejectedError: the message cannot be from this robot.
        """
        names, values = self._read(topic, kind, message)
        key = (topic, names)
        if key not in self._maps:
            joints = naming.JointMap(
                self._robot,
                names,
                required=(),
                where=topic,
                tally=self._tally,
                normalised=kind == MOTOR_STATES,
            )
            self._maps[key] = joints
            if joints.joints:
                self._buffers[key] = JointBuffer(
                    joints.joints,
                    capacity=self._capacity,
                    tolerance=self._options.tolerance,
                    time_offset=self._options.time_offset,
                )
        if key not in self._buffers:
            return
        try:
            q = self._maps[key].values(values)
            self._buffers[key].add(stamp, list(q), list(q.values()))
        except ValueError as error:
            count, first = self._left_out.get(topic, (0, str(error)))
            self._left_out[topic] = (count + 1, first)

    def reach(self, stamp: int) -> bool:
        """Whether all joints that are needed have a sample at or after ``stamp``."""
        newest = [buffer.newest for buffer in self._buffers.values()]
        return not self._missing() and all(t is not None and t >= stamp for t in newest)

    def at(self, stamp: int) -> NDArray[np.float64] | str:
        """(nq,) rad at ``stamp``, or why there are none."""
        if self._missing():
            return _REASONS[Match.EMPTY]
        found: dict[str, float] = {}
        for buffer in self._buffers.values():
            state = buffer.at(stamp)
            if state.q is None:
                return _REASONS[state.match]
            found |= dict(zip(buffer.joint_names, state.q.tolist(), strict=True))
        return self._robot.q_from(found)

    def series(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Everything kept, at the rate of the fastest topic: stamps (N,) ns and q (N, nq) rad.

        Left out is what no other topic reaches, or lies in a gap of one.
        """
        buffers = sorted(self._buffers.values(), key=len, reverse=True)
        stamps, q = buffers[0].samples() if buffers else (np.zeros(0, np.int64), np.zeros((0, 0)))
        found = dict(zip(buffers[0].joint_names, q.T, strict=True)) if buffers else {}
        usable = np.ones(len(stamps), bool)
        for buffer in buffers[1:]:
            others, q = buffer.samples()
            later = np.clip(np.searchsorted(others, stamps), 1, max(1, len(others) - 1))
            usable &= (stamps >= others[0]) & (stamps <= others[-1])
            usable &= np.diff(others, append=others[-1])[later - 1] <= buffer.tolerance_ns
            columns = [np.interp(stamps, others, column) for column in q.T]
            found |= dict(zip(buffer.joint_names, columns, strict=True))
        full = np.zeros((len(stamps), len(self._robot.joint_names)))
        for name, column in found.items():
            full[:, self._robot.joint_names.index(name)] = column
        followers = [c for c in self._robot.couplings if c.follower not in found]
        for coupling in followers:
            driver = full[:, self._robot.joint_names.index(coupling.driver)]
            follower = self._robot.joint_names.index(coupling.follower)
            full[:, follower] = coupling.multiplier * driver + coupling.offset
        return stamps[usable], full[usable]

    def finish(self) -> None:
        """Notes joint states that were left out, and joints that were never recorded.

        Raises:
            RejectedError: hands cannot be placed without some of them.
        """
        for topic, (count, first) in self._left_out.items():
            self._tally.note(f"{topic}: {count} joint states left out, the first because {first}")
        joints = [name for entry in self._maps.values() for name in entry.joints]
        spelt = [name for entry in self._maps.values() for name in entry.names]
        naming.refuse_missing(
            self._robot,
            joints,
            required=self._required,
            unknown=[name for name in spelt if naming.joint_name(name, self._robot) is None],
            where=" and ".join(sorted({topic for topic, _ in self._maps})) or "the recording",
        )
        naming.note_assumed(self._robot, joints, self._tally)

    def _missing(self) -> bool:
        """Whether joints that place the hands were not seen so far."""
        if len(self._buffers) != self._counted:
            self._counted = len(self._buffers)
            seen = {name for buffer in self._buffers.values() for name in buffer.joint_names}
            self._absent = not seen.issuperset(self._required)
        return self._absent

    def _read(self, topic: str, kind: str, message: Any) -> tuple[tuple[str, ...], Any]:
        """Names and positions of a message."""
        if kind == JOINT_STATE:
            return tuple(message.name), message.position
        if kind == LOW_STATE:
            names = naming.wire_order(self._robot, "unitree_hg/LowState")
            return names, [motor.q for motor in message.motor_state[: len(names)]]
        if kind == HAND_STATE:
            side = hand_side(topic)
            key = f"dex3/{side}"
            if side == "right" and self._options.middle_first:
                key = "dex3/right_middle_first"
            return self._motors(topic, naming.wire_order(self._robot, key), message.motor_state)
        assert kind == MOTOR_STATES
        names = naming.wire_order(self._robot, "inspire/state")
        return self._motors(topic, names, message.states)

    @staticmethod
    def _motors(
        topic: str, names: tuple[str, ...], motors: Sequence[Any]
    ) -> tuple[tuple[str, ...], list[float]]:
        if len(motors) != len(names):
            raise RejectedError(
                f"{topic} has {len(motors)} motors, the hand has {len(names)}",
                "choose the robot of the recording with --robot; Unitree changed HandState in "
                "August 2025: record with definitions that match the robot's firmware",
            )
        return names, [motor.q for motor in motors]
