"""Poses of one hand above the table, as joint angles: the words that scripted tasks are made of."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from transforms3d.euler import euler2mat

from ego_world_model.embodiment import Embodiment
from ego_world_model.kinematics import ArmSolver, HandKinematics
from ego_world_model.simulation.scene import Scene

SIDES = ("left", "right")
_CORRECTIONS = 3  # of the wrist's place, where an arm cannot turn the hand as asked


class HandPoses:
    """Solves and samples poses of one robot's hands in one scene; draws from the planner's ``rng``.

    ``value`` and its kin raise UnreachableError where the arm cannot reach.
    """

    def __init__(
        self,
        robot: Embodiment,
        scene: Scene,
        kinematics: HandKinematics,
        rng: np.random.Generator,
    ) -> None:
        self._robot, self._scene, self._rng = robot, scene, rng
        self._kinematics = kinematics
        self._solver = ArmSolver(robot, kinematics.model)

    def joints(self, side: str) -> NDArray[np.intp]:
        """(n,) positions in q of the arm and finger joints of one side, in that order."""
        hand = self._robot.hands[side]
        return self._robot.indices((*hand.arm, *hand.fingers))

    def clip(self, side: str, value: NDArray) -> NDArray:
        """Joints (n,) of one side within their limits, radians."""
        joints = self.joints(side)
        return np.clip(value, self._robot.lower[joints], self._robot.upper[joints])

    def rotation(self, side: str, roll: float, pitch: float, yaw: float) -> NDArray[np.float64]:
        """Orientation of the wrist link where the hand yaws, then pitches (fingers down), then
        rolls (palm down); radians."""
        hand = euler2mat(yaw, pitch, sign_of(side) * roll, "rzyx")
        return hand @ self._robot.hands[side].axes.T

    def value(
        self,
        side: str,
        position: NDArray,
        roll: float,
        pitch: float,
        yaw: float,
        flex: float,
    ) -> NDArray:
        """As ``value_at``, for a wrist at ``position`` (3,) metres turned as in ``rotation``."""
        return self.value_at(side, self.rotation(side, roll, pitch, yaw), position, flex)

    def value_at(
        self,
        side: str,
        rotation: NDArray,
        position: NDArray,
        flex: float,
        *,
        held: ArrayLike = (0.0, 0.0, 0.0),
    ) -> NDArray[np.float64]:
        """Arm and finger joints (n,) for a wrist pose and how far the hand is closed (0 to 1;
        below 0 the thumb is spread back).

        The search starts at the neutral pose, so that the elbow always lies the same way. An arm
        that cannot turn its hand freely brings ``held``, a point in the wrist's frame, to where
        it would be in the pose.
        """
        hand = self._robot.hands[side]
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = rotation, position
        q = self._solver.reach({side: pose}, self._robot.neutral, iterations=40)
        for _ in range(0 if hand.turns_freely else _CORRECTIONS):
            turned = self._kinematics.link_poses(q, [hand.wrist])[0, :3, :3]
            pose[:3, 3] = position + (rotation - turned) @ held
            q = self._solver.reach({side: pose}, self._robot.neutral, iterations=40)
        fingers = np.array(hand.open) + flex * (np.array(hand.closed) - np.array(hand.open))
        return self.clip(side, np.concatenate([q[self._robot.indices(hand.arm)], fingers]))

    def lowest(self, side: str, roll: float, pitch: float) -> float:
        """Height (m) at which a wrist's thumb (palm down) and fingers (pitched) clear the table."""
        hand = self._robot.hands[side]
        thumb = hand.thumb_reach * max(0.0, np.sin(roll))
        fingers = hand.finger_reach * max(0.0, np.sin(pitch))
        return self._scene.table_height + 0.055 + max(thumb, fingers)

    def wrist_angles(self) -> tuple[float, float, float]:
        """Roll (palm down positive), pitch (fingers down) and yaw (outwards), radians."""
        rng = self._rng
        return rng.uniform(0.0, 1.45), rng.uniform(-0.25, 0.4), rng.uniform(-0.45, 0.3)

    def random_value(
        self, side: str, *, roll: float | None = None, flex: float | None = None
    ) -> NDArray[np.float64]:
        """Joints of one side for a random place above the table, in view of the camera."""
        rng, sign = self._rng, sign_of(side)
        sampled_roll, pitch, yaw = self.wrist_angles()
        roll = sampled_roll if roll is None else roll
        lowest = self.lowest(side, roll, pitch)
        position = np.array(
            [
                rng.uniform(0.17, 0.29),
                # With the palm sideways the thumb points at the other hand.
                sign * rng.uniform(0.06 + 0.06 * np.cos(roll), 0.2),
                rng.uniform(lowest, max(lowest + 0.03, self._scene.table_height + 0.23)),
            ]
        )
        position[:2] += self._scene.origin[:2]
        closing = rng.uniform(0.0, 0.85) if flex is None else flex
        value = self.value(side, position, roll, pitch, sign * yaw, closing)
        hand = self._robot.hands[side]
        if flex is None:  # fingers differ from each other
            span = np.array(hand.closed) - np.array(hand.open)
            value[len(hand.arm) :] += rng.normal(0, 0.12, len(span)) * span
            first_thumb = len(hand.arm)
            value[first_thumb] += rng.normal(0, 0.2)
        return self.clip(side, value)


def other_side(side: str) -> str:
    """The name of the hand that ``side`` is not."""
    return "right" if side == "left" else "left"


def sign_of(side: str) -> int:
    """1 for the left hand, -1 for the right: mirrors y, roll and yaw."""
    return 1 if side == "left" else -1
