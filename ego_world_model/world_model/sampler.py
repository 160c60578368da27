"""From noise to latents: the denoising loop, its noise levels and its solvers.

A backbone answers with clean latents, so a solver only has to carry latents from one noise level to
the next. Noise levels are handed to it as they are: schedulers that shift again shift twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from ego_world_model.world_model.acceleration import StepCache
from ego_world_model.world_model.backbones import Condition
from ego_world_model.world_model.guidance import GuidanceBranch, guided

OnStep = Callable[[int, int], "bool | None"]
"""Called as on_step(step, steps) after each denoising step, step from 1; False cancels."""

SolverName = Literal["euler", "unipc"]


class ImaginationCancelled(Exception):
    """The caller's ``on_step`` asked to stop."""


def flow_sigmas(steps: int, shift: float = 1.0) -> list[float]:
    """``steps + 1`` noise levels from 1 to 0; a shift above 1 spends more of them on high noise."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if shift <= 0:
        raise ValueError(f"shift must be positive, got {shift}")
    return [shift * s / (1 + (shift - 1) * s) for s in (1 - k / steps for k in range(steps + 1))]


def explicit_sigmas(levels: Sequence[float]) -> list[float]:
    """``levels``, one for each step, and the final 0.

    Distilled models are trained on a fixed few: timesteps 1000, 937.5, 833.3 and 625 are the
    levels 1, 0.9375, 0.8333 and 0.625.

    Raises:
        ValueError: unless they fall strictly from 1 and stay above 0.
    """
    sigmas = [*(float(level) for level in levels), 0.0]
    falling = all(after < before for before, after in zip(sigmas[:-1], sigmas[1:], strict=True))
    if sigmas[0] != 1 or not falling:
        raise ValueError(
            "sigmas must be the noise levels of the steps, falling strictly from 1 and above 0 "
            f"(timesteps divided by 1000, without the final 0), got {list(levels)}"
        )
    return sigmas


class Solver(Protocol):
    """Carries latents down the noise levels that it was made for, one step after another."""

    def step(self, clean: Tensor, latents: Tensor) -> Tensor:
        """Estimate of the clean latents and the latents it was made from, at the current level →
        the latents at the next level; both (B, C, t, h, w).
        """
        ...


class EulerSolver:
    """First order: the flow runs straight to the estimate.

    Along that path, noise = (latents - (1 - sigma) clean) / sigma stays the same.
    """

    def __init__(self, sigmas: Sequence[float]) -> None:
        self._steps = zip(sigmas[:-1], sigmas[1:], strict=True)

    def step(self, clean: Tensor, latents: Tensor) -> Tensor:
        sigma, after = next(self._steps)
        return clean + (after / sigma) * (latents - clean)


class UniPCSolver:
    """Second order from the estimates of earlier steps: UniPC (arXiv 2302.04867), as diffusers
    has it and as Wan 2.1 is published with.

    The scheduler is given our noise levels instead of its own, and takes clean estimates as such
    (``prediction_type="sample"``), which is what it turns a velocity into.
    """

    def __init__(self, sigmas: Sequence[float]) -> None:
        from diffusers import UniPCMultistepScheduler

        self._scheduler = UniPCMultistepScheduler(
            prediction_type="sample", use_flow_sigmas=True, solver_order=2
        )
        self._scheduler.set_timesteps(len(sigmas) - 1)
        # It takes the logarithm of 1 - sigma, so pure noise stays just below 1.
        levels = torch.tensor(sigmas, dtype=torch.float64).clamp_max(1 - 1e-6)
        self._scheduler.sigmas = levels.float()
        self._scheduler.set_begin_index(0)

    def step(self, clean: Tensor, latents: Tensor) -> Tensor:
        # The time handed over is not read: the scheduler counts its steps.
        (latents,) = self._scheduler.step(clean, 0, latents, return_dict=False)
        return latents


SOLVERS: dict[str, Callable[[Sequence[float]], Solver]] = {
    "euler": EulerSolver,
    "unipc": UniPCSolver,
}
"""Solver's name in a checkpoint's config → its class."""


def check_solver(name: str) -> SolverName:
    """``name``, if there is such a solver.

    Raises:
        ValueError: else, naming those there are.
    """
    if name not in SOLVERS:
        raise ValueError(f"unknown solver {name!r}; known: {', '.join(SOLVERS)}")
    return name


def sample(
    backbone: nn.Module,
    condition: Condition,
    noise: Tensor,
    sigmas: Sequence[float],
    *,
    guidance: Sequence[GuidanceBranch] = (),
    solver: SolverName = "euler",
    cache: StepCache | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Denoise ``noise`` (B, C, t, h, w) under ``condition``.

    Args:
        backbone: answers with clean latents (see ``backbones.Backbone``).
        sigmas: falling noise levels, the first 1 and the last 0.
        guidance: what the estimates are led away from (see ``guidance.guided``).
        cache: reuses parts of the backbone's work between steps (see ``acceleration``).
        on_step: progress; cancels by returning False.

    Raises:
        ImaginationCancelled: within one step after ``on_step`` returned False.
    """
    latents, steps = noise, len(sigmas) - 1
    integrator, cache = SOLVERS[check_solver(solver)](sigmas), cache or StepCache()
    with cache.rollout(steps, branches=1 + sum(branch.scale != 1 for branch in guidance)):
        for step, sigma in enumerate(sigmas[:-1], start=1):
            level = torch.full((len(latents),), sigma, dtype=latents.dtype, device=latents.device)

            def estimate(condition: Condition, branch: str) -> Tensor:
                with cache.branch(branch, sigma):  # noqa: B023  called within this step
                    return backbone(latents, level, condition)  # noqa: B023

            clean = guided(estimate, condition, guidance)
            latents = integrator.step(clean, latents)
            if on_step is not None and on_step(step, steps) is False:
                raise ImaginationCancelled(f"cancelled after denoising step {step} of {steps}")
    return latents
