"""rosbag2 recordings (sqlite3 and MCAP): frames paired with joint positions at their stamps."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.serde import SerdeError

from ego_world_model.camera import PinholeCamera
from ego_world_model.data.importers import joints as naming
from ego_world_model.data.importers.bag_messages import (
    CAMERA_INFO,
    HAND_STATE,
    JOINT_STATE,
    LOW_STATE,
    MOTOR_STATES,
    OLD_HAND_STATE,
    camera_from_message,
    rgb_from_message,
    stamp_of,
    typestore,
)
from ego_world_model.data.importers.bag_topics import (
    TopicOptions,
    Topics,
    choose_topics,
    hand_side,
)
from ego_world_model.data.importers.base import (
    RejectedError,
    SourceFrame,
    Tally,
    source_name,
    spell_out,
)
from ego_world_model.kinematics import HandKinematics
from ego_world_model.kinematics.joint_buffer import JointBuffer, Match

_WAIT_NS = 1_000_000_000
"""Nanoseconds of recording that a frame waits for the joint states behind its stamp."""

_SAMPLES = 4096
"""Joint states kept per topic: several seconds at the 500 Hz of Unitree's robots."""

_REASONS = {
    Match.EMPTY: "no joint states around the frame",
    Match.WAIT: "joint states end before the frame",
    Match.TOO_OLD: "joint states begin after the frame",
    Match.GAP: "joint states around the frame are too far apart",
}


def find_bags(path: Path) -> list[Path]:
    """A bag (folder with metadata.yaml, or a single .mcap or .db3), or all bags below a folder.

    Raises:
        FileNotFoundError: there is none.
    """
    if path.is_file() and path.suffix in (".mcap", ".db3"):
        return [path]
    if (path / "metadata.yaml").is_file():
        return [path]
    bags = {entry.parent for entry in path.rglob("metadata.yaml")}
    loose = [p for s in ("*.mcap", "*.db3") for p in path.rglob(s) if p.parent not in bags]
    found = sorted([*bags, *loose])
    if not found:
        raise FileNotFoundError(
            f"no rosbag2 recording at {path}: a bag is a folder with metadata.yaml, or a .mcap or "
            ".db3 file"
        )
    return found


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    """A frame whose joint states may still come."""

    stamp: int
    received: int
    message: Any
    number: int


class BagSource:
    """One bag; see ``base.Source``.

    Args:
        root: folder that the user gave; the recording's name is relative to it.
    """

    kind = "rosbag2"

    def __init__(
        self, path: Path, *, root: Path, kinematics: HandKinematics, options: TopicOptions
    ) -> None:
        self.name = source_name(path, root)
        self._path, self._options = path, options
        self._robot = kinematics.robot
        self._required = naming.required_joints(kinematics)

    def task(self) -> str:
        return spell_out(self._path.stem)

    def frames(self, tally: Tally) -> Iterator[SourceFrame]:
        try:
            with AnyReader([self._path], default_typestore=typestore()) as reader:
                connections = [c for c in reader.connections if c.msgcount]
                types = {c.topic: c.msgtype for c in connections}
                topics = choose_topics(types, self._options)
                wanted = {topics.image, topics.camera_info, *topics.joints}
                used = [c for c in connections if c.topic in wanted]
                yield from self._stream(reader, used, topics, tally)
        except (AnyReaderError, SerdeError) as error:
            raise RejectedError(
                f"the bag cannot be read: {error}",
                "repair it (`ros2 bag reindex`), or record it again",
            ) from error

    def _stream(
        self, reader: AnyReader, connections: Sequence[Any], topics: Topics, tally: Tally
    ) -> Iterator[SourceFrame]:
        states = _States(self, tally)
        waiting: deque[_Waiting] = deque()
        camera: PinholeCamera | None = None
        if topics.camera_info is not None:
            camera = self._first_camera(reader, connections, topics.camera_info)
        for connection, received, raw in reader.messages(connections=connections):
            message = self._decode(reader, raw, connection.msgtype)
            stamp = received if self._options.use_received else stamp_of(message, received)
            if connection.topic == topics.camera_info:
                camera = _camera(message, topics.camera_info)
            elif connection.topic == topics.image:
                waiting.append(
                    _Waiting(stamp=stamp, received=received, message=message, number=tally.read)
                )
                tally.read += 1
            else:
                states.add(connection.topic, connection.msgtype, message, stamp)
            while waiting and (
                states.reach(waiting[0].stamp) or received - waiting[0].received > _WAIT_NS
            ):
                yield from self._pair(waiting.popleft(), states, camera, tally)
        while waiting:
            yield from self._pair(waiting.popleft(), states, camera, tally)
        states.finish()

    def _pair(
        self, frame: _Waiting, states: _States, camera: PinholeCamera | None, tally: Tally
    ) -> Iterator[SourceFrame]:
        q = states.at(frame.stamp)
        if isinstance(q, str):
            tally.drop(q, f"frame {frame.number}, stamp {frame.stamp * 1e-9:.3f} s")
            return
        load = partial(rgb_from_message, frame.message)
        yield SourceFrame(stamp=frame.stamp, load=load, q=q, number=frame.number, camera=camera)

    def _first_camera(
        self, reader: AnyReader, connections: Sequence[Any], topic: str
    ) -> PinholeCamera:
        """Intrinsics for frames before the first CameraInfo (often published once, latched)."""
        infos = [c for c in connections if c.topic == topic and c.msgtype == CAMERA_INFO]
        _, _, raw = next(iter(reader.messages(connections=infos)))
        return _camera(reader.deserialize(raw, CAMERA_INFO), topic)

    @staticmethod
    def _decode(reader: AnyReader, raw: bytes, kind: str) -> Any:
        try:
            return reader.deserialize(raw, kind)
        except AnyReaderError:
            if kind != HAND_STATE:
                raise
            return typestore(OLD_HAND_STATE).deserialize_cdr(raw, kind)


def _camera(message: Any, topic: str) -> PinholeCamera:
    try:
        return camera_from_message(message)
    except ValueError as error:
        raise RejectedError(
            f"{topic}: {error}", "give the camera's calibration file with --camera-info"
        ) from error


class _States:
    """Joint states of all topics; each topic's set of names is interpolated on its own."""

    def __init__(self, source: BagSource, tally: Tally) -> None:
        self._robot, self._required = source._robot, source._required
        self._options, self._tally = source._options, tally
        self._buffers: dict[tuple[str, tuple[str, ...]], JointBuffer] = {}
        self._maps: dict[tuple[str, tuple[str, ...]], naming.JointMap] = {}
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
                tolerance = self._options.tolerance
                self._buffers[key] = JointBuffer(
                    joints.joints, capacity=_SAMPLES, tolerance=tolerance
                )
        if key not in self._buffers:
            return
        try:
            q = self._maps[key].values(values)
            self._buffers[key].add(stamp, list(q), list(q.values()))
        except ValueError as error:
            self._tally.note(f"{topic}: joint states left out, the first because {error}")

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

    def finish(self) -> None:
        """Notes joints that were never recorded.

        Raises:
            RejectedError: hands cannot be placed without some of them.
        """
        joints = [name for entry in self._maps.values() for name in entry.joints]
        spelt = [name for entry in self._maps.values() for name in entry.names]
        naming.refuse_missing(
            self._robot,
            joints,
            required=self._required,
            unknown=[name for name in spelt if naming.joint_name(name, self._robot) is None],
            where=" and ".join(sorted({topic for topic, _ in self._maps})) or "the bag",
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
