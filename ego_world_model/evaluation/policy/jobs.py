"""Many small jobs in several processes, one line of JSON each, resumable at any line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ego_world_model.data.generate import start_worker


class Job(Protocol):
    """What can be run: picklable, and ``key`` tells it from all others of its file."""

    @property
    def key(self) -> str: ...


AnyJob = TypeVar("AnyJob", bound=Job)
Lines = dict[str, dict[str, Any]]
"""{key of a job: what it gave}"""


def read_lines(file: Path) -> Lines:
    """Finished jobs of a file; a last line that was cut short counts as not run."""
    done: Lines = {}
    if not file.exists():
        return done
    for line in file.read_text().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        done[entry["key"]] = entry
    return done


def run_jobs(
    jobs: Sequence[AnyJob],
    work: Callable[[AnyJob], dict[str, Any]],
    file: Path,
    *,
    workers: int = 1,
    description: str = "",
) -> Lines:
    """What every job gives, those that ``file`` holds already included.

    Args:
        work: a function of a module; its answer must be fit for JSON. With one worker it runs in
            this process.
        file: gets a line per job as it ends.

    Raises:
        Whatever ``work`` raises, after what was finished has been written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    _end_last_line(file)
    done = read_lines(file)
    todo = [job for job in jobs if job.key not in done]
    with file.open("a") as out, _progress(description, len(jobs), len(jobs) - len(todo)) as advance:
        for job, answer in _answers(todo, work, workers):
            entry = {"key": job.key, **answer}
            out.write(json.dumps(entry) + "\n")
            out.flush()
            done[job.key] = entry
            advance()
    return {job.key: done[job.key] for job in jobs}


def settle(folder: Path, settings: dict[str, Any]) -> None:
    """Note with what settings a folder's jobs are run.

    Raises:
        ValueError: if it holds jobs that were run with others.
    """
    file = folder / "settings.json"
    settings = json.loads(json.dumps(settings))
    if file.exists():
        before = json.loads(file.read_text())
        other = sorted(k for k in {*before, *settings} if before.get(k) != settings.get(k))
        if other:
            differences = "; ".join(
                f"{name} was {before.get(name)!r}, is {settings.get(name)!r}" for name in other
            )
            raise ValueError(
                f"{folder} holds results of other settings ({differences}); give another --out, "
                "or delete it"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings, indent=1) + "\n")


def _end_last_line(file: Path) -> None:
    """Close a line that a killed run left open, so that the next one stands by itself."""
    if file.exists() and (text := file.read_bytes()) and not text.endswith(b"\n"):
        with file.open("ab") as out:
            out.write(b"\n")


def _answers(
    jobs: Sequence[AnyJob], work: Callable[[AnyJob], dict[str, Any]], workers: int
) -> Iterator[tuple[AnyJob, dict[str, Any]]]:
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            yield job, work(job)
        return
    from concurrent.futures import as_completed

    # Fresh processes: a forked one cannot use its parent's renderer.
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), get_context("spawn"), start_worker, (os.getpid(),)
    )
    try:
        running = {pool.submit(work, job): job for job in jobs}
        for future in as_completed(running):
            yield running[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _progress(description: str, total: int, done: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal; in a log file, a line per tenth."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        line = bar.add_task(description, total=total, completed=done)

        def advance() -> None:
            nonlocal done
            done += 1
            bar.update(line, completed=done)
            if not console.is_terminal and (done * 10 // total != (done - 1) * 10 // total):
                print(f"{description}: {done} of {total}", file=sys.stderr, flush=True)

        yield advance


def unique(values: Iterable[Hashable]) -> list[Any]:
    """Values in their order, each once."""
    return list(dict.fromkeys(values))
