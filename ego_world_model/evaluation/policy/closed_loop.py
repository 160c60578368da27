"""Closed-loop episodes over paired seeds: every method meets the same scenes and instructions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ego_world_model.data.generate import episode_seed
from ego_world_model.evaluation.policy.jobs import run_jobs
from ego_world_model.evaluation.policy.loop import LoopOptions, Recording, make_table, run_episode
from ego_world_model.evaluation.policy.methods import Method, body, sensed_depth

TASKS = ("grasp", "reach", "bimanual")
_SCENES_PER_EPISODE = 3
"""Seeds that are tried at most for each episode wanted."""


@dataclass(frozen=True)
class EpisodeJob:
    """One closed-loop episode; ``number`` chooses its seed within the test split's run ``run``."""

    method: Method
    robot: str
    task: str
    number: int
    run: int
    options: LoopOptions
    noisy: bool = True

    @property
    def key(self) -> str:
        return f"{self.method.label}/{self.robot}/{self.task}/{self.number}"


def run_closed_loop(
    methods: Sequence[Method],
    robots: Sequence[str],
    tasks: Sequence[str],
    file: Path,
    *,
    episodes: int,
    run: int,
    options: LoopOptions,
    workers: int = 1,
    noisy: bool = True,
) -> list[dict[str, Any]]:
    """Lines of ``episodes`` episodes per method, robot and task.

    A seed whose scene has no plan for the task, or begins with the goal achieved, says nothing of a
    method: it is left out for all of them and another seed takes its place.

    Raises:
        RuntimeError: if too few scenes fit a task.
    """
    numbers = {(robot, task): range(episodes) for robot in robots for task in tasks}
    while True:
        jobs = [
            EpisodeJob(method, robot, task, number, run, options, noisy)
            for (robot, task), some in numbers.items()
            for number in some
            for method in methods
        ]
        lines = run_jobs(jobs, episode_line, file, workers=workers, description="closed loop")
        missing = {}
        for robot, task in numbers:
            first = [
                line
                for line in lines.values()
                if (line["method"], line["robot"], line["task"]) == (methods[0].label, robot, task)
            ]
            missing[robot, task] = episodes - sum(bool(line["fit"]) for line in first)
        if not any(missing.values()):
            return [line for line in lines.values() if line["fit"]]
        for pair, count in missing.items():
            longer = len(numbers[pair]) + count
            if longer > _SCENES_PER_EPISODE * episodes:
                raise RuntimeError(
                    f"of {len(numbers[pair])} scenes only {episodes - count} fit {pair[1]!r} of "
                    f"{pair[0]!r}; ask for fewer episodes"
                )
            numbers[pair] = range(longer)


def episode_line(job: EpisodeJob, recording: Recording | None = None) -> dict[str, Any]:
    """Run one episode; ``fit`` is False where its scene says nothing of a method."""
    robot, kinematics = body(job.robot)
    seed = episode_seed("test", job.run, job.number)
    sim = make_table(robot, seed=seed, split="test", task=job.task, options=job.options)
    try:
        goal = sim.goal
        line = {
            "method": job.method.label,
            "robot": job.robot,
            "task": job.task,
            "number": job.number,
            "seed": seed,
            "instruction": goal.instruction,
            "side": goal.side,
            "target": goal.target,
            "fit": goal.task == job.task and not sim.achieved(goal),
        }
        if not line["fit"]:
            return line
        result = run_episode(
            sim,
            goal,
            job.method.predictor(job.robot, sim),
            kinematics,
            options=job.options,
            depth=job.method.sees_depth,
            depth_noise=sensed_depth if job.noisy else None,
            seed=job.number,
            recording=recording,
        )
    finally:
        sim.close()
    return line | {"success": result.success} | asdict(result)
