"""Where a prediction must be right: region weights, and the losses of both trainers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class RegionWeights:
    """Weight added to 1 for the pixels of each region.

    Attributes:
        hand, arm, object: where that thing is in the frame.
        uncovered: where the reference shows a hand, arm or manipulated object that has left; a
            model that skimps here leaves ghosts behind.
    """

    hand: float = 6.0
    arm: float = 1.5
    object: float = 5.0
    uncovered: float = 3.0

    def __call__(self, masks: Tensor) -> Tensor:
        """Classes (B, T, H, W), frame 0 the reference → weights (B, T-1, H, W), mean 1."""
        now, before = masks[:, 1:], masks[:, :1]
        moving = (now >= 1) & (now <= 5)
        weight = torch.ones(now.shape, device=masks.device)
        weight += self.hand * ((now == 1) | (now == 2))
        weight += self.arm * ((now == 3) | (now == 4))
        weight += self.object * (now == 5)
        weight += self.uncovered * ((before >= 1) & (before <= 5) & ~moving)
        return weight / weight.mean()


def pixel_loss(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted L1 + squared error + gradient L1 of (B, T, 3, H, W), weights (B, T, H, W).

    The gradient term keeps fingers apart where colours alone would settle for a blur.
    """
    error = predicted.float() - target
    w = weight[:, :, None]
    loss = (w * (error.abs() + 2 * error.square())).mean()
    dx = error.diff(dim=-1).abs() * 0.5 * (w[..., 1:] + w[..., :-1])
    dy = error.diff(dim=-2).abs() * 0.5 * (w[..., 1:, :] + w[..., :-1, :])
    return loss + 0.5 * (dx.mean() + dy.mean())


def latent_loss(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted squared error of latents (B, C, t, h, w), pixel weights (B, T, H, W).

    A latent that stands for several frames takes the mean of their weights.
    """
    cells = F.adaptive_avg_pool3d(weight[:, None], predicted.shape[-3:])
    return (cells * (predicted - target).square()).mean()
