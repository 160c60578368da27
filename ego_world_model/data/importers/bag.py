"""rosbag2 recordings (sqlite3 and MCAP): frames paired with joint positions at their stamps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.serde import SerdeError

from ego_world_model.camera import PinholeCamera
from ego_world_model.data.importers.assembly import FrameAssembler, RecordedJoints, read_camera
from ego_world_model.data.importers.bag_messages import (
    CAMERA_INFO,
    HAND_STATE,
    OLD_HAND_STATE,
    stamp_of,
    typestore,
)
from ego_world_model.data.importers.bag_topics import TopicOptions, Topics, choose_topics
from ego_world_model.data.importers.base import (
    RejectedError,
    SourceFrame,
    Tally,
    source_name,
    spell_out,
)
from ego_world_model.kinematics import HandKinematics


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
        self._path, self._options, self._kinematics = path, options, kinematics

    def task(self) -> str:
        return spell_out(self._path.stem)

    def frames(self, tally: Tally) -> Iterator[SourceFrame]:
        with self._opened() as (reader, topics):
            used = [c for c in reader.connections if c.msgcount and c.topic in topics.all]
            camera: PinholeCamera | None = None
            if topics.camera_info is not None:
                camera = self._first_camera(reader, used, topics.camera_info)
            assembler = FrameAssembler(
                self._kinematics, topics, self._options, tally, camera=camera
            )
            for connection, received, raw in reader.messages(connections=used):
                kind = connection.msgtype
                message = self._decode(reader, raw, kind)
                yield from assembler.add(connection.topic, kind, message, received)
            yield from assembler.finish()

    def joints(self, tally: Tally) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """All joint states at the rate of the recording: stamps (N,) ns and q (N, nq) rad.

        Raises:
            RejectedError: as ``frames``.
        """
        with self._opened() as (reader, topics):
            used = [c for c in reader.connections if c.msgcount and c.topic in topics.joints]
            longest = max(connection.msgcount for connection in used)
            states = RecordedJoints(self._kinematics, self._options, tally, capacity=longest)
            for connection, received, raw in reader.messages(connections=used):
                message = self._decode(reader, raw, connection.msgtype)
                stamp = received if self._options.use_received else stamp_of(message, received)
                states.add(connection.topic, connection.msgtype, message, stamp)
            states.finish()
            return states.series()

    @contextmanager
    def _opened(self) -> Iterator[tuple[AnyReader, Topics]]:
        """The bag and the topics of it that matter."""
        try:
            with AnyReader([self._path], default_typestore=typestore()) as reader:
                types = {c.topic: c.msgtype for c in reader.connections if c.msgcount}
                yield reader, choose_topics(types, self._options)
        except (AnyReaderError, SerdeError) as error:
            raise RejectedError(
                f"the bag cannot be read: {error}",
                "repair it (`ros2 bag reindex`), or record it again",
            ) from error

    def _first_camera(
        self, reader: AnyReader, connections: Sequence[Any], topic: str
    ) -> PinholeCamera:
        """Intrinsics for frames before the first CameraInfo (often published once, latched)."""
        infos = [c for c in connections if c.topic == topic and c.msgtype == CAMERA_INFO]
        _, _, raw = next(iter(reader.messages(connections=infos)))
        return read_camera(reader.deserialize(raw, CAMERA_INFO), topic)

    @staticmethod
    def _decode(reader: AnyReader, raw: bytes, kind: str) -> Any:
        try:
            return reader.deserialize(raw, kind)
        except AnyReaderError:
            if kind != HAND_STATE:
                raise
            return typestore(OLD_HAND_STATE).deserialize_cdr(raw, kind)
