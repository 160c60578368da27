"""Recordings → episodes on disk: streaming, resumable, with a report of what was left out.

Frames are read one at a time and put on the dataset's regular time grid. A run of frames without
a gap becomes an episode (long runs become several), which is on disk before the next is read. Each
episode's metadata says which recording and which part of it it is, so a second call with the same
arguments writes only what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ego_world_model.camera import PinholeCamera
from ego_world_model.data.generate import Split
from ego_world_model.data.importers.base import RejectedError, Source, SourceFrame, Tally
from ego_world_model.data.importers.joints import outside_limits
from ego_world_model.data.importers.report import ImportReport, SourceReport
from ego_world_model.data.importers.timing import on_grid
from ego_world_model.data.layout import INFO, DatasetSpec, ImageStorage
from ego_world_model.data.reader import DatasetReader
from ego_world_model.data.schema import Episode
from ego_world_model.data.writer import DatasetWriter
from ego_world_model.embodiment import Embodiment
from ego_world_model.hands import EXTRA_SLOTS, SLOT_NAMES
from ego_world_model.kinematics import HandKinematics
from ego_world_model.media import resize

_SMALL = 160
"""Pixels of width up to which frames are kept as PNG unless asked otherwise (as simulated ones)."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """How recordings become episodes.

    Attributes:
        fps: frames per second of the dataset.
        size: (width, height) to resize pictures to, or None to keep theirs.
        camera: intrinsics at the recordings' own size, in place of those that they hold.
        task: instruction, in place of the recordings' own.
        storage: ``"image"`` or ``"video"``; None: by width.
        min_seconds: shorter runs of frames are dropped.
        max_seconds: longer runs are cut; an episode is held in memory while it is encoded.
    """

    fps: float = 30.0
    size: tuple[int, int] | None = None
    camera: PinholeCamera | None = None
    task: str | None = None
    split: Split = "train"
    storage: ImageStorage | None = None
    min_seconds: float = 1.0
    max_seconds: float = 20.0

    def settings(self, robot: Embodiment) -> dict[str, Any]:
        """What all imports into one folder must agree on."""
        return {
            "robot": robot.name,
            "fps": self.fps,
            "size": None if self.size is None else list(self.size),
            "min_seconds": self.min_seconds,
            "max_seconds": self.max_seconds,
            "split": self.split,
        }


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Frames without a gap: n pictures of one camera. The pictures' memory is used again."""

    frames: list[SourceFrame]
    images: NDArray[np.uint8]
    camera: PinholeCamera


def run_import(
    sources: Iterable[Source],
    kinematics: HandKinematics,
    out: Path,
    options: ImportOptions,
    *,
    on_source: Callable[[SourceReport], None] | None = None,
) -> ImportReport:
    """Imports every recording that is not in ``out`` yet.

    Args:
        on_source: called after each recording, for progress.

    Raises:
        ValueError: ``out`` holds a dataset of another kind, or two recordings have one name.
        RuntimeError: another process is writing to ``out``.
    """
    robot = kinematics.robot
    report = ImportReport.load(out, options.settings(robot))
    seen: set[str] = set()
    with _Target(robot, out, options) as target:
        for source in sources:
            if source.name in seen:
                raise ValueError(f"two recordings are called {source.name!r}; rename one")
            seen.add(source.name)
            done = report.sources.get(source.name)
            if done is None or done.status != "imported":
                report.sources[source.name] = _import_source(source, kinematics, target, options)
                report.save(out)
            if on_source is not None:
                on_source(report.sources[source.name])
    return report


def _import_source(
    source: Source, kinematics: HandKinematics, target: _Target, options: ImportOptions
) -> SourceReport:
    tally = Tally()
    entry = SourceReport(name=source.name, kind=source.kind, status="imported", tally=tally)
    try:
        task = options.task or source.task()
        usable = _usable(source.frames(tally), kinematics.robot, tally)
        part = 0
        for run in _runs(usable, kinematics.robot, options, tally):
            episode = _episode(run, kinematics, options, task=task, source=source, part=part)
            target.write(episode, source.name, part)
            part += 1
            tally.episodes, tally.written = part, tally.written + len(episode)
        if part == 0:
            raise _nothing_left(tally, options)
    except RejectedError as error:
        entry.reason, entry.remedy = error.reason, error.remedy
    except (OSError, ValueError, KeyError) as error:
        entry.reason = f"{type(error).__name__}: {error}"
        entry.remedy = "repair or remove the recording; the same command tries it again"
    if entry.reason:
        entry.status = "incomplete" if tally.episodes else "rejected"
    return entry


def _nothing_left(tally: Tally, options: ImportOptions) -> RejectedError:
    if not tally.read:
        return RejectedError("no camera frames", "record the camera's topic or folder too")
    if tally.rate is not None and tally.rate < 0.75 * options.fps:
        return RejectedError(
            f"{tally.rate:.1f} usable frames a second, the dataset has {options.fps:g}",
            f"record faster, or make a dataset with --fps {max(1, round(tally.rate))}",
        )
    reason, (count, example) = max(
        tally.dropped.items(), key=lambda item: item[1][0], default=("too short", [0, ""])
    )
    return RejectedError(
        f"none of {tally.read} frames can be used; {count} dropped: {reason}"
        + (f" ({example})" if example else ""),
        f"see the counts; the dataset has {options.fps:g} frames per second and episodes of at "
        f"least {options.min_seconds:g} s (--fps, --min-seconds)",
    )


def _usable(
    frames: Iterable[SourceFrame], robot: Embodiment, tally: Tally
) -> Iterator[SourceFrame]:
    """Frames whose joints a robot of this kind can have."""
    first: int | None = None
    count = 0
    for frame in frames:
        problem = outside_limits(robot, frame.q)
        if problem is None:
            first = frame.stamp if first is None else first
            if frame.stamp > first:
                tally.rate = round(count / ((frame.stamp - first) * 1e-9), 3)
            count += 1
            yield frame
        else:
            tally.drop("joint positions are impossible", f"frame {frame.number}: {problem}")


class _Collector:
    """Gathers decoded frames into runs, none shorter or longer than asked.

    One block of memory holds the pictures of a run; it serves the next once a run is taken.
    """

    def __init__(self, options: ImportOptions, tally: Tally) -> None:
        self._shortest = max(1, round(options.min_seconds * options.fps))
        self._longest = max(self._shortest, round(options.max_seconds * options.fps))
        self._tally = tally
        self._frames: list[SourceFrame] = []
        self._camera: PinholeCamera | None = None
        self._block = np.empty((0, 0, 0, 3), np.uint8)

    def fits(self, camera: PinholeCamera) -> bool:
        """Whether one more frame of this camera belongs to the run."""
        return len(self._frames) < self._longest and camera == self._camera

    def add(self, frame: SourceFrame, image: NDArray[np.uint8], camera: PinholeCamera) -> None:
        """Appends a frame."""
        if self._block.shape[1:] != image.shape:
            self._block = np.empty((self._longest, *image.shape), np.uint8)
        self._block[len(self._frames)] = image
        # The source's picture is not needed any more.
        self._frames.append(replace(frame, load=_released))
        self._camera = camera

    def end(self) -> Iterator[_Run]:
        """Ends the run, and gives it unless it is too short."""
        frames, self._frames = self._frames, []
        if len(frames) >= self._shortest:
            assert self._camera is not None
            yield _Run(frames=frames, images=self._block[: len(frames)], camera=self._camera)
        elif frames:
            example = (
                f"{len(frames)} frames from frame {frames[0].number} on, "
                f"{self._shortest} are needed"
            )
            self._tally.drop("run without a gap is too short", example, len(frames))


def _released() -> NDArray[np.uint8]:
    raise RuntimeError("the picture was decoded before")


def _runs(
    frames: Iterator[SourceFrame], robot: Embodiment, options: ImportOptions, tally: Tally
) -> Iterator[_Run]:
    """Decoded frames in runs without a gap; use each before asking for the next."""
    run = _Collector(options, tally)
    for first, frame in on_grid(frames, fps=options.fps, tally=tally):
        if first:
            yield from run.end()
        try:
            image, camera = _picture(frame, robot, options, tally)
        except (OSError, ValueError) as error:
            tally.drop("picture cannot be read", f"frame {frame.number}: {error}")
            yield from run.end()
            continue
        if not run.fits(camera):  # full, refocused, or another resolution
            yield from run.end()
        run.add(frame, image, camera)
    yield from run.end()


def _picture(
    frame: SourceFrame, robot: Embodiment, options: ImportOptions, tally: Tally
) -> tuple[NDArray[np.uint8], PinholeCamera]:
    """A frame's picture and the intrinsics of its size, both resized as asked."""
    image = frame.load()
    height, width = image.shape[:2]
    camera = options.camera or frame.camera
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
            "use the CameraInfo or calibration file of this resolution",
        )
    if options.size is not None:
        image, camera = resize(image, *options.size), camera.resized(*options.size)
    return image, camera


def _episode(
    run: _Run,
    kinematics: HandKinematics,
    options: ImportOptions,
    *,
    task: str,
    source: Source,
    part: int,
) -> Episode:
    """Frames with hand slots by forward kinematics of their own joints."""
    robot = kinematics.robot
    state = np.stack([frame.q for frame in run.frames])
    positions, valid = kinematics.hand_joints_batch(state, extra_slots=EXTRA_SLOTS)
    measured = np.concatenate([state[1:], state[-1:]])
    commanded = [frame.action for frame in run.frames]
    if all(action is None for action in commanded):
        action, meaning = measured, "measured at the next frame"
    else:
        given = np.stack([np.full(state.shape[1], np.nan) if a is None else a for a in commanded])
        action = np.where(np.isfinite(given), given, measured)
        meaning = "commanded; where none is recorded, measured at the next frame"
    return Episode(
        fps=options.fps,
        images=run.images,
        state=state,
        action=action,
        hand_positions=positions,
        hand_valid=valid,
        slot_names=SLOT_NAMES + EXTRA_SLOTS,
        camera_pose=np.stack([kinematics.camera_pose(q) for q in state]),
        camera=run.camera,
        task=task,
        embodiment=robot.name,
        joint_names=robot.joint_names,
        metadata={
            "source": source.name,
            "source_kind": source.kind,
            "part": part,
            "source_frames": [frame.number for frame in run.frames],
            "source_stamps_ns": [frame.stamp for frame in run.frames],
            "action": meaning,
            "split": options.split,
        },
    )


class _Target:
    """The dataset being written: opened at the first episode, which settles its size."""

    def __init__(self, robot: Embodiment, out: Path, options: ImportOptions) -> None:
        self._robot, self._out, self._options = robot, out, options
        self._writer: DatasetWriter | None = None
        self._present: set[tuple[str, int]] = set()
        if (out / INFO).exists():
            spec = DatasetSpec.from_folder(out)
            self._open(spec.camera, options.storage or spec.image_storage)
            records = DatasetReader(out).records
            imported = [record.metadata for record in records if "source" in record.metadata]
            self._present = {(entry["source"], entry["part"]) for entry in imported}

    def write(self, episode: Episode, name: str, part: int) -> None:
        """Writes an episode unless an earlier run did.

        Raises:
            RejectedError: pictures of another size than the dataset's.
        """
        if (name, part) in self._present:
            return
        camera = episode.camera
        if self._writer is None:
            small = "image" if camera.width <= _SMALL else "video"
            storage = self._options.storage or small
            if storage == "video" and (camera.width % 2 or camera.height % 2):
                raise RejectedError(
                    f"pictures are {camera.width}x{camera.height}; video needs an even size",
                    "give an even --size, or --storage image",
                )
            self._open(camera, storage)
        assert self._writer is not None
        nominal = self._writer.spec.camera
        if (camera.width, camera.height) != (nominal.width, nominal.height):
            raise RejectedError(
                f"pictures are {camera.width}x{camera.height}, the dataset's are "
                f"{nominal.width}x{nominal.height}",
                f"import with --size {nominal.width}x{nominal.height}, or to another folder",
            )
        self._writer.write(episode)

    def _open(self, camera: PinholeCamera, storage: ImageStorage) -> None:
        robot = self._robot
        self._writer = DatasetWriter(
            self._out,
            embodiment=robot.name,
            fps=self._options.fps,
            camera=camera,
            joint_names=robot.joint_names,
            slot_names=SLOT_NAMES + EXTRA_SLOTS,
            image_storage=storage,
            masks=False,
            depth=False,
            split=self._options.split,
            joint_limits=(tuple(robot.lower.tolist()), tuple(robot.upper.tolist())),
        )

    def __enter__(self) -> _Target:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
