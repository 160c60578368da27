"""``ego-world-model evaluate``: checkpoints on held-out episodes, as tables, plots and strips."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional, TypeVar

import typer

app = typer.Typer(add_completion=False)

Item = TypeVar("Item", int, float)


@app.command()
def evaluate(
    *,
    data: Annotated[
        list[Path],
        typer.Option(
            help="Dataset folder of held-out episodes with masks. Several, such as one for each "
            "robot, are reported side by side."
        ),
    ],
    model: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="Name of a shipped checkpoint, or a checkpoint folder; tiny if not given. Several "
            "are compared with the first on the same clips."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for report.md, results.json, plots/, strips/.")
    ] = Path("outputs/evaluation"),
    clips: Annotated[int, typer.Option(min=2, help="Clips, spread over the episodes.")] = 100,
    steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Denoising steps; the checkpoint's own if not given."),
    ] = None,
    scenes: Annotated[
        int, typer.Option(min=0, help="Simulated scenes with five futures each; 0 skips them.")
    ] = 5,
    robot: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="YAML file of a dataset's robot that is not built in, for the scenes."),
    ] = None,
    masked: Annotated[
        str,
        typer.Option(
            help="Study with these shares of joints hidden from the model, such as '0 0.1 0.3 0.5'."
        ),
    ] = "",
    study_steps: Annotated[
        str, typer.Option(help="Study with these denoising steps, such as '1 2 4 20'.")
    ] = "",
    study_clips: Annotated[int, typer.Option(min=2, help="Clips of each study.")] = 40,
    features: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of feature networks, for FID, FVD, LPIPS and CLIP scores."),
    ] = None,
    feature_metric: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="One of fid, lpips, fvd, clip_score, clip_image, clip_fid (repeatable); "
            "all that the folder allows if not given."
        ),
    ] = None,
    estimator: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Keypoint checkpoint folder; the shipped one if not given."),
    ] = None,
    strips: Annotated[int, typer.Option(min=1, help="Strips of each kind.")] = 4,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of torch; 0: its choice.")] = 0,
    device: Annotated[str, typer.Option(help="Where the world model runs: cpu, cuda, ...")] = "cpu",
    seed: Annotated[int, typer.Option(help="Seed of noise and hidden joints.")] = 0,
) -> None:
    """Measure world models on held-out episodes, beside copying, other or frozen joints."""
    models = model or ["tiny"]
    if len(set(models)) < len(models):
        raise typer.BadParameter("the same model is given twice", param_hint="--model")
    shares = _numbers(masked, float, "--masked", lambda s: 0 <= s < 1, "shares in [0, 1)")
    if shares and 0 not in shares:
        raise typer.BadParameter("include 0, to compare with", param_hint="--masked")
    counts = _numbers(study_steps, int, "--study-steps", lambda n: n > 0, "whole numbers above 0")
    networks = _networks(features, feature_metric or [])
    robots = _robots(data)
    parts = _part_names(robots)
    if scenes:
        _check_robots(robots, robot or [])

    import torch

    from ego_world_model.evaluation.overview import Part, write_overview
    from ego_world_model.evaluation.report import write_report
    from ego_world_model.evaluation.results import Evaluation
    from ego_world_model.evaluation.runs import Run
    from ego_world_model.perception import KeypointEstimator

    if threads:
        torch.set_num_threads(threads)
    judge = KeypointEstimator.from_pretrained(estimator)
    summaries = {}
    for folder, part in zip(data, parts, strict=True):
        run = Run(
            judge=judge,
            data=folder,
            clips=clips,
            steps=steps,
            scenes=scenes,
            robots=tuple(robot or ()),
            shares=shares,
            step_counts=counts,
            study_clips=study_clips,
            networks=networks,
            feature_metrics=tuple(feature_metric or ()),
            seed=seed,
            device=device,
            track=_track,
        )
        results = run.evaluate(models)
        about = {
            "models": ", ".join(results),
            "data": folder.name,
            "robot": robots[folder],
            "clips": len(next(iter(results.values())).clips),
            "steps": steps or "the checkpoint's own",
            "seed": seed,
            "obedience scenes": scenes,
        }
        evaluation = Evaluation(about=about, models=results)
        # The pictures of one dataset fill memory; only its numbers stay for the page over all.
        summaries[part] = Part.of(evaluation, robots[folder])
        place = out if len(parts) == 1 else out / part
        write_report(evaluation, place, strips=strips)
        _print(evaluation, place)
        del results, evaluation
    if len(parts) > 1:
        write_overview(summaries, out)
        typer.echo(f"{out / 'report.md'} has the datasets side by side")


def _robots(data: Sequence[Path]) -> dict[Path, str]:
    """{dataset folder: the robot that it names}."""
    from ego_world_model.data import DatasetReader

    if len(set(data)) < len(data):
        raise typer.BadParameter("the same dataset is given twice", param_hint="--data")
    return {folder: DatasetReader(folder).spec.embodiment for folder in data}


def _part_names(robots: dict[Path, str]) -> list[str]:
    from ego_world_model.evaluation.overview import part_names

    try:
        return part_names([(robot, folder.name) for folder, robot in robots.items()])
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--data") from error


def _check_robots(robots: dict[Path, str], files: Sequence[str]) -> None:
    """Refuse a robot that no scene can be simulated with, before anything slow begins."""
    from ego_world_model.evaluation.runs import dataset_robot

    for folder, robot in robots.items():
        try:
            dataset_robot(robot, files)
        except (FileNotFoundError, ValueError) as error:
            raise typer.BadParameter(f"{folder}: {error}", param_hint="--robot") from error


def _numbers(
    text: str,
    kind: Callable[[str], Item],
    option: str,
    fits: Callable[[Item], bool],
    wanted: str,
) -> tuple[Item, ...]:
    """Numbers separated by spaces or commas, in rising order."""
    try:
        values = [kind(part) for part in re.split(r"[,\s]+", text.strip()) if part]
    except ValueError:
        values = None
    if values is None or not all(fits(value) for value in values):
        raise typer.BadParameter(f"expected {wanted}, got {text!r}", param_hint=option)
    return tuple(sorted(set(values)))


def _networks(folder: Path | None, metrics: Sequence[str]) -> Any:
    """The feature networks, before anything slow begins; None where none are asked for."""
    from ego_world_model.evaluation.features import FEATURE_METRICS, FeatureNetworks

    unknown = sorted(set(metrics) - set(FEATURE_METRICS))
    if unknown:
        raise typer.BadParameter(
            f"unknown {', '.join(unknown)}; known: {', '.join(FEATURE_METRICS)}",
            param_hint="--feature-metric",
        )
    if folder is None:
        if metrics:
            raise typer.BadParameter(
                f"{', '.join(metrics)} need feature networks, which are not part of this package: "
                "give their folder with --features (docs/evaluation.md says what goes into it)",
                param_hint="--feature-metric",
            )
        return None
    try:
        networks = FeatureNetworks.from_folder(folder)
        networks.require(metrics)
    except (FileNotFoundError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--features") from error
    return networks


def _track(runs: Iterator[Any], description: str, total: int) -> list[Any]:
    from rich.progress import track

    return list(track(runs, description=description, total=total))


def _print(evaluation: Any, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from ego_world_model.evaluation.results import floor

    console = Console()
    for name, model in evaluation.models.items():
        table = Table(title=f"shipping floor: {name}")
        for heading in ("", "value", "bound", "met"):
            table.add_column(heading)
        for check in floor(model):
            met = "yes" if check.met else "no"
            table.add_row(check.name, f"{check.value:.3g}", check.bound, met)
        console.print(table)
    console.print(
        f"{out / 'report.md'} has all numbers, {out / 'plots'} and {out / 'strips'} the pictures"
    )
