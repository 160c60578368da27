"""Says which inputs are missing, where they were expected, and how to start the simulation."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from rclpy.utilities import get_rmw_implementation_identifier

from ego_world_model.ros.diagnostics import WARN, Diagnostics

SIMULATION_HINT = (
    "start the simulated robot with `ros2 launch ego_world_model g1.launch.py sim:=true` or "
    "`ego-world-model up g1 --sim`"
)


class InputWatch:
    """Logs and reports inputs that stay silent.

    The first message comes ``after`` seconds after start, then one every ``repeat`` seconds for
    as long as something is missing, and one when everything flows.

    Args:
        inputs: topic (relative name) → what it is, e.g. ``{"joint_states": "joint states"}``.
        advice: a further sentence of the log line: what else to check.
    """

    def __init__(
        self,
        node: Node,
        diagnostics: Diagnostics,
        inputs: Mapping[str, str],
        *,
        after: float = 5.0,
        repeat: float = 30.0,
        advice: str = "",
    ) -> None:
        self._node = node
        self._inputs = dict(inputs)
        self._after = after
        self._repeat = repeat
        self._advice = f". {advice}" if advice else ""
        self._seen = dict.fromkeys(self._inputs, time.monotonic())
        self._ever: set[str] = set()
        self._next_log = 0.0
        self._complained: set[str] = set()
        diagnostics.add_check(self._check)
        self._timer = node.create_timer(
            0.5, self._log, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    def seen(self, topic: str) -> None:
        """To be called for every message of ``topic``."""
        self._seen[topic] = time.monotonic()
        self._ever.add(topic)

    def stop(self) -> None:
        """Says nothing more."""
        self._timer.cancel()

    def missing(self) -> list[str]:
        """Topics without a message for ``after`` seconds."""
        now = time.monotonic()
        return [topic for topic, when in self._seen.items() if now - when > self._after]

    def message(self) -> str | None:
        """What is missing and what to do, or None while everything flows."""
        missing = self.missing()
        if not missing:
            return None
        lines = [self._describe(topic) for topic in missing]
        return f"no {'; no '.join(lines)}. Check the publishers, or {SIMULATION_HINT}"

    def _describe(self, topic: str) -> str:
        name = self._node.resolve_topic_name(topic)
        publishers = self._node.count_publishers(name)
        since = "any more" if topic in self._ever else "yet"
        state = f"{publishers} publisher{'' if publishers == 1 else 's'} visible"
        return f"{self._inputs[topic]} on {name} {since} ({state})"

    def _check(self) -> tuple[bytes, str] | None:
        message = self.message()
        return None if message is None else (WARN, message)

    def _log(self) -> None:
        missing = set(self.missing())
        now = time.monotonic()
        if not missing:
            if self._complained:
                self._node.get_logger().info("all inputs flow")
            self._complained = set()
        elif missing - self._complained or now >= self._next_log:
            self._next_log = now + self._repeat
            self._complained = missing
            self._node.get_logger().warning(f"{self.message()}. {middleware()}{self._advice}")


def middleware() -> str:
    """Which middleware, domain and discovery range this process uses, for error messages."""
    scope = os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")
    return (
        f"This node uses {get_rmw_implementation_identifier()}, ROS_DOMAIN_ID="
        f"{os.environ.get('ROS_DOMAIN_ID', '0')}, discovery range {scope}: the publishers must "
        "use the same middleware and domain, on a network interface that this machine shares"
    )
