"""Windows of recorded episodes: a moment, and the motion that was commanded after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ego_world_model.data import DatasetReader, Episode
from ego_world_model.evaluation.clips import task_at
from ego_world_model.evaluation.policy.chunks import chunk_from_joints, state_from_joints
from ego_world_model.evaluation.policy.predictors import MeanMotion, Moment, mean_motion
from ego_world_model.kinematics import HandKinematics
from ego_world_model.policy.chunk import HandChunk

DepthNoise = Callable[[NDArray[np.float32], np.random.Generator], NDArray[np.float32]]
"""(H, W) metres and a generator → what a sensor or an estimator would have said."""


@dataclass(frozen=True)
class Window:
    """One place of an episode.

    Attributes:
        frame: of the moment. kind: of task.
        future: the commanded motion at the asked times, in the camera of the moment.
        known: (N,) bool; False for steps after the episode's end or after its instruction changed,
            which nobody could foresee.
    """

    frame: int
    kind: str
    moment: Moment
    future: HandChunk
    known: NDArray[np.bool_]


def windows(
    episode: Episode,
    kinematics: HandKinematics,
    times: ArrayLike,
    *,
    every: int = 5,
    depth_noise: DepthNoise | None = None,
    seed: int = 0,
) -> Iterator[Window]:
    """Windows that begin every ``every`` frames, as long as the first step is known.

    Args:
        times: (N,) seconds of the future's steps; between frames, commands are interpolated.
        depth_noise: applied to depth, each window with a generator of its own from ``seed``.
    """
    times = np.asarray(times, dtype=np.float64)
    commanded = np.vstack([episode.state[:1], episode.action])  # row k: commanded for frame k
    for frame in range(0, len(episode), every):
        kind, instruction = task_at(episode, frame)
        at = frame + times * episode.fps
        known = at <= _last_frame(episode, frame) + 1e-6
        if not known[0]:
            continue
        pose = episode.camera_pose[frame]
        q = _interpolated(commanded, np.clip(at, frame, len(episode)))
        depth = None
        if episode.depth is not None:
            depth = episode.depth[frame].astype(np.float32) / 1000
            if depth_noise is not None:
                depth = depth_noise(depth, np.random.default_rng((seed, frame)))
        before = None
        if frame:
            before = state_from_joints(kinematics, episode.state[frame - 1], pose)
        moment = Moment(
            image=episode.images[frame],
            depth=depth,
            intrinsics=episode.camera.matrix,
            state=state_from_joints(kinematics, episode.state[frame], pose),
            previous=before,
            interval=1 / episode.fps,
            instruction=instruction,
            seed=seed + frame,
            time=frame / episode.fps,
        )
        future = chunk_from_joints(kinematics, times, q, pose)
        yield Window(frame, kind, moment, future, known)


def training_mean(
    data: DatasetReader, kinematics: HandKinematics, times: ArrayLike, *, every: int = 5
) -> MeanMotion:
    """The mean motion of a dataset's windows."""
    chunks = []
    for number in range(len(data)):
        episode = data.episode(number, images=False, masks=False)
        for window in windows(episode, kinematics, times, every=every):
            chunks.append((window.moment.state, window.future, window.known))
    return mean_motion(chunks)


def _last_frame(episode: Episode, frame: int) -> int:
    """The last frame for which a command of the task under way at ``frame`` is known."""
    starts = [entry[0] for entry in episode.metadata.get("tasks", ()) if entry[0] > frame]
    return min([*starts, len(episode)])


def _interpolated(rows: NDArray, at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows (T, n) at fractional places (N,), linearly."""
    left = np.clip(np.floor(at + 1e-9).astype(int), 0, len(rows) - 1)
    right = np.minimum(left + 1, len(rows) - 1)
    weight = np.clip(at - left, 0, 1)[:, None]
    return (1 - weight) * rows[left] + weight * rows[right]
