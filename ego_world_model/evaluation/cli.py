"""``ego-world-model evaluate``: a checkpoint on held-out episodes, as a table and strips."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False)


@app.command()
def evaluate(
    *,
    data: Annotated[Path, typer.Option(help="Dataset folder of held-out episodes with masks.")],
    model: Annotated[
        str, typer.Option(help="Name of a shipped checkpoint, or a checkpoint folder.")
    ] = "tiny",
    out: Annotated[Path, typer.Option(help="Folder for report.md, results.json, strips/.")] = Path(
        "outputs/evaluation"
    ),
    clips: Annotated[int, typer.Option(min=2, help="Clips, spread over the episodes.")] = 100,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Denoising steps; the checkpoint's own if not given.")
    ] = None,
    scenes: Annotated[
        int, typer.Option(min=0, help="Simulated scenes with five futures each; 0 skips them.")
    ] = 5,
    estimator: Annotated[
        Path | None, typer.Option(help="Keypoint checkpoint folder; the shipped one if not given.")
    ] = None,
    strips: Annotated[int, typer.Option(min=1, help="Strips of each kind.")] = 4,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of torch; 0: its choice.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the imagination's noise.")] = 0,
) -> None:
    """Measure a world model on held-out episodes, beside copying, other or frozen joints."""
    import torch

    from ego_world_model.evaluation.report import Evaluation, write_report
    from ego_world_model.perception import KeypointEstimator
    from ego_world_model.world_model import WorldModel

    if threads:
        torch.set_num_threads(threads)
    judge = KeypointEstimator.from_pretrained(estimator)
    world_model = WorldModel.from_pretrained(model)
    results = _clips(world_model, judge, data, clips, steps, seed)
    futures = _futures(world_model, judge, scenes, steps) if scenes else []
    about = {
        "model": model,
        "data": data.name,
        "clips": len(results),
        "steps": steps or "the checkpoint's own",
        "seed": seed,
        "obedience scenes": scenes,
    }
    evaluation = Evaluation(about, results, futures)
    write_report(evaluation, out, strips=strips)
    _print(evaluation, out)


def _clips(model: Any, judge: Any, data: Path, clips: int, steps: int | None, seed: int) -> list:
    from rich.progress import track

    from ego_world_model.data import DatasetReader
    from ego_world_model.evaluation.benchmark import Benchmark
    from ego_world_model.evaluation.clips import evaluation_clips

    episodes = list(evaluation_clips(DatasetReader(data), model.config, clips))
    runs = Benchmark(model, judge, steps=steps, seed=seed).run(episodes)
    return list(track(runs, description="clips", total=len(episodes)))


def _futures(model: Any, judge: Any, scenes: int, steps: int | None) -> list:
    from rich.progress import track

    from ego_world_model.embodiment import load_embodiment
    from ego_world_model.evaluation.obedience import measure_obedience

    robot = load_embodiment("g1_dex3")
    runs = measure_obedience(model, judge, robot, scenes=scenes, steps=steps)
    return list(track(runs, description="futures", total=5 * scenes))


def _print(evaluation: Any, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="shipping floor")
    for heading in ("", "value", "bound", "met"):
        table.add_column(heading)
    for check in evaluation.floor():
        table.add_row(check.name, f"{check.value:.3g}", check.bound, "yes" if check.met else "no")
    console = Console()
    console.print(table)
    console.print(f"{out / 'report.md'} has all numbers, {out / 'strips'} the pictures")
