"""Frames → decoded runs without a gap: what an episode is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ego_world_model.camera import PinholeCamera
from ego_world_model.data.importers.base import RejectedError, SourceFrame, Tally
from ego_world_model.data.importers.options import ImportOptions
from ego_world_model.data.importers.timing import on_grid
from ego_world_model.embodiment import Embodiment
from ego_world_model.media import resize
from ego_world_model.rectification import rectified, rectified_depth


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """One picture, or those of a run with a leading axis: (H, W, 3) RGB and (H, W) mm.

    Attributes:
        camera: the ideal pinhole that sees them.
        recorded: intrinsics of the pictures as they were recorded, through the lens.
    """

    image: NDArray[np.uint8]
    depth: NDArray[np.uint16] | None
    camera: PinholeCamera
    recorded: PinholeCamera


@dataclass(frozen=True, kw_only=True)
class Run:
    """Frames without a gap: n pictures of one camera, one instruction.

    The pictures' memory is used again.
    """

    frames: list[SourceFrame]
    pictures: Pictures


class _Collector:
    """Gathers decoded frames into runs, none shorter or longer than asked.

    One block of memory holds the pictures of a run; it serves the next once a run is taken.
    """

    def __init__(self, options: ImportOptions, tally: Tally) -> None:
        self._shortest = max(1, round(options.min_seconds * options.fps))
        self._longest = max(self._shortest, round(options.max_seconds * options.fps))
        self._one_task = options.task is not None
        self._tally = tally
        self._frames: list[SourceFrame] = []
        self._cameras: tuple[PinholeCamera, PinholeCamera] | None = None
        self._block = np.empty((0, 0, 0, 3), np.uint8)
        self._depths: NDArray[np.uint16] | None = None

    def fits(self, frame: SourceFrame, picture: Pictures) -> bool:
        """Whether one more frame of this camera and instruction belongs to the run."""
        return (
            len(self._frames) < self._longest
            and (picture.camera, picture.recorded) == self._cameras
            and (self._one_task or not self._frames or frame.task == self._frames[0].task)
        )

    def add(self, frame: SourceFrame, picture: Pictures) -> None:
        """Appends a frame."""
        if self._block.shape[1:] != picture.image.shape:
            self._block = np.empty((self._longest, *picture.image.shape), np.uint8)
            depth = picture.depth
            self._depths = None if depth is None else np.empty(self._block.shape[:3], np.uint16)
        self._block[len(self._frames)] = picture.image
        if self._depths is not None:
            self._depths[len(self._frames)] = picture.depth
        # The source's pictures are not needed any more.
        self._frames.append(replace(frame, load=_released, load_depth=None))
        self._cameras = (picture.camera, picture.recorded)

    def end(self) -> Iterator[Run]:
        """Ends the run, and gives it unless it is too short."""
        frames, self._frames = self._frames, []
        count = len(frames)
        if count >= self._shortest:
            assert self._cameras is not None
            camera, recorded = self._cameras
            pictures = Pictures(
                image=self._block[:count],
                depth=None if self._depths is None else self._depths[:count],
                camera=camera,
                recorded=recorded,
            )
            yield Run(frames=frames, pictures=pictures)
        elif frames:
            example = (
                f"{count} frames from frame {frames[0].number} on, {self._shortest} are needed"
            )
            self._tally.drop("run without a gap is too short", example, count)


def _released() -> NDArray[np.uint8]:
    raise RuntimeError("the picture was decoded before")


def runs(
    frames: Iterator[SourceFrame], robot: Embodiment, options: ImportOptions, tally: Tally
) -> Iterator[Run]:
    """Decoded frames in runs without a gap; use each before asking for the next."""
    run = _Collector(options, tally)
    for first, frame in on_grid(frames, fps=options.fps, tally=tally):
        if first:
            yield from run.end()
        try:
            picture = _picture(frame, robot, options, tally)
        except (OSError, ValueError) as error:
            tally.drop("picture cannot be read", f"frame {frame.number}: {error}")
            yield from run.end()
            continue
        if not run.fits(frame, picture):  # full, refocused, another resolution or instruction
            yield from run.end()
        run.add(frame, picture)
    yield from run.end()


def picture_camera(
    camera: PinholeCamera | None, width: int, height: int, robot: Embodiment, tally: Tally
) -> PinholeCamera:
    """Intrinsics of a picture: those that are known, or the robot's nominal ones at its size.

    Raises:
        RejectedError: they are of another size or shape.
    """
    if camera is None:
        camera = robot.camera
        if abs(camera.width * height - camera.height * width) > max(camera.width, width):
            raise RejectedError(
                f"pictures are {width}x{height}, the recording holds no intrinsics, and those of "
                f"{robot.name} are for {camera.width}x{camera.height}",
                "give the camera's calibration file with --camera-info",
            )
        camera = camera.resized(width, height)
        tally.note(f"no intrinsics recorded: those of {robot.name}'s nominal camera are used")
    if (camera.width, camera.height) != (width, height):
        raise RejectedError(
            f"pictures are {width}x{height} but the intrinsics are for "
            f"{camera.width}x{camera.height}",
            "choose the eye with --stereo if pictures hold two"
            if width == 2 * camera.width
            else "use the CameraInfo or calibration file of this resolution",
        )
    return camera


def _picture(
    frame: SourceFrame, robot: Embodiment, options: ImportOptions, tally: Tally
) -> Pictures:
    """A frame's picture, depth and the intrinsics of their size, rectified and resized as asked."""
    image = frame.load()
    height, width = image.shape[:2]
    recorded = picture_camera(options.camera or frame.camera, width, height, robot, tally)
    depth = None if frame.load_depth is None else frame.load_depth()
    if depth is not None and depth.shape != (height, width):
        raise RejectedError(
            f"depth is {depth.shape[1]}x{depth.shape[0]} but pictures are {width}x{height}: it is "
            "not aligned to them",
            "use the driver's depth that is aligned to colour, or leave it out with --no-depth",
        )
    if recorded.distortion:
        tally.note(f"pictures are rectified: a {recorded.distortion_model} lens took them")
    image, camera = rectified(image, recorded)
    depth = None if depth is None else rectified_depth(depth, recorded)
    if options.size is not None:
        image, camera = resize(image, *options.size), camera.resized(*options.size)
        depth = None if depth is None else _nearest(depth, *options.size)
    return Pictures(image=image, depth=depth, camera=camera, recorded=recorded)


def _nearest(depth: NDArray[np.uint16], width: int, height: int) -> NDArray[np.uint16]:
    """(H, W) → (height, width) by nearest pixel: a mean over an edge would be no surface."""
    rows = ((np.arange(height) + 0.5) * depth.shape[0] / height).astype(np.intp)
    columns = ((np.arange(width) + 0.5) * depth.shape[1] / width).astype(np.intp)
    return depth[rows[:, None], columns]
