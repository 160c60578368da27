"""Tasks in words for somebody who moves the robot: given, judged, and followed by the next."""

from __future__ import annotations

import time

import numpy as np
import pytest

from ego_world_model.embodiment import load_embodiment
from ego_world_model.simulation import Wanted
from ego_world_model.simulation.goals import measured_goals
from ego_world_model.simulation.instructed import (
    ACHIEVED,
    FAILED,
    NOT_JUDGED,
    PREPARING,
    UNDER_WAY,
    InstructedTable,
    TaskStatus,
)

ROBOT = load_embodiment("g1_dex3")
STEP = 0.05


class Mover:
    """Moves the robot of an instructed table: rests, follows a script, or goes to a pose."""

    def __init__(self, tasks: InstructedTable) -> None:
        self.tasks = tasks
        self.q = tasks.table.joint_positions
        self.news: list[TaskStatus] = []

    def step(self, q: np.ndarray | None = None) -> TaskStatus | None:
        """Let a moment pass in which the robot goes to q (nq,) rad; news of the task, if any."""
        end = self.q if q is None else q
        now = self.tasks.time
        self.tasks.move(now + STEP, np.array([now, now + STEP]), np.stack([self.q, end]))
        self.q = end
        status = self.tasks.update()
        if status is not None:
            self.news.append(status)
        return status

    def wait_for(self, state: str, *, seconds: float = 60.0) -> TaskStatus:
        """Rest, and go to start poses that are asked for, until the task's state is ``state``."""
        deadline = time.monotonic() + seconds
        while True:
            pose = self.tasks.start_pose
            towards = None if pose is None else self.q + np.clip(pose - self.q, -0.1, 0.1)
            status = self.step(towards)
            if status is not None and status.state == state:
                return status
            assert time.monotonic() < deadline, f"no {state!r} among {self.news}"
            time.sleep(0.0005)  # planning goes on in a thread

    def carry_out(self, status: TaskStatus) -> TaskStatus:
        """Do as the scripted planner would, until the task is judged."""
        table = self.tasks.table
        goal = next(g for g in measured_goals(table.scene) if g.instruction == status.instruction)
        plan = table._planner.plan(
            goal.task, self.q, table.objects, Wanted(goal.side, goal.target)
        ).plan
        for moment in np.arange(STEP, plan.duration, STEP):
            news = self.step(plan.at(np.array([moment]))[0])
            if news is not None and news.state in (ACHIEVED, FAILED):
                for later in np.arange(moment, plan.duration, STEP):  # put down what was lifted
                    self.step(plan.at(np.array([later]))[0])
                return news
        raise AssertionError(f"not judged after {plan.duration:.1f} s: {status}")


@pytest.fixture
def tasks():
    table = InstructedTable(ROBOT, seed=1, split="test", width=64, height=48, patience=8.0)
    yield table
    table.close()


def test_a_task_that_is_carried_out_is_achieved_and_the_next_one_follows(tasks):
    mover = Mover(tasks)
    first = mover.wait_for(UNDER_WAY)
    assert first.instruction in {g.instruction for g in measured_goals(tasks.table.scene)}
    done = mover.carry_out(first)
    assert (done.state, done.instruction) == (ACHIEVED, first.instruction)
    assert (done.judged, done.achieved) == (1, 1)
    second = mover.wait_for(UNDER_WAY)
    assert second.instruction != first.instruction


def test_a_task_that_nobody_does_fails_and_the_scene_changes(tasks):
    """The robot is sent to the next scene's start pose first, and its joints do not jump."""
    mover = Mover(tasks)
    scene = tasks.table
    given = mover.wait_for(UNDER_WAY)
    failed = mover.wait_for(FAILED)
    assert failed.instruction == given.instruction
    assert failed.seconds == pytest.approx(8.0, abs=0.2)
    mover.wait_for(PREPARING)
    assert tasks.table is scene, "the scene stays until the robot has arrived"
    mover.wait_for(UNDER_WAY)
    assert tasks.table is not scene
    assert [item.name for item in tasks.table.scene.objects]
    np.testing.assert_allclose(tasks.table.joint_positions, mover.q, atol=0.021)


def test_own_words_take_over_and_are_judged_where_they_name_a_task(tasks):
    mover = Mover(tasks)
    mover.wait_for(UNDER_WAY)
    tasks.instruct("wave to the audience")
    assert mover.step().state == NOT_JUDGED
    goal = next(g for g in measured_goals(tasks.table.scene) if g.task == "grasp")
    tasks.instruct(goal.instruction.upper())
    status = mover.step()
    assert (status.state, status.instruction) == (UNDER_WAY, goal.instruction.upper())
    mover.wait_for(FAILED)
    for _ in range(200):  # no task follows while somebody else has the word
        assert mover.step() is None
    assert tasks.start_pose is None
    tasks.instruct("")
    assert mover.wait_for(UNDER_WAY).instruction != goal.instruction.upper()


def test_a_task_that_nothing_measures_is_refused():
    with pytest.raises(ValueError, match="'cross' cannot be judged"):
        InstructedTable(ROBOT, seed=1, task="cross")
