"""Training clips: episodes decoded once into memory-mapped arrays, sampled and augmented in RAM.

Decoding video costs more than a training step of a small model, so a dataset is unpacked once per
run into raw arrays (a few kilobytes per frame at 128x96); sampling a batch is then an index. What a
large model reads instead of frames is cached by ``windows``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ego_world_model.camera import PinholeCamera
from ego_world_model.hands import EXTRA_SLOTS, NUM_SLOTS, SLOT_NAMES
from ego_world_model.training.augmentation import (
    MASK_PAIRS,
    Augmentation,
    hide_joints,
    mirrored_slots,
)

MANIPULATED = 5
"""Mask class of the object that a hand moves."""

CARRIED_PIXELS = 4.0
"""How far the manipulated object's centre moves within a clip that counts as carrying."""


@dataclass(frozen=True)
class ClipBatch:
    """B clips of T frames; frame 0 is the reference.

    Attributes:
        video: (B, T, 3, H, W) float in [-1, 1]; the reference alone where ``latents`` are given.
        masks: (B, T, H, W) uint8 classes (0 background, 1/2 left/right hand, 3/4 arms, 5 the
            manipulated object, 6 other objects).
        joints: (B, T, J, 3) metres in the camera of each frame.
        valid: (B, T, J) bool.
        intrinsics: (B, 3, 3) pixels.
        latents: (B, C, t, h, w) of the whole clip, where they were computed beforehand.
        text: (B, L, D) embedded instruction, for models that read text.
        image: (B, L, D) embedded reference, for models that read it so.
    """

    video: Tensor
    masks: Tensor
    joints: Tensor
    valid: Tensor
    intrinsics: Tensor
    latents: Tensor | None = None
    text: Tensor | None = None
    image: Tensor | None = None

    @property
    def reference(self) -> Tensor:
        """(B, 3, H, W)."""
        return self.video[:, 0]

    def __len__(self) -> int:
        return len(self.video)

    def split(self, parts: int) -> list[ClipBatch]:
        """The clips dealt out to ``parts`` batches of nearly equal size (fewer if there are too
        few clips)."""
        columns = {name: value.tensor_split(parts) for name, value in self._tensors.items()}
        rows = (ClipBatch(**{n: c[i] for n, c in columns.items()}) for i in range(parts))
        return [row for row in rows if len(row)]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> ClipBatch:
        """The same clips on another device."""
        moved = {n: v.to(device, non_blocking=non_blocking) for n, v in self._tensors.items()}
        return ClipBatch(**moved)

    @property
    def _tensors(self) -> dict[str, Tensor]:
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {name: value for name, value in values if value is not None}


class ClipCache:
    """Raw arrays of a dataset under one folder; see ``build`` and ``open``.

    Attributes:
        images (N, H, W, 3) uint8, masks (N, H, W) uint8, positions (N, J, 3) float32,
        valid (N, J) bool: all frames of all episodes, one after another.
        intrinsics: (E, 3, 3) of each episode.
        first: (E+1,) first frame of each episode.
        fps: frames per second.
        folder: where they lie.
    """

    ARRAYS = ("images", "masks", "positions", "valid", "intrinsics", "first")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        info = json.loads((folder / "cache.json").read_text())
        self.fps = float(info["fps"])
        self.images, self.masks, self.positions, self.valid, self.intrinsics, self.first = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in self.ARRAYS
        )

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.first) - 1

    def instruction(self, frame: int) -> str:
        """What was being done at a frame, counted over all episodes: its task's instruction.

        Raises:
            ValueError: if the cache was made before instructions were kept.
        """
        episode = int(np.searchsorted(self.first, frame, side="right")) - 1
        begun = [
            text for start, text in self._tasks[episode] if start <= frame - self.first[episode]
        ]
        return begun[-1] if begun else self._tasks[episode][0][1]

    @cached_property
    def _tasks(self) -> list[list[tuple[int, str]]]:
        path = self.folder / "tasks.json"
        if not path.is_file():
            raise ValueError(
                f"{self.folder} holds no instructions, it was unpacked by an earlier version; "
                "delete it and run again"
            )
        return json.loads(path.read_text())

    @classmethod
    def build(
        cls,
        episodes: Sequence[Any],
        folder: Path,
        *,
        width: int,
        height: int,
        extra_slots: Sequence[str] = (),
        masks: bool = True,
        report: Any = None,
    ) -> ClipCache:
        """Unpack ``episodes`` (data.Episode each) at one resolution; reuses a finished cache.

        Args:
            episodes: anything with ``len`` and indexing that yields ``data.Episode``.
            extra_slots: slots after the 42 that the model uses; absent ones become invalid.
            masks: whether episodes must have masks; where they need not, absent ones are all zero.
            report: called with (episode number, episode count) after each episode.

        Raises:
            ValueError: if an episode lacks masks that it must have, or frame rates differ.
        """
        key = {
            "episodes": len(episodes),
            "width": width,
            "height": height,
            "extra_slots": list(extra_slots),
        }
        info = folder / "cache.json"
        if info.exists() and {k: json.loads(info.read_text()).get(k) for k in key} == key:
            return cls(folder)
        folder.mkdir(parents=True, exist_ok=True)
        info.unlink(missing_ok=True)
        parts: list[list[NDArray[Any]]] = [[] for _ in range(4)]
        intrinsics, lengths, rates, tasks = [], [], set(), []
        for number in range(len(episodes)):
            episode = episodes[number]
            if masks and episode.masks is None:
                raise ValueError(
                    f"episode {number} has no segmentation masks; training weighs hands and "
                    "objects by them, so record with masks (ego-world-model simulate does), or set "
                    "`weights: null` in the training config"
                )
            arrays, camera = _unpack(episode, width, height, extra_slots)
            listed = episode.metadata.get("tasks") or [(0, "any", episode.task)]
            tasks.append([(int(frame), text) for frame, _, text in listed])
            for part, array in zip(parts, arrays, strict=True):
                part.append(array)
            intrinsics.append(camera)
            lengths.append(len(arrays[0]))
            rates.add(float(episode.fps))
            if report is not None:
                report(number + 1, len(episodes))
        if len(rates) != 1:
            raise ValueError(f"episodes must share one frame rate, got {sorted(rates)} fps")
        for name, part in zip(cls.ARRAYS[:4], parts, strict=True):
            np.save(folder / f"{name}.npy", np.concatenate(part))
            part.clear()
        np.save(folder / "intrinsics.npy", np.stack(intrinsics).astype(np.float32))
        np.save(folder / "first.npy", np.concatenate([[0], np.cumsum(lengths)]))
        (folder / "tasks.json").write_text(json.dumps(tasks))
        info.write_text(json.dumps(key | {"fps": rates.pop()}))
        return cls(folder)


def _unpack(
    episode: Any, width: int, height: int, extra_slots: Sequence[str]
) -> tuple[tuple[NDArray[Any], ...], NDArray[np.float64]]:
    """Images, masks, positions and valid of one episode at the model's size, and its K."""
    images = np.asarray(episode.images)
    masks = np.zeros(images.shape[:3], np.uint8) if episode.masks is None else episode.masks
    masks = np.asarray(masks)
    camera: PinholeCamera = episode.camera
    if images.shape[1:3] != (height, width):
        small = F.interpolate(
            torch.from_numpy(images).permute(0, 3, 1, 2).float(), (height, width), mode="area"
        )
        images = small.round().byte().permute(0, 2, 3, 1).numpy()
        grid = torch.from_numpy(masks)[:, None].float()
        masks = F.interpolate(grid, (height, width), mode="nearest-exact")[:, 0].byte().numpy()
        camera = camera.resized(width, height)
    positions, valid = select_slots(
        episode.hand_positions, episode.hand_valid, episode.slot_names, extra_slots
    )
    return (images, masks, positions, valid), camera.matrix


def select_slots(
    positions: NDArray[np.float32],
    valid: NDArray[np.bool_],
    names: Sequence[str],
    extra_slots: Sequence[str],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(T, J, 3) and (T, J) rearranged to the 42 slots plus ``extra_slots``; absent ones invalid."""
    wanted = (*SLOT_NAMES, *extra_slots)
    column = {name: i for i, name in enumerate(names)}
    out = np.zeros((len(positions), len(wanted), 3), np.float32)
    ok = np.zeros(out.shape[:2], bool)
    for slot, name in enumerate(wanted):
        if name in column:
            out[:, slot], ok[:, slot] = positions[:, column[name]], valid[:, column[name]]
    return out, ok


class ClipSampler:
    """Random clips from a cache.

    Args:
        rng: drives everything drawn here, so that a resumed run continues exactly.
        augmentation: None for plain clips.
    """

    def __init__(
        self,
        cache: ClipCache,
        rng: np.random.Generator,
        *,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.cache, self.rng, self.augmentation = cache, rng, augmentation
        extra = cache.positions.shape[1] - NUM_SLOTS
        self.mirrored_slots = mirrored_slots(EXTRA_SLOTS[:extra])
        self._lengths = np.diff(cache.first)
        self._centroids: NDArray[np.float64] | None = None
        self._carrying: dict[int, NDArray[np.int64]] = {}

    def sample(
        self, batch: int, frames: int, *, max_stride: int = 1, carried: float = 0.0
    ) -> ClipBatch:
        """``batch`` clips of ``frames`` frames, each with a random stride up to ``max_stride``.

        Args:
            carried: share of clips drawn from those in which the manipulated object moves; they
                are rare, and what moves with a hand is learnt from nothing else.
        """
        rng, cache = self.rng, self.cache
        eligible = np.flatnonzero(self._lengths >= frames)
        if not len(eligible):
            raise ValueError(f"no episode has the {frames} frames that a clip needs")
        weights = self._lengths[eligible] / self._lengths[eligible].sum()
        index = np.empty((batch, frames), np.int64)
        episodes = rng.choice(eligible, size=batch, p=weights)
        for row, episode in enumerate(episodes):
            longest = (self._lengths[episode] - 1) // (frames - 1)
            stride = int(rng.integers(1, min(max_stride, longest) + 1))
            start = int(rng.integers(0, self._lengths[episode] - stride * (frames - 1)))
            index[row] = cache.first[episode] + start + stride * np.arange(frames)
        if carried > 0:
            starts = self._carrying_starts(frames)
            for row in np.flatnonzero(rng.random(batch) < carried) if len(starts) else ():
                start = int(rng.choice(starts))
                episodes[row] = np.searchsorted(cache.first, start, side="right") - 1
                index[row] = start + np.arange(frames)
        return self.gather(index, episodes)

    def _carrying_starts(self, frames: int) -> NDArray[np.int64]:
        """First frames of the clips in which the manipulated object moves by CARRIED_PIXELS."""
        if frames not in self._carrying:
            if self._centroids is None:
                self._centroids = object_centroids(self.cache.masks)
            starts = np.concatenate(
                [
                    np.arange(first, after - frames + 1)
                    for first, after in zip(self.cache.first[:-1], self.cache.first[1:])
                ]
            )
            track = self._centroids[starts[:, None] + np.arange(frames)]  # (S, T, 2), NaN if unseen
            seen = np.isfinite(track[..., 0]).sum(axis=1)
            high = np.where(np.isfinite(track), track, -np.inf).max(axis=1)
            low = np.where(np.isfinite(track), track, np.inf).min(axis=1)
            with np.errstate(invalid="ignore"):
                moved = np.hypot(*(high - low).T) >= CARRIED_PIXELS
            self._carrying[frames] = starts[moved & (seen >= 3)]
        return self._carrying[frames]

    def gather(self, index: NDArray[np.int64], episodes: NDArray[np.int64]) -> ClipBatch:
        """The clips whose frames are the rows of ``index`` (B, T), from ``episodes`` (B,)."""
        cache = self.cache
        video = torch.from_numpy(cache.images[index]).permute(0, 1, 4, 2, 3).float()
        video = video.div_(127.5).sub_(1)
        masks, joints = cache.masks[index], cache.positions[index]
        valid, intrinsics = cache.valid[index], cache.intrinsics[episodes].copy()
        if self.augmentation is not None:
            video = self._recolour(video)
            valid = hide_joints(valid, self.augmentation, self.rng)
            self._mirror(video, masks, joints, valid, intrinsics)
        return ClipBatch(video, *(torch.from_numpy(a) for a in (masks, joints, valid, intrinsics)))

    def _recolour(self, video: Tensor) -> Tensor:
        strength, batch = self.augmentation.colour, len(video)
        if strength <= 0:
            return video
        gain = 1 + strength * self.rng.uniform(-1, 1, (batch, 1, 1, 1, 1))
        gain = gain * (1 + 0.5 * strength * self.rng.uniform(-1, 1, (batch, 1, 3, 1, 1)))
        offset = strength * self.rng.uniform(-1, 1, (batch, 1, 1, 1, 1))
        gain, offset = (torch.from_numpy(a).float() for a in (gain, offset))
        return (video * gain + offset).clamp_(-1, 1)

    def _mirror(self, video: Tensor, masks: Any, joints: Any, valid: Any, intrinsics: Any) -> None:
        rows = np.flatnonzero(self.rng.random(len(valid)) < self.augmentation.mirror)
        if not len(rows):
            return
        swap = np.arange(256, dtype=np.uint8)
        for a, b in MASK_PAIRS:
            swap[a], swap[b] = b, a
        video[rows] = video[rows].flip(-1)
        masks[rows] = swap[masks[rows]][..., ::-1]
        joints[rows] = joints[rows][:, :, self.mirrored_slots] * np.float32([-1, 1, 1])
        valid[rows] = valid[rows][:, :, self.mirrored_slots]
        intrinsics[rows, 0, 2] = video.shape[-1] - 1 - intrinsics[rows, 0, 2]


def object_centroids(masks: NDArray[np.uint8], smallest: int = 8) -> NDArray[np.float64]:
    """(N, H, W) → (N, 2) pixel centre of the manipulated object; NaN below ``smallest`` pixels."""
    out = np.full((len(masks), 2), np.nan)
    height, width = masks.shape[1:]
    for start in range(0, len(masks), 512):
        inside = masks[start : start + 512] == MANIPULATED
        count = inside.sum(axis=(1, 2))
        enough = np.flatnonzero(count >= smallest)
        columns = inside[enough].sum(axis=1) @ np.arange(width)
        rows = inside[enough].sum(axis=2) @ np.arange(height)
        out[start + enough] = np.stack([columns, rows], axis=1) / count[enough, None]
    return out


def validation_clips(
    cache: ClipCache, count: int, frames: int, *, stride: int = 1, seed: int = 0
) -> Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Index (1, T) and episode (1,) of ``count`` fixed clips, spread evenly over the episodes.

    Raises:
        ValueError: if no episode is long enough.
    """
    rng = np.random.default_rng(seed)
    lengths = np.diff(cache.first)
    offsets = stride * np.arange(frames)
    eligible = np.flatnonzero(lengths > offsets[-1])
    if not len(eligible):
        raise ValueError(f"no held-out episode has the {offsets[-1] + 1} frames of a clip")
    for episode in eligible[np.linspace(0, len(eligible) - 1, count).astype(int)]:
        start = cache.first[episode] + rng.integers(0, lengths[episode] - offsets[-1])
        yield start + offsets[None], np.array([episode])
