"""Speed and memory levers of diffusers for the transformer of a backbone, as configuration.

All of them leave the weights' meaning alone: attention kernels, compilation and offloading compute
the same; caches reuse work of earlier denoising steps; layerwise casting stores weights coarsely.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import torch
from torch import nn

CACHES: dict[str, str] = {
    "first_block": "FirstBlockCacheConfig",
    "taylorseer": "TaylorSeerCacheConfig",
    "mag": "MagCacheConfig",
    "pyramid": "PyramidAttentionBroadcastConfig",
}
"""Cache's name in a config → diffusers' class of its options.

FasterCache is not among them: it wants both branches of guidance in one batch, and here each branch
is a forward of its own, so that guidance needs no more memory.
"""

COMPILE_OPTIONS = ("mode", "dynamic", "fullgraph", "backend", "options")
WAN_LAYERS = (r"blocks\.\d+\.(attn1|attn2|ffn)",)
"""What ``taylorseer`` extrapolates unless told otherwise; its own default matches no Wan layer."""

_SET_BY_US = ("num_inference_steps", "current_timestep_callback")

StorageDtype = Literal["float8_e4m3fn", "float8_e5m2"]
OffloadType = Literal["block_level", "leaf_level"]


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """A cache by its name in ``CACHES`` and the options of diffusers' class.

    ``first_block`` (threshold) skips all blocks but the first while the first one's output changes
    little; ``taylorseer`` (cache_interval, disable_cache_before_step, max_order, …) extrapolates
    attention and feed-forward layers; ``mag`` (mag_ratios, threshold, …; ``calibrate`` prints the
    ratios of a model) skips all blocks by known ratios; ``pyramid``
    (spatial_attention_block_skip_range, …) repeats attention and, as diffusers keeps one state for
    all branches, works without guidance only.
    """

    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in CACHES:
            raise ValueError(f"unknown cache {self.name!r}; known: {', '.join(sorted(CACHES))}")


@dataclass(frozen=True, kw_only=True)
class GroupOffload:
    """Keep weights in main memory and bring them to the device group by group.

    Attributes:
        offload_type: groups of transformer blocks, or every single layer.
        num_blocks_per_group: transformer blocks in a group.
        use_stream: bring the next group while one computes; CUDA only.
    """

    offload_type: OffloadType = "block_level"
    num_blocks_per_group: int = 1
    use_stream: bool = False

    def __post_init__(self) -> None:
        if self.offload_type not in get_args(OffloadType):
            raise ValueError(
                f"offload_type must be {' or '.join(get_args(OffloadType))}, "
                f"got {self.offload_type!r}"
            )
        if self.num_blocks_per_group < 1:
            raise ValueError(
                f"num_blocks_per_group must be at least 1, got {self.num_blocks_per_group}"
            )


@dataclass(frozen=True, kw_only=True)
class Acceleration:
    """Which levers are pulled; the default is none.

    Attributes:
        cache: reuse work between denoising steps.
        compile: options of ``torch.compile`` for the transformer's repeated blocks, which are
            compiled once for all; ``{}`` takes torch's defaults.
        layerwise_casting: dtype in which the transformer's linear layers are stored; each computes
            in the dtype that the checkpoint declares. Norms, embeddings and LoRA stay as they are.
        group_offload: for the transformer and for the text and image encoders.
        attention_backend: diffusers' name of the attention kernel, e.g. "flash" or "sage". It holds
            for every diffusers model of the process that names none itself.
    """

    cache: CacheSpec | None = None
    compile: dict[str, Any] | None = None
    layerwise_casting: StorageDtype | None = None
    group_offload: GroupOffload | None = None
    attention_backend: str | None = None

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.compile or {}) - set(COMPILE_OPTIONS)):
            raise ValueError(
                f"acceleration: unknown compile options {', '.join(unknown)}; known: "
                f"{', '.join(COMPILE_OPTIONS)}"
            )
        if self.layerwise_casting not in (None, *get_args(StorageDtype)):
            raise ValueError(
                f"acceleration: layerwise_casting must be {' or '.join(get_args(StorageDtype))}, "
                f"got {self.layerwise_casting!r}"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Acceleration:
        """From the JSON object.

        Raises:
            ValueError: naming what is unknown.
        """
        values = dict(values)
        for name, kind in (("cache", CacheSpec), ("group_offload", GroupOffload)):
            if values.get(name) is not None:
                values[name] = _from_dict(kind, values[name], f"acceleration.{name}")
        return _from_dict(cls, values, "acceleration")


class StepCache:
    """Reuse of work between denoising steps, told where the loop is; by default none.

    Every branch of guidance has a state of its own, and a rollout starts with none.

    Args:
        network: the diffusers transformer; the cache is enabled on it at once.

    Raises:
        ValueError: if this diffusers has no such cache, or the cache no such option.
    """

    def __init__(self, network: nn.Module | None = None, spec: CacheSpec | None = None) -> None:
        self._network, self._spec = network, spec
        self._timestep = 0.0
        if network is not None and spec is not None:
            self._options = self._build(steps=1)
            network.enable_cache(self._options)
            if not any(_keeps_state(module) for module in network.modules()):
                raise ValueError(
                    f"cache {spec.name!r}: its options match no layer of {type(network).__name__}"
                )

    @contextlib.contextmanager
    def rollout(self, steps: int, *, branches: int) -> Iterator[None]:
        """Around a whole denoising loop; forgets the states before and after.

        Raises:
            ValueError: if the cache cannot keep that many branches apart.
        """
        if self._network is None:
            yield
            return
        if self._spec.name == "pyramid" and branches > 1:
            raise ValueError(
                "cache 'pyramid' keeps one state for all branches of guidance, so it works with "
                "guidance 1 and control_guidance 1 only; choose first_block, taylorseer or mag"
            )
        # The hooks read this object; enabling the cache anew would make them compile anew.
        vars(self._options).update(vars(self._build(steps)))
        self._network._reset_stateful_cache()
        try:
            yield
        finally:
            self._network._reset_stateful_cache()

    @contextlib.contextmanager
    def branch(self, name: str, sigma: float) -> Iterator[None]:
        """Around one forward, of the branch ``name`` at noise level ``sigma``."""
        if self._network is None:
            yield
            return
        self._timestep = 1000 * sigma
        with self._network.cache_context(name):
            yield

    def _build(self, steps: int) -> Any:
        """diffusers' object of options; of one cache they depend on the number of steps."""
        import diffusers

        kind = getattr(diffusers, CACHES[self._spec.name], None)
        if kind is None:
            raise ValueError(
                f"cache {self._spec.name!r} needs a newer diffusers than {diffusers.__version__}"
            )
        options = dict(self._spec.kwargs)
        known = {f.name for f in fields(kind)} - set(_SET_BY_US)
        if unknown := sorted(set(options) - known):
            raise ValueError(
                f"cache {self._spec.name!r}: unknown options {', '.join(unknown)}; known: "
                f"{', '.join(sorted(known))}"
            )
        if self._spec.name == "mag":
            options["num_inference_steps"] = steps
        if self._spec.name == "pyramid":
            options["current_timestep_callback"] = lambda: self._timestep
        if self._spec.name == "taylorseer" and not options.get("use_lite_mode"):
            options.setdefault("cache_identifiers", list(WAN_LAYERS))
        if dtype := options.get("taylor_factors_dtype"):
            options["taylor_factors_dtype"] = getattr(torch, dtype)
        return kind(**options)


def accelerate(
    backbone: nn.Module, encoders: nn.Module | None, acceleration: Acceleration, device: str
) -> tuple[StepCache, list[nn.Module]]:
    """Set up all levers on loaded weights, before the rest of the model moves to ``device``.

    Returns:
        The cache for the denoising loop, and the modules that offloading manages, which must not be
        moved.

    Raises:
        ValueError: naming the option that the backbone or this machine cannot take.
    """
    network = _network(backbone)
    if acceleration.layerwise_casting:
        storage = getattr(torch, acceleration.layerwise_casting)
        network.enable_layerwise_casting(storage_dtype=storage, compute_dtype=network.dtype)
    if acceleration.attention_backend:
        _set_attention_backend(network, acceleration.attention_backend)
    cache = _step_cache(network, acceleration.cache)
    offloaded = []
    if acceleration.group_offload:
        offloaded = _offload(network, encoders, acceleration.group_offload, device)
    if acceleration.compile is not None:
        if not getattr(network, "_repeated_blocks", None):
            raise ValueError(f"compile: {type(network).__name__} names no blocks; leave it out")
        network.compile_repeated_blocks(**acceleration.compile)
    return cache, offloaded


def _network(backbone: nn.Module) -> nn.Module:
    """The diffusers model inside a backbone."""
    from diffusers import ModelMixin

    found = [child for child in backbone.children() if isinstance(child, ModelMixin)]
    if len(found) != 1:
        raise ValueError(f"{type(backbone).__name__} holds no diffusers model to accelerate")
    return found[0]


def _keeps_state(module: nn.Module) -> bool:
    registry = getattr(module, "_diffusers_hook", None)
    return registry is not None and any(hook._is_stateful for hook in registry.hooks.values())


def _set_attention_backend(network: nn.Module, name: str) -> None:
    processors = getattr(network, "attn_processors", {}).values()
    if not any(hasattr(processor, "_attention_backend") for processor in processors):
        raise ValueError(
            f"attention_backend: this backbone's {type(network).__name__} has attention of its "
            "own that no other kernel can replace; leave it out"
        )
    try:
        network.set_attention_backend(name)
    except (RuntimeError, ImportError) as error:
        raise ValueError(f"attention_backend {name!r} does not run here: {error}") from error


def _step_cache(network: nn.Module, spec: CacheSpec | None) -> StepCache:
    if spec is None:
        return StepCache()
    if not hasattr(network, "enable_cache"):
        raise ValueError(f"cache: {type(network).__name__} takes none; leave it out")
    if spec.name == "first_block" and len(network.blocks) < 2:
        raise ValueError("cache 'first_block' needs a transformer of at least two blocks")
    return StepCache(network, spec)


def _offload(
    network: nn.Module, encoders: nn.Module | None, given: GroupOffload, device: str
) -> list[nn.Module]:
    """The transformer as asked; encoders layer by layer, as their blocks lie deeper."""
    from diffusers.hooks import apply_group_offloading

    where = {"onload_device": torch.device(device), "offload_device": torch.device("cpu")}
    try:
        network.enable_group_offload(
            **where,
            offload_type=given.offload_type,
            num_blocks_per_group=given.num_blocks_per_group,
            use_stream=given.use_stream,
        )
    except ValueError as error:
        raise ValueError(f"group_offload does not run on {device}: {error}") from error
    inner = [] if encoders is None else list(encoders.children())
    for encoder in inner:
        apply_group_offloading(
            encoder, **where, offload_type="leaf_level", use_stream=given.use_stream
        )
    return [network, *inner]


def _from_dict(kind: type, values: dict[str, Any], where: str) -> Any:
    known = [f.name for f in fields(kind)]
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(
            f"{where}: unknown options {', '.join(unknown)}; known: {', '.join(known)}"
        )
    return kind(**values)
