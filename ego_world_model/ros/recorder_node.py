"""Receives what a recording is made of, and keeps it until it is taken.

The bytes are kept as they arrive. They are decoded and paired elsewhere (``live_source.py``), in
the thread that writes: while an episode is encoded, messages wait here.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import rclpy
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import String

from ego_world_model.data.importers import bag_messages as kinds
from ego_world_model.ros.diagnostics import Diagnostics
from ego_world_model.ros.input_watch import InputWatch
from ego_world_model.ros.qos import subscribe

BACKLOG_BYTES = 2**30
"""Bytes that may wait while an episode is encoded: 20 s of 640x480 colour and depth at 30 Hz."""


@dataclass(frozen=True, kw_only=True)
class LiveTopics:
    """Names of the topics to record, relative or absolute; None: not recorded.

    Attributes:
        image: raw; with ``/compressed`` at its end, the compressed one. Where nobody publishes the
            raw topic, the compressed one beside it is taken.
        depth: aligned to the image.
        depth_required: whether silence of the depth topic is an error.
    """

    image: str
    joint_states: tuple[str, ...]
    camera_info: str | None = None
    depth: str | None = None
    depth_required: bool = False
    instruction: str | None = None


@dataclass(frozen=True)
class Received:
    """A message as it arrived.

    Attributes:
        topic: absolute name. kind: type, as bags spell it.
        stamp: nanoseconds of this machine's clock at its arrival.
        data: serialised.
    """

    topic: str
    kind: str
    stamp: int
    data: bytes


class RecorderNode(Node):
    """Subscribes to the topics of a recording.

    Args:
        silence: seconds without an input after which the node says what is missing.

    Attributes:
        lost: topic → messages that found no room while an episode was encoded.
    """

    def __init__(self, topics: LiveTopics, *, silence: float = 5.0) -> None:
        super().__init__("recorder")
        self._diagnostics = Diagnostics(self)
        self._messages: deque[Received] = deque()
        self._bytes, self._closed = 0, False
        self._arrived = threading.Condition()
        self.lost: dict[str, int] = {}

        name = self.resolve_topic_name
        self._image_base = name(topics.image.removesuffix("/compressed"))
        self._compressed = topics.image.endswith("/compressed")
        self.joint_states = tuple(map(name, topics.joint_states))
        self.camera_info = None if topics.camera_info is None else name(topics.camera_info)
        self.depth = None if topics.depth is None else name(topics.depth)
        self.instruction = None if topics.instruction is None else name(topics.instruction)

        watched = {self._image_base: "camera images"}
        watched |= dict.fromkeys(self.joint_states, "joint states")
        if self.camera_info is not None:
            watched[self.camera_info] = "camera intrinsics"
        if self.depth is not None and topics.depth_required:
            watched[self.depth] = "aligned depth images"
        self.required = set(watched)
        self._watch = InputWatch(self, self._diagnostics, watched, after=silence)
        self._image_arrives = False
        self._image = self._subscribe_image()
        self._kept = [
            self._listen(JointState, kinds.JOINT_STATE, topic, 1000) for topic in self.joint_states
        ]
        if self.camera_info is not None:
            self._kept.append(self._listen(CameraInfo, kinds.CAMERA_INFO, self.camera_info, 100))
        if self.depth is not None:
            self._kept.append(self._listen(Image, kinds.IMAGE, self.depth, 60))
        self._instruction_found = False
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(0.2, self._discover, clock=steady)
        self.get_logger().info(f"waiting for {', '.join(sorted(watched))}")

    @property
    def image(self) -> str:
        """Where images come from: the raw topic or the compressed one beside it."""
        return f"{self._image_base}/compressed" if self._compressed else self._image_base

    @property
    def instructed(self) -> bool:
        """Whether somebody publishes instructions."""
        return self.instruction is not None and self.count_publishers(self.instruction) > 0

    def take(self, timeout: float) -> Received | None:
        """The oldest message that waits, or None where none comes in ``timeout`` seconds."""
        with self._arrived:
            if not self._messages:
                self._arrived.wait(timeout)
            if not self._messages:
                return None
            message = self._messages.popleft()
            self._bytes -= len(message.data)
            return message

    def stop_receiving(self) -> None:
        """Takes in nothing more; what waits can still be taken."""
        self._closed = True

    def _listen(self, message_type: type, kind: str, topic: str, depth: int) -> Subscription:
        callback = partial(self._receive, topic, kind)
        return subscribe(self, message_type, topic, callback, depth=depth, raw=True)

    def _subscribe_image(self) -> Subscription:
        if self._compressed:
            return self._listen(CompressedImage, kinds.COMPRESSED_IMAGE, self.image, 60)
        return self._listen(Image, kinds.IMAGE, self.image, 60)

    def _receive(self, topic: str, kind: str, data: bytes) -> None:
        stamp = time.time_ns()
        if topic == self.image:
            self._image_arrives = True
            self._watch.seen(self._image_base)
        elif topic in self.required:
            self._watch.seen(topic)
        self._diagnostics.tick(topic)
        if self._closed:
            return
        with self._arrived:
            if self._bytes + len(data) > BACKLOG_BYTES:
                self.lost[topic] = self.lost.get(topic, 0) + 1
                self._diagnostics.count("messages lost: memory full")
                return
            self._messages.append(Received(topic, kind, stamp, data))
            self._bytes += len(data)
            self._arrived.notify()

    def _discover(self) -> None:
        """Follows topics whose form only their publishers tell."""
        base = self._image_base
        if (
            not (self._image_arrives or self._compressed)
            and not self.count_publishers(base)
            and self.count_publishers(f"{base}/compressed")
        ):
            self.destroy_subscription(self._image)
            self._compressed = True
            self._image = self._subscribe_image()
        if self.instruction is not None and not self._instruction_found:
            self._find_instruction(self.instruction)

    def _find_instruction(self, topic: str) -> None:
        """Subscribes as the publishers offer: a latched text, or one that is sent now and then."""
        found = self.get_publishers_info_by_topic(topic)
        if not found:
            return
        self._instruction_found = True
        latched = all(
            info.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for info in found
        )
        callback = partial(self._receive, topic, kinds.STRING)
        self._kept.append(
            subscribe(self, String, topic, callback, reliable=latched, latched=latched, raw=True)
        )


@contextmanager
def recorder(topics: LiveTopics, *, namespace: str = "") -> Iterator[RecorderNode]:
    """A recorder node, spun by a thread of its own; signals are left to the caller."""
    words = ["--ros-args", "-r", f"__ns:=/{namespace.strip('/')}"] if namespace else []
    rclpy.init(args=words, signal_handler_options=SignalHandlerOptions.NO)
    node, executor = RecorderNode(topics), SingleThreadedExecutor()
    executor.add_node(node)

    def spin() -> None:
        with contextlib.suppress(ExternalShutdownException):
            executor.spin()

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    try:
        yield node
    finally:
        executor.shutdown(timeout_sec=1.0)
        thread.join(5.0)
        node.destroy_node()
        rclpy.try_shutdown()
