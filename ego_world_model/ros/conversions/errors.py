"""The error that every conversion raises."""

from __future__ import annotations


class MessageError(ValueError):
    """A received message that cannot be used.

    Attributes:
        topic: where the message came from (as the user knows it).
        field: the message field that is wrong.
    """

    def __init__(self, topic: str, field: str, problem: str, remedy: str) -> None:
        super().__init__(f"{topic}: {field} {problem}; {remedy}")
        self.topic = topic
        self.field = field
