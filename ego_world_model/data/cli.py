"""The commands ``simulate`` and ``data``: make datasets, check them, look at them."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

data = typer.Typer(no_args_is_help=True, help="Inspect and check datasets.")


class _Split(str, Enum):
    train = "train"
    validation = "validation"
    test = "test"


def parse_size(text: str) -> tuple[int, int]:
    """``WIDTHxHEIGHT`` as a command line gives it → (width, height)."""
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not WIDTHxHEIGHT, such as 128x96") from None
    if width < 16 or height < 16 or width % 2 or height % 2:
        raise typer.BadParameter(f"{text!r}: both must be even and at least 16")
    return width, height


def simulate(
    out: Annotated[Path, typer.Option(help="Dataset folder; made or gone on with.")],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes that the dataset shall have.")],
    robot: Annotated[str, typer.Option(help="Embodiment name or YAML file.")] = "g1_dex3",
    split: Annotated[
        _Split, typer.Option(help="Objects, textures and seeds of the splits are disjoint.")
    ] = _Split.train,
    size: Annotated[str, typer.Option(help="Width x height in pixels.")] = "128x96",
    fps: Annotated[float, typer.Option(min=0.1, help="Frames per second.")] = 10.0,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of an episode.")] = 6.0,
    workers: Annotated[int, typer.Option(min=1, help="Processes that simulate.")] = 2,
    seed: Annotated[int, typer.Option(min=0, max=999, help="Another seed, other episodes.")] = 0,
    task: Annotated[
        Optional[list[str]],  # noqa: UP045 - Typer evaluates this on Python 3.10
        typer.Option(help="Only this kind of task (may be repeated)."),
    ] = None,
    depth: Annotated[bool, typer.Option(help="Record depth images too.")] = True,
    storage: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Frames as 'image' (lossless) or 'video'; by size unless given."),
    ] = None,
    still: Annotated[
        bool, typer.Option(help="Let rest what a task does not need; else it wanders.")
    ] = False,
    disturbance: Annotated[
        float,
        typer.Option(min=0, max=0.2, help="Let the arms stray from their plan (rad, deviation)."),
    ] = 0.0,
) -> None:
    """Record episodes of the simulated robot as a LeRobot v3.0 dataset.

    Runs in parallel and may be interrupted: the same command goes on where it stopped.
    """
    from rich.console import Console

    from ego_world_model.data.generate import generate

    if storage not in (None, "image", "video"):
        raise typer.BadParameter(f"--storage must be 'image' or 'video', not {storage!r}")
    width, height = parse_size(size)
    try:
        reader = generate(
            robot,
            out,
            episodes=episodes,
            seed=seed,
            split=split.value,
            fps=fps,
            seconds=seconds,
            width=width,
            height=height,
            workers=workers,
            tasks=task,
            depth=depth,
            image_storage=storage,
            still=still,
            disturbance=disturbance,
        )
    except KeyboardInterrupt:
        Console(stderr=True).print(
            "interrupted; finished episodes are kept and the same command goes on from there"
        )
        raise typer.Exit(130) from None
    except RuntimeError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"error: {error}", style="red", markup=False
        )
        raise typer.Exit(1) from None
    frames = int(reader.lengths.sum())
    Console().print(f"{out}: {len(reader)} episodes, {frames} frames, {len(_tasks(out))} tasks")


def _tasks(root: Path) -> dict[str, int]:
    from ego_world_model.data.layout import TASKS
    from ego_world_model.data.tables import read_tasks

    return read_tasks(root / TASKS)


@data.command()
def check(
    folder: Annotated[Path, typer.Argument(help="Dataset folder.")],
    pictures: Annotated[bool, typer.Option(help="Decode every frame, mask and depth.")] = True,
) -> None:
    """Say what is wrong with a dataset: file, column, episode, and what it must be."""
    from rich.console import Console
    from rich.progress import Progress

    from ego_world_model.data.check import check_dataset

    console = Console(soft_wrap=True, highlight=False)
    if not folder.is_dir():
        raise typer.BadParameter(f"{folder} is not a folder")
    with Progress(console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("checking", total=None)

        def on_episode(done: int, total: int) -> None:
            bar.update(line, completed=done, total=total)

        findings = check_dataset(folder, pictures=pictures, on_episode=on_episode)
    for finding in findings:
        console.print(str(finding), markup=False)
    if findings:
        console.print(f"{len(findings)} findings", style="bold red")
        raise typer.Exit(1)
    console.print(f"{folder} is sound", style="green")


@data.command()
def info(folder: Annotated[Path, typer.Argument(help="Dataset folder.")]) -> None:
    """What a dataset holds: robot, size, rate, episodes, columns."""
    from rich.console import Console
    from rich.table import Table

    from ego_world_model.data.reader import DatasetReader

    reader = DatasetReader(folder)
    spec, lengths = reader.spec, reader.lengths
    table = Table("column", "type", "shape", title=str(folder))
    for name, feature in spec.features.items():
        table.add_row(name, feature["dtype"], "x".join(map(str, feature["shape"])))
    console = Console()
    console.print(table)
    console.print(
        f"{spec.embodiment}, {spec.camera.width}x{spec.camera.height} at {spec.fps:g} Hz, "
        f"{len(reader)} episodes, {lengths.sum()} frames, {lengths.sum() / spec.fps:.0f} s"
    )


@data.command()
def strip(
    folder: Annotated[Path, typer.Argument(help="Dataset folder.")],
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    episode: Annotated[int, typer.Option(min=0, help="Episode number.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="Frames, evenly spread.")] = 8,
    scale: Annotated[int, typer.Option(min=1, help="Enlarge frames by this factor.")] = 1,
) -> None:
    """Draw an episode as a sheet: frames with hand joints, masks and depth below."""
    from rich.console import Console

    from ego_world_model.data.look import episode_strip
    from ego_world_model.data.reader import DatasetReader
    from ego_world_model.media import write_png

    reader = DatasetReader(folder)
    if episode >= len(reader):
        raise typer.BadParameter(f"{folder} has episodes 0 to {len(reader) - 1}, not {episode}")
    write_png(out, episode_strip(reader.episode(episode, depth=True), count=count, scale=scale))
    Console().print(f"{out}: episode {episode}, {reader.records[episode].task}")


@data.command()
def clips(
    folder: Annotated[Path, typer.Argument(help="Dataset folder at 30 frames per second.")],
    out: Annotated[Path, typer.Option(help="Folder for the clips; gone on with if it exists.")],
) -> None:
    """Cut a clip of 121 frames from each episode where the hands are best seen.

    A 30 fps MP4 with synchronised 3D joints, handedness, intrinsics and frame indices (.npz).
    """
    from rich.console import Console
    from rich.progress import Progress

    from ego_world_model.data.clip_extraction import extract_clips
    from ego_world_model.data.reader import DatasetReader

    console = Console(soft_wrap=True, highlight=False)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("extracting", total=None)

        def on_episode(done: int, total: int) -> None:
            bar.update(line, completed=done, total=total)

        report = extract_clips(DatasetReader(folder), out, on_episode=on_episode)
    for threshold, count in report.by_threshold().items():
        console.print(f"{count} clips with at least {threshold} keypoints at their centre")
    for index, reason in report.rejected.items():
        console.print(f"episode {index} has no clip: {reason}", markup=False)
    if not report.clips:
        raise typer.Exit(1)
