"""Open loop: errors of predicted chunks on recorded episodes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ego_world_model.data import DatasetReader
from ego_world_model.evaluation.policy.errors import ERRORS, chunk_errors
from ego_world_model.evaluation.policy.jobs import run_jobs
from ego_world_model.evaluation.policy.methods import Method, body, mean_file, sensed_depth
from ego_world_model.evaluation.policy.windows import training_mean, windows


@dataclass(frozen=True)
class OpenLoopJob:
    """All windows of one episode, predicted by one method."""

    method: Method
    data: str
    episode: int
    times: tuple[float, ...]
    every: int
    noisy: bool = True

    @property
    def key(self) -> str:
        return f"{self.method.label}/{self.data}/{self.episode}"


def run_open_loop(
    methods: Sequence[Method],
    datasets: Sequence[Path],
    file: Path,
    *,
    times: Sequence[float],
    every: int = 5,
    workers: int = 1,
    noisy: bool = True,
) -> list[dict[str, Any]]:
    """A line per method and episode; each lists its windows.

    Args:
        times: (N,) seconds of every method's chunk.
    """
    jobs = [
        OpenLoopJob(method, str(root), episode, tuple(times), every, noisy)
        for root in datasets
        for episode in range(len(DatasetReader(root)))
        for method in methods
    ]
    return list(
        run_jobs(jobs, open_loop_line, file, workers=workers, description="open loop").values()
    )


def open_loop_line(job: OpenLoopJob) -> dict[str, Any]:
    """Errors of one episode's windows."""
    reader = _reader(job.data)
    robot, kinematics = body(reader.spec.embodiment)
    predictor = job.method.predictor(robot.name)
    needs_pictures = job.method.kind == "policy"
    episode = reader.episode(
        job.episode,
        images=needs_pictures,
        masks=False,
        depth=job.method.sees_depth and reader.spec.depth,
    )
    found = []
    for window in windows(
        episode,
        kinematics,
        np.array(job.times),
        every=job.every,
        depth_noise=sensed_depth if job.noisy else None,
        seed=1000 * job.episode,
    ):
        errors = chunk_errors(
            predictor.predict(window.moment), window.future, kinematics, window.known
        )
        found.append(
            {
                "frame": window.frame,
                "kind": window.kind,
                **{name: errors.mean(name) for name in ERRORS},
                **{f"moving_{name}": errors.mean(name, moving=True) for name in ERRORS},
                "steps": {name: errors.by_step(name).round(6).tolist() for name in ERRORS},
            }
        )
    return {
        "method": job.method.label,
        "robot": robot.name,
        "data": Path(job.data).name,
        "episode": job.episode,
        "windows": found,
    }


def write_mean_motions(datasets: Sequence[Path], folder: Path, times: Sequence[float]) -> None:
    """The mean motion of each training set's robot, unless the folder has it already.

    Raises:
        ValueError: if two of the datasets are of one robot.
    """
    seen: dict[str, Path] = {}
    for root in datasets:
        reader = DatasetReader(root)
        name = reader.spec.embodiment
        if name in seen:
            raise ValueError(f"{seen[name]} and {root} are both of {name!r}; give one of them")
        seen[name] = root
        file = mean_file(folder, name)
        if not file.exists():
            mean = training_mean(reader, body(name)[1], np.asarray(times))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(mean.document()) + "\n")


@lru_cache(maxsize=4)
def _reader(root: str) -> DatasetReader:
    return DatasetReader(root)
