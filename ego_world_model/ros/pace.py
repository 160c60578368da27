"""The clock by which a node measures how long it waits for its inputs."""

from __future__ import annotations

import time

from rclpy.node import Node


def pace(node: Node) -> float:
    """Seconds of the clock that the inputs keep: /clock with ``use_sim_time``, else monotonic.

    A bag that is played at a tenth of its speed brings a message of 10 ms later after 100 ms; what
    is too old, or has waited too long, is told by the bag's clock then.
    """
    clock = node.get_clock()
    return clock.now().nanoseconds * 1e-9 if clock.ros_time_is_active else time.monotonic()
