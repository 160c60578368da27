"""Make a dataset of simulated episodes: in parallel, resumable, each episode from its own seed.

Worker processes simulate and encode; the calling process only gathers finished episodes. What is
on disk when a run ends, however it ends, is kept, and the same call goes on from there.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ego_world_model.data.layout import DatasetSpec, ImageStorage
from ego_world_model.data.parts import write_part
from ego_world_model.data.reader import DatasetReader
from ego_world_model.data.schema import Episode
from ego_world_model.data.writer import DatasetWriter
from ego_world_model.hands import EXTRA_SLOTS, SLOT_NAMES

if TYPE_CHECKING:
    from ego_world_model.simulation import TableTop

Split = Literal["train", "validation", "test"]
SPLITS: tuple[str, ...] = get_args(Split)
_SEEDS_PER_SPLIT = 10**9
_SEEDS_PER_RUN = 10**6
_SPARE = _SEEDS_PER_RUN // 2
_ATTEMPTS = 3
_EPISODES_PER_POOL = 200
"""Workers are replaced after this many episodes, so that a renderer's leaks cannot add up."""


@dataclass(frozen=True, kw_only=True)
class GenerationPlan:
    """What to simulate; the same plan always makes the same episodes.

    Attributes:
        robot: embodiment name or YAML path.
        seconds: length of an episode; it holds round(seconds * fps) frames.
        tasks: kinds of task to take in turn, or None for the simulation's own mixture.
        oversample: frames are rendered this many times as large and averaged down.
        still, disturbance: see ``TableTop``; actions hold the undisturbed plan.
    """

    robot: str
    split: Split
    seed: int
    fps: float
    seconds: float
    width: int
    height: int
    tasks: tuple[str, ...] | None = None
    depth: bool = True
    oversample: int = 1
    still: bool = False
    disturbance: float = 0.0

    @property
    def frames(self) -> int:
        return round(self.seconds * self.fps)


def episode_seed(split: str, seed: int, index: int, *, attempt: int = 0) -> int:
    """The simulation's seed for one episode; no two splits, runs or episodes share one."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    limit, runs = _SPARE, _SEEDS_PER_SPLIT // _SEEDS_PER_RUN
    if not (0 <= seed < runs and 0 <= index < limit and 0 <= attempt < _ATTEMPTS):
        raise ValueError(f"seed must lie in 0..{runs - 1} and episodes in 0..{limit - 1}")
    base = SPLITS.index(split) * _SEEDS_PER_SPLIT + seed * _SEEDS_PER_RUN
    spare = 0 if attempt == 0 else _SPARE + (attempt - 1) * (_SPARE // _ATTEMPTS)
    if attempt:
        index %= _SPARE // _ATTEMPTS
    return base + spare + index


def simulate_episode(plan: GenerationPlan, index: int, *, attempt: int = 0) -> Episode:
    """Simulate and render one episode; the same on every machine with the same renderer."""
    from ego_world_model.simulation import TableTop

    robot, kinematics = _robot(plan.robot)
    seed = episode_seed(plan.split, plan.seed, index, attempt=attempt)
    task = plan.tasks[index % len(plan.tasks)] if plan.tasks else None
    scale, step = plan.oversample, 1.0 / plan.fps
    sim = TableTop(
        robot,
        seed=seed,
        split=plan.split,
        task=task,
        width=scale * plan.width,
        height=scale * plan.height,
        still=plan.still,
        disturbance=plan.disturbance,
    )
    if scale > 1:
        coarser_facets(sim)
    images, masks, depth, state, action, tasks, targets = [], [], [], [], [], [], []
    places = []
    try:
        mount, camera = sim.camera_pose, sim.camera.resized(plan.width, plan.height)
        for k in range(plan.frames):
            seen = sim.render(masks=True, depth=plan.depth)
            images.append(average_down(seen.rgb, scale))
            masks.append(seen.masks[::scale, ::scale])
            if plan.depth:
                depth.append(depth_millimetres(seen.depth, scale))
            state.append(np.array(sim.joint_positions))
            targets.append(sim.target_position)
            places.append(sim.objects.poses[:, :3].copy())
            action.append(sim.plan(np.array([step]))[0])
            if not tasks or tasks[-1][1:] != [sim.task_name, sim.task]:
                tasks.append([k, sim.task_name, sim.task])
            sim.advance(step)
    finally:
        sim.close()
    positions, valid = kinematics.hand_joints_batch(np.stack(state), mount, extra_slots=EXTRA_SLOTS)
    poses = np.stack([kinematics.camera_pose(q, mount) for q in state])
    return Episode(
        fps=plan.fps,
        images=np.stack(images),
        state=np.stack(state),
        action=np.stack(action),
        hand_positions=positions,
        hand_valid=valid,
        slot_names=SLOT_NAMES + EXTRA_SLOTS,
        camera_pose=poses,
        camera=camera,
        task=tasks[0][2],
        embodiment=robot.name,
        joint_names=robot.joint_names,
        masks=np.stack(masks),
        depth=np.stack(depth) if plan.depth else None,
        metadata={
            "seed": seed,
            "split": plan.split,
            "tasks": tasks,
            "targets": [_in_camera(p, pose) for p, pose in zip(targets, poses, strict=True)],
            "objects": [item.name for item in sim.scene.objects],
            "places": [_in_camera(p, pose) for p, pose in zip(places, poses, strict=True)],
            "attempt": attempt,
        },
    )


def generate(
    robot: str,
    root: str | Path,
    *,
    episodes: int,
    seed: int = 0,
    split: Split = "train",
    fps: float = 10.0,
    seconds: float = 6.0,
    width: int = 128,
    height: int = 96,
    workers: int = 2,
    tasks: Sequence[str] | None = None,
    depth: bool = True,
    image_storage: ImageStorage | None = None,
    still: bool = False,
    disturbance: float = 0.0,
) -> DatasetReader:
    """Bring the dataset in ``root`` to ``episodes`` simulated episodes.

    Frames up to 160 pixels wide are rendered at twice the size and averaged down, and stored as
    lossless PNG; larger ones are stored as video unless ``image_storage`` says otherwise.
    ``still`` and ``disturbance`` are those of ``TableTop``: what a policy learns from.

    Raises:
        RuntimeError: if an episode fails from several seeds or workers keep dying; what is
            finished is kept.
    """
    from ego_world_model.embodiment import load_embodiment

    if episodes < 1 or seconds * fps < 1 or workers < 1:
        raise ValueError(
            f"episodes, workers and seconds x fps must be at least 1, got {episodes}, {workers} "
            f"and {seconds} x {fps}"
        )
    episode_seed(split, seed, episodes - 1)
    plan = GenerationPlan(
        robot=str(robot),
        split=split,
        seed=seed,
        fps=fps,
        seconds=seconds,
        width=width,
        height=height,
        tasks=tuple(tasks) if tasks else None,
        depth=depth,
        oversample=2 if width <= 160 else 1,
        still=still,
        disturbance=disturbance,
    )
    body = load_embodiment(robot)
    with DatasetWriter(
        root,
        embodiment=body.name,
        fps=fps,
        camera=body.camera.ideal().resized(width, height),
        joint_names=body.joint_names,
        slot_names=SLOT_NAMES + EXTRA_SLOTS,
        image_storage=image_storage or ("image" if width <= 160 else "video"),
        depth=depth,
        split=split,
        joint_limits=(tuple(map(float, body.lower)), tuple(map(float, body.upper))),
    ) as writer:
        todo = [index for index in range(episodes) if not writer.has(index)]
        with _progress(episodes, episodes - len(todo), plan.frames) as advance:
            for done in range(0, len(todo), _EPISODES_PER_POOL):
                _run_pool(plan, writer, todo[done : done + _EPISODES_PER_POOL], workers, advance)
    return DatasetReader(root)


def _run_pool(
    plan: GenerationPlan, writer: DatasetWriter, todo: list[int], workers: int, advance: Any
) -> None:
    """Simulate the episodes ``todo`` in fresh processes, starting anew where one is killed."""
    for attempt in range(_ATTEMPTS):
        left = [index for index in todo if not writer.has(index)]
        if not left:
            return
        try:
            _simulate_all(plan, writer, left, workers, advance)
            return
        except BrokenProcessPool:
            print(
                f"a simulation process was killed (out of memory?), start {attempt + 1} of "
                f"{_ATTEMPTS}; going on with what is left",
                file=sys.stderr,
                flush=True,
            )
    raise RuntimeError(
        "simulation processes keep being killed; use fewer --workers (each needs about 0.5 GB). "
        "Finished episodes are kept: the same command goes on from here"
    )


def _simulate_all(
    plan: GenerationPlan, writer: DatasetWriter, todo: list[int], workers: int, advance: Any
) -> None:
    pool = ProcessPoolExecutor(
        max_workers=min(workers, len(todo)),
        mp_context=get_context("spawn"),  # a forked process cannot use its parent's renderer
        initializer=start_worker,
        initargs=(os.getpid(),),
    )
    queue, running = iter(todo), set()
    try:
        while True:
            while len(running) < 2 * workers and (index := next(queue, None)) is not None:
                running.add(pool.submit(_make_part, plan, writer.root, writer.spec, index))
            if not running:
                break
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                _report(future)
                advance()
            writer.gather(only_full_files=True)
        pool.shutdown()
    except BaseException:
        pool.shutdown(cancel_futures=True)  # episodes under way are finished and kept
        raise


def _report(future: Future[list[str]]) -> None:
    for problem in future.result():
        print(problem, file=sys.stderr, flush=True)


def _make_part(plan: GenerationPlan, root: Path, spec: DatasetSpec, index: int) -> list[str]:
    """In a worker: simulate, encode, write. Returns what went wrong on the way.

    A random scene can turn out impossible (nothing reachable, say); such an episode is made from a
    spare seed, which its metadata tells, and the reason is reported.
    """
    problems: list[str] = []
    for attempt in range(_ATTEMPTS):
        try:
            episode = simulate_episode(plan, index, attempt=attempt)
        except Exception as error:
            seed = episode_seed(plan.split, plan.seed, index, attempt=attempt)
            problems.append(f"episode {index} (seed {seed}): {type(error).__name__}: {error}")
            if attempt == _ATTEMPTS - 1:
                reasons = "\n  ".join(problems)
                raise RuntimeError(
                    f"episode {index} failed from {_ATTEMPTS} seeds:\n  {reasons}\n"
                    "Finished episodes are kept: the same command goes on from here"
                ) from error
            continue
        write_part(root, spec, index, episode)
        return problems
    return problems


_robots: dict[str, tuple[Any, Any]] = {}


def _robot(name: str) -> tuple[Any, Any]:
    """The embodiment and its kinematics, made once per process."""
    if name not in _robots:
        from ego_world_model.embodiment import load_embodiment
        from ego_world_model.kinematics import HandKinematics

        robot = load_embodiment(name)
        _robots[name] = (robot, HandKinematics(robot))
    return _robots[name]


def start_worker(parent: int) -> None:
    """Set a worker up: headless rendering, one thread, and an end when its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("LP_NUM_THREADS", "1")  # Mesa's software renderer; workers fill the cores
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _in_camera(
    point: NDArray[np.float64] | None, camera_pose: NDArray[np.float64]
) -> list[Any] | None:
    """Points of the root frame (..., 3) in the camera (root_T_optical), metres to 0.1 mm."""
    if point is None:
        return None
    return np.round((point - camera_pose[:3, 3]) @ camera_pose[:3, :3], 4).tolist()


def coarser_facets(sim: TableTop) -> None:
    """Draw fewer facets: small pictures do not show finer ones, which cost a third of the time."""
    quality = sim.scene.model.vis.quality
    quality.numslices, quality.numstacks = 16, 8


def average_down(image: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """(sH, sW, 3) → (H, W, 3): mean of each scale x scale block, rounded."""
    if scale == 1:
        return image
    height, width, channels = image.shape
    blocks = image.reshape(height // scale, scale, width // scale, scale, channels)
    total = blocks.sum(axis=(1, 3), dtype=np.uint16)
    return ((total + scale * scale // 2) // (scale * scale)).astype(np.uint8)


def depth_millimetres(depth: NDArray[np.float32], scale: int) -> NDArray[np.uint16]:
    """(sH, sW) metres → (H, W) uint16 mm: the nearest surface of each block, 0 where unknown."""
    known = np.isfinite(depth) & (depth > 0) & (depth < 65.0)
    metres = np.where(known, depth, np.inf)
    height, width = metres.shape
    blocks = metres.reshape(height // scale, scale, width // scale, scale)
    nearest = blocks.min(axis=(1, 3))
    return np.where(np.isfinite(nearest), np.rint(1000 * nearest), 0).astype(np.uint16)


@contextmanager
def _progress(total: int, done: int, frames: int) -> Iterator[Any]:
    """A bar on a terminal; in a log file, a line every half minute."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    start, first, last = time.monotonic(), done, time.monotonic()
    if not console.is_terminal:
        print(f"{done} of {total} episodes are there", flush=True)
    with Progress(
        TextColumn("simulating"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        line = bar.add_task("", total=total, completed=done, rate="")

        def advance() -> None:
            nonlocal done, last
            done += 1
            now = time.monotonic()
            speed = (done - first) / (now - start)
            rate = f"{speed:.2f} episodes/s, {speed * frames:.0f} frames/s"
            bar.update(line, completed=done, rate=rate)
            if not console.is_terminal and (now - last > 30 or done == total):
                last = now
                minutes = (total - done) / speed / 60
                print(f"{done}/{total} episodes, {rate}, {minutes:.1f} min left", flush=True)

        yield advance
