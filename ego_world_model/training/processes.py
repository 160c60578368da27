"""Training in several processes: what all must agree on, and tensors sharded among them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

PATIENCE = timedelta(hours=12)
"""How long a process waits for the others, which may be unpacking or encoding a whole dataset."""


def processes() -> PartialState:
    """This process among those that ``accelerate launch`` or ``torchrun`` started, or alone."""
    # Without being told, Accelerate takes processes on CPUs for strangers to each other.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=cpu, timeout=PATIENCE)


def agree(*numbers: float) -> list[float]:
    """The largest of each number over all processes, which so take the same decisions."""
    state = processes()
    if state.num_processes == 1:
        return list(numbers)
    shared = torch.tensor(numbers, dtype=torch.float64, device=state.device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return shared.tolist()


def average(numbers: dict[str, float]) -> dict[str, float]:
    """The mean of each number over all processes; all must give the same names."""
    state = processes()
    if state.num_processes == 1 or not numbers:
        return numbers
    shared = torch.tensor(list(numbers.values()), dtype=torch.float64, device=state.device)
    torch.distributed.all_reduce(shared)
    return dict(zip(numbers, (shared / state.num_processes).tolist(), strict=True))


def flatten_scalars(module: nn.Module) -> None:
    """Make scalar parameters vectors of one element, which compute alike: FSDP wants no scalars."""
    for child in module.modules():
        for name, parameter in list(child.named_parameters(recurse=False)):
            if parameter.ndim == 0:
                flat = nn.Parameter(parameter.detach().reshape(1), parameter.requires_grad)
                setattr(child, name, flat)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered from all processes, which must all call this; others stay."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def laid_out_like(value: Tensor, like: Tensor) -> Tensor:
    """``value``, known whole to every process, with device, memory layout and sharding of ``like``.

    A file holds none of these, and a fused optimiser step walks through parameter and moments
    alike.
    """
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return torch.empty_like(like).copy_(value)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Let parts of a model that FSDP sharded be called by themselves, not through its forward.

    The blocks that FSDP wraps gather themselves when they are called; what remains belongs to the
    model as a whole and would be gathered only by its own forward.
    """
    if not hasattr(model, "unshard"):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()
