"""The closed loop: see, predict, solve the joints, follow them for a while, see again."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ego_world_model.camera import CameraPose
from ego_world_model.data.generate import average_down, coarser_facets, depth_millimetres
from ego_world_model.evaluation.policy.chunks import state_from_joints
from ego_world_model.evaluation.policy.outcomes import (
    SUCCESS,
    Watcher,
    acting_side,
    chosen_object,
    closest_approach,
    failure,
)
from ego_world_model.evaluation.policy.predictors import Moment, Predictor
from ego_world_model.evaluation.policy.windows import DepthNoise
from ego_world_model.kinematics import HandKinematics
from ego_world_model.policy.chunk import HandChunk
from ego_world_model.policy.limits import JointLimits
from ego_world_model.policy.targets import joint_targets
from ego_world_model.simulation import Goal, TableTop

FRAME = 0.1
"""Seconds between frames: the least between two predictions, and between two states of a hand."""
_LOOK = 0.05
"""Seconds between two looks at whether the goal is achieved."""
_MISSED = 0.01
"""Metres from which on a wrist target counts as missed by the joints."""


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How an episode is run.

    Attributes:
        seconds: after which an episode without success has failed.
        replan: seconds between predictions, a multiple of ``FRAME``.
        width, height: pixels of the images that the policy sees.
        oversample: images are rendered this many times as large and averaged down, as in datasets.
    """

    seconds: float = 10.0
    replan: float = 0.4
    width: int = 128
    height: int = 96
    oversample: int = 2

    def __post_init__(self) -> None:
        frames = self.replan / FRAME
        if frames < 1 - 1e-6 or abs(frames - round(frames)) > 1e-6:
            raise ValueError(f"replan must be a multiple of {FRAME} s, got {self.replan}")


class Executor(Protocol):
    """Turns chunks into joint angles that the robot can follow.

    Attributes:
        errors: metres, (N, 2) of each chunk so far: between wrists asked for and solved.
    """

    errors: list[NDArray[np.float64]]

    def joints(
        self, chunk: HandChunk, q0: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(N,) seconds from now and (N, nq) radians, from the configuration q0 (nq,)."""
        ...


class LimitedExecutor:
    """Joint targets within the robot's limits, as the node commands them."""

    def __init__(self, kinematics: HandKinematics, camera: CameraPose) -> None:
        self._kinematics, self._camera = kinematics, camera
        self._limits = JointLimits(kinematics)
        self.errors: list[NDArray[np.float64]] = []

    def joints(
        self, chunk: HandChunk, q0: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        targets = joint_targets(chunk, self._kinematics, q0, self._camera, limits=self._limits)
        self.errors.append(targets.position_error)
        return targets.times, targets.q


@dataclass(frozen=True)
class LoopResult:
    """How an episode went.

    Attributes:
        outcome: ``SUCCESS`` or one of ``FAILURES``. time: seconds until success, or NaN.
        acting: the hand that acted. chosen: number of the object that it went for.
        closest: metres, see ``closest_approach``.
        predictions: number of chunks; prediction_seconds: mean wall time of one.
        tracking: metres between the wrists that were asked for and those of the joint targets,
            mean; missed: share of them farther off than ``_MISSED``.
    """

    outcome: str
    time: float
    acting: str
    chosen: int
    closest: float
    predictions: int
    prediction_seconds: float
    tracking: float
    missed: float

    @property
    def success(self) -> bool:
        return self.outcome == SUCCESS


@dataclass
class Recording:
    """Frames of an episode, for pictures of it.

    Attributes:
        times: seconds. images: (H, W, 3) uint8 as rendered. chunks: the one under way.
    """

    times: list[float] = field(default_factory=list)
    images: list[NDArray[np.uint8]] = field(default_factory=list)
    chunks: list[tuple[float, HandChunk]] = field(default_factory=list)


def make_table(robot: Any, *, seed: int, split: str, task: str, options: LoopOptions) -> TableTop:
    """A scene as the episodes of a dataset have it, rendering as they do."""
    sim = TableTop(
        robot,
        seed=seed,
        split=split,
        task=task,
        width=options.oversample * options.width,
        height=options.oversample * options.height,
        still=True,
    )
    if options.oversample > 1:
        coarser_facets(sim)
    return sim


def run_episode(
    sim: TableTop,
    goal: Goal,
    predictor: Predictor,
    kinematics: HandKinematics,
    *,
    options: LoopOptions,
    executor: Executor | None = None,
    depth: bool = True,
    depth_noise: DepthNoise | None = None,
    seed: int = 0,
    recording: Recording | None = None,
) -> LoopResult:
    """Let a predictor move the robot until the goal is achieved or time is up.

    The robot holds its present configuration until the first chunk; computing takes no simulated
    time.

    Args:
        kinematics: of the robot of ``sim``.
        executor: joint angles of chunks; ``LimitedExecutor`` if None.
        depth: whether the predictor looks at depth; depth_noise is applied to it.
        seed: of the noise and of the predictor's draws.
        recording: gets a frame every ``FRAME`` seconds.

    Raises:
        ValueError: for a goal that nothing measures.
    """
    executor = executor or LimitedExecutor(kinematics, sim.camera_pose)
    sim.follow([0.0], sim.joint_positions[None])
    began = sim.time
    watcher = Watcher(sim, kinematics)
    watcher.look()
    before = sim.joint_positions
    wall, predictions, outcome, seconds = 0.0, 0, "", float("nan")
    every = round(options.replan / FRAME)
    for frame in range(round(options.seconds / FRAME)):
        replan = frame % every == 0
        seen = sim.render(depth=depth) if replan or recording is not None else None
        if replan:
            moment = _moment(sim, kinematics, seen, before, goal, frame, options, depth_noise, seed)
            start = time.perf_counter()
            chunk = predictor.predict(moment)
            wall += time.perf_counter() - start
            predictions += 1
            ahead = _beginning(chunk, options.replan)
            sim.follow(*executor.joints(ahead, sim.joint_positions))
            if recording is not None:
                recording.chunks.append((frame * FRAME, chunk))
        if recording is not None:
            recording.times.append(frame * FRAME)
            recording.images.append(seen.rgb)
        before = sim.joint_positions
        for _ in range(round(FRAME / _LOOK)):
            sim.advance(_LOOK)
            watcher.look()
            if sim.achieved(goal):
                outcome, seconds = SUCCESS, sim.time - began
                break
        if outcome:
            break
    trace = watcher.trace
    if not outcome:
        items = sim.scene.objects
        heights = np.array([item.height for item in items])
        outcome = failure(trace, goal, heights, items[goal.target].radius)
    if recording is not None:
        recording.times.append(sim.time - began)
        recording.images.append(sim.render(depth=False).rgb)
    side = acting_side(trace)
    errors = np.concatenate(executor.errors)
    errors = errors[np.isfinite(errors)]
    return LoopResult(
        outcome=outcome,
        time=round(seconds, 3),
        acting=side,
        chosen=chosen_object(trace, side),
        closest=round(closest_approach(trace, goal), 4),
        predictions=predictions,
        prediction_seconds=round(wall / predictions, 4),
        tracking=round(float(errors.mean()), 5),
        missed=round(float((errors > _MISSED).mean()), 4),
    )


def _beginning(chunk: HandChunk, seconds: float) -> HandChunk:
    """The steps that are followed until the next chunk, and one more: the rest need no joints."""
    count = min(len(chunk), int(np.searchsorted(chunk.times, seconds - 1e-6)) + 2)
    return HandChunk(
        chunk.times[:count],
        chunk.translation[:count],
        chunk.rotation[:count],
        chunk.fingers[:count],
        chunk.valid,
        chunk.finger_names,
    )


def _moment(
    sim: TableTop,
    kinematics: HandKinematics,
    seen: Any,
    before: NDArray[np.float64],
    goal: Goal,
    frame: int,
    options: LoopOptions,
    depth_noise: DepthNoise | None,
    seed: int,
) -> Moment:
    """What the robot knows now, its camera's true mount included."""
    q, scale = sim.joint_positions, options.oversample
    pose = kinematics.camera_pose(q, sim.camera_pose)
    depth = None
    if seen.depth is not None:
        depth = depth_millimetres(seen.depth, scale).astype(np.float32) / 1000
    if depth is not None and depth_noise is not None:
        depth = depth_noise(depth, np.random.default_rng((seed, frame)))
    return Moment(
        image=average_down(seen.rgb, scale),
        depth=depth,
        intrinsics=sim.camera.resized(options.width, options.height).matrix,
        state=state_from_joints(kinematics, q, pose),
        previous=state_from_joints(kinematics, before, pose),
        interval=FRAME,
        instruction=goal.instruction,
        seed=seed * 1000 + frame,
        time=frame * FRAME,
    )
