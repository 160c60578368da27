"""A small reporter on /diagnostics: counters, rates, latency percentiles, and checks."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node

from ego_world_model.ros.qos import advertise

OK, WARN, ERROR, STALE = (
    DiagnosticStatus.OK,
    DiagnosticStatus.WARN,
    DiagnosticStatus.ERROR,
    DiagnosticStatus.STALE,
)

Check = Callable[[], tuple[bytes, str] | None]
"""Returns a level and a message where something is wrong, else None."""


class Diagnostics:
    """Collects what a node does and publishes one DiagnosticStatus a second.

    All methods may be called from any thread. The report runs on the wall clock, so that a node
    whose simulated time stands still keeps reporting.

    Args:
        node: the node reported on; its fully qualified name is the status name.
        window: seconds over which rates and latency percentiles are taken.
    """

    def __init__(self, node: Node, *, period: float = 1.0, window: float = 10.0) -> None:
        self._node = node
        self._window = window
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._ticks: dict[str, deque[float]] = {}
        self._samples: dict[str, tuple[str, deque[tuple[float, float]]]] = {}
        self._values: dict[str, str] = {}
        self._recent: dict[str, tuple[float, bytes, str]] = {}
        self._logged: dict[str, float] = {}
        self._checks: list[Check] = []
        self._start = time.monotonic()
        self._publisher = advertise(node, DiagnosticArray, "/diagnostics", depth=10)
        self._timer = node.create_timer(
            period,
            self.publish,
            callback_group=MutuallyExclusiveCallbackGroup(),
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )

    def count(self, name: str, amount: int = 1) -> None:
        """Adds to a counter (reported since start)."""
        with self._lock:
            self._counts[name] += amount

    def tick(self, name: str) -> None:
        """One event of a rate, reported as ``NAME rate`` in Hz."""
        now = time.monotonic()
        with self._lock:
            ticks = self._ticks.setdefault(name, deque())
            ticks.append(now)
            while ticks[0] < now - self._window:
                ticks.popleft()

    def latency(self, name: str, seconds: float) -> None:
        """One duration, reported as median, p90, p99 and maximum in ms."""
        self.sample(name, seconds * 1e3, "ms")

    def sample(self, name: str, value: float, unit: str) -> None:
        """One measurement, reported as median, p90, p99 and maximum of the last seconds."""
        now = time.monotonic()
        with self._lock:
            _, samples = self._samples.setdefault(name, (unit, deque()))
            samples.append((now, value))
            while samples[0][0] < now - self._window:
                samples.popleft()

    def value(self, name: str, value: object) -> None:
        """Sets a value shown as it is."""
        with self._lock:
            self._values[name] = str(value)

    def problem(self, key: str, message: str, *, level: bytes = WARN) -> None:
        """Reports a problem; it stays in the status for ``window`` seconds after its last time.

        Args:
            key: counted as a counter of this name; a new message replaces the key's older one.
        """
        with self._lock:
            self._counts[key] += 1
            self._recent[key] = (time.monotonic(), level, message)

    def warn(self, key: str, message: str, *, level: bytes = WARN, every: float = 10.0) -> None:
        """``problem``, also logged: at once, then at most every ``every`` seconds for one key."""
        now = time.monotonic()
        with self._lock:
            due = now - self._logged.get(key, -every) >= every
            if due:
                self._logged[key] = now
        if due:
            logger = self._node.get_logger()
            (logger.error if level == ERROR else logger.warning)(message)
        self.problem(key, message, level=level)

    def resolve(self, key: str) -> None:
        """Takes a problem out of the status (its counter stays)."""
        with self._lock:
            self._recent.pop(key, None)

    def add_check(self, check: Check) -> None:
        """Runs ``check`` at every report; what it returns decides the status with the problems."""
        self._checks.append(check)

    def counter(self, name: str) -> int:
        """Current value of a counter."""
        with self._lock:
            return self._counts[name]

    def status(self) -> DiagnosticStatus:
        """The report as it would be published now."""
        now = time.monotonic()
        findings = [finding for check in self._checks if (finding := check()) is not None]
        with self._lock:
            findings += [
                (level, message)
                for when, level, message in self._recent.values()
                if now - when < self._window
            ]
            values = dict(self._values)
            for name, ticks in self._ticks.items():
                values[f"{name} rate"] = f"{self._rate(ticks, now):.1f} Hz"
            for name, (unit, samples) in self._samples.items():
                recent = [value for when, value in samples if when > now - self._window]
                values.update(_percentiles(name, unit, recent))
            values.update((name, str(count)) for name, count in self._counts.items())
        findings.sort(key=lambda finding: finding[0], reverse=True)
        return DiagnosticStatus(
            level=findings[0][0] if findings else OK,
            name=self._node.get_fully_qualified_name(),
            message="; ".join(message for _, message in findings) or "working",
            values=[KeyValue(key=key, value=value) for key, value in sorted(values.items())],
        )

    def publish(self) -> None:
        """Publishes the report once (the timer calls this)."""
        if not self._node.context.ok():
            return
        array = DiagnosticArray(status=[self.status()])
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array)

    def _rate(self, ticks: deque[float], now: float) -> float:
        span = min(self._window, now - self._start)
        return sum(t > now - self._window for t in ticks) / max(span, 1e-3)


def _percentiles(name: str, unit: str, values: list[float]) -> dict[str, str]:
    if not values:
        return {}
    labels = ("median", "p90", "p99", "max")
    numbers = np.percentile(values, [50, 90, 99, 100]).tolist()
    return {f"{name} {k}": f"{v:.2f} {unit}" for k, v in zip(labels, numbers, strict=True)}
