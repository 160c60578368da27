"""From noise to latents: an explicit Euler integration of the flow, a few steps at most."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ego_world_model.world_model.backbones import Condition

OnStep = Callable[[int, int], "bool | None"]
"""Called as on_step(step, steps) after each denoising step, step from 1; False cancels."""


class ImaginationCancelled(Exception):
    """The caller's ``on_step`` asked to stop."""


def flow_sigmas(steps: int, shift: float = 1.0) -> list[float]:
    """``steps + 1`` noise levels from 1 to 0; a shift above 1 spends more of them on high noise.

    They are handed to the integrator as they are: schedulers that shift again would shift twice.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if shift <= 0:
        raise ValueError(f"shift must be positive, got {shift}")
    return [shift * s / (1 + (shift - 1) * s) for s in (1 - k / steps for k in range(steps + 1))]


def sample(
    backbone: nn.Module,
    condition: Condition,
    noise: Tensor,
    sigmas: Sequence[float],
    *,
    guidance: float = 1.0,
    unconditional: Condition | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Denoise ``noise`` (B, C, t, h, w) under ``condition``.

    Args:
        backbone: answers with clean latents (see ``backbones.Backbone``).
        sigmas: falling noise levels, the first 1 and the last 0.
        guidance: scale of classifier-free guidance; needs ``unconditional`` unless 1.
        on_step: progress; cancels by returning False.

    Raises:
        ImaginationCancelled: within one step after ``on_step`` returned False.
    """
    if guidance != 1 and unconditional is None:
        raise ValueError("guidance other than 1 needs an unconditional condition (a text prompt)")
    latents, steps = noise, len(sigmas) - 1
    for step, (sigma, after) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True), start=1):
        level = torch.full((len(latents),), sigma, dtype=latents.dtype, device=latents.device)
        clean = backbone(latents, level, condition)
        if guidance != 1:
            without = backbone(latents, level, unconditional)
            clean = without + guidance * (clean - without)
        # Along the straight path, noise = (latents - (1 - sigma) clean) / sigma stays the same.
        latents = clean + (after / sigma) * (latents - clean)
        if on_step is not None and on_step(step, steps) is False:
            raise ImaginationCancelled(f"cancelled after denoising step {step} of {steps}")
    return latents
