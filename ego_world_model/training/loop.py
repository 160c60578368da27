"""The training loop both trainers share: one objective, a deadline or a step count, exact resume.

The learning rate follows a cosine over the run's *progress*, which is steps over ``max_steps`` or,
on machines whose speed is not known beforehand, elapsed time over the deadline; a run therefore
ends annealed whenever it is asked to end.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from torch import nn

from ego_world_model.training.state import Average, load_state, save_state


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How long and how fast.

    Attributes:
        max_steps: optimiser steps; None to run until ``deadline_minutes``.
        deadline_minutes: minutes of training, over all resumptions; ignored with ``max_steps``.
        learning_rate, weight_decay: of AdamW.
        warmup_steps: linear warm-up.
        final_fraction: learning rate at the end, relative to the peak.
        hold_fraction: part of the run at the peak rate before the cosine sets in.
        clip_norm: gradient norm bound.
        average_decay: of the exponential moving average that is shipped.
        precision: "fp32", "bf16", or "auto" (whichever this machine multiplies faster).
        save_minutes, validate_minutes, log_steps: how often.
        workers: batches are dealt out to so many threads, each computing on one core. On a CPU
            this beats parallel operators, above all where other programs need the cores, too:
            threads meet once a step instead of at every operation. 1 for operators in parallel.
        seed: of everything random.
    """

    max_steps: int | None = None
    deadline_minutes: float = 60.0
    learning_rate: float = 8e-4
    weight_decay: float = 0.01
    warmup_steps: int = 100
    final_fraction: float = 0.02
    hold_fraction: float = 0.0
    clip_norm: float = 1.0
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
        folder: holds ``log.jsonl``, ``validation.jsonl`` and the resumable state.
        validate: called now and then with averaged weights in place and (step, progress); returns
            numbers for ``validation.jsonl``.
        report: called with one line of text for the user.
    """

    def __init__(
        self,
        objective: nn.Module,
        next_batch: Callable[[float], Any],
        rng: np.random.Generator,
        folder: Path,
        settings: LoopSettings,
        *,
        validate: Callable[[int, float], dict[str, Any]] | None = None,
        report: Callable[[str], None] = print,
    ) -> None:
        self.objective, self.next_batch, self.rng = objective, next_batch, rng
        self.folder, self.settings = folder, settings
        self.validate, self.report = validate, report
        folder.mkdir(parents=True, exist_ok=True)
        # Weights are used once a step: caching their casts would only tie the workers together.
        self.accelerator = Accelerator(
            mixed_precision=choose_precision(settings.precision),
            kwargs_handlers=[AutocastKwargs(cache_enabled=False)],
        )
        self.threads = torch.get_num_threads()
        self.pool = ThreadPoolExecutor(max_workers=settings.workers)
        self.trained = [p for p in objective.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(
            self.trained,
            lr=settings.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=settings.weight_decay,
            fused=True,  # one pass over the weights: six times faster than the default on a CPU
        )
        self.average = Average(objective, settings.average_decay)
        self.model, self.optimiser = self.accelerator.prepare(objective, optimiser)
        self.step, self.elapsed = 0, 0.0
        numbers = load_state(folder, objective, self.average, self.optimiser.optimizer, rng)
        if numbers is not None:
            self.step, self.elapsed = numbers["step"], numbers["elapsed"]
            report(f"resumed at step {self.step}, {self.elapsed / 60:.1f} min")

    @property
    def progress(self) -> float:
        """How much of the run is done, 0 to 1."""
        s = self.settings
        done = self.step / s.max_steps if s.max_steps else self.elapsed / 60 / s.deadline_minutes
        return min(1.0, done)

    def run(self, *, stop: Callable[[int], bool] | None = None) -> None:
        """Train until progress is 1, ``stop(step)`` says so, or a first Ctrl-C or SIGTERM arrives;
        the state is saved in every case."""
        with _Interruption(self.report) as interruption:
            self._run(lambda step: interruption.asked or (stop is not None and stop(step)))

    def _run(self, stop: Callable[[int], bool]) -> None:
        self._use_threads(1 if self.settings.workers > 1 else self.threads)
        s, started, before = self.settings, time.monotonic(), self.elapsed
        saved = validated = self.elapsed
        recent: dict[str, list[float]] = {}
        while self.progress < 1 and not stop(self.step):
            losses = self._train_step()
            self.step += 1
            self.elapsed = before + time.monotonic() - started
            for name, value in losses.items():
                recent.setdefault(name, []).append(value)
            if self.step % s.log_steps == 0:
                self._log(recent, started, before)
                recent = {}
            if self.elapsed - saved > 60 * s.save_minutes:
                self.save()
                saved = self.elapsed
            if self.validate is not None and self.elapsed - validated > 60 * s.validate_minutes:
                self._validate()
                self.elapsed = before + time.monotonic() - started
                validated = self.elapsed
        self.save()
        if self.validate is not None and self.progress >= 1:
            self._validate()

    def _train_step(self) -> dict[str, float]:
        progress = self.progress
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate(progress)
        losses = self._gradients(self.next_batch(progress), progress)
        norm = self.accelerator.clip_grad_norm_(self.trained, self.settings.clip_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient is not finite at step {self.step}: lower learning_rate, or set "
                "precision to fp32"
            )
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.average.update(self.objective)
        return losses

    def _gradients(self, batch: Any, progress: float) -> dict[str, float]:
        """Add up the gradients of a batch, dealt out to the workers; returns its mean losses."""
        parts = batch.split(self.settings.workers)
        seeds = [int(seed) for seed in self.rng.integers(2**62, size=len(parts))]

        def work(part: Any, seed: int) -> dict[str, float]:
            share = len(part) / len(batch)
            losses = self.model(part, progress, torch.Generator().manual_seed(seed))
            self.accelerator.backward(losses["loss"] * share)
            return {name: float(value.detach()) * share for name, value in losses.items()}

        if len(parts) == 1:
            return work(parts[0], seeds[0])
        results = list(self.pool.map(work, parts, seeds))
        return {name: sum(result[name] for result in results) for name in results[0]}

    def _learning_rate(self, progress: float) -> float:
        s = self.settings
        past = max(0.0, progress - s.hold_fraction) / (1 - s.hold_fraction)
        cosine = s.final_fraction + (1 - s.final_fraction) * 0.5 * (1 + math.cos(math.pi * past))
        return s.learning_rate * cosine * min(1.0, (self.step + 1) / max(1, s.warmup_steps))

    def _log(self, recent: dict[str, list[float]], started: float, before: float) -> None:
        entry = {
            "step": self.step,
            "minutes": round(self.elapsed / 60, 3),
            "learning_rate": self._learning_rate(self.progress),
            **{name: float(np.mean(values)) for name, values in recent.items()},
        }
        self._append("log.jsonl", entry)
        losses = " ".join(f"{name} {np.mean(values):.4f}" for name, values in recent.items())
        self.report(f"step {self.step} · {self.elapsed / 60:.1f} min · {losses}")

    def _validate(self) -> None:
        self.average.swap(self.objective)
        self.objective.eval()
        self._use_threads(self.threads)
        try:
            with torch.no_grad():
                numbers = self.validate(self.step, self.progress)
        finally:
            self.objective.train()
            self.average.swap(self.objective)
            self._use_threads(1 if self.settings.workers > 1 else self.threads)
        self._append(
            "validation.jsonl",
            {"step": self.step, "minutes": round(self.elapsed / 60, 3), **numbers},
        )
        self.report(
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

    def _append(self, name: str, entry: dict[str, Any]) -> None:
        with (self.folder / name).open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def save(self) -> None:
        """Write the resumable state."""
        numbers = {"step": self.step, "elapsed": self.elapsed}
        save_state(
            self.folder, self.objective, self.average, self.optimiser.optimizer, self.rng, numbers
        )


class _Interruption:
    """Turns the first Ctrl-C or SIGTERM into a request, so that a step is never cut in half."""

    def __init__(self, report: Callable[[str], None]) -> None:
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
    """Accelerate's name for a precision; "auto" times a small product in both and takes the faster.

    Many CPUs multiply bfloat16 far slower than float32, some far faster; only measuring tells.
    """
    names = {"fp32": "no", "bf16": "bf16"}
    if precision != "auto":
        if precision not in names:
            raise ValueError(f"precision must be fp32, bf16 or auto, got {precision!r}")
        return names[precision]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seconds = {}
    for name, dtype in (("no", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(1024, 512, device=device, dtype=dtype) for _ in range(2))
        for repeat in range(6):
            if repeat == 2:
                start = time.perf_counter()
            float((a @ b.T)[0, 0])
        seconds[name] = time.perf_counter() - start
    return min(seconds, key=seconds.__getitem__)
