"""What happened in a closed-loop episode: which hand acted, on which object, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ego_world_model.kinematics import HandKinematics
from ego_world_model.simulation import Goal, TableTop
from ego_world_model.simulation.goals import REACHED, Referee
from ego_world_model.simulation.objects_motion import TWO_HANDS

SIDES = ("left", "right")

SUCCESS = "success"
FAILURES: dict[str, tuple[str, ...]] = {
    "grasp": (
        "wrong object",
        "wrong hand",
        "dropped",
        "held, not lifted",
        "missed",
        "never closed",
    ),
    "reach": ("wrong object", "wrong hand", "not reached"),
    "bimanual": ("dropped", "held, not lifted", "one palm", "not reached"),
}
"""Kinds of failure by task, in the order in which they are looked for."""

_AT_PALM = 0.06
"""Metres from a palm to the face of a two-handed object at which it counts as touched."""


@dataclass
class Trace:
    """What is watched during an episode, a row per look.

    Attributes:
        grasp: (2, 3) metres, grasp points of both hands in the root frame.
        palms: (2, 3) metres, palm points.
        objects: (N, 3) metres, centres. holder: (N,) as in ``ObjectState``.
        closed: (2,) bool, whether each hand is closed.
    """

    times: list[float] = field(default_factory=list)
    grasp: list[NDArray[np.float64]] = field(default_factory=list)
    palms: list[NDArray[np.float64]] = field(default_factory=list)
    objects: list[NDArray[np.float64]] = field(default_factory=list)
    holder: list[NDArray[np.int64]] = field(default_factory=list)
    closed: list[tuple[bool, bool]] = field(default_factory=list)


class Watcher:
    """Fills a trace by looking at a simulation."""

    def __init__(self, sim: TableTop, kinematics: HandKinematics) -> None:
        self._sim = sim
        self._kinematics = kinematics
        self._referee = Referee(sim.robot, kinematics, sim.scene)
        self.trace = Trace()

    def look(self) -> None:
        """Add a row."""
        sim, trace, objects = self._sim, self.trace, self._sim.objects
        q = sim.joint_positions
        trace.times.append(sim.time)
        trace.grasp.append(np.stack([self._referee.grasp_point(side, q) for side in SIDES]))
        hands = [sim.robot.hands[side] for side in SIDES]
        wrists = self._kinematics.link_poses(q, [hand.wrist for hand in hands])
        palms = [
            w[:3, :3] @ np.array(h.palm_point) + w[:3, 3]
            for h, w in zip(hands, wrists, strict=True)
        ]
        trace.palms.append(np.stack(palms))
        trace.objects.append(objects.poses[:, :3].copy())
        trace.holder.append(objects.holder.copy())
        trace.closed.append(objects.was_closed)


def acting_side(trace: Trace) -> str:
    """The hand that held something first, else the one whose grasp point travelled farther."""
    for holder in trace.holder:
        held = [int(h) for h in holder if h in (0, 1)]
        if held:
            return SIDES[held[0]]
    steps = np.diff(np.stack(trace.grasp), axis=0)
    path = np.linalg.norm(steps, axis=-1).sum(axis=0)
    return SIDES[int(path.argmax())]


def chosen_object(trace: Trace, side: str) -> int:
    """The object that a hand goes for.

    The first that it holds; else the one nearest to its grasp point when it first closes; else the
    one that it comes closest to.
    """
    row = SIDES.index(side)
    for holder in trace.holder:
        if row in holder:
            return int(np.flatnonzero(holder == row)[0])
    gaps = np.linalg.norm(
        np.stack(trace.grasp)[:, row, None] - np.stack(trace.objects), axis=-1
    )  # (T, N)
    closed = np.array([both[row] for both in trace.closed])
    closing = np.flatnonzero(closed[1:] & ~closed[:-1])
    if len(closing):
        return int(gaps[closing[0] + 1].argmin())
    return int(gaps.min(axis=0).argmin())


def closest_approach(trace: Trace, goal: Goal) -> float:
    """Metres between the target's centre and the named hand's grasp point (of a task of two hands:
    the farther palm) at their closest."""
    target = np.stack(trace.objects)[:, goal.target]
    if goal.side is None:
        gaps = np.linalg.norm(np.stack(trace.palms) - target[:, None], axis=-1).max(axis=1)
    else:
        hand = np.stack(trace.grasp)[:, SIDES.index(goal.side)]
        gaps = np.linalg.norm(hand - target, axis=-1)
    return float(gaps.min())


def failure(trace: Trace, goal: Goal, heights: NDArray[np.float64], radius: float) -> str:
    """Which of ``FAILURES`` an episode without success is.

    Args:
        heights: (N,) metres of the objects. radius: metres, of the target.
    """
    holder = np.stack(trace.holder)  # (T, N)
    if goal.task == "reach":
        return _reach_failure(trace, goal, heights)
    if goal.task == "bimanual":
        held = holder[:, goal.target] == TWO_HANDS
        if held.any():
            return "held, not lifted" if held[-1] else "dropped"
        target = np.stack(trace.objects)[:, goal.target]
        faces = target[:, None] + np.array([[0, radius, 0], [0, -radius, 0]])
        near = np.linalg.norm(np.stack(trace.palms) - faces, axis=-1).min(axis=0) < _AT_PALM
        return "one palm" if near.any() and not near.all() else "not reached"
    row = SIDES.index(goal.side)
    held = holder[:, goal.target] == row
    if held.any():
        return "held, not lifted" if held[-1] else "dropped"
    if (holder[:, goal.target] == 1 - row).any():
        return "wrong hand"
    if (holder >= 0).any():
        return "wrong object"
    closed = np.array([both[row] for both in trace.closed])
    return "missed" if (closed[1:] & ~closed[:-1]).any() else "never closed"


def _reach_failure(trace: Trace, goal: Goal, heights: NDArray[np.float64]) -> str:
    tops = np.stack(trace.objects) + np.outer(heights / 2, (0, 0, 1))  # (T, N, 3)
    gaps = np.linalg.norm(np.stack(trace.grasp)[:, :, None] - tops[:, None], axis=-1)  # (T, 2, N)
    reached = (gaps < REACHED) & (gaps == gaps.min(axis=-1, keepdims=True))
    reached &= ~reached[0]  # what a hand lay beside from the start, it did not reach for
    row = SIDES.index(goal.side)
    if reached[:, row].any():
        return "wrong object"
    if reached[:, 1 - row, goal.target].any():
        return "wrong hand"
    return "not reached"
