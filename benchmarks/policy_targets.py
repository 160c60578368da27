"""From chunks to a robot: tracking error and time of joint targets, and what filtering and blending
do to the motion.

python benchmarks/policy_targets.py [--policy tiny]

Without a policy the chunks are scripted motion (what the robot can do), for the tracking error, and
the same with an error of its own for every chunk, for filtering and blending. With a policy, its
chunks are executed in the simulation, the real thing.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated

import numpy as np
import typer

from ego_world_model.embodiment import load_embodiment
from ego_world_model.kinematics import HandKinematics, matrix_from_6d
from ego_world_model.policy.chunk import HandChunk
from ego_world_model.policy.execution import ChunkExecutor, border_ratios, jitter
from ego_world_model.policy.filtering import TemporalOrthogonalFilter
from ego_world_model.policy.limits import JointLimits
from ego_world_model.policy.targets import joint_targets
from ego_world_model.simulation import TableTop

_ROBOTS = ("g1_dex3", "h1_2_inspire", "h1_inspire")
_TIMES = 0.1 * np.arange(1, 17)
_TASKS = ("reach", "grasp", "bimanual")


def scripted(sim: TableTop, fk: HandKinematics, start: float) -> tuple[np.ndarray, HandChunk]:
    """Configuration (nq,) ``start`` seconds from now and the chunk of what follows it."""
    first, *rest = sim.plan(start + np.concatenate([[0.0], _TIMES]))
    to_camera = np.linalg.inv(fk.camera_pose(first, sim.camera_pose))
    states = [fk.hand_state(q, sim.camera_pose) for q in rest]
    moved = [to_camera @ fk.camera_pose(q, sim.camera_pose) for q in rest]
    pairs = list(zip(states, moved, strict=True))
    chunk = HandChunk(
        _TIMES,
        np.array([s.translation @ m[:3, :3].T + m[:3, 3] for s, m in pairs]),
        np.array([m[:3, :3] @ matrix_from_6d(s.rotation) for s, m in pairs]),
        np.array([s.fingers for s in states]),
        states[0].valid,
        states[0].finger_names,
    )
    return first, chunk


def tracking(name: str) -> str:
    """A table row: wrist errors and time of joint targets over scripted chunks."""
    fk = HandKinematics(load_embodiment(name))
    limits = JointLimits(fk)
    metres, radians, wall, cpu = [], [], [], []
    for seed, task in enumerate(_TASKS * 3):
        sim = TableTop(fk.robot, seed=seed, task=task, width=64, height=48, still=True)
        for start in np.arange(0.0, 3.0, 0.5):
            q0, chunk = scripted(sim, fk, start)
            begun = time.perf_counter(), time.process_time()
            targets = joint_targets(chunk, fk, q0, sim.camera_pose, limits=limits)
            wall.append(time.perf_counter() - begun[0])
            cpu.append(time.process_time() - begun[1])
            metres.append(targets.position_error.max())
            radians.append(targets.rotation_error.max())
        sim.close()
    cells = [
        *(f"{1e3 * np.percentile(metres, p):.2f}" for p in (50, 95, 100)),
        *(f"{np.percentile(radians, p):.3f}" for p in (50, 95, 100)),
        *(f"{1e3 * value:.0f}" for value in (np.median(cpu), min(cpu), np.median(wall))),
    ]
    return f"| {name} | {len(metres)} | " + " | ".join(cells) + " |"


def execution(name: str, policy: str | None, *, most: int | None) -> str:
    """A table row: borders and jitter of executed chunks, one every 0.3 s, 0.15 s late.

    Args:
        most: chunks that are averaged; None: as many as overlap.
    """
    robot = load_embodiment(name)
    fk = HandKinematics(robot)
    limits = JointLimits(fk)
    model = None
    if policy:
        from ego_world_model.policy import MotionPolicy

        model = MotionPolicy.from_pretrained(policy)
    ratios, others, calm = [], [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        sim = TableTop(robot, seed=seed, task="reach", still=True)
        camera, goal = sim.camera_pose, sim.goal
        executor = ChunkExecutor(limits, sim.joint_positions, 0.0)
        smoother = TemporalOrthogonalFilter(most=most)
        times, q, borders, slow = [], [], [], []
        for observed in 0.3 * np.arange(12):
            start = executor.at(observed)
            if model is None:
                _, chunk = scripted(sim, fk, observed)
                offset = 0.01 * rng.normal(size=(2, 3))
                chunk = replace(chunk, translation=chunk.translation + offset)
            else:
                seen = sim.render(depth=True)
                state = fk.hand_state(start, camera)
                chunk = model.predict(
                    seen.rgb,
                    state,
                    sim.camera.matrix,
                    instruction=goal.instruction,
                    depth=seen.depth,
                    seed=len(q),
                )
            chunk = smoother.push(observed, chunk, fk.camera_pose(start, camera))
            targets = joint_targets(chunk, fk, start, camera, limits=limits)
            executor.push(targets, observed, observed + 0.15)
            grid = observed + 0.15 + 0.05 * np.arange(6)
            times.append(grid)
            q.append(executor.at(grid))
            borders.append(observed + 0.15)
            if model is not None:
                ahead = 0.05 * np.arange(1, 7)
                sim.follow(ahead, executor.at(observed + ahead))
                sim.advance(0.3)
            slow.append(executor.at(observed + 0.15 + np.array([0.0, 0.1, 0.2])))
        sim.close()
        ratios.extend(border_ratios(np.concatenate(times), np.vstack(q), borders[1:]))
        lengths = np.linalg.norm(np.diff(np.vstack(q), axis=0), axis=1)
        inside = np.delete(lengths, 6 * np.arange(1, len(borders)))
        others.extend(inside / np.median(inside))
        slow = np.vstack(slow)
        calm.append(jitter(0.1 * np.arange(len(slow)), slow))
    cells = [f"{np.percentile(ratios, p):.2f}" for p in (50, 90, 100)]
    cells.append(f"{np.percentile(others, 90):.2f}")
    label = {1: "as predicted", None: "mean of all"}.get(most, f"mean of {most}")
    return f"| {name} | {label} | " + " | ".join(cells) + f" | {np.mean(calm):.2f} |"


def main(policy: Annotated[str | None, typer.Option(help="Checkpoint, or none.")] = None) -> None:
    print("| robot | N | wrist mm p50 | p95 | max | rad p50 | p95 | max | CPU ms | least | wall |")
    print("| --- " * 11 + "|")
    for name in _ROBOTS:
        print(tracking(name), flush=True)
    print(
        "\n| robot | chunks | border step / median p50 | p90 | max | inside p90 | jitter rad²/s⁶ |"
    )
    print("| --- " * 7 + "|")
    for name in _ROBOTS if policy is None else _ROBOTS[:2]:
        for most in (1, 2, None):
            print(execution(name, policy, most=most), flush=True)


if __name__ == "__main__":
    typer.run(main)
