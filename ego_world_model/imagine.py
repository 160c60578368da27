"""``ego-world-model imagine``: one image and one hand trajectory become a video, without ROS."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import numpy as np
import typer
from numpy.typing import NDArray

from ego_world_model.camera import PinholeCamera
from ego_world_model.drawing import draw_hands
from ego_world_model.hands import SLOT_NAMES, HandTrajectory
from ego_world_model.media import read_image, write_png, write_video
from ego_world_model.media import strip as lay_out
from ego_world_model.trajectory_file import (
    ALL_SLOTS,
    TrajectoryFile,
    TrajectoryFileError,
    load_trajectory,
)

if TYPE_CHECKING:
    from ego_world_model.world_model import ImaginationResult, WorldModelConfig

STRIP_COLUMNS = 9
_STRIP_WIDTH = 256  # pixels of one frame in a strip, about


@dataclass(frozen=True)
class Request:
    """What is to be imagined, checked and in the model's terms.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        trajectory: on the model's clock, in the model's slots.
        camera: intrinsics of ``image``.
    """

    image: NDArray[np.uint8]
    trajectory: HandTrajectory
    camera: PinholeCamera


def imagine(
    image: Annotated[Path, typer.Option(help="Reference frame: what the camera sees now.")],
    trajectory: Annotated[
        Path, typer.Option(help="Hand trajectory (.npz, see docs/trajectory_format.md).")
    ],
    out: Annotated[Path, typer.Option(help="Video to write.")] = Path("rollout.mp4"),
    intrinsics: Annotated[
        Optional[str],  # noqa: UP045  Typer on Python 3.10
        typer.Option(help="fx,fy,cx,cy in pixels of the image; else the trajectory file's."),
    ] = None,
    model: Annotated[str, typer.Option(help="A shipped model, or a checkpoint folder.")] = "tiny",
    steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Denoising steps; the checkpoint's own if not given."),
    ] = None,
    sigmas: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Noise levels of the steps instead, e.g. 1,0.9375,0.8333,0.625."),
    ] = None,
    solver: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="euler or unipc; the checkpoint's own if not given."),
    ] = None,
    guidance: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Scale of guidance on the prompt; 1 is none."),
    ] = None,
    control_guidance: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Scale of guidance on the joints; 1 is none."),
    ] = None,
    seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="Noise seed; the same seed gives the same frames."),
    ] = None,
    prompt: Annotated[str, typer.Option(help="Words, for checkpoints that read them.")] = "",
    strip: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="PNG strip to write; the video's name with .png if not given."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda for large checkpoints.")] = "cpu",
) -> None:
    """Imagine what the camera will see if the hands follow a trajectory.

    Writes the imagined frames as a video, and as a PNG strip with the joints drawn beneath. Try it
    without a robot: `ego-world-model example --out example` writes a frame and trajectories.
    """
    if out.suffix.lower() not in (".mp4", ".m4v", ".mov"):
        raise typer.BadParameter(f"--out {out} must end in .mp4")
    levels = None if sigmas is None else _numbers(sigmas)
    picture = read_image(image)
    file = load_trajectory(trajectory)
    camera = find_camera(file, picture, image, trajectory, intrinsics)

    from ego_world_model.world_model import WorldModel  # after the checks: importing torch is slow

    loaded = WorldModel.from_pretrained(model, device=device)
    motion = fit_trajectory(file.trajectory, loaded.config, trajectory, model)
    request = Request(picture, motion, camera)
    seed = secrets.randbits(32) if seed is None else seed
    with _progress() as on_step:
        result = loaded.imagine(
            picture,
            motion,
            camera.matrix,
            prompt=prompt,
            guidance=guidance,
            control_guidance=control_guidance,
            steps=steps,
            sigmas=levels,
            solver=solver,
            seed=seed,
            on_step=on_step,
        )
    sheet = out.with_suffix(".png") if strip is None else strip
    write_video(out, result.frames[0], fps=loaded.config.fps)
    write_png(sheet, rollout_strip(result, request))
    _report(result, out, sheet, model, seed, loaded.config.fps)


def _numbers(option: str) -> list[float]:
    try:
        return [float(part) for part in option.split(",")]
    except ValueError as error:
        raise typer.BadParameter(
            f"--sigmas must be numbers with commas between them, e.g. 1,0.75,0.5; got {option!r}"
        ) from error


def find_camera(
    file: TrajectoryFile,
    picture: NDArray[np.uint8],
    image: Path,
    trajectory: Path,
    option: str | None,
) -> PinholeCamera:
    """Intrinsics of the picture: from ``--intrinsics``, else from the trajectory file.

    Raises:
        typer.BadParameter: if the option is no four numbers.
        TrajectoryFileError: if there are none, or they are for an image of another shape.
    """
    height, width = picture.shape[:2]
    if option is not None:
        try:
            fx, fy, cx, cy = (float(part) for part in option.split(","))
            return PinholeCamera(width, height, fx, fy, cx, cy)
        except ValueError as error:
            raise typer.BadParameter(
                f"--intrinsics must be fx,fy,cx,cy in pixels of {image} ({width}x{height}), e.g. "
                f"605.1,604.9,320.2,241.7; got {option!r} ({error})"
            ) from None
    if file.camera is None:
        raise TrajectoryFileError(
            f"{trajectory}: field 'intrinsics': missing, as is --intrinsics. Remedy: add "
            f"--intrinsics fx,fy,cx,cy in pixels of {image} ({width}x{height}), or store "
            "'intrinsics' (3, 3) and 'image_size' (2,) in the file."
        )
    stretch = (width / file.camera.width) / (height / file.camera.height)
    if abs(stretch - 1) > 0.01:
        raise TrajectoryFileError(
            f"{trajectory}: field 'image_size': {file.camera.width}x{file.camera.height} is not "
            f"the shape of {image} ({width}x{height}). Remedy: give this image's intrinsics with "
            "--intrinsics fx,fy,cx,cy."
        )
    return file.camera.resized(width, height)


def fit_trajectory(
    trajectory: HandTrajectory, config: WorldModelConfig, path: Path, model: str
) -> HandTrajectory:
    """The trajectory at the model's times and in its slots.

    Raises:
        TrajectoryFileError: if it ends before the model's horizon.
    """
    times = np.arange(config.num_frames) / config.fps
    if trajectory.duration < times[-1] - 1e-6:
        raise TrajectoryFileError(
            f"{path}: field 'times': covers 0 to {trajectory.duration:.3f} s, but model {model} "
            f"imagines {times[-1]:.3f} s ({config.num_frames - 1} frames at {config.fps:g} Hz). "
            "Remedy: give a trajectory that covers the whole horizon."
        )
    trajectory = trajectory.resample(times)
    columns = [ALL_SLOTS.index(name) for name in (*SLOT_NAMES, *config.extra_slots)]
    positions = np.zeros((len(times), len(ALL_SLOTS), 3), np.float32)
    valid = np.zeros(positions.shape[:2], bool)
    positions[:, : trajectory.num_slots] = trajectory.positions
    valid[:, : trajectory.num_slots] = trajectory.valid
    return HandTrajectory(times, positions[:, columns], valid[:, columns], trajectory.camera_pose)


def rollout_strip(result: ImaginationResult, request: Request) -> NDArray[np.uint8]:
    """Two rows of frames, evenly chosen: as imagined, and with the joints that were asked for.

    The first column is the reference. Returns (height, width, 3) uint8.
    """
    frames, motion = result.frames[0], request.trajectory
    chosen = np.unique(np.linspace(0, len(frames) - 1, STRIP_COLUMNS).round().astype(int))
    height, width = frames.shape[1:3]
    scale = max(1, round(_STRIP_WIDTH / width))
    camera = replace(request.camera, distortion=()).resized(scale * width, scale * height)
    # A strip draws bones by slot order, so only a prefix of the extra slots can be shown.
    shown = motion.num_slots if motion.num_slots == len(ALL_SLOTS) else len(SLOT_NAMES)
    plain, drawn = [], []
    for k in chosen:
        frame = frames[k].repeat(scale, axis=0).repeat(scale, axis=1)
        plain.append(frame)
        pixels = camera.project(motion.positions[k, :shown])
        drawn.append(draw_hands(frame, pixels, motion.valid[k, :shown]))
    columns = ["reference", *(f"+{result.times[k]:.1f} s" for k in chosen[1:])]
    return lay_out([plain, drawn], ["imagined", "with joints"], columns=columns)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], bool]]:
    """A progress bar over the denoising steps, on stderr; gives the ``on_step`` callback."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("imagining", total=None)

        def on_step(step: int, steps: int) -> bool:
            bar.update(task, completed=step, total=steps)
            return True

        yield on_step


def _report(
    result: ImaginationResult, out: Path, sheet: Path, model: str, seed: int, fps: float
) -> None:
    count, height, width = result.frames.shape[1:4]
    stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result.timings.items())
    typer.echo(
        f"{out}: reference and {count - 1} imagined frames, {width}x{height}, {fps:g} Hz\n"
        f"{sheet}: strip, with the joints below\n"
        f"model {model}, seed {seed}; {sum(result.timings.values()):.2f} s ({stages})"
    )
