"""Plays a rosbag2 recording into a live graph: its messages unchanged, and its time on /clock.

Messages go out as the bytes that were recorded, at the times at which they were recorded (divided
by the rate). The clock is published in front of every message, so that nodes with
``use_sim_time:=true`` are at the bag's time when they receive it.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection, QosDurability
from rosgraph_msgs.msg import Clock

from ego_world_model.ros.conversions import stamp_from_nanoseconds
from ego_world_model.ros.qos import advertise

CLOCK = "/clock"
_CLOCK_TYPE = "rosgraph_msgs/msg/Clock"
_CLOCK_STEP = 1_000_000
"""Nanoseconds of the bag between two messages on /clock, at least."""
_IDLE_TICK = 0.01
"""Seconds after which the clock ticks where the bag is silent."""
_LARGE = ("sensor_msgs/msg/Image", "sensor_msgs/msg/PointCloud2")
_SETTLED = 1.0
"""Seconds without a new subscriber after which those that are there are taken for all."""
_MISSED = 4.0
"""The same while a topic, /clock included, has no subscriber: a participant that missed the first
announcements of another hears the next after 3 s (Fast DDS), and would miss the bag's beginning."""


class ReplayError(ValueError):
    """A bag cannot be played; says why and what helps."""


@dataclass(frozen=True, kw_only=True)
class PlayOptions:
    """How to play.

    Attributes:
        rate: bag seconds per second.
        start: seconds of the bag to leave out.
        topics: the topics to play; empty: all.
        loop: begin again at the end, until stopped; /clock then jumps back.
        clock: publish the bag's time on /clock.
    """

    rate: float = 1.0
    start: float = 0.0
    topics: tuple[str, ...] = ()
    loop: bool = False
    clock: bool = True


@dataclass(kw_only=True)
class Played:
    """What went out.

    Attributes:
        messages: topic → count.
        lag: seconds by which the latest message came after its time.
    """

    messages: dict[str, int] = field(default_factory=dict)
    lag: float = 0.0


class BagPlayer:
    """Publishes the messages of an open bag.

    Args:
        node: makes the publishers; remappings that it was started with apply.
        reader: open for as long as the player is used.

    Attributes:
        skipped: topic → why it is not played.

    Raises:
        ReplayError: topics that the bag does not have, or nothing that can be played.
    """

    def __init__(self, node: Node, reader: AnyReader, options: PlayOptions) -> None:
        self._node, self._reader, self._options = node, reader, options
        self.skipped: dict[str, str] = {}
        self._publishers: dict[str, Publisher] = {}
        held = {c.topic for c in reader.connections if c.msgcount}
        unknown = [topic for topic in options.topics if topic not in held]
        if unknown:
            raise ReplayError(
                f"the bag has no messages on {', '.join(unknown)}; it has {', '.join(sorted(held))}"
            )
        chosen = [c for c in reader.connections if c.topic in (options.topics or held)]
        # A recording of a simulation brings the clock that its stamps follow.
        self.own_clock = any(c.topic == CLOCK and c.msgtype == _CLOCK_TYPE for c in chosen)
        self._connections = [c for c in chosen if c.msgcount and self._advertise(c)]
        if not self._connections:
            reasons = "; ".join(f"{topic}: {why}" for topic, why in self.skipped.items())
            raise ReplayError(f"nothing of the bag can be played: {reasons or 'it is empty'}")
        ticks = options.clock and not self.own_clock
        self._clock = advertise(node, Clock, CLOCK, depth=10) if ticks else None
        self._clock_time = -1

    @property
    def seconds(self) -> float:
        """Length of what is played, in seconds of the bag."""
        return max(0.0, (self._reader.end_time - self._begin) * 1e-9)

    def subscribers(self) -> dict[str, int]:
        """Topic → subscriptions that its publisher sees."""
        return {topic: p.get_subscription_count() for topic, p in self._publishers.items()}

    def wait_for_subscribers(self, patience: float, stop: threading.Event) -> bool:
        """Waits until somebody listens and nobody new has come for a second; for four seconds while
        a topic or the clock has no subscriber, who may not have found this process yet.

        Args:
            patience: seconds after which it gives up waiting.

        Returns:
            Whether anybody listens.
        """
        deadline = time.monotonic() + patience
        known, since = self._listeners(), time.monotonic()
        while not stop.wait(0.05):
            now, found = time.monotonic(), self._listeners()
            if found != known:
                known, since = found, now
            quiet = _SETTLED if all(known.values()) else _MISSED
            if any(self.subscribers().values()) and now - since >= min(quiet, patience):
                return True
            if now >= deadline:
                break
        return any(self.subscribers().values())

    def play(
        self, stop: threading.Event, *, on_time: Callable[[float], None] | None = None
    ) -> Played:
        """Plays until the end, or until ``stop`` where it loops.

        Args:
            on_time: called with the seconds of the bag that have been played.
        """
        played = Played()
        while True:
            self._clock_time = -1
            self._play_once(stop, played, on_time or (lambda seconds: None))
            if stop.is_set() or not self._options.loop:
                break
        for publisher in self._publishers.values():  # the last messages may be under way
            publisher.wait_for_all_acked(Duration(seconds=2))
        return played

    def _listeners(self) -> dict[str, int]:
        """``subscribers``, and those of the clock that is published beside the bag."""
        clock = {} if self._clock is None else {CLOCK: self._clock.get_subscription_count()}
        return self.subscribers() | clock

    @property
    def _begin(self) -> int:
        return self._reader.start_time + round(self._options.start * 1e9)

    def _play_once(
        self, stop: threading.Event, played: Played, on_time: Callable[[float], None]
    ) -> None:
        begin, started = self._begin, time.monotonic()
        for connection, stamp, raw in self._reader.messages(self._connections, start=begin):
            due = started + (stamp - begin) * 1e-9 / self._options.rate
            while (rest := due - time.monotonic()) > 0:
                if stop.wait(min(rest, _IDLE_TICK)):
                    return
                if rest > _IDLE_TICK:
                    elapsed = (time.monotonic() - started) * self._options.rate
                    self._tick(min(stamp, begin + round(elapsed * 1e9)))
            if stop.is_set():
                return
            self._tick(stamp)
            self._publishers[connection.topic].publish(bytes(raw))
            played.messages[connection.topic] = played.messages.get(connection.topic, 0) + 1
            played.lag = max(played.lag, time.monotonic() - due)
            on_time((stamp - begin) * 1e-9)

    def _tick(self, now: int) -> None:
        """Tells the time, unless it has hardly changed."""
        if self._clock is not None and now - self._clock_time >= _CLOCK_STEP:
            self._clock_time = now
            self._clock.publish(Clock(clock=stamp_from_nanoseconds(now)))

    def _advertise(self, connection: Connection) -> bool:
        """Makes the topic's publisher; False where its type is not to be had."""
        topic = connection.topic
        if topic in self._publishers:
            return True
        try:
            kind = self._message_type(connection.msgtype)
        except ReplayError as error:
            self.skipped[topic] = str(error)
            return False
        profiles = getattr(connection.ext, "offered_qos_profiles", ())
        latched = bool(profiles) and all(
            profile.durability == QosDurability.TRANSIENT_LOCAL for profile in profiles
        )
        depth = 10 if connection.msgtype in _LARGE else 100
        self._publishers[topic] = advertise(self._node, kind, topic, depth=depth, latched=latched)
        return True

    def _message_type(self, name: str) -> Any:
        """The message class of a type as bags spell it, ``package/msg/Name``."""
        package, _, message = name.split("/")
        try:
            kind = getattr(importlib.import_module(f"{package}.msg"), message)
        except (ImportError, AttributeError):
            raise ReplayError(
                f"{name} is not installed: build or install the package {package} and source it "
                "in this terminal"
            ) from None
        recorded = [field for field, _ in self._reader.typestore.fielddefs[name][1]]
        installed = list(kind.get_fields_and_field_types())
        if recorded and recorded != installed:
            raise ReplayError(
                f"{name} was recorded with the fields {', '.join(recorded)}, the installed "
                f"package has {', '.join(installed)}: use the package's version of the recording"
            )
        return kind
