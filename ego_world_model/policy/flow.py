"""Conditional flow matching: from noise (tau = 0) to data (tau = 1) along straight lines.

H_tau = tau H + (1 - tau) e, so the velocity to learn is H - e, and H goes forward by + delta v.
(MEgoHand prints the target as e - H beside the same forward integration, which would run away from
the data.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_ALPHA = 1.5
_LARGEST = 0.999


def draw_times(count: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """(count,) flow times in [0, 0.999], denser where there is more noise: 1 - Beta(1.5, 1)."""
    uniform = torch.rand(count, generator=generator).to(device)
    return _LARGEST * (1 - uniform ** (1 / _ALPHA))  # Beta(a, 1) has the inverse u^(1/a)


def interpolate(clean: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy actions and the velocity to learn, (B, N, D) each, at times (B,)."""
    tau = times[:, None, None]
    return tau * clean + (1 - tau) * noise, clean - noise


def integrate(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Euler's method from noise (B, N, D) to actions in ``steps`` equal steps.

    Args:
        velocity: (actions (B, N, D), times (B,)) → (B, N, D).
    """
    actions = noise
    for step in range(steps):
        times = torch.full((len(noise),), step / steps, device=noise.device)
        actions = actions + velocity(actions, times) / steps
    return actions
