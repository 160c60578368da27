"""Accuracy of the camera calibration: frames, annotation noise, joint zeros that are off.

python benchmarks/calibration.py                 # tables in Markdown, two minutes

Poses are those of the simulated robot at its tasks, chosen as the command chooses them. The mount
is displaced at random by up to 3 cm and 5 degrees on every axis; ten joints in the picture are
annotated per frame, with Gaussian noise.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from numpy.typing import NDArray

from ego_world_model.calibration import (
    AnnotatedFrame,
    CalibrationOptions,
    calibrate,
    corrected_mount,
)
from ego_world_model.calibration.frames import choose_diverse
from ego_world_model.embodiment import load_embodiment
from ego_world_model.kinematics import HandKinematics
from ego_world_model.simulation import TableTop

PER_FRAME = 10


def task_poses(kinematics: HandKinematics, seconds: float = 200.0) -> NDArray[np.float64]:
    """(N, nq) rad, five a second."""
    times, out = np.arange(0, 20, 0.2), []
    for seed in range(int(seconds // 20)):
        out.append(TableTop(kinematics.robot, seed=seed, split="test").plan(times))
    return np.concatenate(out)


def trial(
    kinematics: HandKinematics,
    poses: NDArray[np.float64],
    noise: float,
    offset: float,
    options: CalibrationOptions,
    rng: np.random.Generator,
) -> tuple[float, float, float, float]:
    """Errors in mm and degrees, RMS px and seconds of one calibration with random annotations."""
    robot = kinematics.robot
    turn, shift = np.radians(rng.uniform(-5, 5, 3)), rng.uniform(-0.03, 0.03, 3)
    mount = corrected_mount(robot.camera_pose, turn, shift)
    arms = robot.indices(tuple(joint for hand in robot.hands.values() for joint in hand.arm))
    offsets = np.zeros(len(robot.joint_names))
    offsets[arms] = np.radians(offset) * rng.normal(size=len(arms))
    slots, camera = [slot for slot in robot.slots if "elbow" not in slot], robot.camera
    frames = []
    for number, q in enumerate(poses):
        pose = kinematics.camera_pose(q + offsets, mount)
        points = kinematics.slot_positions((q + offsets)[None], slots)[0]
        pixels = camera.project((points - pose[:3, 3]) @ pose[:3, :3])
        pixels = pixels + noise * rng.normal(size=pixels.shape)
        seen = np.flatnonzero(camera.contains(pixels))
        chosen = rng.permutation(seen)[:PER_FRAME]
        named = {slots[i]: tuple(pixels[i].tolist()) for i in chosen}
        frames.append(AnnotatedFrame(name=str(number), q=q, camera=camera, pixels=named))
    start = time.perf_counter()
    result = calibrate(frames, kinematics, options=options)
    seconds = time.perf_counter() - start
    difference = result.mount.rotation.T @ mount.rotation
    angle = np.degrees(np.arccos(np.clip((np.trace(difference) - 1) / 2, -1, 1)))
    return float(1e3 * np.linalg.norm(result.translation - shift)), angle, result.rms, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--robot", default="g1_dex3", help="embodiment name or YAML file")
    parser.add_argument("--trials", type=int, default=50)
    options = parser.parse_args()
    kinematics = HandKinematics(load_embodiment(options.robot))
    q = task_poses(kinematics)
    arms = tuple(j for hand in kinematics.robot.hands.values() for j in hand.arm)
    plain, refined = CalibrationOptions(), CalibrationOptions(refine_joints=arms)
    rows = [(count, noise, 0.0, plain) for noise in (0.0, 2.0, 4.0) for count in (3, 6, 12, 24)]
    rows += [(count, 2.0, 0.5, o) for count in (12, 24) for o in (plain, refined)]
    print("| frames | noise px | joint zeros off by | refined | median mm | 95 % mm |", end="")
    print(" median ° | 95 % ° | RMS px | solve s |\n|" + " --- |" * 10)
    cameras = [kinematics.robot.camera] * len(q)
    for count, noise, offset, how in rows:
        poses = q[choose_diverse(kinematics, q, cameras, count)]
        rng = np.random.default_rng(0)
        runs = np.array(
            [trial(kinematics, poses, noise, offset, how, rng) for _ in range(options.trials)]
        )
        mm, degrees = (np.percentile(runs[:, i], (50, 95)) for i in (0, 1))
        rms, seconds = np.median(runs[:, 2:], axis=0)
        print(
            f"| {count} | {noise:g} | {offset:g}° | {'arm joints' if how is refined else 'no'} | "
            f"{mm[0]:.2f} | {mm[1]:.2f} | {degrees[0]:.2f} | {degrees[1]:.2f} | {rms:.2f} | "
            f"{seconds:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
