"""Publishes imagined frames in real time: each at the moment that it imagines."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# With simulated time a sleep cannot know when the moment comes; it looks this often (seconds).
_LONGEST_WAIT = 0.05


@dataclass(frozen=True)
class DueFrame:
    """A message with its stamp and the moment of its turn, both in nanoseconds."""

    stamp: int
    due: int
    message: Any


class FramePlayer:
    """A thread that hands over frames when their turn comes.

    A newer rollout replaces what is left of an older one. Frames whose turn has already passed
    (the model needs time) are handed over at once, in order, except those whose moment the older
    rollout has already shown, so that stamps rise throughout.

    Args:
        now: the node's clock, nanoseconds.
        publish: takes one message; called from the player's thread.
    """

    def __init__(self, now: Callable[[], int], publish: Callable[[Any], None]) -> None:
        self._now = now
        self._publish = publish
        self._frames: deque[DueFrame] = deque()
        self._last_stamp = 0
        self._reference = 0
        self._closing = False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="frame_player", daemon=True)
        self._thread.start()

    def play(self, frames: Sequence[DueFrame]) -> None:
        """Play these frames, the first of them the reference, instead of what was left."""
        with self._condition:
            if frames[0].stamp < self._reference:  # the camera's clock was set back
                self._last_stamp = 0
            self._reference = frames[0].stamp
            self._frames = deque(f for f in frames if f.stamp > self._last_stamp)
            self._condition.notify()

    def stop(self) -> None:
        """Forget the frames that were not published yet."""
        with self._condition:
            self._frames.clear()

    def close(self) -> None:
        """End the thread."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join(5.0)

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._frames and not self._closing:
                    self._condition.wait()
                if self._closing:
                    return
                wait = (self._frames[0].due - self._now()) * 1e-9
                if wait > 0:
                    self._condition.wait(min(wait, _LONGEST_WAIT))
                    continue
                frame = self._frames.popleft()
                self._last_stamp = frame.stamp
            self._publish(frame.message)
