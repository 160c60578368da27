"""How objects move: held by a closed hand or between two palms, pushed aside, or falling."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from transforms3d.quaternions import axangle2quat, mat2quat, quat2mat

from ego_world_model.embodiment import Embodiment, HandChain
from ego_world_model.hands import SLOT_NAMES
from ego_world_model.kinematics import HandKinematics
from ego_world_model.simulation.scene import Scene

_SIDES = ("left", "right")
_CLOSED, _OPEN = 0.34, 0.28  # hysteresis on how far the hand is closed
_REACH = 0.035  # metres between the grasp point and the object's axis
_PALM_REACH = 0.035  # metres between palm and the face of a two-handed object
_GRAVITY = 9.81
_FINGER_RADIUS = 0.012
_PUSH_AREA = ((0.25, 0.75), (-0.42, 0.42))  # metres x, y from the scene's origin, no farther
TWO_HANDS = 2


@dataclass(frozen=True)
class ObjectState:
    """Poses of all objects and what holds them.

    Attributes:
        poses: (N, 7) metres and quaternion wxyz, root frame.
        holder: (N,) -1 free, 0 left hand, 1 right hand, 2 both palms.
        relative: (N, 4, 4) pose in its holder's frame. speed: (N,) m/s of falling.
        touched: numbers of objects that were ever held.
        was_closed: (2,) bool, whether each hand was closed at the last step.
    """

    poses: NDArray[np.float64]
    holder: NDArray[np.int64]
    relative: NDArray[np.float64]
    speed: NDArray[np.float64]
    touched: frozenset[int]
    was_closed: tuple[bool, bool]

    @classmethod
    def initial(cls, scene: Scene) -> ObjectState:
        count = len(scene.objects)
        quaternions = [axangle2quat([0, 0, 1], yaw) for yaw in scene.object_yaws]
        return cls(
            np.column_stack([scene.object_positions, np.array(quaternions).reshape(count, 4)]),
            np.full(count, -1),
            np.tile(np.eye(4), (count, 1, 1)),
            np.zeros(count),
            frozenset(),
            (True, True),
        )


class ObjectMotion:
    """Advances objects of one scene as the robot moves. A grasp is geometric: a hand that closes
    with an object's axis at its grasp point holds it rigidly until it opens."""

    def __init__(self, robot: Embodiment, kinematics: HandKinematics, scene: Scene) -> None:
        self._kinematics, self._scene = kinematics, scene
        self._hands = [robot.hands[side] for side in _SIDES]
        self._fingers = [robot.indices(hand.fingers) for hand in self._hands]
        self._slots = [name for name in SLOT_NAMES if name in robot.slots]
        self._slot_side = np.array([0 if n.startswith("left") else 1 for n in self._slots])

    def step(self, state: ObjectState, q: NDArray[np.float64], dt: float) -> ObjectState:
        """State ``dt`` seconds later, the robot now being at q (nq,)."""
        wrists = self._kinematics.link_poses(q, [hand.wrist for hand in self._hands])
        closing = [self.closedness(q, side) for side in range(2)]
        closed = tuple(
            amount > (_OPEN if was else _CLOSED)
            for amount, was in zip(closing, state.was_closed, strict=True)
        )
        state = replace(
            state,
            poses=state.poses.copy(),
            holder=state.holder.copy(),
            relative=state.relative.copy(),
            speed=state.speed.copy(),
        )
        frames = [*wrists, self._between(wrists)]
        points = self._kinematics.slot_positions(q[None], self._slots)[0]
        touched = set(state.touched)
        for i in range(len(self._scene.objects)):
            holder = int(state.holder[i])
            if holder < 0:
                holder = self._grasped_by(i, state, wrists, closed)
                if holder >= 0:
                    touched.add(i)
                    state.relative[i] = np.linalg.inv(frames[holder]) @ _matrix(state.poses[i])
            elif not self._still_held(i, holder, wrists, closed):
                holder = -1
                yaw = np.arctan2(*(quat2mat(state.poses[i, 3:])[[1, 0], 0]))
                state.poses[i, 3:] = axangle2quat([0, 0, 1], yaw)  # set down upright
            state.holder[i] = holder
            if holder >= 0:
                pose = frames[holder] @ state.relative[i]
                state.poses[i, :3], state.poses[i, 3:] = pose[:3, 3], mat2quat(pose[:3, :3])
                state.speed[i] = 0.0
            else:
                self._push(i, state, points, wrists)
                self._fall(i, state, dt)
        return replace(state, touched=frozenset(touched), was_closed=closed)

    def closedness(self, q: NDArray[np.float64], side: int) -> float:
        """0 for the open hand, 1 for the closed one: mean over its finger joints."""
        hand, fingers = self._hands[side], q[self._fingers[side]]
        opened, closed = np.array(hand.open), np.array(hand.closed)
        moving = np.abs(closed - opened) > 1e-6
        return float(np.mean((fingers - opened)[moving] / (closed - opened)[moving]))

    def _grasped_by(
        self,
        i: int,
        state: ObjectState,
        wrists: NDArray[np.float64],
        closed: tuple[bool, ...],
    ) -> int:
        item = self._scene.objects[i]
        if item.for_two_hands:
            return TWO_HANDS if self._between_palms(i, state, wrists) else -1
        for side, hand in enumerate(self._hands):
            if not closed[side] or state.was_closed[side] or side in state.holder:
                continue  # only a hand that is just closing takes an object, and only one
            if self._in_grasp(i, state, hand, wrists[side]):
                return side
        return -1

    def _in_grasp(
        self, i: int, state: ObjectState, hand: HandChain, wrist: NDArray[np.float64]
    ) -> bool:
        """Whether the object's axis passes the hand's grasp point."""
        offset = wrist[:3, :3] @ hand.grasp_point + wrist[:3, 3] - state.poses[i, :3]
        near = np.linalg.norm(offset[:2]) < _REACH
        return bool(near and abs(offset[2]) < self._scene.objects[i].height / 2 + 0.01)

    def _push(
        self,
        i: int,
        state: ObjectState,
        points: NDArray[np.float64],
        wrists: NDArray[np.float64],
    ) -> None:
        """Hand joints (S, 3) that enter an object shove it sideways over the table. A hand about
        to grasp does not: its fingers pass around the object."""
        item = self._scene.objects[i]
        if item.for_two_hands:
            return
        passing = [self._in_grasp(i, state, h, w) for h, w in zip(self._hands, wrists, strict=True)]
        offset = state.poses[i, :2] - points[:, :2]
        gap = np.linalg.norm(offset, axis=1)
        depth = item.radius + _FINGER_RADIUS - gap
        depth[points[:, 2] > state.poses[i, 2] + item.height / 2 + _FINGER_RADIUS] = 0.0
        depth[np.array(passing)[self._slot_side]] = 0.0
        deepest = int(np.argmax(depth))
        if depth[deepest] > 0:
            direction = offset[deepest] / max(gap[deepest], 1e-6)
            moved = state.poses[i, :2] + depth[deepest] * direction
            low, high = np.array(_PUSH_AREA).T + self._scene.origin[:2]
            state.poses[i, :2] = np.clip(moved, low, high)

    def _palms(self, wrists: NDArray[np.float64]) -> NDArray[np.float64]:
        """(2, 3) metres, the point of each palm that touches a two-handed object."""
        points = []
        for hand, wrist in zip(self._hands, wrists, strict=True):
            points.append(wrist[:3, :3] @ hand.palm_point + wrist[:3, 3])
        return np.array(points)

    def _between_palms(self, i: int, state: ObjectState, wrists: NDArray[np.float64]) -> bool:
        side = quat2mat(state.poses[i, 3:])[:, 1] * self._scene.objects[i].radius
        faces = state.poses[i, :3] + np.array([side, -side])
        return bool(np.all(np.linalg.norm(self._palms(wrists) - faces, axis=1) < _PALM_REACH))

    def _between(self, wrists: NDArray[np.float64]) -> NDArray[np.float64]:
        """(4, 4) upright frame midway between the palms, y from the right palm to the left."""
        left, right = self._palms(wrists)
        yaw = np.arctan2(-(left - right)[0], (left - right)[1])
        frame = np.eye(4)
        frame[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
        frame[:3, 3] = (left + right) / 2
        return frame

    def _still_held(
        self, i: int, holder: int, wrists: NDArray[np.float64], closed: tuple[bool, ...]
    ) -> bool:
        if holder != TWO_HANDS:
            return closed[holder]
        left, right = self._palms(wrists)
        return bool(np.linalg.norm(left - right) < 2 * self._scene.objects[i].radius + 0.05)

    def _fall(self, i: int, state: ObjectState, dt: float) -> None:
        rest = self._scene.table_height + self._scene.objects[i].height / 2
        if state.poses[i, 2] > rest + 1e-6:
            state.speed[i] += _GRAVITY * dt
            state.poses[i, 2] = max(rest, state.poses[i, 2] - state.speed[i] * dt)
        else:
            state.poses[i, 2], state.speed[i] = rest, 0.0


def _matrix(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = quat2mat(pose[3:]), pose[:3]
    return out
