"""Accuracy of the camera-joint delay: robots, injected delays, what may disturb it.

python benchmarks/camera_delay.py                # tables in Markdown, ten minutes

Recordings are of the simulated robot at its tasks: pictures at 30 Hz from MuJoCo, stamped late by
the injected delay, and joint states at 125 Hz.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ego_world_model.calibration import corrected_mount
from ego_world_model.calibration.delay import DelayError, Take, estimate_delay, reduced
from ego_world_model.embodiment import load_embodiment
from ego_world_model.kinematics import HandKinematics
from ego_world_model.simulation import TableTop

FPS, JOINT_RATE = 30.0, 125.0
TURN, SHIFT = np.radians((4.0, -3.0, 2.0)), np.array((0.02, -0.025, 0.015))


def record(robot: str, seed: int, seconds: float) -> tuple[Take, Take]:
    """A recording without delay, hands placed by the true mount and by one that is off."""
    embodiment = load_embodiment(robot)
    sim = TableTop(embodiment, seed=seed, split="test", width=320, height=240, camera_jitter=False)
    images, q = [], []
    joint_times = np.arange(round(seconds * JOINT_RATE)) / JOINT_RATE
    for k in range(round(seconds * FPS)):
        image, camera = reduced(sim.render(depth=False).rgb, sim.camera)
        images.append(image)
        due = joint_times[len(q) :]
        q.extend(sim.plan(due[due < (k + 1) / FPS - 1e-9] - sim.time))
        sim.advance(1 / FPS)
    sim.close()
    kinematics = HandKinematics(embodiment)

    def take(points: NDArray[np.float32], valid: NDArray[np.bool_]) -> Take:
        return Take(
            times=np.arange(len(images)) / FPS,
            images=np.stack(images),
            camera=camera,
            joint_times=joint_times[: len(q)],
            points=points[:, valid].astype(np.float64),
        )

    wrong = corrected_mount(embodiment.camera_pose, TURN, SHIFT)
    return (
        take(*kinematics.hand_joints_batch(np.array(q), extra_slots=embodiment.extra_slots)),
        take(*kinematics.hand_joints_batch(np.array(q), wrong, extra_slots=embodiment.extra_slots)),
    )


def late(take: Take, delay: float) -> Take:
    return replace(take, times=take.times + delay)


def per_frame(take: Take, delay: float) -> Take:
    """Joints at the frames' stamps alone, as in a dataset."""
    shifted = late(take, delay)
    shape = take.points.shape[1:]
    flat = take.points.reshape(len(take.points), -1)
    points = np.stack([np.interp(shifted.times, take.joint_times, c) for c in flat.T], axis=1)
    return replace(shifted, joint_times=shifted.times, points=points.reshape(-1, *shape))


def slower(take: Take, delay: float) -> Take:
    """Every third frame: a camera of 10 Hz."""
    return late(replace(take, times=take.times[::3], images=take.images[::3]), delay)


def noisy(take: Take, delay: float) -> Take:
    noise = np.random.default_rng(0).normal(0.0, 4.0, take.images.shape)
    images = np.clip(np.rint(take.images + noise), 0, 255).astype(np.uint8)
    return late(replace(take, images=images), delay)


def row(label: str, takes: list[Take], delay: float, change: Callable[[Take, float], Take]) -> None:
    """One line: errors over the recordings, stated deviations, refusals."""
    errors, deviations, refused = [], [], 0
    started = time.perf_counter()
    for take in takes:
        try:
            estimate = estimate_delay([change(take, delay)])
        except DelayError:
            refused += 1
            continue
        errors.append(1e3 * (estimate.delay - delay))
        deviations.append(1e3 * estimate.deviation)
    seconds = (time.perf_counter() - started) / len(takes)
    worst = f"{np.abs(errors).max():.1f}" if errors else "-"
    mean = f"{np.mean(errors):+.1f}" if errors else "-"
    stated = f"{min(deviations):.1f} to {max(deviations):.1f}" if errors else "-"
    print(
        f"| {label} | {1e3 * delay:g} | {mean} | {worst} | {stated} | {refused} of {len(takes)} | "
        f"{seconds:.1f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--robots", nargs="+", default=["g1_dex3", "h1_2_inspire"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each recording")
    options = parser.parse_args()
    print(
        "| recording | injected ms | mean error ms | worst ms | stated sd ms | refused | s each |"
    )
    print("|" + " --- |" * 7)
    for robot in options.robots:
        pairs = [record(robot, seed, options.seconds) for seed in range(options.seeds)]
        takes, displaced = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        for delay in (-0.04, 0.0, 0.04, 0.08):
            row(robot, takes, delay, late)
        row(f"{robot}, joints at frames only", takes, 0.04, per_frame)
        row(f"{robot}, camera at 10 Hz", takes, 0.04, slower)
        row(f"{robot}, pixel noise 4 of 255", takes, 0.04, noisy)
        row(f"{robot}, mount off by 35 mm, 5.4°", displaced, 0.04, late)
        others = [
            replace(take, joint_times=other.joint_times, points=other.points)
            for take, other in zip(takes, takes[1:] + takes[:1], strict=True)
        ]
        row(f"{robot}, joints of another recording", others, 0.0, late)


if __name__ == "__main__":
    main()
