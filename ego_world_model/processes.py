"""Child processes of one program: started together, watched, ended together."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ended:
    """A process that ended; ``code`` is negative where a signal killed it."""

    name: str
    code: int

    def __str__(self) -> str:
        if self.code < 0:
            return f"{self.name} was killed by {signal.Signals(-self.code).name}"
        return f"{self.name} ended with exit code {self.code}"


class ProcessGroup:
    """Named child processes, each in a process group of its own so that its children end with it.

    They stay in one session: Linux shares the processors out between sessions first, and a niceness
    counts only within one (``sched_autogroup``).

    On Linux the children also get SIGTERM when this process dies without ending them.
    """

    def __init__(self) -> None:
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def running(self) -> tuple[str, ...]:
        return tuple(self._running)

    def pid(self, name: str) -> int:
        return self._running[name].pid

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a process that shares this one's terminal output."""
        self._running[name] = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            preexec_fn=_in_own_group,
        )

    def reap(self) -> list[Ended]:
        """Processes that ended since the last call."""
        ended = []
        for name, process in list(self._running.items()):
            if process.poll() is not None:
                ended.append(Ended(name, process.returncode))
                self._signal(process, signal.SIGKILL)  # what it started and left behind
                del self._running[name]
        return ended

    def stop(self, *, patience: float = 5.0) -> list[Ended]:
        """End all with SIGINT, then SIGTERM, then SIGKILL, ``patience`` seconds each."""
        ended: list[Ended] = []
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            for process in self._running.values():
                self._signal(process, number)
            deadline = time.monotonic() + patience
            while self._running and time.monotonic() < deadline:
                ended += self.reap()
                time.sleep(0.02)
            if not self._running:
                break
        return ended

    @staticmethod
    def _signal(process: subprocess.Popen[bytes], number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)


def _load_prctl() -> ctypes._CFuncPtr | None:
    try:
        return ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):
        return None  # not Linux


_prctl = _load_prctl()  # looked up here: between fork and exec as little as possible may happen
_PR_SET_PDEATHSIG = 1


def _in_own_group() -> None:
    """Between fork and exec: lead a process group, and die with the parent."""
    os.setpgid(0, 0)
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
