"""Time and peak memory of the stages of real rollouts, each ended by a synchronisation.

``WorldModel.imagine`` runs as it is, and the parts that it calls are watched from outside, so that
caches, batches and levers for speed count as they do in use.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ego_world_model.hands import HandTrajectory
from ego_world_model.world_model.model import WorldModel

ENCODE, TEXT, CONTROL, STEP, DECODE, WHOLE = (
    "encode",
    "text and image tokens",
    "control",
    "one denoising step",
    "decode",
    "whole rollout",
)
BLOCK = "one transformer block"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One stage.

    Attributes:
        seconds: of each time it ran.
        peak: bytes that were in use at most while it ran, weights included: allocated on a GPU, or
            resident in main memory.
    """

    seconds: tuple[float, ...]
    peak: int

    def percentile(self, q: float) -> float:
        return float(np.percentile(self.seconds, q))


def measure(
    model: WorldModel,
    *,
    candidates: int,
    repeats: int,
    warmup: int,
    steps: int | None = None,
    blocks: bool = False,
    on_rollout: Callable[[], None] = lambda: None,
) -> dict[str, Measured]:
    """Stages of ``repeats`` rollouts, after ``warmup`` that do not count; each from a fresh frame.

    Args:
        steps: denoising steps; None: the checkpoint's.
        blocks: measure the blocks of ``backbone.transformer`` too.
        on_rollout: called after each rollout.
    """
    rng = np.random.default_rng(0)
    rollout = _rollout(model, candidates, steps)
    seconds: dict[str, list[float]] = defaultdict(list)
    peaks: dict[str, int] = defaultdict(int)
    for number in range(warmup + repeats):
        shape = (model.config.height, model.config.width, 3)
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        model.clear_caches()  # prompts that were encoded before would cost nothing
        with _watched(model, blocks) as watch:
            started = time.perf_counter()
            rollout(image, watch.step)
            whole = time.perf_counter() - started
        on_rollout()
        if number < warmup:
            continue
        seconds[WHOLE].append(whole)
        peaks[WHOLE] = max(peaks[WHOLE], *watch.peaks.values())
        for stage, each in watch.seconds.items():
            seconds[stage] += each if stage in (STEP, BLOCK) else [sum(each)]
            peaks[stage] = max(peaks[stage], watch.peaks[stage])
    order = (ENCODE, TEXT, CONTROL, BLOCK, STEP, DECODE, WHOLE)
    return {
        stage: Measured(seconds=tuple(seconds[stage]), peak=peaks[stage])
        for stage in order
        if stage in seconds
    }


def _rollout(
    model: WorldModel, candidates: int, steps: int | None
) -> Callable[[np.ndarray, Callable[..., None]], Any]:
    """A call of ``imagine`` with hands that drift apart half a metre before the camera."""
    config = model.config
    times = np.arange(config.num_frames) / config.fps
    slots = np.arange(config.num_slots)
    side = np.where((slots >= 21) & (slots < 42), 1.0, -1.0)
    positions = np.zeros((len(times), config.num_slots, 3), np.float32)
    positions[..., 0] = side * (0.05 + 0.008 * (slots % 21)) + 0.05 * side * times[:, None]
    positions[..., 1] = 0.02 * (slots % 5 - 2)
    positions[..., 2] = 0.5
    trajectory = HandTrajectory(times, positions)
    camera = np.array(
        [
            [config.width, 0, (config.width - 1) / 2],
            [0, config.width, (config.height - 1) / 2],
            [0, 0, 1.0],
        ]
    )
    masks = np.zeros((config.num_frames, config.height, config.width), np.uint8)

    def rollout(image: np.ndarray, on_step: Callable[..., None]) -> Any:
        return model.imagine(
            image,
            [trajectory] * candidates,
            camera,
            prompt="pick up the cup" if model.encoders is not None else "",
            steps=steps,
            seed=0,
            masks=masks if model.control.reads_masks else None,
            on_step=on_step,
        )

    return rollout


class _Watch:
    """Seconds and peak bytes of one rollout's stages."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.peaks: dict[str, int] = defaultdict(int)
        self._device = device
        self._step_started = 0.0

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, measured as part of the stage at each call."""

        def call(*args: Any, **kwargs: Any) -> Any:
            synchronise(self._device)
            reset_peak(self._device)
            started = time.perf_counter()
            result = function(*args, **kwargs)
            self._end(stage, started)
            # A step lasts from the end of the stage or step before it.
            self._step_started = time.perf_counter()
            return result

        return call

    def timed_block(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A block's forward, measured within the step that it is part of."""

        def call(*args: Any, **kwargs: Any) -> Any:
            synchronise(self._device)
            started = time.perf_counter()
            result = forward(*args, **kwargs)
            self._end(BLOCK, started)
            return result

        return call

    def step(self, *_: int) -> None:
        """``on_step`` of the rollout."""
        self._end(STEP, self._step_started)
        reset_peak(self._device)
        self._step_started = time.perf_counter()

    def _end(self, stage: str, started: float) -> None:
        synchronise(self._device)
        self.seconds[stage].append(time.perf_counter() - started)
        self.peaks[stage] = max(self.peaks[stage], peak_memory(self._device))


@contextmanager
def _watched(model: WorldModel, blocks: bool) -> Iterator[_Watch]:
    """The model's parts, measured while the context lasts."""
    watch = _Watch(model.device)
    calls: list[tuple[nn.Module, str, str]] = [
        (model.autoencoder, "encode_reference", ENCODE),
        (model.control, "forward", CONTROL),
        (model.autoencoder, "decode", DECODE),
    ]
    if model.encoders is not None and any(True for _ in model.encoders.parameters()):
        calls += [(model.encoders, name, TEXT) for name in ("encode_text", "encode_image")]
    with ExitStack() as stack:
        for module, name, stage in calls:
            setattr(module, name, watch.timed(stage, getattr(module, name)))
            stack.callback(delattr, module, name)
        for block in model.backbone.transformer.blocks if blocks else ():
            block.forward = watch.timed_block(block.forward)
            stack.callback(delattr, block, "forward")
        yield watch


def synchronise(device: torch.device) -> None:
    """Wait for what was asked of a GPU; a CPU has done it already."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Start :func:`peak_memory` afresh."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, see proc(5)


def peak_memory(device: torch.device) -> int:
    """Bytes in use at most since the reset: allocated by torch on a GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])
