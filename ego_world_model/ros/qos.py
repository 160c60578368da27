"""Quality of service: what this package publishes and subscribes with, all of it overridable.

Consumers use sensor-data QoS (best effort), which matches every publisher; publishers are
reliable, which matches every consumer. Users change either side through the standard
``qos_overrides./TOPIC.{subscription,publisher}.{reliability,depth,...}`` parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription

MessageType = TypeVar("MessageType")


def sensor_qos(depth: int) -> QoSProfile:
    """Best effort, keep the newest ``depth`` messages."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.VOLATILE,
    )


def reliable_qos(depth: int, *, latched: bool = False) -> QoSProfile:
    """Reliable, keep the newest ``depth``; ``latched`` also hands the last ones to late joiners."""
    durability = DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=durability,
    )


def subscribe(
    node: Node,
    message_type: type[MessageType],
    topic: str,
    callback: Callable[[Any], None],
    *,
    depth: int = 5,
    reliable: bool = False,
    latched: bool = False,
    raw: bool = False,
    group: CallbackGroup | None = None,
) -> Subscription:
    """A subscription with sensor-data QoS unless ``reliable``.

    Args:
        depth: how many messages wait while the node is busy; the oldest are dropped.
        raw: hand the callback the serialised bytes, not a message (see ``raw_image``).
    """
    return node.create_subscription(
        message_type,
        topic,
        callback,
        reliable_qos(depth, latched=latched) if reliable else sensor_qos(depth),
        callback_group=group,
        qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        raw=raw,
    )


def advertise(
    node: Node,
    message_type: type[MessageType],
    topic: str,
    *,
    depth: int = 5,
    latched: bool = False,
    group: CallbackGroup | None = None,
) -> Publisher:
    """A reliable publisher."""
    return node.create_publisher(
        message_type,
        topic,
        reliable_qos(depth, latched=latched),
        callback_group=group,
        qos_overriding_options=QoSOverridingOptions.with_default_policies(),
    )


def send(node: Node, publisher: Publisher, message: Any) -> None:
    """Publishes from a thread that may outlive the node's context by a moment.

    After a shutdown (ctrl-C) there is nobody left to tell; then the message is dropped.
    """
    if not node.context.ok():
        return
    try:
        publisher.publish(message)
    except RuntimeError:  # what rclpy raises for a context or publisher that is gone
        if node.context.ok():
            raise


def wanted(publisher: Publisher) -> bool:
    """Whether anyone subscribes; lazy outputs are computed only then."""
    return publisher.get_subscription_count() > 0
