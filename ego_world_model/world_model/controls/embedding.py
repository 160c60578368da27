"""Embedding of a joint's grid position and disparity, and the temporal head behind the splats."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def released_encoding(uvd: Tensor, channels: int) -> Tensor:
    """Sinusoids of the raw values, averaged over the coordinates: (..., 3) → (..., channels)."""
    half = channels // 2
    step = math.log(10000.0) / (half - 1)
    rates = torch.exp(torch.arange(half, device=uvd.device, dtype=uvd.dtype) * -step)
    phase = uvd[..., None] * rates
    return torch.cat([phase.sin(), phase.cos()], dim=-1).mean(dim=-2)


def grid_encoding(uv: Tensor, disparity: Tensor, frequencies: int, shortest: float) -> Tensor:
    """Sinusoids of u, v (cells) and disparity, side by side: → (..., 6·frequencies).

    Wavelengths double from ``shortest`` cells, so an eighth of a cell is a clear phase step and the
    longest one spans a grid; those of disparity double from 0.25 per metre (a centimetre at 0.45 m
    is a fifth of it).
    """
    octave = 2.0 ** torch.arange(frequencies, device=uv.device, dtype=uv.dtype)
    phase = torch.cat(
        [
            (uv[..., None] / (shortest * octave)).flatten(-2),
            disparity[..., None] / (0.25 * octave),
        ],
        dim=-1,
    )
    phase = 2 * math.pi * phase
    return torch.cat([phase.sin(), phase.cos()], dim=-1)


def causal_convolution(x: Tensor, conv: nn.Conv3d) -> Tensor:
    """(3, 1, 1) convolution of (B, C, t, p), the first frame repeated before the start.

    Written as one matrix product a tap: on CPUs that is many times faster than Conv3d.
    """
    kernel = conv.weight[..., 0, 0]
    y = conv.bias[:, None] + torch.matmul(kernel[..., -1], x.flatten(2))
    y = y.unflatten(2, x.shape[2:])
    for tap in range(kernel.shape[-1] - 1):
        delay = kernel.shape[-1] - 1 - tap
        z = torch.matmul(kernel[..., tap], x.flatten(2)).unflatten(2, x.shape[2:])
        frames = (torch.arange(x.shape[2], device=x.device) - delay).clamp_min(0)
        y = y + z[:, :, frames]
    return y


def causal_head(x: Tensor, conv1: nn.Conv3d, conv2: nn.Conv3d, norm: nn.Module) -> Tensor:
    """(B, E, t, p) → (B, G, t, p): two causal convolutions over time, then a norm over channels."""
    x = F.silu(causal_convolution(x, conv1))
    x = F.silu(causal_convolution(x, conv2))
    return norm(x.movedim(1, -1)).movedim(-1, 1)
