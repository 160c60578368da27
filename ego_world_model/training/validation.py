"""Held-out quality while training: region PSNR against the usual cheap answers, and strips.

The full evaluation lives in ``ego_world_model.evaluation``; this is the small part a training run
can afford every few minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ego_world_model.training.clips import ClipBatch, ClipCache, ClipSampler, validation_clips

REGIONS: dict[str, tuple[int, ...]] = {
    "hand": (1, 2),
    "arm": (3, 4),
    "object": (5,),
    "background": (0, 6),
}


class Validation:
    """A fixed set of held-out clips.

    Args:
        cache: held-out episodes.
        count: clips.
        frames: frames per clip, the reference included.
    """

    def __init__(self, cache: ClipCache, count: int, frames: int) -> None:
        sampler = ClipSampler(cache, np.random.default_rng(0))
        self.clips = [sampler.gather(*clip) for clip in validation_clips(cache, count, frames)]

    def scores(self, predict: Callable[[ClipBatch], Tensor]) -> dict[str, float]:
        """Region PSNR in dB of ``predict(clip)`` → (1, T, 3, H, W), pooled over clips."""
        error = {region: [0.0, 0] for region in REGIONS}
        for clip in self.clips:
            squared = (predict(clip)[:, 1:].clamp(-1, 1) - clip.video[:, 1:]).square().mean(dim=2)
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

    def baselines(self, predict: Callable[[ClipBatch], Tensor]) -> dict[str, float]:
        """Hand PSNR of the answers a model must beat: the reference repeated, and the model itself
        under another clip's joints and under joints that stand still."""
        others = {
            id(clip): other for clip, other in zip(self.clips, self.clips[1:] + self.clips[:1])
        }

        def with_joints(clip: ClipBatch, joints: Tensor, valid: Tensor) -> Tensor:
            return predict(ClipBatch(clip.video, clip.masks, joints, valid, clip.intrinsics))

        def shuffled(clip: ClipBatch) -> Tensor:
            other = others[id(clip)]
            joints = torch.cat([clip.joints[:, :1], other.joints[:, 1:]], dim=1)
            return with_joints(clip, joints, torch.cat([clip.valid[:, :1], other.valid[:, 1:]], 1))

        def frozen(clip: ClipBatch) -> Tensor:
            joints = clip.joints[:, :1].expand_as(clip.joints)
            return with_joints(clip, joints, clip.valid[:, :1].expand_as(clip.valid))

        return {
            "hand_copy": self.scores(lambda clip: clip.video[:, :1].expand_as(clip.video))["hand"],
            "hand_shuffled": self.scores(shuffled)["hand"],
            "hand_frozen": self.scores(frozen)["hand"],
        }

    def strips(
        self,
        predict: Callable[[ClipBatch], Tensor],
        path: Path,
        *,
        count: int = 6,
        columns: int = 6,
    ) -> None:
        """PNG of ``count`` clips: truth above prediction, a few frames side by side."""
        from PIL import Image

        rows = []
        for number in np.linspace(0, len(self.clips) - 1, count).astype(int):
            clip = self.clips[number]
            frames = np.linspace(0, clip.video.shape[1] - 1, columns).round().astype(int)
            for video in (clip.video, predict(clip)):
                pixels = ((video[0, frames].clamp(-1, 1) + 1) * 127.5).round().byte()
                rows.append(np.concatenate(list(pixels.permute(0, 2, 3, 1).numpy()), axis=1))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(rows, axis=0)).save(path)
