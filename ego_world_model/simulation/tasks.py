"""Scripted tasks: what the robot's hands do at the table, solved by inverse kinematics.

Each task samples wrist poses, solves them on the robot's own joints and joins them by smooth moves.
A sample that is out of reach, or goes through the table or the other hand, is thrown away; objects
in the way are pushed aside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ego_world_model.embodiment import Embodiment
from ego_world_model.kinematics import HandKinematics, UnreachableError
from ego_world_model.simulation.goals import Goal, measured_goal
from ego_world_model.simulation.motion import JointPlan, Track, pad_to_common_end
from ego_world_model.simulation.objects_motion import ObjectState
from ego_world_model.simulation.poses import SIDES, HandPoses, other_side, sign_of
from ego_world_model.simulation.rehearsal import Rehearsal
from ego_world_model.simulation.scene import Scene

_ATTEMPTS = 30
_TASK_WEIGHTS = {
    "reach": 0.14,
    "grasp": 0.36,
    "cross": 0.14,
    "fingers": 0.12,
    "free": 0.18,
    "idle": 0.06,
}
TASKS = (*_TASK_WEIGHTS, "bimanual")
"""Names of the scripted tasks."""


@dataclass(frozen=True)
class Wanted:
    """What a task shall be done with; None leaves the choice to the planner.

    Attributes:
        side: "left" or "right", for tasks of one hand.
        target: number of the object.
    """

    side: str | None = None
    target: int | None = None


ANYTHING = Wanted()


@dataclass(frozen=True)
class TaskPlan:
    """A planned task: what is to be achieved and the robot's motion."""

    goal: Goal
    plan: JointPlan


class TaskPlanner:
    """Plans tasks for one robot in one scene. Not thread-safe.

    Args:
        still: what a task does not need (the other hand, the torso) rests; else it may wander.
    """

    def __init__(
        self, robot: Embodiment, scene: Scene, rng: np.random.Generator, *, still: bool = False
    ) -> None:
        self._robot, self._scene, self._rng, self._still = robot, scene, rng, still
        kinematics = HandKinematics(robot)
        self._poses = HandPoses(robot, scene, kinematics, rng)
        self._rehearsal = Rehearsal(robot, scene, kinematics)
        self._builders: Mapping[str, Callable[[NDArray, ObjectState, Wanted], TaskPlan]] = {
            "reach": self._reach,
            "grasp": self._grasp,
            "cross": self._cross,
            "fingers": self._fingers,
            "free": self._free,
            "idle": self._idle,
            "bimanual": self._bimanual,
        }

    def plan(
        self,
        task: str | None,
        q: NDArray[np.float64],
        objects: ObjectState,
        wanted: Wanted = ANYTHING,
    ) -> TaskPlan:
        """A task from the configuration q (nq,); ``task`` None picks one at random.

        Where no sample of the task works from here (its object has left the reach, say), the hands
        move freely instead, and the plan's goal says so in its ``task``.

        Raises:
            ValueError: for an unknown task.
        """
        if task is not None and task not in TASKS:
            raise ValueError(f"unknown task {task!r}; tasks are {', '.join(TASKS)}")
        names = [task or self._random_task(), "free", "idle"]
        for name in names:
            for _ in range(_ATTEMPTS):
                try:
                    planned = self._builders[name](q, objects, wanted)
                except UnreachableError:
                    continue
                carried = planned.goal.target if planned.goal.carries else None
                if self._rehearsal.succeeds(planned.plan, objects, carried):
                    return planned
        rest = self._start(q, 1.0)
        for track in rest.values():
            track.hold(1.0)
        return self._finish(Goal("idle", "hold still"), q, rest)

    def start_pose(self) -> NDArray[np.float64]:
        """A random configuration (nq,) with both hands above the table, near the neutral pose."""
        q = self._robot.neutral
        for _ in range(_ATTEMPTS):
            try:
                values = {side: self._poses.random_value(side) for side in SIDES}
            except UnreachableError:
                continue
            start = q.copy()
            for side, value in values.items():
                start[self._poses.joints(side)] = value
            start = self._robot.coupled(start)
            if self._rehearsal.is_clear(start[None]):
                return start
        return q.copy()

    # ---------------------------------------------------------------- tasks

    def _reach(self, q: NDArray, objects: ObjectState, wanted: Wanted) -> TaskPlan:
        side, i = self._side_and_object(objects, wanted)
        target = objects.poses[i, :3]
        item = self._scene.objects[i]
        tracks = self._start(q)
        roll, pitch, yaw = self._poses.wrist_angles()
        yaw *= sign_of(side)
        lowest = self._poses.lowest(side, roll, pitch)
        above = target + (-0.1, 0.0, item.height / 2 + self._rng.uniform(0.02, 0.06))
        above[2] = max(above[2], lowest)
        value = self._poses.value(side, above, roll, pitch, 0.5 * yaw, self._rng.uniform(0, 0.3))
        tracks[side].move(value, at_least=0.7)
        tracks[side].hold(self._rng.uniform(0.1, 0.4))
        tracks[side].move(self._poses.random_value(side), at_least=0.7)
        self._drift(tracks[other_side(side)], other_side(side))
        return self._finish(measured_goal("reach", self._scene, i, side), q, tracks)

    def _grasp(self, q: NDArray, objects: ObjectState, wanted: Wanted) -> TaskPlan:
        side, i = self._side_and_object(objects, wanted)
        item, centre = self._scene.objects[i], objects.poses[i, :3]
        if item.for_two_hands:
            raise UnreachableError(f"the {item.name} is too wide for one hand")
        rng, sign = self._rng, sign_of(side)
        roll, pitch = rng.uniform(0.0, 0.7), rng.uniform(0.0, 0.35)
        yaw = -sign * rng.uniform(-0.25, 0.45)
        goal = self._free_goal(side, i, objects)
        floor = self._scene.table_height
        height = max(centre[2], floor + 0.055 + 0.03 * np.sin(roll))

        chain = self._robot.hands[side]

        def wrist_at(point: NDArray, lift: float, back: float, flex: float) -> NDArray:
            rotation = self._poses.rotation(side, roll, pitch, yaw)
            grasp = np.array([point[0], point[1], height + lift])
            position = grasp - rotation @ chain.grasp_point
            forward = rotation @ chain.axes[:, 0]
            place = position - back * forward
            return self._poses.value_at(side, rotation, place, flex, held=chain.grasp_point)

        track = self._start(q)
        hand = track[side]
        flex = float(np.clip(0.62 - 5.5 * (item.radius - 0.02), 0.42, 0.62))
        lift = rng.uniform(0.04, 0.1)
        clear = item.height * 0.6
        hand.move(wrist_at(centre, clear, 0.09, 0.08), at_least=0.7)
        hand.move(wrist_at(centre, 0.0, 0.06, 0.08), at_least=0.35)
        hand.move(wrist_at(centre, 0.0, 0.0, 0.1), at_least=0.35)
        hand.move(wrist_at(centre, 0.0, 0.0, flex), at_least=0.35)
        hand.move(wrist_at(centre, lift, 0.0, flex), at_least=0.45)
        hand.move(wrist_at(goal, lift, 0.0, flex), at_least=0.7)
        hand.move(wrist_at(goal, 0.0, 0.0, flex), at_least=0.45)
        hand.move(wrist_at(goal, 0.0, 0.0, 0.08), at_least=0.35)
        hand.move(wrist_at(goal, clear, 0.1, 0.1), at_least=0.5)
        self._drift(track[other_side(side)], other_side(side))
        return self._finish(measured_goal("grasp", self._scene, i, side), q, track)

    def _bimanual(self, q: NDArray, objects: ObjectState, wanted: Wanted) -> TaskPlan:
        large = [i for i, item in enumerate(self._scene.objects) if item.for_two_hands]
        if not large:
            raise UnreachableError("no object for two hands on the table")
        i = large[0]
        item, centre = self._scene.objects[i], objects.poses[i, :3]
        rng = self._rng
        angles = {side: (rng.uniform(0.0, 0.2), rng.uniform(-0.1, 0.08), 0.0) for side in SIDES}
        shift = rng.uniform(-0.05, 0.05, 3) * (0.6, 1.0, 0.0)
        lift = rng.uniform(0.04, 0.1)
        raised = max(0.0, self._scene.table_height + 0.055 - centre[2])
        tracks = self._start(q, 0.7)
        for side in SIDES:
            sign = sign_of(side)
            rotation = self._poses.rotation(side, *angles[side])
            contact = np.array(self._robot.hands[side].palm_point)

            def hand_at(
                move: NDArray,
                out: float,
                up: float,
                side: str = side,
                sign: int = sign,
                rotation: NDArray = rotation,
                contact: NDArray = contact,
            ) -> NDArray:
                point = centre + move + (0, sign * (item.radius + out), up + raised)
                place = point - rotation @ contact
                return self._poses.value_at(side, rotation, place, -0.5, held=contact)

            still = np.zeros(3)
            for move, out, up, seconds in (
                (still, 0.07, 0.05, 0.9),
                (still, 0.06, 0.0, 0.5),
                (still, 0.008, 0.0, 0.5),
                (still, 0.004, lift, 0.7),
                (shift, 0.004, lift, 0.8),
                (shift, 0.004, 0.0, 0.7),
                (shift, 0.06, 0.0, 0.5),
                (shift, 0.08, 0.06, 0.6),
            ):
                tracks[side].move(hand_at(move, out, up), at_least=seconds)
        self._align(tracks)
        return self._finish(measured_goal("bimanual", self._scene, i), q, tracks)

    def _cross(self, q: NDArray, objects: ObjectState, wanted: Wanted) -> TaskPlan:
        """One hand passes above the other, which it hides from the head camera."""
        rng = self._rng
        above = SIDES[rng.integers(2)]
        below = other_side(above)
        tracks = self._start(q)
        x, y = rng.uniform(0.2, 0.26), rng.uniform(-0.04, 0.04)
        rolls = {below: rng.uniform(0.0, 0.7), above: rng.uniform(0.0, 0.35)}
        base = self._poses.lowest(below, rolls[below], 0.1)
        thumb = self._robot.hands[above].thumb_reach
        heights = {below: base, above: base + 0.12 + thumb * np.sin(rolls[above])}
        for side in (above, below):
            roll = rolls[side]
            inward = sign_of(side) * rng.uniform(-0.07, 0.02)
            position = np.array([x + rng.uniform(-0.02, 0.03), y + inward, heights[side]])
            position[:2] += self._scene.origin[:2]
            yaw = -sign_of(side) * rng.uniform(0.1, 0.6)
            flex = rng.uniform(0.0, 0.5)
            aside = position + (-0.02, sign_of(side) * 0.15, 0)
            for place, seconds in ((aside, 0.7), (position, 0.7)):
                tracks[side].move(
                    self._poses.value(side, place, roll, 0.1, yaw, flex), at_least=seconds
                )
            tracks[side].hold(rng.uniform(0.1, 0.5))
            tracks[side].move(self._poses.value(side, aside, roll, 0.1, yaw, flex), at_least=0.7)
            tracks[side].move(self._poses.random_value(side), at_least=0.6)
        self._align(tracks)
        text = f"cross the hands, the {above} one above"
        return self._finish(Goal("cross", text, above), q, tracks)

    def _fingers(self, q: NDArray, objects: ObjectState, wanted: Wanted) -> TaskPlan:
        """Hold the hands in view and bend one finger at a time."""
        rng = self._rng
        tracks = self._start(q)
        moved = []
        for side in SIDES:
            value = self._poses.random_value(side, roll=rng.uniform(0.5, 1.4), flex=0.08)
            tracks[side].move(value, at_least=0.7)
            groups = self._finger_groups(side)
            for name in rng.permutation(list(groups))[: rng.integers(1, len(groups) + 1)]:
                bent = value.copy()
                hand = self._robot.hands[side]
                for k in groups[name]:
                    bend = rng.uniform(0.6, 1.0)
                    angle = hand.open[k] + bend * (hand.closed[k] - hand.open[k])
                    bent[len(hand.arm) + k] = angle
                tracks[side].move(bent, at_least=rng.uniform(0.35, 0.7))
                tracks[side].move(value, at_least=rng.uniform(0.35, 0.7))
                moved.append(f"{side} {name}")
        text = f"bend the {', then the '.join(moved)}"
        return self._finish(Goal("fingers", text), q, tracks)

    def _free(self, q: NDArray, objects: ObjectState, wanted: Wanted) -> TaskPlan:
        tracks = self._start(q)
        for side in SIDES:
            for _ in range(int(self._rng.integers(2, 5))):
                tracks[side].move(
                    self._poses.random_value(side), at_least=self._rng.uniform(0.5, 1.2)
                )
        return self._finish(Goal("free", "move the hands freely"), q, tracks)

    def _idle(self, q: NDArray, objects: ObjectState, wanted: Wanted) -> TaskPlan:
        tracks = self._start(q)
        for side in SIDES:
            value = q[self._poses.joints(side)]
            for _ in range(2):
                sway = self._rng.normal(0, 0.015, len(value))
                tracks[side].move(self._poses.clip(side, value + sway), at_least=0.6)
        return self._finish(Goal("idle", "hold still"), q, tracks)

    # ---------------------------------------------------------------- building blocks

    def _random_task(self) -> str:
        if any(item.for_two_hands for item in self._scene.objects) and self._rng.random() < 0.5:
            return "bimanual"
        names, weights = list(_TASK_WEIGHTS), list(_TASK_WEIGHTS.values())
        return str(self._rng.choice(names, p=np.array(weights) / sum(weights)))

    def _start(self, q: NDArray, speed: float | None = None) -> dict[str, Track]:
        """A track per side, resting at q; arm joints up to ``speed`` rad/s, fingers 3.5 rad/s."""
        speed = speed or self._rng.uniform(0.9, 1.8)
        tracks = {}
        for side in SIDES:
            hand = self._robot.hands[side]
            limit = np.concatenate([np.full(len(hand.arm), speed), np.full(len(hand.fingers), 3.5)])
            joints = self._poses.joints(side)
            tracks[side] = Track.starting_at(joints, limit, q[joints])
        return tracks

    def _finish(self, goal: Goal, q: NDArray, tracks: dict[str, Track]) -> TaskPlan:
        moves = [*tracks.values()]
        torso = self._robot.torso if not self._still else ()
        if torso and goal.task in ("free", "idle", "reach") and self._rng.random() < 0.12:
            joints = self._robot.indices(torso)
            waist = Track.starting_at(joints, np.full(len(torso), 0.25), q[joints])
            waist.move(self._rng.uniform(-0.06, 0.06, len(torso)), at_least=0.8)
            waist.move(np.zeros(len(torso)), at_least=0.8)
            moves.append(waist)
        pad_to_common_end(moves)
        return TaskPlan(goal, JointPlan(self._robot, q.copy(), tuple(moves)))

    def _drift(self, track: Track, side: str) -> None:
        """What the hand that has nothing to do does: rest, or wander a little."""
        if not self._still and self._rng.random() < 0.5:
            track.move(self._poses.random_value(side), at_least=self._rng.uniform(1.0, 2.0))

    def _align(self, tracks: Mapping[str, Track]) -> None:
        """Give both sides the same times, the slower one's, waypoint by waypoint."""
        steps = [np.diff(tracks[side].times) for side in SIDES]
        if len(steps[0]) == len(steps[1]):
            times = np.concatenate([[0.0], np.cumsum(np.maximum(*steps))])
            for side in SIDES:
                tracks[side].times = times.tolist()

    def _finger_groups(self, side: str) -> dict[str, list[int]]:
        """Finger name → positions of its joints among the hand's finger joints."""
        groups: dict[str, list[int]] = {}
        for k, joint in enumerate(self._robot.hands[side].fingers):
            for finger in ("thumb", "index", "middle", "ring", "pinky"):
                if finger in joint:
                    groups.setdefault(finger, []).append(k)
        return groups

    def _side_and_object(self, objects: ObjectState, wanted: Wanted) -> tuple[str, int]:
        i = wanted.target
        if i is None:
            small = [i for i, item in enumerate(self._scene.objects) if not item.for_two_hands]
            i = int(self._rng.choice(small or range(len(self._scene.objects))))
        if wanted.side is not None:
            return wanted.side, i
        y = objects.poses[i, 1] - self._scene.origin[1]
        likely = 0.5 + 0.5 * np.clip(y / 0.04, -1, 1)  # the nearer hand, mostly
        return ("left" if self._rng.random() < likely else "right"), i

    def _free_goal(self, side: str, moving: int, objects: ObjectState) -> NDArray[np.float64]:
        """(3,) metres where the object ``moving`` can be set down."""
        radius = self._scene.objects[moving].radius
        others = [i for i in range(len(self._scene.objects)) if i != moving]
        for _ in range(_ATTEMPTS):
            x, y = self._rng.uniform(0.28, 0.38), sign_of(side) * self._rng.uniform(0.0, 0.22)
            x, y = x + self._scene.origin[0], y + self._scene.origin[1]
            gaps = [
                np.linalg.norm(objects.poses[i, :2] - (x, y))
                - self._scene.objects[i].radius
                - radius
                for i in others
            ]
            if min(gaps, default=1.0) > 0.04:
                return np.array(
                    [x, y, self._scene.table_height + self._scene.objects[moving].height / 2]
                )
        raise UnreachableError("no free place on the table")
