"""A thread that always works on the newest item: a camera faster than the work cannot queue up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")


class LatestWorker(Generic[Item]):
    """Runs ``work(item)`` in its own thread, on the newest item submitted.

    An item that is replaced before its turn is dropped and counted. An exception in ``work`` is
    counted and handed to ``on_error``; the thread goes on with the next item.

    Args:
        work: called with one item at a time.
        name: of the thread, seen in debuggers and ``top -H``.
        on_error: called in the worker's thread with every exception of ``work``.
    """

    def __init__(
        self,
        work: Callable[[Item], None],
        *,
        name: str,
        on_error: Callable[[Exception], None],
    ) -> None:
        self._work = work
        self._on_error = on_error
        self._condition = threading.Condition()
        self._slot: list[Item] = []
        self._busy = False
        self._closed = False
        self.dropped = 0
        self.done = 0
        self.failed = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> bool:
        """Hands over the newest item; returns False if it replaced one that had not started.

        After ``close`` items are ignored.
        """
        with self._condition:
            if self._closed:
                return True
            replaced = bool(self._slot)
            self.dropped += replaced
            self._slot = [item]
            self._condition.notify_all()
            return not replaced

    @property
    def busy(self) -> bool:
        """Whether an item is being worked on or waits."""
        with self._condition:
            return self._busy or bool(self._slot)

    def wait_idle(self, timeout: float | None = None) -> bool:
        """Waits until nothing is left to do; False after ``timeout`` seconds."""
        with self._condition:
            return self._condition.wait_for(lambda: not self._busy and not self._slot, timeout)

    def close(self, timeout: float = 5.0) -> bool:
        """Stops after the current item; a waiting one is dropped. True once the thread ended."""
        with self._condition:
            self._closed = True
            self.dropped += len(self._slot)
            self._slot = []
            self._condition.notify_all()
        if threading.current_thread() is self._thread:
            return False
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def __enter__(self) -> LatestWorker[Item]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._slot or self._closed)
                if self._closed:
                    return
                item = self._slot.pop()
                self._busy = True
            try:
                self._work(item)
                self.done += 1
            except Exception as error:  # the node must outlive one bad frame
                self.failed += 1
                self._on_error(error)
            finally:
                with self._condition:
                    self._busy = False
                    self._condition.notify_all()
