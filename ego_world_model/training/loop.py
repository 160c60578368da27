"""The training loop of every size of model: a deadline or a step count, exact resume.

The learning rate follows a cosine over the run's *progress*, which is steps over ``max_steps`` or,
on machines whose speed is not known beforehand, elapsed time over the deadline; a run therefore
ends annealed whenever it is asked to end.

One process computes on one device. Under ``accelerate launch`` several share a run: each draws its
own clips, gradients are averaged (DDP), or weights are sharded, too (FSDP2), and the main process
writes.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast_object_list, send_to_device
from torch import nn

from ego_world_model.training.display import Display, Report
from ego_world_model.training.processes import (
    agree,
    average,
    flatten_scalars,
    gathered,
    processes,
    whole,
)
from ego_world_model.training.state import Average, load_state, save_state


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How long and how fast.

    Attributes:
        max_steps: optimiser steps; None to run until ``deadline_minutes``.
        deadline_minutes: minutes of training, over all resumptions; ignored with ``max_steps``.
        learning_rate, weight_decay, betas: of AdamW.
        warmup_steps: linear warm-up.
        warmup_fraction: warm-up as a part of the run, instead of ``warmup_steps``.
        final_fraction: learning rate at the end, relative to the peak.
        hold_fraction: part of the run at the peak rate before the cosine sets in.
        clip_norm: gradient norm bound.
        accumulate: batches whose gradients are averaged before each step.
        average_decay: of the exponential moving average that is shipped.
        precision: of products: "fp32", "bf16", or "auto" (whichever this machine multiplies
            faster). Trained weights are float32 in any case.
        save_minutes, validate_minutes, log_steps: how often.
        workers: batches are dealt out to so many threads, each computing on one core. On a CPU
            this beats parallel operators, above all where other programs need the cores, too:
            threads meet once a step instead of at every operation. 1 for operators in parallel,
            on GPUs, and under ``accelerate launch``.
        seed: of everything random.
    """

    max_steps: int | None = None
    deadline_minutes: float = 60.0
    learning_rate: float = 8e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    warmup_steps: int = 100
    warmup_fraction: float | None = None
    final_fraction: float = 0.02
    hold_fraction: float = 0.0
    clip_norm: float = 1.0
    accumulate: int = 1
    average_decay: float = 0.998
    precision: str = "auto"
    save_minutes: float = 3.0
    validate_minutes: float = 4.0
    log_steps: int = 25
    workers: int = 1
    seed: int = 0


class Trainer:
    """Minimises ``objective.step`` on batches until the run is over.

    Args:
        objective: module whose ``forward(batch, progress, generator)`` returns a dict of scalar
            losses with the key "loss"; its trainable parameters are those that require gradients.
        next_batch: called with the progress in [0, 1]; draws a batch with the loop's generator.
        rng: of this process, see ``process_rng``.
        folder: holds ``log.jsonl``, ``validation.jsonl``, TensorBoard's files and the resumable
            state.
        skips_parameters: whether some trained parameters have no part in the loss of some steps,
            which several processes must then find out in every step.
        validate: called now and then in all processes, with averaged weights in place and (step,
            progress); returns numbers for ``validation.jsonl``.
        report: called with one line of text for the user, in the main process.

    Raises:
        ValueError: if the settings do not fit the machine, or the folder holds another run.
    """

    def __init__(
        self,
        objective: nn.Module,
        next_batch: Callable[[float], Any],
        rng: np.random.Generator,
        folder: Path,
        settings: LoopSettings,
        *,
        skips_parameters: bool = False,
        validate: Callable[[int, float], dict[str, Any]] | None = None,
        report: Report = print,
    ) -> None:
        self.objective, self.next_batch, self.rng = objective, next_batch, rng
        self.folder, self.settings, self.validate = folder, settings, validate
        state = processes()
        if settings.workers > 1 and (state.num_processes > 1 or state.device.type != "cpu"):
            raise ValueError(
                f"workers {settings.workers}: threads share the cores of one process on a CPU; set "
                "workers to 1 for GPUs and accelerate launch"
            )
        folder.mkdir(parents=True, exist_ok=True)
        # The loop casts by itself: Accelerate would cast the control's coordinates as well.
        self.accelerator = Accelerator(
            mixed_precision="no",
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=skips_parameters)
            ],
        )
        self.half = choose_precision(settings.precision) == "bf16"
        self.threads = torch.get_num_threads()
        self.pool = ThreadPoolExecutor(max_workers=settings.workers)
        if self.accelerator.is_fsdp2:
            flatten_scalars(objective)
        for parameter in objective.parameters():
            if parameter.requires_grad:  # small steps vanish in bfloat16
                parameter.data = parameter.data.float()
        optimiser = torch.optim.AdamW(
            [p for p in objective.parameters() if p.requires_grad],
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,  # one pass over the weights: six times faster than the default on a CPU
        )
        self.model, self.optimiser = self.accelerator.prepare(objective, optimiser)
        self.trained = [p for p in objective.parameters() if p.requires_grad]
        self.average = Average(objective, settings.average_decay)
        self.step, self.elapsed = 0, 0.0
        self._recent: dict[str, list[float]] = {}
        saved = load_state(folder, objective, self.average, self.optimiser.optimizer, rng)
        if saved is not None:
            numbers, self._recent = saved
            self.step, self.elapsed = numbers["step"], numbers["elapsed"]
        self.display = Display(folder, self.step, main=state.is_main_process, report=report)
        if saved is not None:
            self.display.report(f"resumed at step {self.step}, {self.elapsed / 60:.1f} min")

    @property
    def progress(self) -> float:
        """How much of the run is done, 0 to 1."""
        s = self.settings
        done = self.step / s.max_steps if s.max_steps else self.elapsed / 60 / s.deadline_minutes
        return min(1.0, done)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of this run's products."""
        # Weights are used once a step: caching their casts would only tie the workers together.
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.half, cache_enabled=False
        )

    def run(self, *, stop: Callable[[int], bool] | None = None) -> None:
        """Train until progress is 1, ``stop(step)`` says so, or a first Ctrl-C or SIGTERM arrives;
        the state is saved in every case."""
        with _Interruption(self.display.report) as interruption, self.display:
            self._run(lambda step: interruption.asked or (stop is not None and stop(step)))

    def _run(self, stop: Callable[[int], bool]) -> None:
        self._use_threads(1 if self.settings.workers > 1 else self.threads)
        s, origin = self.settings, time.monotonic() - self.elapsed
        saved = validated = self.elapsed

        def tick() -> bool:
            """Bring the clocks of all processes together; whether any of them is to stop."""
            self.elapsed, stopping = agree(time.monotonic() - origin, float(stop(self.step)))
            return bool(stopping)

        stopping = tick()
        while self.progress < 1 and not stopping:
            losses = self._train_step()
            self.step += 1
            stopping = tick()
            for name, value in losses.items():
                self._recent.setdefault(name, []).append(value)
            self.display.advance(self.step, self.progress, losses["loss"])
            if self.step % s.log_steps == 0:
                self._log()
            if self.elapsed - saved > 60 * s.save_minutes:
                self.save()
                saved = self.elapsed
            if self.validate is not None and self.elapsed - validated > 60 * s.validate_minutes:
                self._validate()
                stopping = tick() or stopping
                validated = self.elapsed
        self.save()
        if self.validate is not None and self.progress >= 1:
            self._validate()

    def _train_step(self) -> dict[str, float]:
        progress = self.progress
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate(progress)
        total: dict[str, float] = {}
        for remaining in reversed(range(self.settings.accumulate)):
            # Gradients meet once a step, after its last batch.
            context = self.accelerator.no_sync(self.model) if remaining else nullcontext()
            with context:
                losses = self._gradients(self.next_batch(progress), progress)
            for name, value in losses.items():
                total[name] = total.get(name, 0.0) + value / self.settings.accumulate
        norm = whole(torch.nn.utils.clip_grad_norm_(self.trained, self.settings.clip_norm))
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient is not finite at step {self.step}: lower learning_rate, or set "
                "precision to fp32"
            )
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.average.update(self.objective)
        return total

    def _gradients(self, batch: Any, progress: float) -> dict[str, float]:
        """Add up the gradients of a batch, dealt out to the workers; returns its mean losses."""
        parts = batch.split(self.settings.workers)
        seeds = [int(seed) for seed in self.rng.integers(2**62, size=len(parts))]

        def work(part: Any, seed: int) -> dict[str, float]:
            share = len(part) / len(batch)
            part = send_to_device(part, self.device)
            with self.autocast():
                losses = self.model(part, progress, torch.Generator().manual_seed(seed))
            self.accelerator.backward(losses["loss"] * (share / self.settings.accumulate))
            return {name: float(value.detach()) * share for name, value in losses.items()}

        if len(parts) == 1:
            return work(parts[0], seeds[0])
        results = list(self.pool.map(work, parts, seeds))
        return {name: sum(result[name] for result in results) for name in results[0]}

    def _learning_rate(self, progress: float) -> float:
        s = self.settings
        past = max(0.0, progress - s.hold_fraction) / (1 - s.hold_fraction)
        cosine = s.final_fraction + (1 - s.final_fraction) * 0.5 * (1 + math.cos(math.pi * past))
        if s.warmup_fraction:  # of a run whose steps are not known beforehand
            return s.learning_rate * cosine * min(1.0, max(progress, 1e-3) / s.warmup_fraction)
        return s.learning_rate * cosine * min(1.0, (self.step + 1) / max(1, s.warmup_steps))

    def _log(self) -> None:
        """Mean losses since the last entry."""
        means = average({name: float(np.mean(values)) for name, values in self._recent.items()})
        self._recent = {}
        entry = {
            "step": self.step,
            "minutes": round(self.elapsed / 60, 3),
            "learning_rate": self._learning_rate(self.progress),
            **means,
        }
        self.display.keep("log", entry)
        losses = " ".join(f"{name} {value:.4f}" for name, value in means.items())
        self.display.line(f"step {self.step} · {self.elapsed / 60:.1f} min · {losses}")

    def _validate(self) -> None:
        self.average.swap(self.objective)
        self.objective.eval()
        self._use_threads(self.threads)
        try:
            with torch.no_grad(), gathered(self.model):
                numbers = self.validate(self.step, self.progress)
        finally:
            self.objective.train()
            self.average.swap(self.objective)
            self._use_threads(1 if self.settings.workers > 1 else self.threads)
        entry = {"step": self.step, "minutes": round(self.elapsed / 60, 3), **numbers}
        self.display.keep("validation", entry)
        self.display.report(
            f"validation at step {self.step}: "
            + " ".join(f"{k} {v:.3f}" for k, v in numbers.items() if isinstance(v, float))
        )

    def _use_threads(self, count: int) -> None:
        """Threads of each operator, here and in the workers (the setting belongs to a thread)."""
        torch.set_num_threads(count)
        barrier = threading.Barrier(self.settings.workers)

        def setting(_: int) -> None:
            barrier.wait()  # keeps one worker from taking two of these
            torch.set_num_threads(1)

        list(self.pool.map(setting, range(self.settings.workers)))

    def save(self) -> None:
        """Write the resumable state."""
        save_state(
            self.folder,
            self.objective,
            self.average,
            self.optimiser.optimizer,
            self.rng,
            {"step": self.step, "elapsed": self.elapsed},
            own=self._recent,
        )


def process_rng(seed: int) -> np.random.Generator:
    """A generator of this process alone, so that each draws other clips and noise."""
    return np.random.default_rng([seed, processes().process_index])


class _Interruption:
    """Turns the first Ctrl-C or SIGTERM into a request, so that a step is never cut in half."""

    def __init__(self, report: Report) -> None:
        self.report, self.asked = report, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True
        self.report("stopping after this step; run the same command again to continue")
        self._restore()  # a second one interrupts at once

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(self, *_: object) -> None:
        self._restore()


def choose_precision(precision: str) -> str:
    """ "fp32" or "bf16"; "auto" times a small product in both and takes the faster.

    Many CPUs multiply bfloat16 far slower than float32, some far faster; only measuring tells. All
    processes take what the main one finds.
    """
    if precision != "auto":
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be fp32, bf16 or auto, got {precision!r}")
        return precision
    return broadcast_object_list([_faster_precision()])[0]


def _faster_precision() -> str:
    device = processes().device
    seconds = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(1024, 512, device=device, dtype=dtype) for _ in range(2))
        for repeat in range(6):
            if repeat == 2:
                start = time.perf_counter()
            float((a @ b.T)[0, 0])
        seconds[name] = time.perf_counter() - start
    return min(seconds, key=seconds.__getitem__)
