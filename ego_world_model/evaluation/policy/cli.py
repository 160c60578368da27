"""``ego-world-model evaluate-policy``: motion policies on recordings and in the simulation."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

app = typer.Typer(add_completion=False)

PARTS = ("open", "closed", "swap")


@app.command()
def evaluate_policy(
    *,
    model: Annotated[
        str, typer.Option(help="Name of a shipped policy or a checkpoint folder.")
    ] = "tiny",
    out: Annotated[
        Path, typer.Option(help="Folder for report.md, results.json and pictures; resumed.")
    ] = Path("outputs/evaluation_policy"),
    part: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help=f"Parts to run, of {', '.join(PARTS)} (repeatable); all if not given."),
    ] = None,
    data: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(help="Held-out datasets for the open loop (one per robot)."),
    ] = None,
    train_data: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(help="Training sets (one per robot) for the mean motion baseline."),
    ] = None,
    robot: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Robots of the simulation (repeatable)."),
    ] = None,
    task: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Tasks of the closed loop (repeatable): grasp, reach, bimanual."),
    ] = None,
    modality: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Inputs to give: T, I, ID, TI, TID (repeatable); all if not given."),
    ] = None,
    swap_modality: Annotated[
        str, typer.Option(help="Inputs to give where instructions are swapped.")
    ] = "TID",
    episodes: Annotated[
        int, typer.Option(min=1, help="Closed-loop episodes per method, robot and task.")
    ] = 100,
    swap_scenes: Annotated[
        int, typer.Option(min=1, help="Scenes with two instructions per robot and kind.")
    ] = 50,
    every: Annotated[int, typer.Option(min=1, help="Frames between open-loop windows.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Time of an episode.")] = 10.0,
    replan: Annotated[float, typer.Option(help="Seconds between predictions.")] = 0.4,
    seed: Annotated[
        int, typer.Option(min=0, max=999, help="Run of seeds within the test split.")
    ] = 7,
    noise: Annotated[bool, typer.Option(help="Depth with a sensor's noise.")] = True,
    strips: Annotated[
        int, typer.Option(min=0, help="Strips of successes and of failures per robot and task.")
    ] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 2,
) -> None:
    """Measure a motion policy against baselines, and against itself with inputs withheld."""
    from ego_world_model.evaluation.policy.closed_loop import (
        TASKS,
        EpisodeJob,
        run_closed_loop,
    )
    from ego_world_model.evaluation.policy.jobs import settle
    from ego_world_model.evaluation.policy.loop import LoopOptions
    from ego_world_model.evaluation.policy.methods import (
        BASELINES,
        EXPERT,
        Method,
        chunk_times,
        fingerprint,
    )
    from ego_world_model.evaluation.policy.open_loop import run_open_loop, write_mean_motions
    from ego_world_model.evaluation.policy.pictures import write_strips
    from ego_world_model.evaluation.policy.predictors import MODALITIES
    from ego_world_model.evaluation.policy.report import write_policy_report
    from ego_world_model.evaluation.policy.swap import run_swaps

    parts = _among("--part", part, PARTS)
    tasks = _among("--task", task, TASKS)
    modalities = _among("--modality", modality, MODALITIES)
    _among("--swap-modality", [swap_modality], MODALITIES)
    robots = robot or ["g1_dex3", "h1_2_inspire"]
    if "open" in parts and not data:
        raise typer.BadParameter(
            "the open loop needs held-out recordings: `ego-world-model simulate --still --split "
            "test`, or leave it out with --part closed --part swap",
            param_hint="--data",
        )
    options = LoopOptions(seconds=seconds, replan=replan)
    times = tuple(float(t) for t in chunk_times(model))
    settle(
        out,
        {
            "model": model,
            "weights": fingerprint(model),
            "every": every,
            "seconds": seconds,
            "replan": replan,
            "seed": seed,
            "noise": noise,
        },
    )
    policies = [Method("policy", model, name) for name in modalities]
    baselines = [Method(kind) for kind in BASELINES if kind != "mean motion"]
    if train_data:
        write_mean_motions(train_data, out, times)
        baselines.append(Method("mean motion", str(out)))
    found: dict[str, Any] = {}
    pictures: list[tuple[str, str]] = []
    if "open" in parts:
        found["open_loop"] = run_open_loop(
            [*policies, *baselines],
            data or [],
            out / "open_loop.jsonl",
            times=times,
            every=every,
            workers=workers,
            noisy=noise,
        )
    if "closed" in parts:
        expert = Method(EXPERT)
        found["closed_loop"] = run_closed_loop(
            [expert, *policies, *baselines],
            robots,
            tasks,
            out / "closed_loop.jsonl",
            episodes=episodes,
            run=seed,
            options=options,
            workers=workers,
            noisy=noise,
        )
        best = policies[-1]
        ours = [line for line in found["closed_loop"] if line["method"] == best.label]
        jobs = [
            EpisodeJob(best, line["robot"], line["task"], line["number"], seed, options, noise)
            for line in ours
        ]
        pictures = write_strips(jobs, ours, out, strips)
    if "swap" in parts:
        found["swaps"] = run_swaps(
            [Method(EXPERT), Method("policy", model, swap_modality)],
            robots,
            out,
            scenes=swap_scenes,
            run=seed,
            options=options,
            workers=workers,
            noisy=noise,
        )
    about = {
        "command": f"`{shlex.join(['ego-world-model', *sys.argv[1:]])}`",
        "policy": model,
        "weights": fingerprint(model),
        "an episode": f"at most {seconds:g} s, a prediction every {replan:g} s",
        "seeds": f"run {seed} of the test split",
        "depth": "rendered, with sensor noise" if noise else "rendered",
    }
    write_policy_report(out, about=about, times=times, pictures=pictures, **found)
    _print(found, out)


def _among(option: str, given: list[str] | None, known: tuple[str, ...]) -> list[str]:
    """What was given, or all that is known."""
    if unknown := sorted(set(given or ()) - set(known)):
        raise typer.BadParameter(
            f"unknown {', '.join(unknown)}; known: {', '.join(known)}", param_hint=option
        )
    return [name for name in known if name in (given or known)]


def _print(found: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from ego_world_model.evaluation.policy.jobs import unique
    from ego_world_model.evaluation.policy.tables import error, obeyed, success

    console = Console()
    parts = (
        ("closed_loop", "success", lambda lines, m: f"{success(lines, method=m).mean:.0%}"),
        ("swaps", "goes where told", lambda lines, m: f"{obeyed(lines, method=m).mean:.0%}"),
        ("open_loop", "MPJPE", lambda lines, m: f"{100 * error(lines, m, 'mpjpe').mean:.2f} cm"),
    )
    for name, heading, number in parts:
        if lines := found.get(name):
            table = Table("", heading)
            for method in unique(line["method"] for line in lines):
                table.add_row(method, number(lines, method))
            console.print(table)
    console.print(f"{out / 'report.md'} has all tables, {out / 'strips'} the pictures")
