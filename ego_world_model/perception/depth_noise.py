"""What a stereo depth camera makes of a perfect depth image: a model for simulated depth.

Four effects of a D435-class sensor, in this order:

1. edges wander: each pixel is read up to about a pixel beside itself (Gaussian, sigma in pixels);
2. depth is noisy along the ray: sigma(z) = subpixel z^2 / (focal baseline), a disparity error of
   ``subpixel`` pixels, partly shared by neighbours since matching windows overlap;
3. it is quantised, to a millimetre;
4. values are missing where depth jumps (one camera sees behind the edge) and, rarely, anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class DepthNoise:
    """Sizes of the effects; the defaults are a RealSense D435's, for images of any size.

    Attributes:
        lateral: pixels. subpixel: pixels of disparity. focal: pixels of the depth camera itself.
        baseline: metres between its eyes. jump: metres between neighbours that make an edge.
        lost_at_edges, lost_anywhere: probability that a pixel has no value.
    """

    lateral: float = 0.4
    subpixel: float = 0.1
    focal: float = 640.0
    baseline: float = 0.05
    jump: float = 0.04
    lost_at_edges: float = 0.5
    lost_anywhere: float = 0.003


def noisy_depth(
    depth: Tensor, *, generator: torch.Generator | None = None, noise: DepthNoise | None = None
) -> Tensor:
    """Depth (B, 1, H, W) in metres, 0 where unknown → as a sensor would measure it."""
    noise = noise or DepthNoise()
    batch, _, height, width = depth.shape
    device = depth.device

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    def uniform() -> Tensor:
        return torch.rand(batch, 1, height, width, generator=generator).to(device)

    base = F.affine_grid(
        torch.eye(2, 3, device=device).expand(batch, 2, 3), list(depth.shape), align_corners=False
    )
    shift = noise.lateral * normal(batch, height, width, 2)
    shift = shift * torch.tensor([2 / width, 2 / height], device=device)
    moved = F.grid_sample(
        depth, base + shift, mode="nearest", padding_mode="border", align_corners=False
    )
    sigma = noise.subpixel * moved.square() / (noise.focal * noise.baseline)
    shared = F.avg_pool2d(normal(batch, 1, height + 2, width + 2), 3, stride=1) * 3  # sigma 1
    measured = moved + sigma * (0.8 * shared + 0.6 * normal(batch, 1, height, width))
    measured = (measured * 1000).round() / 1000
    farthest = F.max_pool2d(moved, 3, stride=1, padding=1)
    nearest = -F.max_pool2d(-moved, 3, stride=1, padding=1)
    edge = farthest - nearest > noise.jump
    lost = (edge & (uniform() < noise.lost_at_edges)) | (uniform() < noise.lost_anywhere)
    return torch.where(lost | (moved <= 0), torch.zeros_like(measured), measured.clamp_min(0))
