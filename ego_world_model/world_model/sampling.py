"""How one rollout is sampled: what the call asks for, else what the checkpoint declares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ego_world_model.world_model.checkpoint import WorldModelConfig
from ego_world_model.world_model.sampler import (
    SolverName,
    check_solver,
    explicit_sigmas,
    flow_sigmas,
)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to get from noise to latents.

    Attributes:
        sigmas: noise levels, from 1 to 0.
        solver: see ``sampler.SOLVERS``.
        guidance, control_guidance: scales, see ``guidance.guided``.
    """

    sigmas: list[float]
    solver: SolverName
    guidance: float
    control_guidance: float


def choose_sampling(
    config: WorldModelConfig,
    *,
    prompt: str = "",
    guidance: float | None = None,
    control_guidance: float | None = None,
    steps: int | None = None,
    sigmas: Sequence[float] | None = None,
    solver: str | None = None,
) -> Sampling:
    """Arguments of ``WorldModel.imagine``, None where the checkpoint decides.

    Raises:
        ValueError: naming what the checkpoint would have to ignore, or what makes no sense.
    """
    if config.encoders is None and prompt.strip():
        raise ValueError(
            f"prompt {prompt!r}: this checkpoint has no text encoder and would ignore it; "
            "leave prompt empty"
        )
    if config.encoders is None and guidance not in (None, 1, 1.0):
        raise ValueError(
            f"guidance {guidance}: this checkpoint has no text encoder, so there is nothing to "
            "guide by; leave guidance out"
        )
    if steps is not None and sigmas is not None:
        raise ValueError("steps and sigmas: give one of them; sigmas say how many steps there are")
    if steps is None and sigmas is None:
        steps, sigmas = config.steps, config.sigmas
    if control_guidance is None:
        control_guidance = config.control_guidance
    if control_guidance != 1 and config.control.kwargs.get("compat") == "released":
        raise ValueError(
            f"control_guidance {control_guidance}: the released control takes missing joints for "
            "points at (0, 0, 0), so it cannot go without joints; leave control_guidance at 1"
        )
    return Sampling(
        sigmas=flow_sigmas(steps, config.shift) if sigmas is None else explicit_sigmas(sigmas),
        solver=check_solver(solver or config.solver),
        guidance=config.guidance if guidance is None else guidance,
        control_guidance=control_guidance,
    )


def split_batches(count: int, max_batch: int | None) -> list[slice]:
    """Slices of ``count`` candidates, of at most ``max_batch`` each; None: all in one.

    Raises:
        ValueError: if ``max_batch`` is below 1.
    """
    if max_batch is not None and max_batch < 1:
        raise ValueError(f"max_batch must be at least 1, got {max_batch}")
    size = max_batch or count
    return [slice(start, start + size) for start in range(0, count, size)]
