"""The words on the topic ``instruction`` at the side that gives the tasks."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from std_msgs.msg import String

from ego_world_model.ros.qos import advertise, send, subscribe
from ego_world_model.ros.topics import INSTRUCTION


class TaskWords:
    """Gives instructions until somebody else speaks; an empty message gives the word back.

    Args:
        on_own_words: called with the text of somebody else, "" where the word is given back.
    """

    def __init__(self, node: Node, on_own_words: Callable[[str], None]) -> None:
        self._node = node
        self._on_own_words = on_own_words
        self._given = ""
        self._own_words = ""
        self._repeated = ""  # what late readers are told
        self._readers = 0
        self._publisher = advertise(node, String, INSTRUCTION)
        self._kept = (
            subscribe(node, String, INSTRUCTION, self._receive, reliable=True),
            node.create_timer(
                0.5, self._tell_newcomers, clock=Clock(clock_type=ClockType.STEADY_TIME)
            ),
        )

    @property
    def own_words(self) -> str:
        """What somebody else asked for, "" where the tasks are given here."""
        return self._own_words

    def give(self, text: str) -> None:
        """Tell the next task, unless somebody else has the word. May be called in any thread."""
        if self._own_words or text == self._given:
            return
        self._given = self._repeated = text
        send(self._node, self._publisher, String(data=text))

    def take_over(self, text: str, *, repeat: bool = False) -> None:
        """As if somebody had published ``text``; ``repeat`` it where nobody did."""
        self._own_words = self._given = text
        self._repeated = text if repeat else ""
        self._on_own_words(text)

    def _receive(self, message: String) -> None:
        text = message.data.strip()
        if text == self._given:
            return  # what was said here
        self.take_over(text)

    def _tell_newcomers(self) -> None:
        """Late readers must hear the task that is under way."""
        readers = self._publisher.get_subscription_count()
        if readers > self._readers and self._repeated:
            send(self._node, self._publisher, String(data=self._repeated))
        self._readers = readers
