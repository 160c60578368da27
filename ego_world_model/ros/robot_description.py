"""The robot that a node works with: built in, from a YAML file, or from ``robot_description``."""

from __future__ import annotations

import time

from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy
from std_msgs.msg import String

from ego_world_model.embodiment import Embodiment, description_topic, load_embodiment
from ego_world_model.ros.diagnostics import Diagnostics
from ego_world_model.ros.input_watch import middleware
from ego_world_model.ros.qos import subscribe
from ego_world_model.ros.run import StartError


def load_robot(
    node: Node, diagnostics: Diagnostics, embodiment: str, *, silence: float
) -> Embodiment:
    """The robot that the parameter ``embodiment`` names; for a node's constructor.

    Where the embodiment's YAML says ``model: {topic: robot_description}``, waits for that topic
    (relative, remappable) and says what is missing after ``silence`` seconds. It is read once: a
    robot does not change while it runs.

    Raises:
        StartError: the embodiment or the description cannot be used; its text says why.
    """
    try:
        topic = description_topic(embodiment)
        urdf = None if topic is None else _wait(node, diagnostics, topic, silence)
        return load_embodiment(embodiment, urdf=urdf)
    except (ValueError, OSError) as error:
        raise StartError(f"parameter 'embodiment': {error}") from None


def _wait(node: Node, diagnostics: Diagnostics, topic: str, silence: float) -> str:
    """The first message of ``topic``. The node answers parameter requests meanwhile."""
    received: list[str] = []
    subscription = subscribe(
        node,
        String,
        topic,
        lambda message: received.append(message.data),
        depth=1,
        reliable=True,
        latched=True,
    )
    name = subscription.topic_name
    node.get_logger().info(f"waiting for the robot's description on {name}")
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    due = time.monotonic() + silence
    try:
        while not received:
            if not node.context.ok():
                raise ExternalShutdownException
            executor.spin_once(timeout_sec=0.1)
            if not received and time.monotonic() >= due:
                due += silence
                diagnostics.warn("no robot description", _missing(node, name))
    finally:
        executor.remove_node(node)
        executor.shutdown()
        node.destroy_subscription(subscription)
    diagnostics.resolve("no robot description")
    return received[0]


def _missing(node: Node, name: str) -> str:
    publishers = node.get_publishers_info_by_topic(name)
    if not publishers:
        return (
            f"no robot description on {name} yet (0 publishers visible): start "
            "robot_state_publisher, remap the topic, or name a file as the embodiment's model. "
            f"{middleware()}"
        )
    if all(p.qos_profile.durability == DurabilityPolicy.VOLATILE for p in publishers):
        return (
            f"{name} is published, but not latched: who comes later never gets it. Publish it with "
            "durability transient_local, as robot_state_publisher does"
        )
    return f"{name} has a publisher, but nothing has come: it has not published a description yet"
