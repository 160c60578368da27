"""Parts built on a published diffusers model: load the base, widen its input, add LoRA.

A checkpoint of ours then stores only what was trained (LoRA and the widened input layer) and names
the folder of the base; ``stored_state`` and ``load_stored_state`` are how the checkpoint asks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ego_world_model.world_model.checkpoint import CheckpointError

LORA_NAME = "joints"


def load_base(model_class: Any, base: str | Path, part: str, dtype: str | None = None) -> nn.Module:
    """A diffusers or transformers model from the sub-folder ``part`` of the folder ``base``.

    Inside ``with torch.device("meta")`` only config.json is read: the model has names, shapes and
    dtypes but no weights, whatever its size.

    Args:
        dtype: name of a torch dtype, e.g. "bfloat16"; None: float32.

    Raises:
        CheckpointError: naming the folder, if it is missing or does not hold that model.
    """
    folder = Path(base) / part
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"base model part {folder} is missing (no config.json there); the checkpoint's base "
            "must be a diffusers folder, e.g. of Wan 2.1 I2V, with transformer/, vae/, scheduler/"
        )
    kind = getattr(torch, dtype or "float32", None)
    if not isinstance(kind, torch.dtype):
        raise CheckpointError(f"dtype {dtype!r} is not a torch dtype, e.g. 'bfloat16'")
    try:
        if torch.get_default_device().type == "meta":
            return nn.Module.to(_without_weights(model_class, folder), kind)
        return model_class.from_pretrained(folder, torch_dtype=kind, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder} is not a usable {model_class.__name__}: {error}"
        ) from error


def _without_weights(model_class: Any, folder: Path) -> nn.Module:
    if hasattr(model_class, "load_config"):  # diffusers
        return model_class.from_config(model_class.load_config(folder, local_files_only=True))
    return model_class(model_class.config_class.from_pretrained(folder, local_files_only=True))


def widen_input(conv: nn.Conv2d | nn.Conv3d, channels: int) -> nn.Conv2d | nn.Conv3d:
    """The same convolution reading ``channels`` inputs; the new ones start at zero weight."""
    extra = channels - conv.in_channels
    if extra < 0:
        raise CheckpointError(
            f"the base reads {conv.in_channels} input channels, more than the {channels} of noise, "
            "condition and geometry; is it the image-to-video variant?"
        )
    if extra == 0:
        return conv
    wide = type(conv)(
        channels,
        conv.out_channels,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        bias=conv.bias is not None,
    ).to(conv.weight)
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, : conv.in_channels] = conv.weight
        if conv.bias is not None:
            wide.bias.copy_(conv.bias)
    return wide


def in_own_dtype(layer: nn.Module, outside: Callable[[], torch.dtype]) -> nn.Module:
    """Let a layer compute in the dtype of its weights and answer in the one that others expect.

    An input layer that is trained in float32 so fits a base in bfloat16.

    Args:
        outside: dtype of the layers that read the answer.
    """

    def enter(module: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        return (arguments[0].to(module.weight.dtype),)

    def leave(module: nn.Module, arguments: tuple[Tensor], output: Tensor) -> Tensor:
        return output if module.weight.dtype == outside() else output.to(outside())

    layer.register_forward_pre_hook(enter)
    layer.register_forward_hook(leave)
    return layer


def add_lora(model: nn.Module, targets: list[str], rank: int, alpha: float | None = None) -> None:
    """Add LoRA layers to the linear layers whose names end in ``targets``; they start at zero."""
    from peft import LoraConfig

    config = LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=targets)
    model.add_adapter(config, adapter_name=LORA_NAME)


class PretrainedPart(nn.Module):
    """A part whose weights come from a base folder, all but what was trained on top.

    Attributes:
        base: the folder, or None for a part made from its settings, which stores everything.
        trained: prefixes of the state-dict keys that were trained besides the LoRA layers.
    """

    base: str | None = None
    trained: tuple[str, ...] = ()

    def stored_state(self) -> dict[str, Tensor]:
        """What belongs into our checkpoint; empty when the base holds all."""
        return {k: v for k, v in self.state_dict().items() if self._is_ours(k)}

    def train_on_top(self) -> None:
        """Let exactly what our checkpoint stores be trained, and freeze what the base holds."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(self._is_ours(name))

    def _is_ours(self, name: str) -> bool:
        return self.base is None or ".lora_" in name or name.startswith(self.trained)

    def load_stored_state(self, tensors: dict[str, Tensor]) -> None:
        """Read back ``stored_state``.

        Raises:
            RuntimeError: naming the keys that are missing, unexpected or of another shape.
        """
        expected = set(self.stored_state())
        missing, surplus = sorted(expected - set(tensors)), sorted(set(tensors) - expected)
        if missing or surplus:
            raise RuntimeError(f"missing tensors {missing[:8]}, unexpected tensors {surplus[:8]}")
        self.load_state_dict(tensors, strict=False)
