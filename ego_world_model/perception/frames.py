"""Labelled frames for the estimator, cut from episodes, and how training varies them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ego_world_model.data.schema import Episode
from ego_world_model.perception.estimator import EstimatorConfig
from ego_world_model.perception.labels import CLASS_NAMES, class_labels, visible_joints


@dataclass(frozen=True)
class LabelledFrames:
    """N frames and what the estimator should say about them.

    Attributes:
        images: (N, H, W, 3) uint8.
        classes: (N, H, W) uint8, see ``CLASS_NAMES``.
        pixels: (N, K, 2) float32; 0 where the joint is not visible.
        visible: (N, K) bool.
    """

    images: Tensor
    classes: Tensor
    pixels: Tensor
    visible: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor | slice) -> LabelledFrames:
        return LabelledFrames(
            self.images[index], self.classes[index], self.pixels[index], self.visible[index]
        )

    @classmethod
    def from_episodes(
        cls, episodes: Iterable[Episode], config: EstimatorConfig, *, stride: int = 1
    ) -> LabelledFrames:
        """Every ``stride``-th frame of the episodes, which must be of the estimator's image size.

        Raises:
            ValueError: if an episode has no masks or another image size, or there is no episode.
        """
        parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        slots = list(config.slot_numbers)
        for number, episode in enumerate(episodes):
            if episode.masks is None:
                raise ValueError(f"episode {number} has no masks; simulate it with masks")
            size = (episode.camera.width, episode.camera.height)
            if size != (config.width, config.height):
                raise ValueError(
                    f"episode {number} is {size[0]}x{size[1]} but the estimator takes "
                    f"{config.width}x{config.height}; set width and height in its config"
                )
            pick = slice(None, None, stride)
            pixels, visible = visible_joints(
                episode.hand_positions[pick],
                episode.hand_valid[pick],
                episode.masks[pick],
                episode.camera,
                None if episode.depth is None else episode.depth[pick],
            )
            visible = visible[:, slots]
            pixels = np.where(visible[..., None], pixels[:, slots], np.float32(0))
            parts.append(
                (
                    torch.from_numpy(np.array(episode.images[pick])),
                    torch.from_numpy(class_labels(episode.masks[pick])),
                    torch.from_numpy(pixels),
                    torch.from_numpy(visible),
                )
            )
        if not parts:
            raise ValueError("no episodes to take labelled frames from")
        return cls(*(torch.cat(part) for part in zip(*parts, strict=True)))


def mirrored(frames: LabelledFrames, config: EstimatorConfig) -> LabelledFrames:
    """The frames in a mirror: left and right hands trade places, in slots and in classes."""
    other = {"left": "right", "right": "left"}

    def twin(name: str) -> str:
        side, _, joint = name.partition("_")
        return f"{other[side]}_{joint}" if side in other else name

    order = [config.slots.index(twin(name)) for name in config.slots]
    lookup = torch.tensor([CLASS_NAMES.index(twin(name)) for name in CLASS_NAMES])
    pixels = frames.pixels[:, order].clone()
    pixels[..., 0] = config.width - 1 - pixels[..., 0]
    return LabelledFrames(
        frames.images.flip(2),
        lookup.to(torch.uint8)[frames.classes.flip(2).long()],
        pixels,
        frames.visible[:, order],
    )


def augmented_images(frames: LabelledFrames, generator: torch.Generator) -> Tensor:
    """(N, 3, H, W) in [-1, 1]: colours, brightness, noise and blur varied per frame.

    Blur matters most: imagined frames are softer than rendered ones, and an estimator that reads
    sharp edges only would report their softness as a lost hand.
    """
    images = frames.images.permute(0, 3, 1, 2).float() / 127.5 - 1
    n = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    images = images * uniform(0.75, 1.3, n, 1, 1, 1) + uniform(-0.15, 0.15, n, 1, 1, 1)
    images = images + uniform(-0.08, 0.08, n, 3, 1, 1)
    soft = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    softer = F.avg_pool2d(soft, 5, stride=1, padding=2, count_include_pad=False)
    choice = torch.rand(n, 1, 1, 1, generator=generator)
    images = torch.where(choice < 0.35, soft, torch.where(choice < 0.5, softer, images))
    noise = torch.randn(images.shape, generator=generator)
    images = images + noise * uniform(0, 0.06, n, 1, 1, 1)
    return images.clamp(-1, 1).contiguous(memory_format=torch.channels_last)
