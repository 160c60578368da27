"""``ego-world-model calibrate``: from pictures and joint states to the camera's true mount."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import numpy as np
import typer

from ego_world_model.calibration import (
    CalibrationError,
    CalibrationOptions,
    CalibrationResult,
    write_parameters,
)
from ego_world_model.calibration.annotations import Annotations
from ego_world_model.calibration.frames import CalibrationFrame, choose_diverse, read_image_folder
from ego_world_model.calibration.output import cautions, summary, write_camera_info, write_report
from ego_world_model.calibration.session import CalibrationSession
from ego_world_model.embodiment import Embodiment, load_embodiment
from ego_world_model.kinematics import HandKinematics

if TYPE_CHECKING:
    from rich.console import Console

    from ego_world_model.camera import PinholeCamera
    from ego_world_model.data.schema import Episode

LOOKED_AT = 2000
"""Frames of a dataset that are considered, evenly spread, when diverse ones are chosen."""


class _Loss(str, Enum):
    linear = "linear"
    soft_l1 = "soft_l1"
    huber = "huber"


def calibrate(
    source: Annotated[
        Path, typer.Argument(help="Image folder with frames.json, or a dataset folder.")
    ],
    out: Annotated[
        Path, typer.Option(help="YAML to write for the launch files; a report goes beside it.")
    ] = Path("calibration.yaml"),
    robot: Annotated[str, typer.Option(help="Embodiment name or YAML file.")] = "g1_dex3",
    annotations: Annotated[
        Optional[Path],  # noqa: UP045 - Typer evaluates this on Python 3.10
        typer.Option(help="File of the annotated pixels; gone on with. Beside --out by default."),
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="Most frames to annotate.")] = 16,
    episode: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(help="Only this episode of a dataset (may be repeated)."),
    ] = None,
    page: Annotated[
        bool, typer.Option(help="Serve the page; without, solve what is annotated and end.")
    ] = True,
    port: Annotated[int, typer.Option(min=0, help="Of the page on 127.0.0.1; 0: any.")] = 8090,
    loss: Annotated[
        _Loss, typer.Option(help="soft_l1 or huber bear a few mislabelled joints.")
    ] = _Loss.linear,
    max_shift: Annotated[
        float, typer.Option(min=0.001, max=1.0, help="Metres off nominal, along each axis.")
    ] = 0.05,
    max_turn: Annotated[
        float, typer.Option(min=0.1, max=89.0, help="Degrees off nominal, about each axis.")
    ] = 10.0,
    pixel_noise: Annotated[
        float, typer.Option(min=0.01, help="Pixels, standard deviation of a click.")
    ] = 2.0,
    intrinsics: Annotated[
        bool, typer.Option("--intrinsics", help="Refine focal lengths and principal point too.")
    ] = False,
    joint: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Refine this joint's zero too (may be repeated); 'arms' for all."),
    ] = None,
) -> None:
    """Calibrate the head camera from pixels of named joints, without a robot.

    A browser page shows diverse frames; click where joints are, see the reprojection follow.
    Every click is kept at once, so the same command goes on where it stopped.
    """
    from rich.console import Console

    embodiment = load_embodiment(robot)
    kinematics = HandKinematics(embodiment)
    options = CalibrationOptions(
        max_translation=max_shift,
        max_rotation=math.radians(max_turn),
        pixel_noise=pixel_noise,
        loss=loss.value,
        refine_intrinsics=intrinsics,
        refine_joints=_joints(joint or [], embodiment),
    )
    path = annotations or out.with_name(f"{out.stem}_annotations.json")
    kept = Annotations(path, embodiment.name)
    chosen = read_frames(source, kinematics, count=frames, episodes=episode, annotated=kept.frames)
    session = CalibrationSession(chosen, kept, kinematics, options)
    console = Console(soft_wrap=True, highlight=False)

    saved: list[str] = []

    def save(result: CalibrationResult) -> str:
        saved.append(_save(out, result, embodiment, chosen))
        return saved[-1]

    if page:
        _serve(session, save, port, console)
    solution = session.solution()
    if solution.result is None:
        if page:
            console.print(f"no calibration yet: {solution.problem}", markup=False)
            return
        raise CalibrationError(f"{path}: {solution.problem}")
    if not page:
        save(solution.result)
    _print(solution.result, console)
    if saved:
        console.print(f"{saved[-1]}\nstart with it: calibration:={out}", markup=False)
    else:
        console.print(f"Save was not pressed; --no-page writes {out} from the annotations")


def read_frames(
    source: Path,
    kinematics: HandKinematics,
    *,
    count: int,
    episodes: list[int] | None = None,
    annotated: tuple[str, ...] = (),
) -> list[CalibrationFrame]:
    """Diverse frames of an image folder or a dataset, and those that are annotated already.

    Raises:
        CalibrationError: if the source is neither, or shows no hands.
    """
    if not source.is_dir():
        raise CalibrationError(f"{source} is no folder")
    if (source / "meta" / "info.json").is_file():
        return _dataset_frames(source, kinematics, count, episodes, annotated)
    if episodes:
        raise CalibrationError(f"--episode is for datasets; {source} has no meta/info.json")
    frames = read_image_folder(source, kinematics.robot)
    q, cameras = np.stack([frame.q for frame in frames]), [frame.camera for frame in frames]
    chosen = set(choose_diverse(kinematics, q, cameras, count))
    return [f for i, f in enumerate(frames) if i in chosen or f.name in annotated]


def _dataset_frames(
    source: Path,
    kinematics: HandKinematics,
    count: int,
    episodes: list[int] | None,
    annotated: tuple[str, ...],
) -> list[CalibrationFrame]:
    """Frames named ``episode_000003/frame_000120``."""
    from ego_world_model.data.reader import DatasetReader

    reader = DatasetReader(source)
    numbers = list(range(len(reader))) if episodes is None else episodes
    lengths = [reader.lengths[n] for n in numbers if 0 <= n < len(reader)]
    if len(lengths) < len(numbers) or not numbers:
        raise CalibrationError(f"{source} has {len(reader)} episodes, numbered from 0")
    every = max(1, math.ceil(sum(lengths) / LOOKED_AT))
    names, q, cameras, lenses, places = [], [], [], [], []
    for number in numbers:
        episode = reader.episode(number, images=False, masks=False)
        order = _joint_order(episode.joint_names, source, kinematics.robot)
        for k in range(len(episode)):
            name = f"episode_{number:06d}/frame_{k:06d}"
            if k % every == 0 or name in annotated:
                names.append(name)
                q.append(episode.state[k, order].astype(np.float64))
                cameras.append(episode.camera)
                lenses.append(_lens(episode))
                places.append((number, k))
    chosen = set(choose_diverse(kinematics, np.stack(q), cameras, count))
    chosen |= {i for i, name in enumerate(names) if name in annotated}
    return [
        CalibrationFrame(
            name=names[i],
            image=reader.episode(n, start=k, stop=k + 1, masks=False).images[0],
            camera=cameras[i],
            q=q[i],
            lens=lenses[i],
        )
        for i, (n, k) in enumerate(places)
        if i in chosen
    ]


def _lens(episode: Episode) -> PinholeCamera | None:
    """The lens that an import took out of an episode's pictures, at their size in the dataset."""
    lens = episode.metadata.get("lens")
    if lens is None:
        return None
    coefficients = tuple(lens["distortion"])
    return replace(
        episode.camera, distortion=coefficients, distortion_model=lens["distortion_model"]
    )


def _joint_order(names: tuple[str, ...], source: Path, robot: Embodiment) -> list[int]:
    """Columns of a dataset's state in the robot's joint order."""
    missing = [name for name in robot.joint_names if name not in names]
    if missing:
        raise CalibrationError(
            f"{source} has no joint {missing[0]} of {robot.name!r}; is --robot right?"
        )
    return [names.index(name) for name in robot.joint_names]


def _joints(names: list[str], robot: Embodiment) -> tuple[str, ...]:
    arms = [joint for hand in robot.hands.values() for joint in hand.arm]
    wanted = [joint for name in names for joint in (arms if name == "arms" else [name])]
    return tuple(dict.fromkeys(wanted))


def _serve(
    session: CalibrationSession,
    save: Callable[[CalibrationResult], str],
    port: int,
    console: Console,
) -> None:
    """Serve the page until Ctrl+C or SIGTERM."""
    from ego_world_model.ui.calibration_server import CalibrationPage

    stop = threading.Event()
    previous = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        page = CalibrationPage(session, save=save, port=port)
    except OSError as error:
        raise CalibrationError(f"port {port} of 127.0.0.1: {error}; give --port 0") from None
    console.print(f"{len(session.frames)} frames; annotate them on {page.url}  (Ctrl+C ends)")
    try:
        stop.wait()
    finally:
        page.close()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _save(
    out: Path, result: CalibrationResult, robot: Embodiment, frames: list[CalibrationFrame]
) -> str:
    """Write the YAML, the report and, where refined, the intrinsics; says what was written."""
    camera = frames[0].camera
    written = [
        write_parameters(out, result, robot),
        write_report(out.with_name(f"{out.stem}_report.json"), result, robot, camera),
    ]
    if result.options.refine_intrinsics:
        info = out.with_name(f"{out.stem}_camera_info.yaml")
        # A driver publishes the pictures as the lens shows them.
        written.append(write_camera_info(info, result.camera(frames[0].lens or camera), "head"))
    return f"Saved {', '.join(map(str, written))}"


def _print(result: CalibrationResult, console: Console) -> None:
    """Tables of unknowns and joints, and what to beware of."""
    from rich.table import Table

    table = Table("unknown", "value", "standard deviation", "bound", title=summary(result))
    rows = zip(result.parameters, result.values, result.standard_deviations, strict=True)
    for parameter, value, deviation in rows:
        factor, unit = parameter.readable
        held = parameter.name in result.active_bounds
        table.add_row(
            parameter.name,
            f"{value * factor:.3f} {unit}",
            "held by its bound" if held else f"{deviation * factor:.3f}",
            f"{parameter.bound * factor:g}",
        )
    console.print(table)
    table = Table("joint", "pixels", "RMS px", "mean u", "mean v")
    by_slot = result.rms_by_slot()
    for name in sorted(by_slot, key=lambda slot: -by_slot[slot][1]):
        count, rms, u, v = by_slot[name]
        table.add_row(name, str(count), f"{rms:.2f}", f"{u:+.2f}", f"{v:+.2f}")
    console.print(table)
    found = cautions(result)
    for sentence in found:
        console.print(sentence, style="bold red", markup=False)
    if not found:
        console.print(result.observability.sentence(), style="green", markup=False)
