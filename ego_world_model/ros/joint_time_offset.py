"""The camera-joint delay as a parameter: for every node that pairs camera frames with joints."""

from __future__ import annotations

from rclpy.node import Node

from ego_world_model.ros.parameters import declare


def declare_joint_time_offset(node: Node) -> float:
    """Seconds to add to the stamps of joint states (and of planned joints) before pairing.

    Positive where the camera is the later one: an image stamped t shows the robot as its joint
    states stamped t - ``joint_time_offset`` say. ``ego-world-model calibrate-delay`` measures it.
    """
    return declare(
        node,
        "joint_time_offset",
        0.0,
        "seconds added to the stamps of joint states and planned joints before they are paired "
        "with images; positive where images are stamped later than the joint states of the same "
        "instant (`ego-world-model calibrate-delay` measures it)",
        minimum=-1.0,
        maximum=1.0,
        read_only=True,
    )
