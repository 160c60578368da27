"""A ``TableTop`` in a process of its own, so that rendering and planning never delay its owner.

The owner asks for a picture at a time; plan and picture come back through callbacks. Planning a
task holds Python's lock for a second or more, and joint states that are due a hundred times a
second cannot wait for that: between pictures the owner reads the newest plan instead.

Where the owner moves the robot (``instructed``), there is no plan: with each picture that it asks
for, it tells how the joints have moved since the last one, and hears what is to be done.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from time import monotonic, perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ego_world_model.simulation.instructed import InstructedTable, TaskStatus

FINE_STEP, FINE_SPAN, COARSE_STEP = 0.02, 0.4, 0.05  # seconds between the samples of a plan
PLAN_PERIOD = 0.2  # seconds of simulated time between plans, at most
REACTION = 0.1  # seconds from a command to the motion, beside the time that a picture takes


@dataclass(frozen=True)
class Plan:
    """What the robot is going to do.

    Attributes:
        start: simulated seconds. times: (T,) seconds after it, times[0] = 0. q: (T, nq) rad.
        instruction: the task in words. task: its kind.
    """

    start: float
    times: NDArray[np.float64]
    q: NDArray[np.float64]
    instruction: str
    task: str

    def at(self, time: float) -> NDArray[np.float64]:
        """(nq,) rad at simulated ``time``, linear between samples, held at both ends."""
        offset = min(max(time - self.start, 0.0), float(self.times[-1]))
        right = min(max(int(np.searchsorted(self.times, offset)), 1), len(self.times) - 1)
        left = right - 1
        weight = (offset - self.times[left]) / (self.times[right] - self.times[left])
        return (1.0 - weight) * self.q[left] + weight * self.q[right]

    def covers(self, time: float) -> bool:
        """Whether ``time`` lies before the plan's end."""
        return time <= self.start + float(self.times[-1])


@dataclass(frozen=True)
class Picture:
    """What the camera saw at simulated ``time`` (s).

    Attributes:
        rgb: (H, W, 3) uint8. depth: (H, W) uint16 mm, None where not asked for.
        render_seconds: how long rendering took.
    """

    time: float
    rgb: NDArray[np.uint8]
    depth: NDArray[np.uint16] | None
    render_seconds: float


@dataclass(frozen=True)
class Failure:
    """The simulation ended, or could not start; ``text`` says why."""

    text: str


@dataclass(frozen=True)
class StartPose:
    """Where an instructed robot must go before the next scene: q (nq,) rad."""

    q: NDArray[np.float64]


Motion = tuple[NDArray[np.float64], NDArray[np.float64]]
"""How the joints moved: times (T,) s and q (T, nq) rad."""


@dataclass(frozen=True)
class _Look:
    time: float
    depth: bool
    motion: Motion | None = None
    waiting: bool = False


@dataclass(frozen=True)
class _Instruct:
    text: str


@dataclass(frozen=True)
class _Follow:
    time: float
    times: NDArray[np.float64]
    q: NDArray[np.float64]


class RemoteTableTop:
    """Starts the simulation's process and talks to it. Callbacks run in a thread of this class.

    Args:
        embodiment: name or YAML path.
        horizon: seconds that every plan reaches ahead.
        resume_after: seconds behind the end of a followed trajectory at which the scripted tasks
            go on; None: never.
        options: keyword arguments of ``TableTop``, or of ``InstructedTable`` where ``instructed``.
        on_plan, on_picture, on_failure: receive what the simulation sends.
        instructed: the owner moves the robot and the simulation gives it tasks in words. The only
            plan is then the start pose, held.
        on_task, on_start_pose: receive a task's changes, and where the robot must go.
    """

    def __init__(
        self,
        embodiment: str,
        *,
        horizon: float,
        resume_after: float | None,
        options: dict[str, Any],
        on_plan: Callable[[Plan], None],
        on_picture: Callable[[Picture], None],
        on_failure: Callable[[Failure], None],
        instructed: bool = False,
        on_task: Callable[[TaskStatus], None] | None = None,
        on_start_pose: Callable[[StartPose], None] | None = None,
    ) -> None:
        ours, theirs = socket.socketpair()
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from ego_world_model.simulation.remote import serve; serve({theirs.fileno()})"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
        )
        theirs.close()
        self._connection = Connection(ours.detach())
        self._lock = threading.Lock()
        self._looking = threading.Event()
        self._closing = False
        self._asked = 0.0
        self._answers: deque[float] = deque([0.0], maxlen=10)
        self._callbacks = {Plan: on_plan, Picture: on_picture, Failure: on_failure}
        self._callbacks |= {TaskStatus: on_task, StartPose: on_start_pose}
        if instructed:
            self._send((_InstructedServer, (embodiment, horizon, options)))
        else:
            self._send((_Server, (embodiment, horizon, resume_after, options)))
        self._thread = threading.Thread(target=self._receive, name="simulation", daemon=True)
        self._thread.start()

    @property
    def looking(self) -> bool:
        """Whether the last picture is not finished yet."""
        return self._looking.is_set()

    def look(
        self, time: float, *, depth: bool, motion: Motion | None = None, waiting: bool = False
    ) -> bool:
        """Lets the simulation reach ``time`` and asks for a picture of it.

        Args:
            motion: how an instructed robot has moved since the last picture, until ``time``.
            waiting: whether nobody moves it, so that its task's time stands still.

        Returns:
            False where the last picture is not finished yet; this one is then skipped.
        """
        if self._looking.is_set():
            return False
        self._looking.set()
        self._asked = monotonic()
        self._send(_Look(time, depth, motion, waiting))
        return True

    def instruct(self, text: str) -> None:
        """Somebody's own words take the place of the tasks; empty ones give it back."""
        self._send(_Instruct(text))

    @property
    def reaction(self) -> float:
        """Seconds from a command to the motion: longer where the simulation is slow."""
        return min(1.0, REACTION + 1.5 * max(self._answers))

    def follow(self, time: float, times: NDArray[np.float64], q: NDArray[np.float64]) -> None:
        """Obeys a joint trajectory from simulated ``time`` on; see ``TableTop.follow``.

        Give a time ahead by ``reaction``, so that the new plan is here when it begins; a plan that
        comes late makes the joints jump to where they should be by then.
        """
        self._send(_Follow(time, times, q))

    def close(self, timeout: float = 5.0) -> None:
        """Ends the process."""
        self._closing = True
        self._send(None)
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join(timeout)
        self._connection.close()

    def _send(self, message: object) -> None:
        # A process that is gone is reported by the receiving thread.
        with self._lock, contextlib.suppress(OSError):
            self._connection.send(message)

    def _receive(self) -> None:
        failed = False
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                break
            if isinstance(message, Picture):
                self._answers.append(monotonic() - self._asked)
                self._looking.clear()
            failed = failed or isinstance(message, Failure)
            if not self._closing:
                self._callbacks[type(message)](message)
        if not failed and not self._closing:
            status = self._process.wait()
            self._callbacks[Failure](Failure(f"its process ended with status {status}"))


def serve(descriptor: int) -> None:
    """The simulation's process: obeys until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C reaches the group; the owner decides
    connection = Connection(descriptor)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the owner is gone
        try:
            server, arguments = connection.recv()
            server(connection, *arguments).run()
        except (EOFError, ConnectionError):
            pass
        except ValueError as error:  # the user's settings
            connection.send(Failure(str(error)))
        except Exception:
            connection.send(Failure(traceback.format_exc()))
    # Nothing here needs saving, and a planning thread may be busy for seconds: do not wait for it.
    os._exit(0)


def _take_picture(table: Any, time: float, *, depth: bool) -> Picture:
    """What the camera sees now, of ``time`` on the owner's clock."""
    begin = perf_counter()
    seen = table.render(depth=depth)
    millimetres = None
    if seen.depth is not None:
        millimetres = np.clip(np.round(seen.depth * 1000.0), 0, 65535).astype(np.uint16)
    return Picture(time, seen.rgb, millimetres, perf_counter() - begin)


class _Server:
    def __init__(
        self,
        connection: Connection,
        embodiment: str,
        horizon: float,
        resume_after: float | None,
        options: dict[str, Any],
    ) -> None:
        from ego_world_model.embodiment import load_embodiment
        from ego_world_model.simulation.table_top import TableTop

        self._connection = connection
        self._resume_after = resume_after
        self._table = TableTop(
            load_embodiment(embodiment), background_planning=True, camera_jitter=False, **options
        )
        self._grid = np.concatenate(
            [np.arange(0.0, FINE_SPAN, FINE_STEP), np.arange(FINE_SPAN, horizon, COARSE_STEP)]
        )
        self._grid = np.append(self._grid, horizon)
        self._planned = (-np.inf, "")
        self._pending: _Follow | None = None
        self._resume_at = np.inf
        self._slip = 0.0  # seconds by which the table's clock runs behind the owner's

    @property
    def _time(self) -> float:
        """The table's time on the owner's clock."""
        return self._table.time + self._slip

    def run(self) -> None:
        self._table.render(depth=True)  # compiles shaders, before the clock starts
        self._send_plan()
        while (message := self._connection.recv()) is not None:
            if isinstance(message, _Follow):
                self._pending = message
                self._send_plan()
            else:
                self._look(message)

    def _look(self, message: _Look) -> None:
        self._reach(message.time)
        start, instruction = self._planned
        if self._time - start >= PLAN_PERIOD - 1e-6 or self._table.task != instruction:
            self._send_plan()
        self._connection.send(_take_picture(self._table, message.time, depth=message.depth))

    def _reach(self, moment: float) -> None:
        """Lets the table come to ``moment`` of the owner's clock, and do what is due until then."""
        pending = self._pending
        if pending is not None and moment >= pending.time:
            self._advance_to(pending.time)
            self._table.follow(pending.times, pending.q)
            self._pending = None
            if self._resume_after is not None:
                self._resume_at = self._time + float(pending.times[-1]) + self._resume_after
        self._advance_to(moment)
        if self._time >= self._resume_at:
            self._resume_at = np.inf
            # The robot rests while this is planned. Its tasks begin when the plan is there, not
            # when planning began: the owner has shown that rest, and joints must not jump.
            begin = perf_counter()
            self._table.resume_tasks()
            self._slip += perf_counter() - begin + REACTION
            self._send_plan()

    def _advance_to(self, moment: float) -> None:
        if moment > self._time:
            self._table.advance(moment - self._time)

    def _send_plan(self) -> None:
        table, pending = self._table, self._pending
        q = table.plan(self._grid)
        if pending is not None:  # until its time comes, the present plan goes on
            offset = pending.time - self._time
            then = self._grid > offset
            columns = [np.interp(self._grid[then] - offset, pending.times, c) for c in pending.q.T]
            q[then] = np.stack(columns, axis=1)
        self._planned = (self._time, table.task)
        self._connection.send(Plan(self._time, self._grid, q, table.task, table.task_name))


class _InstructedServer:
    def __init__(
        self, connection: Connection, embodiment: str, horizon: float, options: dict[str, Any]
    ) -> None:
        from ego_world_model.embodiment import load_embodiment

        self._connection = connection
        self._horizon = horizon
        self._tasks = InstructedTable(load_embodiment(embodiment), **options)
        self._asked = False

    def run(self) -> None:
        self._tasks.table.render(depth=True)  # compiles shaders, before the clock starts
        rest = np.repeat(self._tasks.table.joint_positions[None], 2, axis=0)
        self._connection.send(Plan(0.0, np.array([0.0, self._horizon]), rest, "", "follow"))
        while (message := self._connection.recv()) is not None:
            if isinstance(message, _Instruct):
                self._tasks.instruct(message.text)
            else:
                self._look(message)

    def _look(self, message: _Look) -> None:
        tasks = self._tasks
        assert message.motion is not None
        tasks.move(message.time, *message.motion)
        if (status := tasks.update(waiting=message.waiting)) is not None:
            self._connection.send(status)
        pose = tasks.start_pose
        if pose is not None and not self._asked:
            self._connection.send(StartPose(pose))
        self._asked = pose is not None
        self._connection.send(_take_picture(tasks.table, message.time, depth=message.depth))
