"""Held-out clips at a model's own rate and size, and the trajectories that command them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ego_world_model.data.schema import Episode
from ego_world_model.hands import SLOT_NAMES, HandTrajectory
from ego_world_model.media import resize


class Episodes(Protocol):
    """What a dataset must offer; ``data.DatasetReader`` does."""

    def __len__(self) -> int: ...

    def episode(self, index: int) -> Episode: ...


class ClipFormat(Protocol):
    """What a model asks of a clip; ``WorldModel.config`` is one.

    ``num_frames`` counts the reference frame.
    """

    fps: float
    num_frames: int
    height: int
    width: int
    extra_slots: tuple[str, ...]


def evaluation_clips(dataset: Episodes, form: ClipFormat, count: int) -> Iterator[Episode]:
    """``count`` clips of ``form``, spread evenly over the episodes, the same at every call.

    With fewer clips than episodes, each comes from the middle of another episode; with more,
    an episode gives several, evenly spaced. Fewer than ``count`` come out where the episodes are
    too short to give that many different ones.

    Raises:
        ValueError: if an episode has no masks, is too short, or its rate is no multiple of the
            model's.
    """
    chosen = (np.arange(count) * len(dataset)) // count if count else []
    for index, clips in zip(*np.unique(chosen, return_counts=True), strict=True):
        episode = dataset.episode(int(index))
        if episode.masks is None:
            raise ValueError(
                f"episode {index} has no masks; regions and obedience are measured by them, so "
                "evaluate on simulated episodes"
            )
        stride = round(episode.fps / form.fps)
        if stride < 1 or abs(episode.fps - stride * form.fps) > 1e-3 * form.fps:
            raise ValueError(
                f"episode {index} has {episode.fps} frames/s, which is no multiple of the "
                f"model's {form.fps}"
            )
        last = len(episode) - 1 - stride * (form.num_frames - 1)
        if last < 0:
            raise ValueError(
                f"episode {index} has {len(episode)} frames; a clip of the model takes "
                f"{stride * (form.num_frames - 1) + 1}"
            )
        for start in np.unique(np.linspace(0, last, clips + 2)[1:-1].astype(int)):
            yield _cut(episode, int(index), int(start), stride, form)


def _cut(episode: Episode, index: int, start: int, stride: int, form: ClipFormat) -> Episode:
    frames = slice(start, start + stride * (form.num_frames - 1) + 1, stride)
    size = (form.width, form.height)
    assert episode.masks is not None  # checked by the caller
    kind, task = task_at(episode, start)
    return replace(
        episode,
        task=task,
        fps=episode.fps / stride,
        images=np.stack([resize(image, *size) for image in episode.images[frames]]),
        masks=_nearest(episode.masks[frames], *size),
        depth=None if episode.depth is None else _nearest(episode.depth[frames], *size),
        state=episode.state[frames],
        # A frame's command is the state that was reached one clip frame later, as far as known.
        action=np.concatenate([episode.state[frames][1:], episode.action[frames][-1:]]),
        hand_positions=episode.hand_positions[frames],
        hand_valid=episode.hand_valid[frames],
        camera_pose=episode.camera_pose[frames],
        camera=episode.camera.resized(*size),
        metadata={**episode.metadata, "episode": index, "first_frame": start, "kind": kind},
    )


def task_at(episode: Episode, frame: int) -> tuple[str, str]:
    """(kind, instruction) of the task under way at a frame; simulated episodes list their tasks."""
    tasks = [entry for entry in episode.metadata.get("tasks", ()) if entry[0] <= frame]
    if not tasks:
        return "any", episode.task
    _, kind, instruction = tasks[-1]
    return kind, instruction


def _nearest(stack: NDArray, width: int, height: int) -> NDArray:
    """(T, H, W) labels or depths at another size, without mixing values."""
    if stack.shape[1:] == (height, width):
        return stack
    mode = Image.Resampling.NEAREST
    return np.stack([np.asarray(Image.fromarray(m).resize((width, height), mode)) for m in stack])


def command(clip: Episode, extra_slots: tuple[str, ...] = ()) -> HandTrajectory:
    """The hand trajectory of a clip with the slots that a model reads; absent ones are invalid."""
    trajectory = clip.trajectory()
    wanted = (*SLOT_NAMES, *extra_slots)
    known = [name in clip.slot_names for name in wanted]
    column = [clip.slot_names.index(n) if k else 0 for n, k in zip(wanted, known, strict=True)]
    return HandTrajectory(
        trajectory.times,
        trajectory.positions[:, column],
        trajectory.valid[:, column] & known,
        trajectory.camera_pose,
    )


def frozen(trajectory: HandTrajectory) -> HandTrajectory:
    """Hands and head as in the reference frame at all times."""
    return HandTrajectory(
        trajectory.times,
        np.repeat(trajectory.positions[:1], len(trajectory), axis=0),
        np.repeat(trajectory.valid[:1], len(trajectory), axis=0),
    )
