"""The low level: a diffusion transformer over the chunk that attends to what the cerebrum says."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Memory = list[tuple[Tensor, Tensor]]
"""Keys and values (B, heads, P, width / heads) of the prefix, for each block."""


@dataclass(frozen=True, kw_only=True)
class CerebellumConfig:
    """Sizes of the transformer.

    Attributes:
        width, layers, heads: of the transformer. ffn: width of its feed-forward layers.
        data_scale: standard deviation of normalised actions, about.
    """

    width: int = 1024
    layers: int = 16
    heads: int = 16
    ffn: int = 4096
    data_scale: float = 0.4


class Block(nn.Module):
    """Self-attention over the chunk, cross-attention to the prefix, feed-forward; each scaled,
    shifted and gated by the flow time (adaLN-Zero)."""

    def __init__(self, config: CerebellumConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.modulation = nn.Linear(width, 9 * width)
        self.attend = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.memory = nn.Linear(width, 2 * width)
        self.read = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.Linear(width, config.ffn), nn.GELU(approximate="tanh"), nn.Linear(config.ffn, width)
        )
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def remember(self, prefix: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the prefix (B, P, width)."""
        key, value = self.memory(prefix).chunk(2, dim=-1)
        return self._split(key), self._split(value)

    def forward(
        self, x: Tensor, condition: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor
    ) -> Tensor:
        """x (B, N, width), condition (B, width), mask (B, 1, 1, P) of what may be read."""
        parts = self.modulation(F.silu(condition))[:, None].chunk(9, dim=-1)
        query, key, value = map(
            self._split, self.attend(_modulated(x, *parts[0:2])).chunk(3, dim=-1)
        )
        # no mask: every step of the chunk sees every other
        attended = F.scaled_dot_product_attention(query, key, value)
        x = x + parts[2] * self.attended(self._join(attended))
        query = self._split(self.query(_modulated(x, *parts[3:5])))
        read = F.scaled_dot_product_attention(query, *memory, attn_mask=mask)
        x = x + parts[5] * self.read(self._join(read))
        return x + parts[8] * self.feed(_modulated(x, *parts[6:8]))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _join(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(-2)


class Cerebellum(nn.Module):
    """Velocity of a noisy chunk of actions.

    What is linear in the noisy actions is not left to the network: for data of deviation s the best
    linear estimate of the velocity is (tau s^2 - (1 - tau)) / n^2 times the actions, n^2 =
    (1 - tau)^2 + tau^2 s^2, and what remains has deviation s / n (the preconditioning of Karras et
    al. 2022, arXiv 2206.00364, written for straight paths). At tau = 0 the network so answers with
    the actions themselves, and need not learn to subtract its own noise first.

    Args:
        actions: D, numbers per step. chunk: N steps. prefix: width of the cerebrum's tokens.
    """

    def __init__(self, config: CerebellumConfig, *, actions: int, chunk: int, prefix: int) -> None:
        super().__init__()
        width = config.width
        self.width, self.data_scale = width, config.data_scale
        self.enter = nn.Linear(2 * actions, width)  # values, and which of them there are
        self.position = nn.Parameter(torch.randn(chunk, width) * 0.02)
        self.prefix = nn.Sequential(nn.LayerNorm(prefix), nn.Linear(prefix, width))
        self.summary = nn.Linear(width, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.leave_modulation = nn.Linear(width, 2 * width)
        self.leave = nn.Linear(width, actions)
        for layer in (self.leave_modulation, self.leave):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def remember(self, prefix: Tensor, summary: Tensor) -> tuple[Memory, Tensor]:
        """What all steps of the integration share: keys and values of the prefix, and a summary.

        Args:
            prefix: (B, P, prefix). summary: (B, S, prefix), the tokens that also steer the blocks'
                scales: what the task points at, and the hands.
        """
        tokens = self.prefix(prefix)
        steering = self.summary(self.prefix(summary).sum(dim=1))
        return [block.remember(tokens) for block in self.blocks], steering

    def forward(
        self,
        actions: Tensor,
        known: Tensor,
        times: Tensor,
        memory: Memory,
        steering: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Velocity (B, N, D).

        Args:
            actions: (B, N, D) noisy. known: (B, D) bool, dimensions that the robot has.
            times: (B,) flow times. memory, steering: of ``remember``.
            mask: (B, P) bool, prefix tokens that may be read.
        """
        present = known[:, None].to(actions.dtype).expand_as(actions)
        tau, scale = times[:, None, None], self.data_scale
        norm = ((1 - tau).square() + (tau * scale).square()).sqrt()
        x = self.enter(torch.cat([actions / norm * present, present], dim=-1)) + self.position
        condition = self.time(_fourier(times, self.width).to(x.dtype)) + steering
        for block, own in zip(self.blocks, memory, strict=True):
            x = block(x, condition, own, mask[:, None, None])
        scale_shift = self.leave_modulation(F.silu(condition))[:, None].chunk(2, dim=-1)
        remainder = self.leave(_modulated(x, *scale_shift))
        linear = (tau * scale**2 - (1 - tau)) / norm.square()
        return linear * actions + scale / norm * remainder


def _modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


def _fourier(times: Tensor, width: int) -> Tensor:
    """(B,) in [0, 1] → (B, width) sines and cosines."""
    half = width // 2
    rates = torch.exp(-math.log(1e4) * torch.arange(half, device=times.device) / half)
    angles = 1000 * times[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
