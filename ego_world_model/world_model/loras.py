"""Published LoRA files on the Wan transformer, beside the LoRA layers of the checkpoint itself.

A few-step distilled LoRA is the usual case: ours is trained on the base, and both are active.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ego_world_model.world_model.checkpoint import CheckpointError, LoraFile
from ego_world_model.world_model.pretrained import LORA_NAME

_INPUT = "transformer.patch_embedding.lora_A.weight"


def attach_loras(backbone: nn.Module, files: Sequence[LoraFile]) -> None:
    """Load ``files`` into the backbone's Wan transformer and make them active at their scales.

    Read are diffusers' and peft's names, the original Wan code's (``lora_A`` or ``lora_down``, with
    ``alpha`` or without), and Musubi's.

    Raises:
        CheckpointError: naming the file that is missing, not understood or made for other layers,
            or the backbone that takes none.
    """
    if not files:
        return
    transformer = getattr(backbone, "transformer", None)
    if not hasattr(backbone, "base") or not hasattr(transformer, "load_lora_adapter"):
        raise CheckpointError(
            f"loras: {type(backbone).__name__} is not built on a published Wan transformer; LoRA "
            "files fit the backbone wan_i2v only"
        )
    names = [file.name for file in files]
    if len({LORA_NAME, *names}) <= len(names):
        raise CheckpointError(
            f"loras: names must differ, and from {LORA_NAME!r}, which is our own; got {names}"
        )
    own = list(getattr(transformer, "peft_config", {}))
    for file in files:
        _load(transformer, file)
    scales = [1.0] * len(own) + [file.scale for file in files]
    transformer.set_adapters([*own, *names], weights=scales)


def _load(transformer: nn.Module, file: LoraFile) -> None:
    from diffusers.loaders import WanLoraLoaderMixin

    path = Path(file.path)
    if not path.is_file():
        raise CheckpointError(f"LoRA file {path} is missing; correct `path` of {file.name!r}")
    try:
        state = WanLoraLoaderMixin.lora_state_dict(load_file(path))
        before = set(transformer.state_dict())
        transformer.load_lora_adapter(_fit(state, transformer), adapter_name=file.name)
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"LoRA file {path} does not fit this transformer: {error}") from error
    if not set(transformer.state_dict()) - before:
        raise CheckpointError(f"LoRA file {path} holds no layer of a Wan transformer")


def _fit(state: dict[str, Tensor], transformer: nn.Module) -> dict[str, Tensor]:
    """Let a LoRA of the input layer ignore the channels by which ours is wider."""
    if _INPUT in state:
        narrow = state[_INPUT]
        missing = transformer.config.in_channels - narrow.shape[1]
        padding = narrow.new_zeros(len(narrow), max(missing, 0), *narrow.shape[2:])
        state = state | {_INPUT: torch.cat([narrow, padding], dim=1)}
    return state
