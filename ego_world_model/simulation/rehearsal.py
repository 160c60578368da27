"""Trying a planned motion before it is made: no collisions, and a grasp that takes hold."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ego_world_model.embodiment import Embodiment
from ego_world_model.hands import SLOT_NAMES, SLOTS_PER_HAND
from ego_world_model.kinematics import HandKinematics
from ego_world_model.simulation.motion import JointPlan
from ego_world_model.simulation.objects_motion import ObjectMotion, ObjectState
from ego_world_model.simulation.scene import Scene

_TABLE_CLEARANCE = {"wrist": 0.045, "finger": 0.014}  # metres from a joint's centre to the table
_HANDS_APART = 0.048  # metres between joint centres of the two hands
_CHECK_STEP = 0.05  # seconds between the states that are checked for collisions
_TRIAL_STEP = 0.04  # seconds between the states at which a grasp is tried out


class Rehearsal:
    """Judges motions of one robot in one scene."""

    def __init__(self, robot: Embodiment, scene: Scene, kinematics: HandKinematics) -> None:
        self._scene, self._kinematics = scene, kinematics
        self._motion = ObjectMotion(robot, kinematics, scene)
        self._slots = [name for name in SLOT_NAMES if name in robot.slots]
        self._is_left = np.array([SLOT_NAMES.index(n) < SLOTS_PER_HAND for n in self._slots])
        self._margin = np.array(
            [_TABLE_CLEARANCE["wrist" if n.endswith("wrist") else "finger"] for n in self._slots]
        )

    def succeeds(self, plan: JointPlan, objects: ObjectState, carried: int | None) -> bool:
        """Whether the hands stay clear, and take hold of the object number ``carried`` (if any):
        it may be pushed away before the hand closes."""
        count = max(2, int(plan.duration / _CHECK_STEP))
        if not self.is_clear(plan.at(np.linspace(0.0, plan.duration, count))):
            return False
        if carried is None:
            return True
        for q in plan.at(np.arange(0.0, plan.duration, _TRIAL_STEP)):
            objects = self._motion.step(objects, q, _TRIAL_STEP)
            if objects.holder[carried] >= 0:
                return True
        return False

    def is_clear(self, q: NDArray[np.float64]) -> bool:
        """Whether in all configurations q (N, nq) no joint is in the table or the other hand."""
        points = self._kinematics.slot_positions(q, self._slots)  # (N, S, 3)
        if (points[..., 2] - self._scene.table_height < self._margin).any():
            return False
        left, right = points[:, self._is_left], points[:, ~self._is_left]
        gaps = np.linalg.norm(left[:, :, None] - right[:, None], axis=-1)
        return bool(gaps.min() > _HANDS_APART)
