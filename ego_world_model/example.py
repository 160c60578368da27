"""``ego-world-model example``: a frame and hand trajectories from the simulator, to begin with.

Everything starts at one simulated moment: the robot's own plan, and what else the hands could do
from there. One image with several futures shows whether a model obeys the joints.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from ego_world_model.embodiment import Embodiment, load_embodiment
from ego_world_model.hands import EXTRA_SLOTS, SLOTS_PER_HAND
from ego_world_model.kinematics import HandKinematics, UnreachableError
from ego_world_model.media import write_png
from ego_world_model.trajectory_file import save_trajectory

if TYPE_CHECKING:
    from ego_world_model.simulation import TableTop

LOOK_IN, PATIENCE = 1.5, 30.0
"""Seconds of simulation before the first look, and in all until both hands are in the picture."""

MOVES: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "raise_left": ((0.0, -0.10, 0.0), (0.0, 0.0, 0.0)),
    "raise_right": ((0.0, 0.0, 0.0), (0.0, -0.10, 0.0)),
    "apart": ((-0.08, 0.0, 0.0), (0.08, 0.0, 0.0)),
    "together": ((0.08, -0.03, 0.0), (-0.08, -0.03, 0.0)),
    "withdraw": ((0.0, -0.04, -0.10), (0.0, -0.04, -0.10)),
}
"""Where each move takes the left and the right wrist: metres in the camera (right, down, away)."""


def example(
    out: Annotated[Path, typer.Option(help="Folder to write to; made if needed.")] = Path(
        "example"
    ),
    robot: Annotated[str, typer.Option(help="Embodiment name or YAML file.")] = "g1_dex3",
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another scene.")] = 0,
    seconds: Annotated[float, typer.Option(min=0.2, help="Length of the trajectories.")] = 2.0,
    fps: Annotated[float, typer.Option(min=1.0, help="Frames per second of them.")] = 10.0,
) -> None:
    """Write an example frame and hand trajectories, made by the simulator.

    frame.png is a held-out scene at 640x480; hands.npz the robot's own plan from there; the other
    files are other motions from the same start. All are valid input of `ego-world-model imagine`.
    """
    from ego_world_model.simulation import TableTop  # needs a renderer; the help does not

    embodiment = load_embodiment(robot)
    fk = HandKinematics(embodiment)
    times = np.arange(round(seconds * fps) + 1) / fps
    sim = TableTop(embodiment, seed=seed, split="test")
    try:
        wait_for_hands(sim, fk)
        write_png(out / "frame.png", sim.render(depth=False).rgb)
        start, camera, mount, task = sim.joint_positions, sim.camera, sim.camera_pose, sim.task
        plans = {"hands": (sim.plan(times), task)}
    finally:
        sim.close()
    plans.update(other_motions(fk, start, times))
    typer.echo(f"{out / 'frame.png'}: {camera.width}x{camera.height}")
    for name, (q, instruction) in plans.items():
        motion = fk.trajectory(times, q, mount, extra_slots=EXTRA_SLOTS)
        path = save_trajectory(out / f"{name}.npz", motion, camera=camera, instruction=instruction)
        typer.echo(f"{path}: {instruction}")
    typer.echo(
        f"try: ego-world-model imagine --image {out / 'frame.png'} "
        f"--trajectory {out / 'hands.npz'} --out rollout.mp4"
    )


def wait_for_hands(sim: TableTop, fk: HandKinematics) -> None:
    """Let the simulation run until most joints of both hands are in the picture.

    Raises:
        ValueError: if that does not happen within ``PATIENCE`` seconds.
    """
    sim.advance(LOOK_IN)
    while sim.time < PATIENCE:
        hands = fk.hand_joints(sim.joint_positions, sim.camera_pose)
        seen = sim.camera.contains(sim.camera.project(hands.positions)) & hands.valid
        sides = slice(0, SLOTS_PER_HAND), slice(SLOTS_PER_HAND, 2 * SLOTS_PER_HAND)
        if all(seen[side].sum() >= 0.8 * hands.valid[side].sum() for side in sides):
            return
        sim.advance(0.25)
    raise ValueError(
        f"the hands are not both in the picture within {PATIENCE:g} s of this scene; try --seed N"
    )


def other_motions(
    fk: HandKinematics, start: NDArray[np.float64], times: NDArray[np.float64]
) -> dict[str, tuple[NDArray[np.float64], str]]:
    """Smooth motions from ``start`` (nq,): name → q (T, nq) radians and a description.

    A move that is out of reach is made shorter, and left out where even a third is out of reach.
    """
    motions = {}
    for name, shifts in MOVES.items():
        for part in (1.0, 0.66, 0.33):
            try:
                goal = moved_wrists(fk, start, part * np.array(shifts))
            except UnreachableError:
                continue
            motions[name] = (smooth(start, goal, times), f"{name.replace('_', ' ')}, by script")
            break
    for word in ("close", "open"):
        goal = with_fingers(fk.robot, start, closed=word == "close")
        motions[f"{word}_hands"] = (smooth(start, goal, times), f"{word} both hands, by script")
    return motions


def moved_wrists(
    fk: HandKinematics, q: NDArray[np.float64], shifts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Joints (nq,) with the wrists moved by ``shifts`` (2, 3) metres in the camera's axes."""
    state = fk.hand_state(q)
    return fk.solve(replace(state, translation=state.translation + shifts), q)


def with_fingers(robot: Embodiment, q: NDArray[np.float64], *, closed: bool) -> NDArray[np.float64]:
    """Joints (nq,) with all hands closed or open."""
    out = q.copy()
    for hand in robot.hands.values():
        out[robot.indices(hand.fingers)] = hand.closed if closed else hand.open
    return robot.coupled(np.clip(out, robot.lower, robot.upper))


def smooth(
    start: NDArray[np.float64], goal: NDArray[np.float64], times: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(T, nq): a minimum-jerk move from start to goal that takes three quarters of the time."""
    s = np.clip(times / (0.75 * times[-1]), 0, 1)
    blend = s**3 * (10 - 15 * s + 6 * s**2)
    return start + blend[:, None] * (goal - start)
