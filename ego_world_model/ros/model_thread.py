"""The one thread that runs a model, so that nothing else in the process waits for it.

Work of two kinds reaches it: *jobs* (action goals), which are run in the order they came, and
*background* work (the continuous rollouts), which is run when no job waits and should give way as
soon as one does. One thread also means one pool of OpenMP workers, and a
niceness that applies to that pool alone: the thread lowers its own priority before its first
tensor operation, and the workers inherit it, while message callbacks keep theirs.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class ModelThread:
    """Runs jobs first and background work between them, all in one thread.

    Args:
        background: called when woken and no job waits; returns when done, or early once
            :attr:`job_waiting` turns true. It must not raise: what it raises goes to ``on_error``.
        threads: CPU threads that torch may use here; 0 leaves torch's own choice.
        niceness: added to this thread's niceness (0-19), where the platform has one per thread.
        name: of the thread and in its errors: the node's.
    """

    def __init__(
        self,
        background: Callable[[], None],
        *,
        on_error: Callable[[Exception], None],
        threads: int = 0,
        niceness: int = 0,
        name: str = "world_model",
    ) -> None:
        self._name = name
        self._background = background
        self._on_error = on_error
        self._threads = threads
        self._niceness = niceness
        self._jobs: deque[tuple[Callable[[], Any], Future]] = deque()
        self._condition = threading.Condition()
        self._awake = False
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def job_waiting(self) -> bool:
        """Whether background work should give way."""
        return bool(self._jobs) or self._closing

    @property
    def closing(self) -> bool:
        """Whether :meth:`close` was called; running jobs should stop at their next chance."""
        return self._closing

    def submit(self, job: Callable[[], Any]) -> Future:
        """Queue a job; its future gets the result or the exception.

        Raises:
            RuntimeError: once the thread is closing.
        """
        future: Future = Future()
        with self._condition:
            if self._closing:
                raise RuntimeError(f"{self._name} is shutting down")
            self._jobs.append((job, future))
            self._condition.notify()
        return future

    def wake(self) -> None:
        """Ask for background work; asking again before it starts changes nothing."""
        with self._condition:
            self._awake = True
            self._condition.notify()

    def begin_closing(self) -> None:
        """Take no more work and make running work give way, without waiting for it."""
        with self._condition:
            self._closing = True
            while self._jobs:
                self._jobs.popleft()[1].cancel()
            self._condition.notify()

    def close(self, timeout: float = 10.0) -> None:
        """Cancel what waits, let what runs finish or give way, and end the thread."""
        self.begin_closing()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _run(self) -> None:
        self._lower_priority()
        while True:
            with self._condition:
                while not (self._jobs or self._awake or self._closing):
                    self._condition.wait()
                if self._closing:
                    return
                job = self._jobs.popleft() if self._jobs else None
                if job is None:
                    self._awake = False
            if job is not None:
                self._run_job(*job)
                continue
            try:
                self._background()
            except Exception as error:  # the thread must outlive any single rollout
                self._on_error(error)

    def _run_job(self, job: Callable[[], Any], future: Future) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(job())
        except BaseException as error:
            future.set_exception(error)

    def _lower_priority(self) -> None:
        if self._niceness > 0 and hasattr(os, "setpriority"):
            # On Linux a thread id addresses the thread alone, not the process.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._niceness)
        import torch

        if self._threads > 0:
            torch.set_num_threads(self._threads)
