"""Unitree's own state topics → ``joint_states``, at the rate of the body's topic.

``lowstate`` holds the body, ``dex3/{left,right}/state`` or ``inspire/state`` the hands. None of
these messages has a stamp, so a joint state carries the time at which ``lowstate`` arrived (that
of /clock with ``use_sim_time``). States that the robot cannot have are refused, with the
configuration that would explain them.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import JointState

from ego_world_model.embodiment import Embodiment
from ego_world_model.embodiment.motor_states import (
    BODY_GO,
    BODY_HG,
    DEX3,
    INSPIRE,
    RIGHT_ORDERS,
    MotorLayout,
    MotorStateError,
    ZeroWatch,
    joint_positions,
    motor_layout,
)
from ego_world_model.ros.conversions import nanoseconds
from ego_world_model.ros.diagnostics import Diagnostics
from ego_world_model.ros.input_watch import InputWatch
from ego_world_model.ros.pace import pace
from ego_world_model.ros.parameters import declare
from ego_world_model.ros.qos import advertise, subscribe
from ego_world_model.ros.robot_description import load_robot
from ego_world_model.ros.run import StartError, run_node
from ego_world_model.ros.topics import JOINT_STATES

BODY = "lowstate"


class UnitreeBridgeNode(Node):
    """Publishes ``joint_states`` for every ``lowstate``; see the module."""

    def __init__(self) -> None:
        super().__init__("unitree_bridge")
        self._diagnostics = Diagnostics(self)
        self._declare()
        self._zeros = {topic: ZeroWatch() for topic in self._layouts}
        self._hands: dict[str, tuple[float, dict[str, float]]] = {}  # topic → (pace, joints)
        self._last_stamp = 0
        self._watch = InputWatch(
            self,
            self._diagnostics,
            {topic: f"{layout.source} motor states" for topic, layout in self._layouts.items()},
            after=self._silence,
            advice=network_advice(),
        )
        self._publisher = advertise(self, JointState, JOINT_STATES, depth=50)
        # Serialised, so that definitions other than the firmware's end in words and not in an
        # exception inside the executor.
        self._subscriptions_kept = [
            subscribe(
                self,
                _message_type(layout.source),
                topic,
                partial(self._on_state, topic),
                depth=10,
                raw=True,
            )
            for topic, layout in self._layouts.items()
        ]
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(1.0, self._look_for_rivals, clock=steady)
        self._report_missing_joints()
        inputs = map(self.resolve_topic_name, self._layouts)
        self.get_logger().info(f"waiting for {', '.join(inputs)}")

    def _declare(self) -> None:
        """Parameters, and the layouts that they choose."""
        fixed = partial(declare, self, read_only=True)
        name = fixed(
            "embodiment", "g1_dex3", "robot: a built-in name, or the path of an embodiment YAML"
        )
        hands = fixed(
            "hands", "dex3", "hands whose states are merged", choices=("dex3", "inspire", "none")
        )
        order = fixed(
            "right_hand_order",
            "sdk",
            "order of the Dex3 right hand: sdk (index before middle) or middle_first",
            choices=tuple(RIGHT_ORDERS),
        )
        first = fixed(
            "inspire_first_hand",
            "right",
            "hand whose six values come first in inspire/state",
            choices=("right", "left"),
        )
        self._max_age = fixed(
            "hand_max_age",
            0.2,
            "seconds after which the joints of a silent hand are left out",
            minimum=0.001,
            maximum=10.0,
        )
        self._margin = fixed(
            "limit_margin",
            0.3,
            "radians beyond a joint's limits at which a state is refused",
            minimum=0.0,
            maximum=10.0,
        )
        self._silence = fixed(
            "silence_timeout",
            5.0,
            "seconds without an input after which the node says what is missing",
            minimum=0.5,
            maximum=600.0,
        )
        assumed = fixed("assume_zero", [""], "joints that no topic holds, published as 0 rad")
        self._robot = load_robot(self, self._diagnostics, name, silence=self._silence)
        try:
            self._layouts = _layouts(self._robot, hands, order=order, first=first)
        except ValueError as error:
            raise StartError(f"parameter 'embodiment' or 'hands': {error}") from None
        self._assumed = dict.fromkeys(filter(None, assumed), 0.0)
        unknown = sorted(set(self._assumed) - set(self._robot.joint_names))
        if unknown:
            raise StartError(
                f"parameter 'assume_zero' names {', '.join(unknown)}, no joint of "
                f"{self._robot.name}"
            )

    def _report_missing_joints(self) -> None:
        held = {joint for layout in self._layouts.values() for joint in layout.joints}
        held |= set(self._assumed) | {coupling.follower for coupling in self._robot.couplings}
        absent = [joint for joint in self._robot.joint_names if joint not in held]
        if absent:
            self.get_logger().warning(
                f"no topic holds {', '.join(absent)} of {self._robot.name}: choose the parameter "
                "'hands', or name joints that stay at 0 rad in 'assume_zero'"
            )

    # ------------------------------------------------------------------ inputs

    def _on_state(self, topic: str, serialised: bytes) -> None:
        arrival = time.monotonic()
        layout, name = self._layouts[topic], self.resolve_topic_name(topic)
        self._watch.seen(topic)
        try:
            values = _motor_positions(layout.source, serialised)
            joints = joint_positions(layout, values, margin=self._margin)
        except MotorStateError as error:
            self._diagnostics.warn(f"{topic} rejected", f"{name}: {error}")
            return
        self._diagnostics.tick(topic)
        if self._zeros[topic].zeros(values[: len(layout.joints)], arrival):
            self._diagnostics.warn(
                f"{topic} all zero",
                f"{name} holds nothing but zeros: the motors are not powered or their driver does "
                "not reach them, so joint_states are not where the robot is",
            )
        if topic == BODY:
            self._publish(joints, arrival)
        else:
            self._hands[topic] = (pace(self), joints)

    # ----------------------------------------------------------------- outputs

    def _publish(self, body: dict[str, float], arrival: float) -> None:
        stamp = self.get_clock().now().to_msg()
        if nanoseconds(stamp) == 0:
            self._diagnostics.count("lowstate before /clock")
            return
        ahead = self._last_stamp - nanoseconds(stamp)
        if 0 <= ahead < 1_000_000_000:  # a clock of coarser steps than lowstate's, as of a bag
            self._diagnostics.count("lowstate within one tick of the clock")
            return
        self._last_stamp = nanoseconds(stamp)
        merged = self._assumed | body
        now = pace(self)
        for topic in self._layouts:
            if topic == BODY:
                continue
            when, joints = self._hands.get(topic, (-1e9, {}))
            if 0.0 <= now - when <= self._max_age:
                merged |= joints
            elif joints:
                self._diagnostics.warn(
                    f"{topic} too old",
                    f"{self.resolve_topic_name(topic)} is {now - when:.2f} s old, its joints "
                    f"are left out of joint_states (hand_max_age is {self._max_age:g} s)",
                )
        message = JointState(name=list(merged), position=list(merged.values()))
        message.header.stamp = stamp
        self._publisher.publish(message)
        self._diagnostics.tick("joint state")
        self._diagnostics.latency("latency", time.monotonic() - arrival)

    def _look_for_rivals(self) -> None:
        name = self.resolve_topic_name(JOINT_STATES)
        others = self.count_publishers(name) - 1
        if others > 0:
            self._diagnostics.warn(
                "other publishers of joint_states",
                f"{others} other publisher{'' if others == 1 else 's'} on {name}: run one, the "
                "robot's driver (bridge:=false) or this bridge",
                every=60.0,
            )


def _layouts(robot: Embodiment, hands: str, *, order: str, first: str) -> dict[str, MotorLayout]:
    """Topic (relative name) → layout of its motors."""
    body = BODY_GO if BODY_GO in robot.state_orders else BODY_HG
    layouts = {BODY: motor_layout(robot, body)}
    if hands == "dex3":
        layouts["dex3/left/state"] = motor_layout(robot, DEX3["left"])
        layouts["dex3/right/state"] = motor_layout(robot, RIGHT_ORDERS[order])
    elif hands == "inspire":
        layouts["inspire/state"] = motor_layout(robot, INSPIRE, inspire_first_hand=first)
    return layouts


_TYPES: dict[str, tuple[str, str]] = {
    BODY_HG: ("unitree_hg", "LowState"),
    BODY_GO: ("unitree_go", "LowState"),
    INSPIRE: ("unitree_go", "MotorStates"),
}


def _message_type(source: str) -> Any:
    """The message class of a wire format, imported only now: few users have Unitree's packages."""
    package, name = _TYPES.get(source, ("unitree_hg", "HandState"))
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name)
    except ImportError as error:
        raise StartError(
            f"{source} needs the message package {package} ({error}): build unitree_ros2's "
            "packages and source that workspace in this terminal, or start with bridge:=false"
        ) from None


def _motor_positions(source: str, serialised: bytes) -> list[float]:
    """(n,) as sent, of all motors in a message.

    Raises:
        MotorStateError: the bytes are no such message.
    """
    try:
        message = deserialize_message(serialised, _message_type(source))
    except Exception as error:  # rclpy raises RMWError, RuntimeError or MemoryError by middleware
        raise MotorStateError(
            f"cannot be read ({error}): the message definitions are not the firmware's; Unitree "
            "changed HandState in August 2025, build the package version that matches the robot"
        ) from None
    motors = message.states if source == INSPIRE else message.motor_state
    return [motor.q for motor in motors]


def network_advice(interfaces: Callable[[], list[tuple[int, str]]] = socket.if_nameindex) -> str:
    """What to check where a robot's topics stay silent: middleware, domain and interface."""
    rmw = os.environ.get("RMW_IMPLEMENTATION", "not set")
    uri = os.environ.get("CYCLONEDDS_URI", "not set")
    names = ", ".join(name for _, name in interfaces())
    return (
        f"Unitree robots speak CycloneDDS in domain 0 on one wired network: RMW_IMPLEMENTATION is "
        f"{rmw} (rmw_cyclonedds_cpp is Unitree's), CYCLONEDDS_URI is {uri} (it must name the "
        f"interface that leads to the robot; this machine has {names})"
    )


def main(args: list[str] | None = None) -> int:
    """Runs the node until it is interrupted."""
    return run_node(UnitreeBridgeNode, args)


if __name__ == "__main__":
    sys.exit(main())
