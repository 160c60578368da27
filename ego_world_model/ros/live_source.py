"""A live graph as one more recording to import: paired, cut and written as a bag is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime

from rosbags.serde import SerdeError

from ego_world_model.data.importers.assembly import FrameAssembler
from ego_world_model.data.importers.bag_messages import typestore
from ego_world_model.data.importers.bag_topics import TopicOptions, Topics
from ego_world_model.data.importers.base import RejectedError, SourceFrame, Tally
from ego_world_model.kinematics import HandKinematics
from ego_world_model.ros.recorder_node import Received, RecorderNode

_SETTLE = 1.0
"""Seconds after the first of all inputs in which optional ones (depth) may still be discovered."""
_PATIENCE = 5.0
"""Seconds after which a publisher of instructions that sends none is mentioned."""


class LiveSource:
    """What a recorder node receives; see ``data.importers.base.Source``.

    Args:
        node: spun by another thread.
        default_task: instruction where no topic gives one.
        seconds: ends after so many seconds of frames; None: when stopped.
        stop: set from outside to end; what has been received until then is kept.
        on_frame: called after every frame that has been used.
    """

    kind = "live graph"

    def __init__(
        self,
        node: RecorderNode,
        kinematics: HandKinematics,
        options: TopicOptions,
        *,
        default_task: str,
        seconds: float | None,
        stop: threading.Event,
        on_frame: Callable[[Tally], None],
    ) -> None:
        # Each run is a recording of its own, so that the same command goes on with the dataset.
        self.name = f"live {datetime.now().isoformat(timespec='milliseconds')}"
        self._node, self._kinematics, self._options = node, kinematics, options
        self._default_task, self._seconds, self._stop = default_task, seconds, stop
        self._on_frame = on_frame

    def task(self) -> str:
        return self._default_task

    def frames(self, tally: Tally) -> Iterator[SourceFrame]:
        first = self._wait_for_inputs()
        if self._stop.is_set():
            raise RejectedError(
                f"nothing was recorded: {self._missing(first)}",
                "start the camera driver and what publishes the joint states, then record",
            )
        topics = self._topics(first)
        assembler = FrameAssembler(self._kinematics, topics, self._options, tally)
        known = [
            m for topic, m in first.items() if topic in (topics.camera_info, topics.instruction)
        ]
        begin: int | None = None
        try:
            for message in self._messages(known, topics):
                for frame in self._assemble(assembler, message, tally, strict=begin is None):
                    begin = frame.stamp if begin is None else begin
                    if self._seconds is not None and frame.stamp - begin >= self._seconds * 1e9:
                        return
                    yield frame
                    self._on_frame(tally)
            yield from assembler.finish()
        finally:  # also where the wanted number of episodes is reached
            self._node.stop_receiving()
            if begin is not None:
                assembler.close()
            for topic, count in self._node.lost.items():
                tally.note(f"{topic}: {count} messages lost, memory was full while it was written")

    def _wait_for_inputs(self) -> dict[str, Received]:
        """The newest message of each topic once all that is needed flows, or when stopped."""
        node, newest = self._node, dict[str, Received]()
        complete: float | None = None
        begin, told = time.monotonic(), False
        while not self._stop.is_set():
            if (message := node.take(0.1)) is not None:
                newest[message.topic] = message
            now = time.monotonic()
            if self._missing(newest):
                continue
            complete = now if complete is None else complete
            if now - complete < _SETTLE:
                continue
            if not node.instructed or node.instruction in newest:
                break
            if not told and now - begin > _PATIENCE:
                told = True
                node.get_logger().warning(
                    f"{node.instruction} has a publisher but no instruction came yet: send one, or "
                    "give it with --task"
                )
        return newest

    def _missing(self, newest: dict[str, Received]) -> str:
        """The required topics that are silent so far."""
        seen = {topic.removesuffix("/compressed") for topic in newest}
        return ", ".join(f"no {topic}" for topic in sorted(self._node.required - seen))

    def _topics(self, newest: dict[str, Received]) -> Topics:
        node = self._node
        return Topics(
            image=node.image,
            camera_info=node.camera_info,
            joints=node.joint_states,
            depth=node.depth if node.depth in newest else None,
            instruction=node.instruction,
        )

    def _messages(self, known: list[Received], topics: Topics) -> Iterator[Received]:
        """What arrives, until stopped and all that had arrived was taken."""
        wanted = topics.all
        yield from known
        while True:
            if self._stop.is_set():
                self._node.stop_receiving()
            message = self._node.take(0.1)
            if message is None and self._stop.is_set():
                return
            if message is not None and message.topic in wanted:
                yield message

    @staticmethod
    def _assemble(
        assembler: FrameAssembler, received: Received, tally: Tally, *, strict: bool
    ) -> Iterator[SourceFrame]:
        """Frames that are complete with a message; later on, a bad message loses nothing good."""
        try:
            message = typestore().deserialize_cdr(received.data, received.kind)
            yield from assembler.add(received.topic, received.kind, message, received.stamp)
        except SerdeError as error:
            tally.note(f"{received.topic}: messages that are not {received.kind} ({error})")
        except RejectedError as error:
            if strict:
                raise
            tally.note(str(error))
