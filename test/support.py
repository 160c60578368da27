"""Processes for node tests: start, read, stop by pid; and a ROS graph of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class NodeProcess:
    """A child process in its own process group whose output is kept line by line.

    As a context manager it leaves with SIGINT (as a user's ctrl-C), then SIGTERM, then SIGKILL.
    It does not run in the checkout's root, whose sources, without built messages, would hide the
    installed package.
    """

    def __init__(
        self, command: Sequence[str], *, environment: Mapping[str, str] | None = None
    ) -> None:
        self.command = list(command)
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            self.command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            cwd=Path(__file__).parent,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        """Everything printed so far, stderr included."""
        return "\n".join(self.lines)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def wait_for(self, text: str, *, timeout: float = 20.0) -> str:
        """The first line that contains `text`; AssertionError with the output where none comes."""
        deadline = time.monotonic() + timeout
        while True:
            ended = not self.alive
            if ended:
                self._reader.join(2.0)
            for line in list(self.lines):
                if text in line:
                    return line
            assert not ended, f"{self._label()} ended before it printed {text!r}:\n{self.output}"
            assert time.monotonic() < deadline, (
                f"{self._label()} did not print {text!r} in {timeout:g} s:\n{self.output}"
            )
            time.sleep(0.02)

    def wait(self, *, timeout: float = 20.0) -> int:
        """Exit code; AssertionError with the output where the process does not end in time."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self._label()} still runs:\n{self.output}") from None
        self._reader.join(2.0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal to the process itself (not its group)."""
        self._process.send_signal(number)

    def stop(self, *, patience: float = 5.0) -> int:
        """End the process and whatever it started; its exit code."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if self.alive:
                self._signal_group(number)
                try:
                    self._process.wait(patience)
                except subprocess.TimeoutExpired:
                    continue
        self._signal_group(signal.SIGKILL)  # children that outlived their parent
        self._reader.join(2.0)
        return self._process.returncode

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))

    def _label(self) -> str:
        return Path(self.command[0]).name + " " + " ".join(self.command[1:4])


def node(
    module: str,
    *,
    parameters: Mapping[str, object] | None = None,
    remaps: Mapping[str, str] | None = None,
    name: str | None = None,
    environment: Mapping[str, str] | None = None,
    parameter_file: Path | None = None,
) -> NodeProcess:
    """Start `python -m ego_world_model.ros.<module>` with ROS parameters and remappings."""
    arguments = [] if parameter_file is None else ["--params-file", str(parameter_file)]
    for key, value in (parameters or {}).items():
        arguments += ["-p", f"{key}:={_yaml_scalar(value)}"]
    for source, target in (remaps or {}).items():
        arguments += ["-r", f"{source}:={target}"]
    if name is not None:
        arguments += ["-r", f"__node:={name}"]
    command = [sys.executable, "-m", f"ego_world_model.ros.{module}"]
    return NodeProcess([*command, "--ros-args", *arguments], environment=environment)


def _yaml_scalar(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"'{value}'"
    return str(value)


def wait_until(condition: Callable[[], bool], *, timeout: float = 10.0, what: str = "") -> None:
    """Poll `condition` until it holds; AssertionError naming `what` where it never does."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what or condition}"
        time.sleep(0.01)
