"""Tasks in words for somebody else to carry out: which one comes next, and what became of it.

The robot is moved from outside. Tasks are chosen such that the scripted planner knows a way; the
referee of the scene judges them. A scene in which a task failed, or that is used up, gives way to
the next one, once the robot has been brought to that scene's start pose.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ego_world_model.embodiment import Embodiment
from ego_world_model.simulation.goals import MEASURED, Goal, measured_goals
from ego_world_model.simulation.table_top import TableTop

UNDER_WAY, ACHIEVED, FAILED, NOT_JUDGED, PREPARING = (
    "under way",
    "achieved",
    "failed",
    "not judged",
    "preparing",
)

_ARRIVED = 0.02  # radians from the start pose of the next scene at which it begins
_LINGER = 6.0  # seconds after success in which an object may still be put down
_PROPOSALS = 6  # tasks that are tried in a scene before it counts as used up


@dataclass(frozen=True)
class TaskStatus:
    """What is to be done and what became of it.

    Attributes:
        state: ``UNDER_WAY``, ``ACHIEVED``, ``FAILED``, ``NOT_JUDGED`` (somebody's own words that
            name no task of this scene) or ``PREPARING`` (there is no task now).
        instruction: in plain words.
        seconds: since the instruction was given.
        judged, achieved: instructions that were judged so far, and how many were achieved.
    """

    state: str
    instruction: str
    seconds: float
    judged: int
    achieved: int

    def __str__(self) -> str:
        score = f"{self.achieved} of {self.judged} achieved"
        if self.state == PREPARING:
            return f"{self.state} the next task ({score})"
        after = f" after {self.seconds:.1f} s" if self.state in (ACHIEVED, FAILED) else ""
        return f"{self.state}{after}: {self.instruction} ({score})"


class InstructedTable:
    """One ``TableTop`` after the other, with tasks for whoever moves the robot.

    Not thread-safe; planning goes on in a thread of its own.

    Args:
        seed: of the first scene; the following ones count up from it.
        task: give only this task; None: all of ``MEASURED``.
        patience: seconds in which a task is to be achieved.
        pause: seconds from success to the next task.
        tasks_per_scene: after so many the scene changes.
        options: further keyword arguments of ``TableTop``.

    Raises:
        ValueError: for a task that cannot be judged, and as ``TableTop``.
    """

    def __init__(
        self,
        robot: Embodiment,
        *,
        seed: int,
        task: str | None = None,
        patience: float = 12.0,
        pause: float = 2.5,
        tasks_per_scene: int = 4,
        **options: Any,
    ) -> None:
        if task is not None and task not in MEASURED:
            raise ValueError(
                f"task {task!r} cannot be judged, so nobody can be told to do it; choose one of "
                f"{', '.join(MEASURED)}, or none for a mixture"
            )
        self._robot, self._task, self._options = robot, task, options
        self._patience, self._pause, self._per_scene = patience, pause, tasks_per_scene
        self._rng = np.random.default_rng((29, seed))
        self._seed = seed
        self.table = self._make(seed)
        self.time = 0.0
        self._given = 0  # tasks given in this scene
        self._judged = self._achieved = 0
        self._goal: Goal | None = None
        self._text = ""
        self._since = 0.0
        self._state = PREPARING
        self._ended = 0.0
        self._own_words = False
        self._reported: tuple[str, str, int] = ("", "", -1)
        self._planner = ThreadPoolExecutor(1, "tasks")
        self._refused = 0  # proposals of this scene that were achieved already
        self._next_goal: Future[Goal | None] | None = None
        self._next_scene: Future[tuple[TableTop, Goal, int]] | None = None

    # ---------------------------------------------------------------- the robot

    @property
    def start_pose(self) -> NDArray[np.float64] | None:
        """(nq,) radians to which the robot must be brought now, or None."""
        if self._own_words or self._next_scene is None or not self._next_scene.done():
            return None
        return self._next_scene.result()[0].joint_positions

    def move(self, time: float, times: NDArray[np.float64], q: NDArray[np.float64]) -> None:
        """Let the robot move as it did until ``time`` (s).

        Args:
            times: (T,) seconds, from the end of the last move. q: (T, nq) radians.
        """
        if time <= self.time:
            return
        self.table.follow(np.maximum(times - self.time, 0.0), q)
        self.table.advance(time - self.time)
        self.time = time

    # ---------------------------------------------------------------- tasks

    def instruct(self, text: str) -> None:
        """Somebody's own words take the place of the tasks; empty ones give it back to them."""
        self._own_words = bool(text)
        if not text:
            self._goal, self._text, self._state = None, "", PREPARING
            return
        goals = {goal.instruction.lower(): goal for goal in measured_goals(self.table.scene)}
        self._next_goal = None
        self._begin(text, goals.get(text.lower()))

    def update(self, *, waiting: bool = False) -> TaskStatus | None:
        """Judge what is under way and see to what comes next; the status where it changed.

        Args:
            waiting: nobody moves the robot: the time of the task does not begin, or begins anew.
        """
        if waiting:
            self._since = self.time
        self._judge()
        if not self._own_words:
            self._go_on()
        news = (self._state, self._text, self._judged)
        if news == self._reported:
            return None
        self._reported = news
        return TaskStatus(
            self._state, self._text, self.time - self._since, self._judged, self._achieved
        )

    def close(self) -> None:
        """Free the renderer; what is being planned is not waited for."""
        self._planner.shutdown(wait=False, cancel_futures=True)
        self.table.close()

    # ---------------------------------------------------------------- internals

    def _make(self, seed: int) -> TableTop:
        table = TableTop(
            self._robot, seed=seed, task=self._task, camera_jitter=False, **self._options
        )
        table.follow([0.0], table.joint_positions[None])
        return table

    def _begin(self, text: str, goal: Goal | None) -> None:
        self._text, self._goal, self._since = text, goal, self.time
        self._state = NOT_JUDGED if goal is None else UNDER_WAY

    def _judge(self) -> None:
        if self._state != UNDER_WAY or self._goal is None:
            return
        achieved = self.table.achieved(self._goal)
        if achieved or self.time - self._since > self._patience:
            self._judged += 1
            self._achieved += achieved
            self._state = ACHIEVED if achieved else FAILED
            self._ended = self.time

    def _go_on(self) -> None:
        """See to the next task where none is under way."""
        if self._state == UNDER_WAY:
            return
        if self._next_scene is not None:
            self._change_scene()
        elif self._next_goal is not None:
            self._take_goal()
        elif self._is_over():
            used_up = max(self._given, self._refused) >= self._per_scene or self._holds()
            if used_up or self._state == FAILED:
                self._plan_scene()
            else:
                self._next_goal = self._planner.submit(self._propose, self.table, self._text)

    def _is_over(self) -> bool:
        """Whether the last task has had its time, putting down what was lifted included."""
        if self._state not in (ACHIEVED, FAILED):
            return True
        rested = self.time - self._ended
        return rested > (_LINGER if self._holds() else self._pause)

    def _holds(self) -> bool:
        return bool((self.table.objects.holder >= 0).any())

    def _take_goal(self) -> None:
        assert self._next_goal is not None
        if not self._next_goal.done():
            return
        goal, self._next_goal = self._next_goal.result(), None
        if goal is None:
            self._plan_scene()
        elif self.table.achieved(goal):
            self._refused += 1  # the next proposal is another one, mostly
        else:
            self._given += 1
            self._begin(goal.instruction, goal)

    def _plan_scene(self) -> None:
        self._state, self._text, self._goal = PREPARING, "", None
        self._next_scene = self._planner.submit(self._make_scene, self._seed + 1)

    def _make_scene(self, seed: int) -> tuple[TableTop, Goal, int]:
        """The next scene in which there is something to do, its first goal, and its seed."""
        while True:
            table = self._make(seed)
            goal = self._propose(table, "")
            if goal is not None and not table.achieved(goal):
                return table, goal, seed
            table.close()
            seed += 1

    def _change_scene(self) -> None:
        pose = self.start_pose
        if pose is None or np.abs(self.table.joint_positions - pose).max() > _ARRIVED:
            return
        assert self._next_scene is not None
        self.table.close()
        self.table, goal, self._seed = self._next_scene.result()
        self._next_scene, self._given, self._refused = None, 1, 0
        self._begin(goal.instruction, goal)

    def _propose(self, table: TableTop, last: str) -> Goal | None:
        """A task that the scripted planner could do from here, or None."""
        large = any(item.for_two_hands for item in table.scene.objects)
        tasks = [t for t in MEASURED if t != "bimanual" or large]
        for _ in range(_PROPOSALS):
            goal = table.propose(self._task or str(self._rng.choice(tasks)))
            if goal.is_measured and goal.instruction != last:
                return goal
        return None
