"""The simulated robot as a recorder sees it: pictures at 30 Hz, joint states at their own rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ego_world_model.calibration.delay import Take, reduced
from ego_world_model.camera import PinholeCamera
from ego_world_model.embodiment import Embodiment, load_embodiment
from ego_world_model.kinematics import HandKinematics
from ego_world_model.simulation import TableTop

FPS, JOINT_RATE = 30.0, 125.0


@dataclass(frozen=True)
class Motion:
    """``images`` (T, h, w, 3) at ``times`` (T,) s, ``q`` (N, nq) rad at ``joint_times`` (N,) s."""

    robot: Embodiment
    camera: PinholeCamera
    times: NDArray[np.float64]
    images: NDArray[np.uint8]
    joint_times: NDArray[np.float64]
    q: NDArray[np.float64]

    def take(self, delay: float, *, per_frame: bool = False) -> Take:
        """As the estimator reads it, with images stamped ``delay`` seconds late.

        Args:
            per_frame: as in a dataset, which has joints at the stamps of frames alone.
        """
        kinematics = HandKinematics(self.robot)
        times, joint_times, q = self.times + delay, self.joint_times, self.q
        if per_frame:
            q = np.stack([np.interp(times, joint_times, column) for column in q.T], axis=1)
            joint_times = times
        points, valid = kinematics.hand_joints_batch(q)
        small = [reduced(image, self.camera) for image in self.images]
        return Take(
            times=times,
            images=np.stack([image for image, _ in small]),
            camera=small[0][1],
            joint_times=joint_times,
            points=points[:, valid].astype(np.float64),
        )


def simulate(robot: str, seconds: float, *, seed: int = 0, width: int = 320) -> Motion:
    """The robot at its tasks, rendered by MuJoCo."""
    embodiment = load_embodiment(robot)
    sim = TableTop(
        embodiment,
        seed=seed,
        split="test",
        width=width,
        height=width * 3 // 4,
        camera_jitter=False,
    )
    images, q = [], []
    count = round(seconds * FPS)
    joint_times = np.arange(round(seconds * JOINT_RATE)) / JOINT_RATE
    for k in range(count):
        images.append(sim.render(depth=False).rgb)
        due = joint_times[len(q) :]
        due = due[due < (k + 1) / FPS - 1e-9]
        q.extend(sim.plan(due - sim.time))
        sim.advance(1 / FPS)
    sim.close()
    return Motion(
        robot=embodiment,
        camera=sim.camera,
        times=np.arange(count) / FPS,
        images=np.stack(images),
        joint_times=joint_times[: len(q)],
        q=np.array(q),
    )
