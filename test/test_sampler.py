"""The denoising loop: solvers against a flow that is known exactly and against the published use
of diffusers' scheduler, noise levels, and what guidance computes and costs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from torch import Tensor

from ego_world_model.world_model.backbones import Condition
from ego_world_model.world_model.guidance import (
    FULL,
    WITHOUT_CONTROL,
    WITHOUT_TEXT,
    GuidanceBranch,
    guided,
)
from ego_world_model.world_model.sampler import (
    UniPCSolver,
    explicit_sigmas,
    flow_sigmas,
    sample,
)

SHAPE = (1, 4, 3, 6, 8)
MEAN, SPREAD = 0.7, 0.3  # of the data


def some_condition(seed: int = 0) -> Condition:
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(1, 4, 6, 8, generator=generator)
    return Condition.from_control(
        reference,
        torch.randn(SHAPE, generator=generator),
        torch.randn(1, 16, 3, 6, 8, generator=generator),
    )


def gaussian_denoiser(noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
    """The mean of N(MEAN, SPREAD²) data given its noisy version: the best answer there is."""
    s = sigma.view(-1, 1, 1, 1, 1)
    keep = 1 - s
    gain = keep * SPREAD**2 / (keep**2 * SPREAD**2 + s**2)
    return MEAN + gain * (noisy - keep * MEAN)


def error(solver: str, steps: int, shift: float = 1.0) -> float:
    """Largest distance from where the exact flow carries the noise, MEAN + SPREAD * noise."""
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    reached = sample(
        gaussian_denoiser, some_condition(), noise, flow_sigmas(steps, shift), solver=solver
    )
    return (reached - (MEAN + SPREAD * noise)).abs().max().item()


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("unipc", 2)])
def test_solvers_converge_to_the_exact_flow_with_their_order(solver: str, order: int) -> None:
    """Twice the steps, half the error of Euler and a quarter of UniPC's."""
    errors = [error(solver, steps) for steps in (128, 256, 512)]
    slopes = np.log2(np.divide(errors[:-1], errors[1:]))
    assert errors[-1] < (4e-3 if order == 1 else 4e-5)
    np.testing.assert_allclose(slopes, order, atol=0.1)


def test_unipc_at_8_steps_is_closer_than_euler() -> None:
    assert error("unipc", 8) < 0.5 * error("euler", 8)


def test_a_large_shift_needs_more_steps_before_unipc_pays() -> None:
    """Shift 5 spends most steps where the flow hardly bends, and few where it does."""
    np.testing.assert_allclose(error("unipc", 8, 5.0), error("euler", 8, 5.0), rtol=0.03)
    assert error("unipc", 64, 5.0) < 0.2 * error("euler", 64, 5.0)


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_one_step_is_the_first_estimate(solver: str) -> None:
    noise = torch.randn(SHAPE)
    reached = sample(gaussian_denoiser, some_condition(), noise, flow_sigmas(1), solver=solver)
    torch.testing.assert_close(reached, torch.full(SHAPE, MEAN), atol=1e-5, rtol=0)


class VelocityOfWan(torch.nn.Module):
    """A small random Wan transformer, and its velocity as an estimate of clean latents."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.transformer = WanTransformer3DModel(
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=16,
            ffn_dim=32,
            text_dim=8,
            freq_dim=16,
            in_channels=4,
            out_channels=4,
        ).eval()

    def velocity(self, noisy: Tensor, timestep: Tensor) -> Tensor:
        return self.transformer(noisy, timestep, torch.zeros(1, 3, 8), return_dict=False)[0]

    def forward(self, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        return noisy - sigma.view(-1, 1, 1, 1, 1) * self.velocity(noisy, 1000 * sigma)


@torch.no_grad()
def test_unipc_denoises_as_the_published_pipeline_does() -> None:
    """The published way hands velocities to a scheduler that shifts by itself.

    It is given levels before the shift, so that after one shift they are ours. A doubled shift, or
    Euler, ends elsewhere.
    """
    wan, noise = VelocityOfWan(), torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    scheduler.set_timesteps(sigmas=1 - np.arange(6) / 6)
    published = noise
    for level, timestep in zip(scheduler.sigmas[:-1], scheduler.timesteps, strict=True):
        velocity = wan.velocity(published, 1000 * level[None])
        published = scheduler.step(velocity, timestep, published, return_dict=False)[0]

    def distance(sigmas: list[float], solver: str) -> float:
        ours = sample(wan, some_condition(), noise, sigmas, solver=solver)
        return ((ours - published).square().mean() / published.square().mean()).sqrt().item()

    sigmas = flow_sigmas(6, 5.0)
    assert distance(sigmas, "unipc") < 1e-5
    assert distance(sigmas, "euler") > 1e-2
    assert distance([5 * s / (1 + 4 * s) for s in sigmas], "unipc") > 1e-2


def test_unipc_takes_our_noise_levels_as_they_are() -> None:
    sigmas = flow_sigmas(6, 5.0)
    np.testing.assert_allclose(UniPCSolver(sigmas)._scheduler.sigmas, sigmas, atol=2e-6)


def test_distilled_timesteps_are_those_of_four_steps_at_shift_5() -> None:
    levels = [t / 1000 for t in (1000, 937.5, 2500 / 3, 625)]
    np.testing.assert_allclose(explicit_sigmas(levels), flow_sigmas(4, 5.0))


@pytest.mark.parametrize("levels", [[0.9, 0.5], [1.0, 0.5, 0.5], [1.0, 0.5, 0.0], [1000.0, 500.0]])
def test_noise_levels_that_make_no_sense_are_refused(levels: list[float]) -> None:
    with pytest.raises(ValueError, match="falling strictly from 1"):
        explicit_sigmas(levels)


def test_an_unknown_solver_is_named() -> None:
    with pytest.raises(ValueError, match="unknown solver 'heun'; known: euler, unipc"):
        sample(gaussian_denoiser, some_condition(), torch.zeros(SHAPE), [1, 0], solver="heun")


# ----------------------------------------------------------------------------------- guidance


def counting(estimates: dict[str, Tensor]) -> tuple[Callable[..., Tensor], list[str]]:
    asked: list[str] = []

    def estimate(condition: Condition, branch: str) -> Tensor:
        asked.append(branch)
        return estimates[branch]

    return estimate, asked


def branches(text: float, control: float) -> list[GuidanceBranch]:
    return [
        GuidanceBranch(name=WITHOUT_TEXT, condition=some_condition(1), scale=text),
        GuidanceBranch(name=WITHOUT_CONTROL, condition=some_condition(2), scale=control),
    ]


def test_each_guidance_leads_away_from_its_own_branch() -> None:
    full, no_text, no_control = torch.randn(3, *SHAPE).unbind()
    estimates = {FULL: full, WITHOUT_TEXT: no_text, WITHOUT_CONTROL: no_control}
    estimate, asked = counting(estimates)
    both = guided(estimate, some_condition(), branches(5.0, 3.0))
    torch.testing.assert_close(both, full + 4 * (full - no_text) + 2 * (full - no_control))
    assert asked == [FULL, WITHOUT_TEXT, WITHOUT_CONTROL]


@pytest.mark.parametrize(
    ("text", "control", "away"), [(5.0, 1.0, WITHOUT_TEXT), (1.0, 3.0, WITHOUT_CONTROL)]
)
def test_one_guidance_alone_is_the_usual_formula_with_one_more_forward(
    text: float, control: float, away: str
) -> None:
    full, without = torch.randn(2, *SHAPE).unbind()
    estimate, asked = counting({FULL: full, away: without})
    result = guided(estimate, some_condition(), branches(text, control))
    torch.testing.assert_close(result, without + text * control * (full - without))
    assert asked == [FULL, away]


def test_a_scale_of_1_changes_nothing_and_costs_nothing() -> None:
    full = torch.randn(SHAPE)
    estimate, asked = counting({FULL: full})
    assert torch.equal(guided(estimate, some_condition(), branches(1.0, 1.0)), full)
    assert asked == [FULL]


def test_guidance_sees_the_condition_without_the_thing_at_every_step() -> None:
    """Through the whole loop, with a backbone that answers with its condition."""
    seen = []

    def backbone(noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        seen.append(condition)
        return condition.motion

    full, away = some_condition(), branches(2.0, 1.0)[0]
    reached = sample(backbone, full, torch.randn(SHAPE), flow_sigmas(3), guidance=[away])
    torch.testing.assert_close(reached, 2 * full.motion - away.condition.motion)
    assert seen == [full, away.condition] * 3
