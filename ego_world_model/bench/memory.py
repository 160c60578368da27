"""How much memory a rollout will need, before anything of that size exists.

The stages run on a model without weights (torch's "meta" device), where every operation only says
how large its result is; what is alive at the same time is summed. Attention counts as it is
computed in blocks, without its matrix.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from ego_world_model.world_model.backbones import Condition
from ego_world_model.world_model.model import WorldModel

HEADROOM = 1.15
"""For what is not counted and grows with the model: copies that kernels make, fragmentation."""
FIXED = 512 * 2**20
"""Bytes for what does not: libraries loaded at the first use, kernels' scratch, a CUDA context."""

_IMAGE_TOKENS = 257


class NotEnoughMemory(ValueError):
    """A model does not fit; the message says what it needs and what there is."""


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """Bytes, without headroom.

    Attributes:
        weights: all parts of the model.
        activations: stage → the most that its results take at one time.
    """

    weights: int
    activations: dict[str, int]

    @property
    def total(self) -> int:
        """With headroom: all weights, and the stage that needs most."""
        return FIXED + round(HEADROOM * (self.weights + max(self.activations.values())))

    def __str__(self) -> str:
        stage = max(self.activations, key=lambda name: self.activations[name])
        return (
            f"{gibibytes(self.total)}: weights {gibibytes(self.weights)}, "
            f"{stage} {gibibytes(self.activations[stage])}, {HEADROOM - 1:.0%} headroom, "
            f"{gibibytes(FIXED)} besides"
        )


def memory_need(model: WorldModel, candidates: int) -> MemoryNeed:
    """Of a rollout of so many candidates, from a model on the device "meta"."""
    config, autoencoder, backbone = model.config, model.autoencoder, model.backbone
    frame = torch.empty(1, 3, config.height, config.width, device="meta")
    tensors = (*model.parameters(), *model.buffers())
    weights = list({id(s := tensor.untyped_storage()): s for tensor in tensors}.values())
    count = min(candidates, config.max_batch or candidates)
    t = 1 + (config.num_frames - 1) // autoencoder.temporal_stride
    h, w = (n // autoencoder.spatial_stride for n in (config.height, config.width))
    latents = frame.new_empty(count, autoencoder.latent_channels, t, h, w)
    geometry = frame.new_empty(count, model.control.config.geometry_channels, t, h, w)
    transformer = getattr(backbone, "transformer", None)
    width = transformer.config.get("image_dim") if transformer is not None else None
    image = frame.new_empty(count, _IMAGE_TOKENS, width) if width else None
    condition = Condition(latents[:, :, 0], latents, geometry, image=image)
    level = frame.new_empty(count)
    frames = frame.expand(count, -1, -1, -1)
    stages: dict[str, Callable[[], Any]] = {
        "encode": lambda: autoencoder.encode_reference(frame),
        "denoising step": lambda: backbone(latents, level, condition),
        "decode": lambda: autoencoder.decode(latents, frames),
    }
    return MemoryNeed(
        weights=sum(storage.nbytes() for storage in weights),
        activations={name: _peak(stage, weights) for name, stage in stages.items()},
    )


def check_memory(need: MemoryNeed, device: torch.device, *, what: str, loads_on_cpu: bool) -> None:
    """That it fits into what is free on the device now.

    Args:
        what: the model and the size of the rollout, for the message.
        loads_on_cpu: whether the weights pass through main memory on their way to a GPU.

    Raises:
        NotEnoughMemory: with the need, what is available, and what would make it smaller.
    """
    available = free_memory(device)
    if need.total > available:
        raise NotEnoughMemory(
            f"{what} needs {need}; {device} has {gibibytes(available)} available. Fewer --frames, "
            "a smaller --height and --width, fewer --candidates or, for the published sizes, "
            "--dtype bfloat16 or --layers need less; --force tries anyway."
        )
    main = free_memory(torch.device("cpu"))
    if loads_on_cpu and need.weights > main:
        raise NotEnoughMemory(
            f"{what}: its weights pass through main memory and need {gibibytes(need.weights)} "
            f"there; {gibibytes(main)} are available. --force tries anyway."
        )


def free_memory(device: torch.device) -> int:
    """Bytes that are available: of the GPU, or of main memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def gibibytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


@torch.no_grad()
def _peak(stage: Callable[[], Any], known: list[torch.UntypedStorage]) -> int:
    with _BlockwiseAttention(), _LiveBytes(known) as live:
        stage()
    return live.peak


class _BlockwiseAttention(TorchFunctionMode):
    """The meta device would hold attention's whole matrix; every real kernel avoids it."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            query, _, value = args[:3] if len(args) >= 3 else _named(args, kwargs or {})
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


def _named(args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    names = ("query", "key", "value")[len(args) :]
    return (*args, *(kwargs[name] for name in names))


class _LiveBytes(TorchDispatchMode):
    """The most bytes of results that are alive at one time, without those known before."""

    def __init__(self, known: list[torch.UntypedStorage]) -> None:
        super().__init__()
        self.peak = self._live = 0
        self._seen = WeakIdKeyDictionary({storage: True for storage in known})

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor) or tensor.untyped_storage() in self._seen:
                continue
            storage = tensor.untyped_storage()
            self._seen[storage] = True
            self._live += storage.nbytes()
            self.peak = max(self.peak, self._live)
            weakref.finalize(storage, self._free, storage.nbytes())
        return result

    def _free(self, count: int) -> None:
        self._live -= count
