"""Held-out quality while training: region PSNR against the usual cheap answers, and strips.

The full evaluation lives in ``ego_world_model.evaluation``; this is the small part a training run
can afford every few minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ego_world_model.training.clips import ClipBatch, ClipCache, ClipSampler, validation_clips

REGIONS: dict[str, tuple[int, ...]] = {
    "hand": (1, 2),
    "arm": (3, 4),
    "object": (5,),
    "background": (0, 6),
}


Predict = Callable[[ClipBatch], Tensor]
"""A clip to its imagined frames, (1, T, 3, H, W) in [-1, 1] on the CPU."""


class Validation:
    """A fixed set of held-out clips.

    Args:
        cache: held-out episodes.
        count: clips.
        frames: frames per clip, the reference included.
        stride: a clip holds every stride-th frame of its episode.
    """

    def __init__(self, cache: ClipCache, count: int, frames: int, *, stride: int = 1) -> None:
        self.cache = cache
        sampler = ClipSampler(cache, np.random.default_rng(0))
        chosen = list(validation_clips(cache, count, frames, stride=stride))
        self.index = np.concatenate([index for index, _ in chosen])  # (count, T)
        self.clips = [sampler.gather(*clip) for clip in chosen]

    def run(self, predict: Predict) -> list[Tensor]:
        """The prediction of every clip."""
        return [predict(clip) for clip in self.clips]

    def scores(self, videos: Sequence[Tensor]) -> dict[str, float]:
        """Region PSNR in dB of one video (1, T, 3, H, W) for each clip, pooled over clips."""
        error = {region: [0.0, 0] for region in REGIONS}
        for clip, video in zip(self.clips, videos, strict=True):
            squared = (video[:, 1:].clamp(-1, 1) - clip.video[:, 1:]).square().mean(dim=2)
            squared = squared / 4  # to the range 0..1
            for region, classes in REGIONS.items():
                inside = torch.isin(clip.masks[:, 1:], torch.tensor(classes, dtype=torch.uint8))
                error[region][0] += float(squared[inside].double().sum())
                error[region][1] += int(inside.sum())
        return {
            region: -10 * float(np.log10(total / count))
            for region, (total, count) in error.items()
            if count and total > 0
        }

    def baselines(self, predict: Predict) -> dict[str, float]:
        """Hand PSNR of the answers a model must beat: the reference repeated, and the model itself
        under another clip's joints and under joints that stand still. Nothing where no hand is in
        the masks."""
        if not any(((clip.masks == 1) | (clip.masks == 2)).any() for clip in self.clips):
            return {}
        others = {
            id(clip): other for clip, other in zip(self.clips, self.clips[1:] + self.clips[:1])
        }

        def shuffled(clip: ClipBatch) -> Tensor:
            other = others[id(clip)]
            joints = torch.cat([clip.joints[:, :1], other.joints[:, 1:]], dim=1)
            valid = torch.cat([clip.valid[:, :1], other.valid[:, 1:]], dim=1)
            return predict(replace(clip, joints=joints, valid=valid))

        def frozen(clip: ClipBatch) -> Tensor:
            joints = clip.joints[:, :1].expand_as(clip.joints)
            return predict(
                replace(clip, joints=joints, valid=clip.valid[:, :1].expand_as(clip.valid))
            )

        copies = [clip.video[:, :1].expand_as(clip.video) for clip in self.clips]
        return {
            "hand_copy": self.scores(copies)["hand"],
            "hand_shuffled": self.scores(self.run(shuffled))["hand"],
            "hand_frozen": self.scores(self.run(frozen))["hand"],
        }

    def strips(
        self, videos: Sequence[Tensor], *, count: int = 6, columns: int = 6
    ) -> NDArray[np.uint8]:
        """(H, W, 3) picture of ``count`` clips: truth above prediction, a few frames side by
        side."""
        rows = []
        for number in np.unique(np.linspace(0, len(self.clips) - 1, count).astype(int)):
            clip = self.clips[number]
            frames = np.linspace(0, clip.video.shape[1] - 1, columns).round().astype(int)
            for video in (clip.video, videos[number]):
                pixels = ((video[0, frames].clamp(-1, 1) + 1) * 127.5).round().byte()
                rows.append(np.concatenate(list(pixels.permute(0, 2, 3, 1).numpy()), axis=1))
        return np.concatenate(rows, axis=0)


def save_picture(image: NDArray[np.uint8], path: Path) -> None:
    """Write (H, W, 3) as PNG."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
