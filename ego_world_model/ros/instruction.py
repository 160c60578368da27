"""The instruction in force: a parameter and a topic that always say the same."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.node import Node
from rclpy.parameter import Parameter
from std_msgs.msg import String

from ego_world_model.ros.parameters import declare
from ego_world_model.ros.qos import advertise, subscribe
from ego_world_model.ros.topics import INSTRUCTION


class Instruction:
    """Declares the parameter ``instruction`` and keeps it equal to the topic of that name.

    Whoever spoke last is obeyed: a message on the topic sets the parameter, and a parameter that a
    user sets is told on the topic, so that a node that gives the tasks hears of it.

    Args:
        on_change: called with the new text, "" for none.
    """

    def __init__(self, node: Node, on_change: Callable[[str], None]) -> None:
        self._node = node
        self._on_change = on_change
        text = declare(
            node,
            "instruction",
            "",
            "what the hands are to do, in words; empty: none. Follows the topic `instruction`",
        )
        self.text = self._heard = text.strip()
        self._publisher = advertise(node, String, INSTRUCTION)
        node.add_post_set_parameters_callback(self._parameters_set)
        self._subscription = subscribe(node, String, INSTRUCTION, self._receive, reliable=True)

    def _receive(self, message: String) -> None:
        text = message.data.strip()
        if text == self.text:
            return
        self._heard = text
        self._node.set_parameters([Parameter("instruction", value=text)])

    def _parameters_set(self, parameters: list[Parameter]) -> None:
        for parameter in parameters:
            if parameter.name != "instruction" or parameter.value.strip() == self.text:
                continue
            self.text = parameter.value.strip()
            if self.text != self._heard:
                self._heard = self.text
                self._publisher.publish(String(data=self.text))
            self._on_change(self.text)
