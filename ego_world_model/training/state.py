"""Saving and resuming a training run exactly: weights, averages, optimiser, random generators.

Everything is safetensors and JSON. A state is written beside the old one and then takes its name,
so a run that is killed while saving still has the state before.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

NAME = "state"


class Average:
    """Exponential moving average of a module's parameters; buffers are taken as they are.

    Args:
        decay: at most; early on the average forgets faster, so that it never lags far behind.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.parameters = {n: p.detach().clone() for n, p in module.named_parameters()}

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
        for name, parameter in module.named_parameters():
            held = parameter.detach().clone()
            parameter.copy_(self.parameters[name])
            self.parameters[name].copy_(held)


def save_state(
    folder: Path,
    module: nn.Module,
    average: Average,
    optimiser: torch.optim.Optimizer,
    rng: np.random.Generator,
    numbers: dict[str, Any],
) -> None:
    """Write ``folder/state``; ``numbers`` is any JSON (step, seconds spent, ...)."""
    fresh = folder / f"{NAME}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file(_contiguous(module.state_dict()), fresh / "module.safetensors")
    save_file(_contiguous(average.parameters), fresh / "average.safetensors")
    moments: dict[str, Tensor] = {"torch_rng": torch.get_rng_state()}
    for index, slots in optimiser.state_dict()["state"].items():
        moments |= {f"{index}.{name}": torch.as_tensor(value) for name, value in slots.items()}
    save_file(_contiguous(moments), fresh / "optimiser.safetensors")
    numbers = numbers | {"rng": rng.bit_generator.state, "average_updates": average.updates}
    (fresh / "numbers.json").write_text(json.dumps(numbers))
    shutil.rmtree(folder / NAME, ignore_errors=True)
    fresh.rename(folder / NAME)


def load_state(
    folder: Path,
    module: nn.Module,
    average: Average,
    optimiser: torch.optim.Optimizer,
    rng: np.random.Generator,
) -> dict[str, Any] | None:
    """Restore what ``save_state`` wrote and return its numbers; None if there is no state yet."""
    saved = folder / NAME
    if not (saved / "numbers.json").exists():
        fresh = folder / f"{NAME}.new"  # killed between removing the old state and renaming
        if not (fresh / "numbers.json").exists():
            return None
        saved = fresh
    numbers = json.loads((saved / "numbers.json").read_text())
    module.load_state_dict(load_file(saved / "module.safetensors"))
    for name, value in load_file(saved / "average.safetensors").items():
        average.parameters[name].copy_(value)
    average.updates = numbers.pop("average_updates")
    moments = load_file(saved / "optimiser.safetensors")
    torch.set_rng_state(moments.pop("torch_rng"))
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict(
        {"state": state, "param_groups": optimiser.state_dict()["param_groups"]}
    )
    _match_layout(optimiser)
    rng.bit_generator.state = numbers.pop("rng")
    return numbers


def _match_layout(optimiser: torch.optim.Optimizer) -> None:
    """Give moments their parameters' memory layout (channels last, say): the file holds none, and
    a fused step walks through parameter and moments alike."""
    for parameter, slots in optimiser.state.items():
        for name, value in slots.items():
            if value.shape == parameter.shape:
                slots[name] = torch.empty_like(parameter).copy_(value)


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().contiguous().clone() for name, value in tensors.items()}
