"""Embedding of a joint's grid position and disparity, and the temporal head behind the splats."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_BLOCK = 1_000_000  # input elements of one block of the head


def sinusoids(values: Tensor, channels: int) -> Tensor:
    """Sines, then cosines, of a number at falling rates: (...) → (..., channels)."""
    half = channels // 2
    step = math.log(10000.0) / (half - 1)
    rates = torch.exp(torch.arange(half, device=values.device, dtype=values.dtype) * -step)
    phase = values[..., None] * rates
    return torch.cat([phase.sin(), phase.cos()], dim=-1)


def released_encoding(uvd: Tensor, channels: int) -> Tensor:
    """Sinusoids of the raw values, averaged over the coordinates: (..., 3) → (..., channels)."""
    return sinusoids(uvd, channels).mean(dim=-2)


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

    Written as one matrix product for all taps: on CPUs that is many times faster than Conv3d.
    """
    taps, frames = conv.kernel_size[0], x.shape[2]
    kernel = conv.weight[..., 0, 0].permute(2, 0, 1).flatten(0, 1)  # (taps·O, C)
    y = torch.bmm(kernel.expand(len(x), -1, -1), x.flatten(2))
    y = y.unflatten(2, x.shape[2:]).unflatten(1, (taps, -1))  # (B, taps, O, t, p)
    out = y[:, -1] + conv.bias[:, None, None]
    for delay in range(1, taps):
        source = (torch.arange(frames, device=x.device) - delay).clamp_min(0)
        out = out + y[:, taps - 1 - delay].index_select(2, source)
    return out


def causal_head(
    structure: Tensor, motion: Tensor, conv1: nn.Conv3d, conv2: nn.Conv3d, norm: nn.Module
) -> Tensor:
    """(B, E, t, p) and (B, C, t, p) → (B, G, t, p): two causal convolutions over time, then a norm.

    Positions do not see each other, so they are computed a block at a time: little memory, and
    what one layer writes is still in the cache when the next one reads it.
    """
    size = max(256, _BLOCK // (structure.shape[0] * structure.shape[2] * conv1.in_channels))
    blocks = []
    for x in zip(structure.split(size, dim=-1), motion.split(size, dim=-1), strict=True):
        y = F.silu(causal_convolution(torch.cat(x, dim=1), conv1))
        y = F.silu(causal_convolution(y, conv2))
        blocks.append(norm(y.movedim(1, -1)).movedim(-1, 1))
    return torch.cat(blocks, dim=-1)
