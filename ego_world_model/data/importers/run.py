"""Recordings → episodes on disk: streaming, resumable, with a report of what was left out.

Frames are read one at a time and put on the dataset's regular time grid. A run of frames without
a gap becomes an episode (long runs become several), which is on disk before the next is read. Each
episode's metadata says which recording and which part of it it is, so a second call with the same
arguments writes only what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ego_world_model.camera import PinholeCamera
from ego_world_model.data.importers.base import RejectedError, Source, SourceFrame, Tally
from ego_world_model.data.importers.joints import outside_limits
from ego_world_model.data.importers.options import ImportOptions
from ego_world_model.data.importers.report import ImportReport, SourceReport
from ego_world_model.data.importers.runs import Run, runs
from ego_world_model.data.layout import INFO, DatasetSpec, ImageStorage
from ego_world_model.data.reader import DatasetReader
from ego_world_model.data.schema import Episode
from ego_world_model.data.writer import DatasetWriter
from ego_world_model.embodiment import Embodiment
from ego_world_model.hands import EXTRA_SLOTS, SLOT_NAMES
from ego_world_model.kinematics import HandKinematics

_SMALL = 160
"""Pixels of width up to which frames are kept as PNG unless asked otherwise (as simulated ones)."""


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
        default = source.task()
        usable = _usable(source.frames(tally), kinematics.robot, tally)
        part = 0
        for run in runs(usable, kinematics.robot, options, tally):
            task = options.task or run.frames[0].task or default
            episode = _episode(run, kinematics, options, task=task, source=source, part=part)
            target.write(episode, source.name, part)
            part += 1
            tally.episodes, tally.written = part, tally.written + len(episode)
            if part == options.episodes:
                break
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


def _episode(
    run: Run,
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
    mount = options.mount
    positions, valid = kinematics.hand_joints_batch(state, mount, extra_slots=EXTRA_SLOTS)
    measured = np.concatenate([state[1:], state[-1:]])
    commanded = [frame.action for frame in run.frames]
    if all(action is None for action in commanded):
        action, meaning = measured, "measured at the next frame"
    else:
        given = np.stack([np.full(state.shape[1], np.nan) if a is None else a for a in commanded])
        action = np.where(np.isfinite(given), given, measured)
        meaning = "commanded; where none is recorded, measured at the next frame"
    recorded = run.pictures.recorded
    lens = {"lens": asdict(recorded)} if recorded.distortion else {}
    return Episode(
        fps=options.fps,
        images=run.pictures.image,
        state=state,
        action=action,
        hand_positions=positions,
        hand_valid=valid,
        slot_names=SLOT_NAMES + EXTRA_SLOTS,
        camera_pose=np.stack([kinematics.camera_pose(q, mount) for q in state]),
        camera=run.pictures.camera,
        task=task,
        embodiment=robot.name,
        joint_names=robot.joint_names,
        depth=run.pictures.depth,
        metadata={
            "source": source.name,
            "source_kind": source.kind,
            "part": part,
            "source_frames": [frame.number for frame in run.frames],
            "source_stamps_ns": [frame.stamp for frame in run.frames],
            "action": meaning,
            "split": options.split,
        }
        | lens,
    )


class _Target:
    """The dataset being written: opened at the first episode, which settles its size."""

    def __init__(self, robot: Embodiment, out: Path, options: ImportOptions) -> None:
        self._robot, self._out, self._options = robot, out, options
        self._writer: DatasetWriter | None = None
        self._present: set[tuple[str, int]] = set()
        if (out / INFO).exists():
            spec = DatasetSpec.from_folder(out)
            self._open(spec.camera, options.storage or spec.image_storage, depth=spec.depth)
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
            self._open(camera, storage, depth=episode.depth is not None)
        assert self._writer is not None
        if self._writer.spec.depth != (episode.depth is not None):
            mine, other = ("has", "none") if self._writer.spec.depth else ("has no", "some")
            raise RejectedError(
                f"the dataset {mine} depth, the recording gives {other}",
                "use a folder of its own, or --depth or --no-depth as before",
            )
        nominal = self._writer.spec.camera
        if (camera.width, camera.height) != (nominal.width, nominal.height):
            raise RejectedError(
                f"pictures are {camera.width}x{camera.height}, the dataset's are "
                f"{nominal.width}x{nominal.height}",
                f"import with --size {nominal.width}x{nominal.height}, or to another folder",
            )
        self._writer.write(episode)

    def _open(self, camera: PinholeCamera, storage: ImageStorage, *, depth: bool) -> None:
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
            depth=depth,
            split=self._options.split,
            joint_limits=(tuple(robot.lower.tolist()), tuple(robot.upper.tolist())),
        )

    def __enter__(self) -> _Target:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
