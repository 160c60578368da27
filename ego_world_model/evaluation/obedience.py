"""Different futures from one image: does the imagination follow each of them?

A benchmark on recorded clips asks for one future per image, and part of it can be guessed from the
image. Here one start of a simulated scene is given several futures that part widely; the simulator
renders each, and the imagination of each is held against that rendering.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ego_world_model.embodiment import Embodiment
from ego_world_model.evaluation import metrics
from ego_world_model.evaluation.benchmark import Imagines
from ego_world_model.kinematics import HandKinematics, HandState, UnreachableError
from ego_world_model.media import resize
from ego_world_model.perception import KeypointEstimator

if TYPE_CHECKING:
    from ego_world_model.simulation import TableTop

OBEYED_IOU = 0.65
"""Hand-mask IoU from which a future counts as obeyed."""
REACH = np.array([0.12, 0.10, 0.08])
"""Metres that a wrist is sent away at most: right and left, up and down, near and far in the
camera's axes."""
START_TIME = 1.5
"""Seconds into a scene at which the futures part, so that hands are not all at rest."""
SINK = 0.02
"""Metres that a wrist may go down; the table is not far below."""
APART_PX = 10.0
"""Two futures of a scene end at least this far apart, in pixels of a 128-wide image, mean of both
wrists; each is as far from the start."""


class FuturesError(ValueError):
    """A scene starts where the different futures asked for cannot be made."""


@dataclass(frozen=True)
class FutureResult:
    """One imagined future.

    Attributes:
        scene: seed of the simulated scene.
        future: number of the future within the scene.
        iou: hand-mask IoU of the imagination against the simulator, all future frames pooled.
        end_iou: the same over the last three frames.
        own_iou: the estimator's IoU on the simulator's own frames.
        best_match: which future's rendering the imagination resembles most (by IoU at the end).
        imagined, truth: (T, H, W, 3) uint8.
    """

    scene: int
    future: int
    iou: float
    end_iou: float
    own_iou: float
    best_match: int
    imagined: NDArray[np.uint8]
    truth: NDArray[np.uint8]

    @property
    def obeyed(self) -> bool:
        return self.iou >= OBEYED_IOU


def measure_obedience(
    model: Imagines,
    estimator: KeypointEstimator,
    robot: Embodiment,
    *,
    scenes: int = 5,
    futures: int = 5,
    first_seed: int = 0,
    steps: int | None = None,
) -> Iterator[FutureResult]:
    """Results of ``futures`` futures in each of ``scenes`` test scenes."""
    kinematics = HandKinematics(robot)
    config = model.config
    times = np.arange(config.num_frames) / config.fps
    found = 0
    for seed in range(first_seed, first_seed + 20 * scenes):
        start = _Start(robot, seed, config.width, config.height)
        try:
            plans = different_futures(kinematics, start, times, futures)
        except FuturesError:
            continue
        found += 1
        yield from _scene_results(model, estimator, kinematics, start, plans, times, steps)
        if found == scenes:
            return
    raise ValueError(
        f"only {found} of {scenes} scenes from seed {first_seed} on allow {futures} different "
        "futures; ask for fewer"
    )


def _scene_results(
    model: Imagines,
    estimator: KeypointEstimator,
    kinematics: HandKinematics,
    start: _Start,
    plans: NDArray[np.float64],
    times: NDArray[np.float64],
    steps: int | None,
) -> Iterator[FutureResult]:
    truths = [start.follow(times, plan) for plan in plans]
    hands = [np.isin(masks[1:], (1, 2)) for _, masks in truths]
    image = truths[0][0][0]
    for number, plan in enumerate(plans):
        trajectory = kinematics.trajectory(
            times, plan, start.camera_pose, extra_slots=model.config.extra_slots
        )
        result = model.imagine(image, trajectory, start.camera.matrix, steps=steps, seed=start.seed)
        imagined = np.asarray(result.frames)[0]
        said = estimator(imagined[1:]).hand_mask()
        ends = [metrics.iou(said[-3:], hand[-3:]) for hand in hands]
        frames = truths[number][0]
        yield FutureResult(
            scene=start.seed,
            future=number,
            iou=metrics.iou(said, hands[number]),
            end_iou=ends[number],
            own_iou=metrics.iou(estimator(frames[1:]).hand_mask(), hands[number]),
            best_match=int(np.argmax(ends)),
            imagined=imagined,
            truth=frames,
        )


class _Start:
    """One scene at one moment, started again for every future."""

    def __init__(self, robot: Embodiment, seed: int, width: int, height: int) -> None:
        self.robot, self.seed = robot, seed
        self.scale = 2 if width <= 160 else 1
        self.size = (self.scale * width, self.scale * height)
        sim = self._open()
        self.q = sim.joint_positions.copy()
        self.camera, self.camera_pose = sim.camera.resized(width, height), sim.camera_pose
        sim.close()

    def _open(self) -> TableTop:
        from ego_world_model.simulation import TableTop  # needs a renderer; reports do not

        width, height = self.size
        sim = TableTop(self.robot, seed=self.seed, split="test", width=width, height=height)
        sim.advance(START_TIME)
        return sim

    def _look(self, sim: TableTop) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Frame and mask as recorded episodes have them: drawn larger, averaged down."""
        seen = sim.render(masks=True, depth=False)
        assert seen.masks is not None
        rgb = resize(seen.rgb, self.camera.width, self.camera.height)
        return rgb, seen.masks[:: self.scale, :: self.scale]

    def follow(
        self, times: NDArray[np.float64], plan: NDArray[np.float64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Frames (T, H, W, 3) and masks (T, H, W) of the simulator obeying a plan (T, nq)."""
        sim = self._open()
        try:
            sim.follow(times, plan)
            frames, masks = [], []
            for k in range(len(times)):
                if k:
                    sim.advance(times[k] - times[k - 1])
                frame, mask = self._look(sim)
                frames.append(frame)
                masks.append(mask)
        finally:
            sim.close()
        return np.stack(frames), np.stack(masks)


def different_futures(
    kinematics: HandKinematics, start: _Start, times: NDArray[np.float64], count: int
) -> NDArray[np.float64]:
    """(count, T, nq) joint trajectories from one start that end visibly apart from each other.

    Both wrists travel to random places around their start, fingers to random angles, with the
    speed profile of a human reach (minimum jerk).

    Raises:
        FuturesError: if a wrist is not in view at the start, or too few random futures can be
            reached, seen and told apart.
    """
    rng = np.random.default_rng(start.seed)
    begin = kinematics.hand_state(start.q, start.camera_pose)
    up = kinematics.camera_pose(start.q, start.camera_pose)[2, :3]  # in camera coordinates
    scale = 128 / start.camera.width
    ends = [scale * start.camera.project(begin.translation)]
    if not start.camera.contains(ends[0] / scale).all():
        raise FuturesError(f"scene {start.seed} starts with a wrist out of view")
    goals: list[NDArray[np.float64]] = []
    for _ in range(60 * count):
        if len(goals) == count:
            break
        step = rng.uniform(-1, 1, (2, 3)) * REACH
        if (step @ up).min() < -SINK:
            continue
        state = HandState(
            begin.translation + step,
            begin.rotation,
            begin.fingers
            + rng.uniform(0, 0.7) * (_random_fingers(kinematics, rng) - begin.fingers),
            begin.valid,
        )
        pixels = start.camera.project(state.translation)
        apart = min(np.linalg.norm(scale * pixels - end, axis=-1).mean() for end in ends)
        if not start.camera.contains(pixels).all() or not apart >= APART_PX:
            continue
        try:
            goals.append(kinematics.solve(state, start.q, start.camera_pose))
        except UnreachableError:
            continue
        ends.append(scale * pixels)
    if len(goals) < count:
        raise FuturesError(f"only {len(goals)} different futures from scene {start.seed}")
    phase = times / times[-1]
    profile = phase**3 * (10 - 15 * phase + 6 * phase**2)
    return start.q + profile[:, None] * (np.stack(goals)[:, None] - start.q)


def _random_fingers(kinematics: HandKinematics, rng: np.random.Generator) -> NDArray[np.float64]:
    """(2, F) finger angles, each hand somewhere between open and half closed, in one parameter.

    Zero is open for every finger joint of the built-in hands. Those whose range lies on one side of
    zero close towards its other end; the rest, which turn a thumb, stay at zero.
    """
    robot = kinematics.robot
    count = max(len(hand.fingers) for hand in robot.hands.values())
    angles = np.zeros((2, count))
    for row, side in enumerate(("left", "right")):
        if side in robot.hands:
            index = robot.indices(robot.hands[side].fingers)
            low, high = robot.lower[index], robot.upper[index]
            one_sided = np.abs(low) < 1e-6
            far = np.where(one_sided, high, np.where(np.abs(high) < 1e-6, low, 0.0))
            angles[row, : len(index)] = 0.6 * rng.uniform() * far
    return angles
