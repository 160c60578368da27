"""The scripted expert as a predictor: what the tasks' own plans achieve through the same chain."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ego_world_model.evaluation.policy.chunks import chunk_from_joints
from ego_world_model.evaluation.policy.predictors import FPS, STEPS, Moment
from ego_world_model.kinematics import HandKinematics
from ego_world_model.policy.chunk import HandChunk
from ego_world_model.simulation import TableTop


@dataclass(frozen=True)
class ScriptedExpert:
    """The simulation's plan of the task, cut into chunks; it looks at nothing.

    Attributes:
        times: (M,) seconds from the episode's start. q: (M, nq) radians planned then.
        camera_pose: (4, 4) root_T_optical; the torso rests in the tasks that are evaluated.
        chunk_times: (N,) seconds of each chunk's steps.
    """

    kinematics: HandKinematics
    times: NDArray[np.float64]
    q: NDArray[np.float64]
    camera_pose: NDArray[np.float64]
    chunk_times: NDArray[np.float64] = field(default_factory=lambda: np.arange(1, STEPS + 1) / FPS)

    @classmethod
    def of(cls, sim: TableTop, kinematics: HandKinematics, *, step: float = 0.05) -> ScriptedExpert:
        """The plan of the task that ``sim`` is about to do; read it before ``sim.follow``."""
        # The plan's very end belongs to the next task, so stop just before it.
        times = np.arange(0.0, sim.task_end - sim.time - 1e-3, step)
        return cls(
            kinematics,
            times,
            sim.plan(times),
            kinematics.camera_pose(sim.joint_positions, sim.camera_pose),
        )

    def predict(self, moment: Moment) -> HandChunk:
        at = np.clip(moment.time + self.chunk_times, 0, self.times[-1])
        q = np.stack([np.interp(at, self.times, column) for column in self.q.T], axis=1)
        return chunk_from_joints(self.kinematics, self.chunk_times, q, self.camera_pose)
