"""Saving and resuming a training run exactly: weights, averages, optimiser, random generators.

Everything is safetensors and JSON. A state is written beside the old one and then takes its name,
so a run that is killed while saving still has the state before. Only what training changes is
stored, whole: weights that are sharded among processes are gathered first.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ego_world_model.training.processes import laid_out_like, processes, whole

NAME = "state"


class Average:
    """Exponential moving average of a module's trained parameters; the rest is as it is.

    Parameters that are sharded among processes have sharded averages.

    Args:
        decay: at most; early on the average forgets faster, so that it never lags far behind.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        trained = ((n, p) for n, p in module.named_parameters() if p.requires_grad)
        self.parameters = {n: p.detach().clone() for n, p in trained}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move towards the module's present parameters."""
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        current = dict(module.named_parameters())
        torch._foreach_lerp_(
            list(self.parameters.values()), [current[n].detach() for n in self.parameters], weight
        )

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchange the module's parameters and the averages; a second call undoes it."""
        current = dict(module.named_parameters())
        for name, average in self.parameters.items():
            held = current[name].detach().clone()
            current[name].copy_(average)
            average.copy_(held)


def save_state(
    folder: Path,
    module: nn.Module,
    average: Average,
    optimiser: torch.optim.Optimizer,
    rng: np.random.Generator,
    numbers: dict[str, Any],
    *,
    own: dict[str, Any] | None = None,
) -> None:
    """Write ``folder/state``; all processes call this, the main one writes.

    Args:
        numbers: any JSON that is alike in all processes (step, seconds spent, ...).
        own: any JSON that each process keeps for itself.
    """
    changed = _contiguous(_changing(module, average))
    averages = _contiguous(average.parameters)
    moments: dict[str, Tensor] = {}
    for index, slots in optimiser.state_dict()["state"].items():
        moments |= {f"{index}.{name}": torch.as_tensor(value) for name, value in slots.items()}
    moments = _contiguous(moments)
    mine = {"rng": rng.bit_generator.state, "torch_rng": torch.get_rng_state(), "own": own or {}}
    each = gather_object([mine])
    if not processes().is_main_process:
        return
    fresh = folder / f"{NAME}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file(changed, fresh / "module.safetensors")
    save_file(averages, fresh / "average.safetensors")
    save_file(moments, fresh / "optimiser.safetensors")
    torch_rngs = {str(rank): entry.pop("torch_rng") for rank, entry in enumerate(each)}
    save_file(torch_rngs, fresh / "torch_rng.safetensors")
    numbers = numbers | {"average_updates": average.updates, "processes": each}
    (fresh / "numbers.json").write_text(json.dumps(numbers))  # last: it marks a complete state
    shutil.rmtree(folder / NAME, ignore_errors=True)
    fresh.rename(folder / NAME)


def load_state(
    folder: Path,
    module: nn.Module,
    average: Average,
    optimiser: torch.optim.Optimizer,
    rng: np.random.Generator,
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Restore what ``save_state`` wrote; (numbers, own) of this process, or None without a state.

    Raises:
        ValueError: if the state belongs to another model or another number of processes.
    """
    saved = folder / NAME
    if not (saved / "numbers.json").exists():
        saved = folder / f"{NAME}.new"  # killed between removing the old state and renaming
        if not (saved / "numbers.json").exists():
            return None
    numbers = json.loads((saved / "numbers.json").read_text())
    each, state = numbers.pop("processes", None), processes()
    if each is None:
        raise ValueError(
            f"{saved} was saved by an earlier version; start a new run with `init` set to "
            f"{folder / 'checkpoint'}"
        )
    if len(each) != state.num_processes:
        raise ValueError(
            f"{saved} was saved by {len(each)} processes and is resumed by {state.num_processes}, "
            "which would draw other clips; use as many, or start a new run with `init` set to "
            f"{folder / 'checkpoint'}"
        )
    _restore(_changing(module, average), load_file(saved / "module.safetensors"), saved)
    _restore(average.parameters, load_file(saved / "average.safetensors"), saved)
    average.updates = numbers.pop("average_updates")
    _restore_moments(optimiser, load_file(saved / "optimiser.safetensors"))
    mine = each[state.process_index]
    rng.bit_generator.state = mine["rng"]
    torch.set_rng_state(load_file(saved / "torch_rng.safetensors")[str(state.process_index)])
    return numbers, mine["own"]


def _changing(module: nn.Module, average: Average) -> dict[str, Tensor]:
    """Trained parameters and buffers of a module by name."""
    frozen = {n for n, _ in module.named_parameters() if n not in average.parameters}
    return {n: t.detach() for n, t in module.state_dict().items() if n not in frozen}


@torch.no_grad()
def _restore(tensors: dict[str, Tensor], values: dict[str, Tensor], saved: Path) -> None:
    """Copy values into tensors of the same names and shapes."""
    other = {n for n, t in tensors.items() if n not in values or values[n].shape != t.shape}
    if other := sorted(other | (set(values) - set(tensors))):
        raise ValueError(
            f"{saved} belongs to a run with other parts ({', '.join(other[:4])}, ...); give "
            "another run folder"
        )
    for name, tensor in tensors.items():
        tensor.copy_(laid_out_like(values[name], tensor))


def _restore_moments(optimiser: torch.optim.Optimizer, moments: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
    for parameter, slots in optimiser.state.items():
        for name, value in slots.items():
            if value.shape == parameter.shape:
                slots[name] = laid_out_like(value, parameter.detach())


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole copies on the CPU."""
    return {
        name: whole(value.detach()).to("cpu", copy=True).contiguous()
        for name, value in tensors.items()
    }
