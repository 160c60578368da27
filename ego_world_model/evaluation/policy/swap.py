"""Instruction swap: one scene, two instructions. Does the hand that acts go where it is told?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from ego_world_model.data.generate import episode_seed
from ego_world_model.evaluation.policy.jobs import run_jobs
from ego_world_model.evaluation.policy.loop import LoopOptions, Recording, make_table, run_episode
from ego_world_model.evaluation.policy.methods import Method, body, sensed_depth
from ego_world_model.simulation import TableTop, Wanted

KINDS: dict[str, str] = {"object": "grasp", "hand": "reach"}
"""What the two instructions differ in → the task: one hand is to grasp either of two objects, or
either hand to reach for one object (few objects can be grasped by both)."""

_SCENES_PER_PAIR = 40
"""Scenes that are searched at most for each pair of instructions wanted; one in ten allows a hand
to be swapped."""


@dataclass(frozen=True)
class PairSearch:
    """Looks for two instructions in one scene; ``number`` chooses its seed within ``run``."""

    robot: str
    kind: str
    number: int
    run: int

    @property
    def key(self) -> str:
        return f"{self.robot}/{self.kind}/{self.number}"


@dataclass(frozen=True)
class SwapJob:
    """One of the two episodes of a scene: what is wanted in it, (side, number of the object)."""

    method: Method
    robot: str
    kind: str
    number: int
    wanted: tuple[str, int]
    run: int
    options: LoopOptions
    noisy: bool = True

    @property
    def key(self) -> str:
        side, target = self.wanted
        return f"{self.method.label}/{self.robot}/{self.kind}/{self.number}/{side}/{target}"


def run_swaps(
    methods: Sequence[Method],
    robots: Sequence[str],
    folder: Path,
    *,
    scenes: int,
    run: int,
    options: LoopOptions,
    workers: int = 1,
    noisy: bool = True,
) -> list[dict[str, Any]]:
    """Lines of two episodes per scene, for ``scenes`` scenes per method, robot and kind; fewer
    where a search gives up.

    Args:
        folder: gets ``pairs.jsonl``, the scenes that were searched, and ``swaps.jsonl``.

    Raises:
        RuntimeError: if no scene allows two instructions.
    """
    found = find_pairs(robots, folder / "pairs.jsonl", scenes=scenes, run=run, workers=workers)
    jobs = [
        SwapJob(
            method, pair["robot"], pair["kind"], pair["number"], tuple(wanted), run, options, noisy
        )
        for pair in found
        for method in methods
        for wanted in pair["pair"]
    ]
    lines = run_jobs(
        jobs, swap_line, folder / "swaps.jsonl", workers=workers, description="instruction swap"
    )
    return list(lines.values())


def find_pairs(
    robots: Sequence[str], file: Path, *, scenes: int, run: int, workers: int = 1
) -> list[dict[str, Any]]:
    """The first ``scenes`` scenes of each robot and kind that allow two instructions.

    Raises:
        RuntimeError: if none of the scenes searched does.
    """
    count = {(robot, kind): scenes for robot in robots for kind in KINDS}
    while True:
        jobs = [
            PairSearch(robot, kind, number, run)
            for (robot, kind), some in count.items()
            for number in range(some)
        ]
        lines = run_jobs(jobs, pair_line, file, workers=workers, description="scenes to swap in")
        good: dict[tuple[str, str], list[dict[str, Any]]] = {pair: [] for pair in count}
        for line in lines.values():
            if line["pair"]:
                good[line["robot"], line["kind"]].append(line)
        most = _SCENES_PER_PAIR * scenes
        short = {
            pair: scenes - len(some)
            for pair, some in good.items()
            if len(some) < scenes and count[pair] < most
        }
        if not short:
            break
        for pair, missing in short.items():
            count[pair] = min(count[pair] + missing, most)
    for (robot, kind), some in good.items():
        if not some:
            raise RuntimeError(
                f"none of {count[robot, kind]} scenes of {robot!r} allows two instructions that "
                f"differ in the {kind}"
            )
    return [line for some in good.values() for line in some[:scenes]]


def pair_line(job: PairSearch) -> dict[str, Any]:
    """Search one scene; ``pair`` lists the two (side, object) to ask for, or is None."""
    wanted = None
    sim = _table(job.robot, job.kind, job.number, job.run, LoopOptions())
    pair = find_pair(sim, job.kind)
    sim.close()
    # A plan that was found while others were searched must also be found from the start.
    if pair is not None and all(_begins(job, each) for each in pair):
        wanted = [[each.side, each.target] for each in pair]
    return {"robot": job.robot, "kind": job.kind, "number": job.number, "pair": wanted}


def swap_line(job: SwapJob, recording: Recording | None = None) -> dict[str, Any]:
    """Run one of the two episodes; ``obeyed`` says whether the named one was gone for."""
    robot, kinematics = body(job.robot)
    sim = _table(job.robot, job.kind, job.number, job.run, job.options)
    try:
        goal = sim.begin(KINDS[job.kind], Wanted(*job.wanted))
        if goal.task != KINDS[job.kind]:
            raise ValueError(f"scene {job.number} of {job.robot!r} has no plan for {job.wanted}")
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
    named = result.chosen == goal.target if job.kind == "object" else result.acting == goal.side
    return {
        "method": job.method.label,
        "robot": job.robot,
        "kind": job.kind,
        "task": goal.task,
        "number": job.number,
        "instruction": goal.instruction,
        "side": goal.side,
        "target": goal.target,
        "obeyed": bool(named),
        "success": result.success,
    } | asdict(result)


def find_pair(sim: TableTop, kind: str) -> tuple[Wanted, Wanted] | None:
    """Two things to ask for in one scene that are both possible and not yet so, or None.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of swap {kind!r}; known: {', '.join(KINDS)}")
    small = [i for i, item in enumerate(sim.scene.objects) if not item.for_two_hands]
    if kind == "object":
        pairs = [
            (Wanted(side, a), Wanted(side, b))
            for side in ("left", "right")
            for a, b in combinations(small, 2)
        ]
    else:
        pairs = [(Wanted("left", i), Wanted("right", i)) for i in small]
    possible: dict[Wanted, bool] = {}

    def can(wanted: Wanted) -> bool:
        if wanted not in possible:
            goal = sim.begin(KINDS[kind], wanted)
            possible[wanted] = goal.task == KINDS[kind] and not sim.achieved(goal)
        return possible[wanted]

    return next((pair for pair in pairs if all(can(wanted) for wanted in pair)), None)


def _begins(job: PairSearch, wanted: Wanted) -> bool:
    sim = _table(job.robot, job.kind, job.number, job.run, LoopOptions())
    began = sim.begin(KINDS[job.kind], wanted).task == KINDS[job.kind]
    sim.close()
    return began


def _table(robot: str, kind: str, number: int, run: int, options: LoopOptions) -> TableTop:
    seed = episode_seed("test", run, number)
    return make_table(body(robot)[0], seed=seed, split="test", task=KINDS[kind], options=options)
