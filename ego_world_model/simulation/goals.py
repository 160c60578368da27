"""What a task is to achieve, and whether it has been achieved."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ego_world_model.embodiment import Embodiment
from ego_world_model.kinematics import HandKinematics
from ego_world_model.simulation.objects_motion import TWO_HANDS, ObjectState
from ego_world_model.simulation.poses import SIDES
from ego_world_model.simulation.scene import Scene

LIFTED = 0.03
"""Metres above the table at which an object counts as lifted."""

REACHED = 0.1
"""Metres between a hand's grasp point and the top of the object that it reaches for; scripted
reaches stay below it."""


@dataclass(frozen=True)
class Goal:
    """A task in words and as a state of the scene.

    Attributes:
        task: kind of task, one of ``TASKS`` or "follow".
        instruction: in plain words.
        side: "left" or "right" for a task of one hand (of "cross": the upper one), else None.
        target: number of the object that the task is about, or None.
    """

    task: str
    instruction: str
    side: str | None = None
    target: int | None = None

    @property
    def carries(self) -> bool:
        """Whether the task takes its object off the table."""
        return self.task in ("grasp", "bimanual")

    @property
    def is_measured(self) -> bool:
        """Whether ``Referee.achieved`` can tell success from failure."""
        return self.task in MEASURED


_WORDS = {
    "reach": "reach for the {item} with the {side} hand",
    "grasp": "grasp the {item} with the {side} hand and move it",
    "bimanual": "lift the {item} with both hands",
}
MEASURED = tuple(_WORDS)
"""Tasks whose success can be told from the scene."""


def instruction(task: str, item: str, side: str | None = None) -> str:
    """One of ``MEASURED`` in words, with the object called ``item``; "bimanual" has no side."""
    return _WORDS[task].format(item=item, side=side)


def measured_goal(task: str, scene: Scene, target: int, side: str | None = None) -> Goal:
    """The goal of one of ``MEASURED`` with the object number ``target``; "bimanual" has no side."""
    return Goal(task, instruction(task, scene.objects[target].name, side), side, target)


def measured_goals(scene: Scene) -> list[Goal]:
    """Every goal that makes sense in a scene, within the robot's reach or not."""
    goals = []
    for i, item in enumerate(scene.objects):
        goals += [measured_goal("reach", scene, i, side) for side in SIDES]
        if item.for_two_hands:
            goals.append(measured_goal("bimanual", scene, i))
        else:
            goals += [measured_goal("grasp", scene, i, side) for side in SIDES]
    return goals


class Referee:
    """Judges states of one scene."""

    def __init__(self, robot: Embodiment, kinematics: HandKinematics, scene: Scene) -> None:
        self._robot, self._kinematics, self._scene = robot, kinematics, scene

    def achieved(self, goal: Goal, q: NDArray[np.float64], objects: ObjectState) -> bool:
        """Whether the goal holds with the robot at q (nq,) radians.

        "grasp": the named hand holds the named object ``LIFTED`` above the table; "bimanual": both
        palms do; "reach": the named hand's grasp point is within ``REACHED`` of its top, and no
        other object's top is nearer.

        Raises:
            ValueError: for a goal that says nothing about the scene.
        """
        if not goal.is_measured or goal.target is None:
            raise ValueError(f"{goal.task!r} has no success to measure: {goal.instruction}")
        heights = np.array([item.height for item in self._scene.objects])
        if goal.task == "reach":
            tops = objects.poses[:, :3] + np.outer(heights / 2, (0, 0, 1))
            gaps = np.linalg.norm(self.grasp_point(goal.side, q) - tops, axis=1)
            return bool(gaps.argmin() == goal.target and gaps[goal.target] < REACHED)
        holder = TWO_HANDS if goal.task == "bimanual" else SIDES.index(goal.side)
        bottom = objects.poses[goal.target, 2] - heights[goal.target] / 2
        return bool(
            objects.holder[goal.target] == holder and bottom - self._scene.table_height > LIFTED
        )

    def grasp_point(self, side: str, q: NDArray[np.float64]) -> NDArray[np.float64]:
        """(3,) metres in the root frame, where a hand takes hold."""
        hand = self._robot.hands[side]
        wrist = self._kinematics.link_poses(q, [hand.wrist])[0]
        return wrist[:3, :3] @ np.array(hand.grasp_point) + wrist[:3, 3]
