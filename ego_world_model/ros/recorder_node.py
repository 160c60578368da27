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
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import String

from ego_world_model.data.importers import bag_messages as kinds
from ego_world_model.ros.diagnostics import Diagnostics
from ego_world_model.ros.input_watch import InputWatch
from ego_world_model.ros.qos import reliable_qos, sensor_qos

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


_KINDS: dict[type, str] = {
    Image: kinds.IMAGE,
    CompressedImage: kinds.COMPRESSED_IMAGE,
    CameraInfo: kinds.CAMERA_INFO,
    JointState: kinds.JOINT_STATE,
    String: kinds.STRING,
}
"""The name of a type as bags spell it."""


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


@dataclass(frozen=True)
class _Input:
    """A subscription, and what it asks of the publishers."""

    subscription: Subscription
    reliable: bool
    latched: bool


class RecorderNode(Node):
    """Subscribes to the topics of a recording as soon as somebody publishes them.

    Args:
        silence: seconds without an input after which the node says what is missing.

    Attributes:
        required: topics without which nothing can be recorded; the image's by its raw name.
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
        self._raw_image = name(topics.image.removesuffix("/compressed"))
        self._compressed = topics.image.endswith("/compressed")
        self.joint_states = tuple(map(name, topics.joint_states))
        self.camera_info = None if topics.camera_info is None else name(topics.camera_info)
        self.depth = None if topics.depth is None else name(topics.depth)
        self.instruction = None if topics.instruction is None else name(topics.instruction)

        watched = {self._raw_image: "camera images"}
        watched |= dict.fromkeys(self.joint_states, "joint states")
        if self.camera_info is not None:
            watched[self.camera_info] = "camera intrinsics"
        if self.depth is not None and topics.depth_required:
            watched[self.depth] = "aligned depth images"
        self.required = set(watched)
        self._watch = InputWatch(self, self._diagnostics, watched, after=silence)
        self._inputs: dict[str, _Input] = {}
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(0.2, self._discover, clock=steady)
        self.get_logger().info(f"waiting for {', '.join(sorted(watched))}")

    @property
    def image(self) -> str:
        """Where images come from: the raw topic or the compressed one beside it."""
        return f"{self._raw_image}/compressed" if self._compressed else self._raw_image

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
        self._watch.stop()

    def _discover(self) -> None:
        """Subscribes to what is published, in the form in which it is published."""
        raw = self._raw_image
        if raw not in self._inputs and not self.count_publishers(raw):
            self._compressed |= self.count_publishers(f"{raw}/compressed") > 0
        image = CompressedImage if self._compressed else Image
        wanted = {self.image: image, self.camera_info: CameraInfo, self.depth: Image}
        wanted |= dict.fromkeys(self.joint_states, JointState) | {self.instruction: String}
        for topic, message_type in wanted.items():
            if topic is not None:
                self._follow(topic, message_type)

    def _follow(self, topic: str, message_type: type) -> None:
        """Takes what the topic's publishers all offer: reliable where they are, so that a stall of
        this process loses nothing, and their latched messages."""
        offers = [info.qos_profile for info in self.get_publishers_info_by_topic(topic)]
        if not offers:
            return
        reliable = all(offer.reliability == ReliabilityPolicy.RELIABLE for offer in offers)
        latched = all(offer.durability == DurabilityPolicy.TRANSIENT_LOCAL for offer in offers)
        known = self._inputs.get(topic)
        if known is not None and (known.reliable, known.latched) == (reliable, latched):
            return
        if known is not None:  # a driver came back with other settings
            self.destroy_subscription(known.subscription)
        depth = 60 if message_type in (Image, CompressedImage) else 1000
        qos = reliable_qos(depth, latched=latched) if reliable else sensor_qos(depth)
        callback = partial(self._receive, topic, _KINDS[message_type])
        subscription = self.create_subscription(message_type, topic, callback, qos, raw=True)
        self._inputs[topic] = _Input(subscription, reliable, latched)

    def _receive(self, topic: str, kind: str, data: bytes) -> None:
        stamp = time.time_ns()
        watched = self._raw_image if topic == self.image else topic
        if watched in self.required:
            self._watch.seen(watched)
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
