"""One line about what flows in the graph, read from what the nodes report on /diagnostics."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor

# A report older than this (they come once a second) is a node that no longer reports.
STALE_AFTER = 3.5


@dataclass(frozen=True)
class Reading:
    """A value of a node's report that the line shows.

    Attributes:
        node: the node's name, without its namespace.
        key: key in its DiagnosticStatus.
        label: words before the value.
    """

    node: str
    key: str
    label: str


READINGS = (
    Reading("hand_kinematics", "image rate", "camera"),
    Reading("hand_kinematics", "joint state rate", "joints"),
    Reading("hand_kinematics", "hands rate", "hands"),
    Reading("hand_kinematics", "latency median", "after"),
    Reading("hand_kinematics", "latency p99", "p99"),
    Reading("motion_policy", "chunk rate", "chunks"),
    Reading("motion_policy", "chunk p90", "p90"),
    Reading("world_model", "rollouts", "rollouts"),
    Reading("world_model", "rollout median", "each"),
    Reading("world_model", "imagined rate", "imagined"),
)
# only these say something about the graph's work; the viewer is silent about it
_REPORTING = {reading.node for reading in READINGS}


class StatusBoard:
    """Listens to /diagnostics with a node and a thread of its own.

    Args:
        nodes: fully qualified names of the nodes to show, e.g. "/world_model".
    """

    def __init__(self, nodes: Sequence[str]) -> None:
        self._nodes = {name.rsplit("/", 1)[-1]: name for name in nodes}
        self._reports: dict[str, tuple[float, DiagnosticStatus]] = {}
        self._ended: dict[str, str] = {}
        self._lock = threading.Lock()
        self._context = rclpy.Context()
        # a context of its own leaves ctrl-C to the program that shows the line
        rclpy.init(args=[], context=self._context)
        self._node = rclpy.create_node("status", context=self._context, enable_rosout=False)
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._receive, 50)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def node_ended(self, name: str, description: str) -> None:
        """Show that a node's process is gone."""
        with self._lock:
            self._ended[name] = description

    def line(self) -> str:
        """What flows now, then what is wrong."""
        with self._lock:
            now = time.monotonic()
            fresh = {
                name: status
                for name, (when, status) in self._reports.items()
                if now - when < STALE_AFTER and name not in self._ended
            }
            ended = dict(self._ended)
        return status_line(list(self._nodes), fresh, ended)

    def close(self) -> None:
        """End the thread and leave the graph."""
        self._executor.shutdown(timeout_sec=1.0)
        self._thread.join(2.0)
        self._node.destroy_node()
        self._context.try_shutdown()

    def _receive(self, array: DiagnosticArray) -> None:
        with self._lock:
            for status in array.status:
                name = status.name.rsplit("/", 1)[-1]
                if self._nodes.get(name) == status.name:
                    self._reports[name] = (time.monotonic(), status)

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin()


def status_line(
    nodes: Sequence[str],
    reports: dict[str, DiagnosticStatus],
    ended: dict[str, str],
    readings: Sequence[Reading] = READINGS,
) -> str:
    """The line for these fresh reports (by node name) and ended nodes (name → how)."""
    parts = []
    for reading in readings:
        status = reports.get(reading.node)
        values = {} if status is None else {pair.key: pair.value for pair in status.values}
        if reading.key in values:
            parts.append(f"{reading.label} {values[reading.key]}")
    line = " | ".join(parts) or "nothing flows yet"
    silent = [
        name for name in nodes if name not in reports and name not in ended and name in _REPORTING
    ]
    troubles = [f"waiting for {', '.join(silent)}"] if silent else []
    troubles += [
        f"{name}: {_brief(status.message)}"
        for name, status in reports.items()
        if status.level != DiagnosticStatus.OK
    ]
    return " || ".join([line, *troubles, *ended.values()])


def _brief(message: str) -> str:
    """The first sentence, as much of it as a line has room for; the node's log has the rest."""
    sentence = message.split(". ")[0]
    return sentence if len(sentence) <= 160 else f"{sentence[:157]}..."
