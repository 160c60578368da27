"""A robot whose camera sits off its nominal mount, and the pixels an annotator would give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ego_world_model.calibration import AnnotatedFrame
from ego_world_model.camera import CameraPose, PinholeCamera
from ego_world_model.kinematics import HandKinematics


def diverse_poses(kinematics: HandKinematics, count: int, seed: int = 0) -> list[NDArray]:
    """Configurations around the neutral one, arms, fingers and waist moved at random."""
    robot, rng = kinematics.robot, np.random.default_rng(seed)
    moving = [name for hand in robot.hands.values() for name in (*hand.arm, *hand.fingers)]
    arms = robot.indices(tuple(moving))
    waist = robot.indices(tuple(name for name in robot.joint_names if "waist" in name))
    poses = []
    for _ in range(count):
        q = robot.neutral.copy()
        q[arms] += rng.normal(0, 0.2, len(arms))
        q[waist] += rng.uniform(-0.3, 0.3, len(waist))
        poses.append(np.clip(q, robot.lower, robot.upper))
    return poses


def pixels(
    kinematics: HandKinematics, q: NDArray, mount: CameraPose, camera: PinholeCamera
) -> dict[str, tuple[float, float]]:
    """Exact pixels of the hand slots that lie in the picture."""
    slots = [name for name in kinematics.robot.slots if not name.endswith(("elbow", "forearm"))]
    points = kinematics.slot_positions(q[None], slots)[0]
    pose = kinematics.camera_pose(q, mount)
    seen = camera.project((points - pose[:3, 3]) @ pose[:3, :3])
    return {s: tuple(p) for s, p in zip(slots, seen.tolist()) if camera.contains(p)}


def annotated(
    kinematics: HandKinematics,
    poses: Sequence[NDArray],
    mount: CameraPose,
    *,
    camera: PinholeCamera | None = None,
    noise: float = 0.0,
    seed: int = 0,
    offsets: NDArray | float = 0.0,
) -> list[AnnotatedFrame]:
    """Frames with annotations that are off by Gaussian ``noise`` (px per coordinate).

    ``offsets`` (nq,) rad is how far the real joints are from the measured ones.
    """
    camera, rng = camera or kinematics.robot.camera, np.random.default_rng(seed)
    frames = []
    for number, q in enumerate(poses):
        found = {}
        for slot, pixel in pixels(kinematics, q + offsets, mount, camera).items():
            clicked = tuple(np.array(pixel) + noise * rng.normal(size=2))
            if camera.contains(clicked):
                found[slot] = clicked
        frames.append(AnnotatedFrame(name=f"frame {number}", q=q, camera=camera, pixels=found))
    return frames
