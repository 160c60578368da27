"""Time of forward kinematics: one state, a batch, and pinocchio alone beside them.

python benchmarks/kinematics.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pinocchio as pin

from ego_world_model.embodiment import load_embodiment
from ego_world_model.kinematics import HandKinematics


def microseconds(function: Callable[[], object], repeats: int, states: int = 1) -> list[float]:
    """Median and 90th percentile over five rounds, µs per state, after a warm-up round."""
    rounds = []
    for _ in range(6):
        start = time.perf_counter()
        for _ in range(repeats):
            function()
        rounds.append((time.perf_counter() - start) / (repeats * states) * 1e6)
    return [float(np.median(rounds[1:])), float(np.percentile(rounds[1:], 90))]


def main() -> None:
    robot = load_embodiment("g1_dex3")
    fk = HandKinematics(robot)
    states = np.random.default_rng(0).uniform(robot.lower, robot.upper, (1000, len(robot.lower)))
    q = states[0]
    slots = list(robot.slots)
    rows = {
        "pinocchio, all frames, no reading": microseconds(
            lambda: pin.framesForwardKinematics(fk.model, fk.data, q), 2000
        ),
        "hand_joints, one state": microseconds(lambda: fk.hand_joints(q), 2000),
        "hand_joints_batch, 1000 states": microseconds(
            lambda: fk.hand_joints_batch(states), 5, len(states)
        ),
        "slot_positions, 1000 states": microseconds(
            lambda: fk.slot_positions(states, slots), 5, len(states)
        ),
    }
    print("| forward kinematics (G1 with Dex3-1) | median µs per state | p90 |")
    print("| --- | --- | --- |")
    for name, (median, p90) in rows.items():
        print(f"| {name} | {median:.1f} | {p90:.1f} |")


if __name__ == "__main__":
    main()
