"""What a run shows and keeps: JSON lines, TensorBoard, and a progress bar on a terminal."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Report = Callable[[str], None]


def cut_log(path: Path, step: int) -> None:
    """Drop the entries after ``step``, which a resumed run repeats, and a line cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if entry["step"] <= step:
            kept.append(line + "\n")
    path.write_text("".join(kept))


class Display:
    """Numbers and pictures of one run; silent in all processes but the main one.

    Args:
        folder: gets ``log.jsonl``, ``validation.jsonl`` and ``tensorboard/``.
        step: the run continues after this step; later entries of an earlier attempt go.
        main: whether this is the process that writes.
        report: called with one line of text for the user.
    """

    def __init__(self, folder: Path, step: int, *, main: bool, report: Report) -> None:
        self.folder, self.main = folder, main
        self._report: Report = report if main else lambda line: None
        self._writer: Any = None
        self._bar: Progress | None = None
        if not main:
            return
        for name in ("log", "validation"):
            cut_log(folder / f"{name}.jsonl", step)
        if importlib.util.find_spec("tensorboard") is None:
            self.report("tensorboard is not installed: numbers go to log.jsonl alone")
            return
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> Display:
        if self.main and Console().is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar.add_task("training", total=1.0)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._writer is not None:
            self._writer.flush()

    def advance(self, step: int, progress: float, loss: float) -> None:
        """Move the bar."""
        if self._bar is not None:
            text = f"step {step} · loss {loss:.4f}"
            self._bar.update(self._bar.task_ids[0], completed=progress, description=text)

    def report(self, text: str) -> None:
        """One line for the user, above the bar if there is one."""
        if self._bar is None:
            self._report(text)
        else:
            self._bar.console.print(text, highlight=False, markup=False)

    def line(self, text: str) -> None:
        """Report how the run goes, where no bar shows it."""
        if self._bar is None:
            self._report(text)

    def keep(self, name: str, entry: dict[str, Any]) -> None:
        """Append an entry with the key "step" to ``<name>.jsonl`` and to TensorBoard."""
        if not self.main:
            return
        with (self.folder / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        if self._writer is not None:
            for key, value in entry.items():
                if key != "step":
                    self._writer.add_scalar(f"{name}/{key}", value, entry["step"])

    def picture(self, name: str, image: NDArray[np.uint8], step: int) -> None:
        """Show (H, W, 3) in TensorBoard."""
        if self._writer is not None:
            self._writer.add_image(name, image, step, dataformats="HWC")
