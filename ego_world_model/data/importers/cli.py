"""The commands ``import bag``, ``humanoid-everyday``, ``xr-teleoperate`` and ``lerobot``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ego_world_model.data.importers import cli_options as opt

if TYPE_CHECKING:
    from ego_world_model.data.importers.base import Source
    from ego_world_model.data.importers.options import ImportOptions
    from ego_world_model.kinematics import HandKinematics


def bag(
    path: Annotated[Path, typer.Argument(help="A rosbag2 recording, or a folder of them.")],
    out: opt.Out,
    robot: opt.Robot = "g1_dex3",
    image_topic: Annotated[
        opt.Topic, typer.Option(help="Head camera; found by type if one.")
    ] = None,
    camera_info_topic: Annotated[
        opt.Topic, typer.Option(help="Beside the image if not given.")
    ] = None,
    joint_topic: opt.JointTopics = None,
    joint_tolerance: opt.Tolerance = 0.05,
    joint_time_offset: opt.TimeOffset = 0.0,
    receive_time: Annotated[
        bool, typer.Option(help="Use the time of recording in place of header stamps.")
    ] = False,
    middle_first: Annotated[
        bool, typer.Option(help="The right Dex3 hand lists middle before index.")
    ] = False,
    stereo: opt.Stereo = opt.Eye.none,
    fps: opt.Fps = 30.0,
    size: opt.Size = None,
    camera_info: opt.CameraFile = None,
    task: opt.Task = None,
    split: opt.SplitOption = opt.Split.train,
    storage: opt.StorageOption = None,
    min_seconds: opt.MinSeconds = 1.0,
    max_seconds: opt.MaxSeconds = 20.0,
) -> None:
    """Import rosbag2 recordings (sqlite3, MCAP) of a robot with a head camera.

    Joint positions are interpolated to each frame's stamp; a frame without joint states close
    enough is dropped and counted, and ends its episode.
    """

    def sources(kinematics: HandKinematics) -> Iterable[Source]:
        from ego_world_model.data.importers.bag import BagSource, find_bags
        from ego_world_model.data.importers.bag_topics import TopicOptions

        topics = TopicOptions(
            image=image_topic,
            camera_info=camera_info_topic,
            joints=tuple(joint_topic or ()),
            read_camera_info=camera_info is None,
            use_received=receive_time,
            tolerance=joint_tolerance,
            time_offset=joint_time_offset,
            middle_first=middle_first,
            eye=stereo.value,
        )
        for found in find_bags(path):
            yield BagSource(found, root=path, kinematics=kinematics, options=topics)

    _run(
        sources,
        out,
        robot=robot,
        fps=fps,
        size=size,
        camera_info=camera_info,
        task=task,
        split=split,
        storage=storage,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
    )


def humanoid_everyday(
    path: Annotated[Path, typer.Argument(help="Folder of unpacked tasks, a task or an episode.")],
    out: opt.Out,
    robot: opt.Robot = "g1_dex3",
    index_first: Annotated[
        bool, typer.Option(help="The right Dex3 hand lists index before middle.")
    ] = False,
    fps: opt.Fps = 30.0,
    size: opt.Size = None,
    camera_info: opt.CameraFile = None,
    task: opt.Task = None,
    split: opt.SplitOption = opt.Split.train,
    storage: opt.StorageOption = None,
    min_seconds: opt.MinSeconds = 1.0,
    max_seconds: opt.MaxSeconds = 20.0,
) -> None:
    """Import Humanoid Everyday episodes (<task>/episode_N/data.json with color/)."""

    def sources(kinematics: HandKinematics) -> Iterable[Source]:
        from ego_world_model.data.importers.episode_folders import find_episodes
        from ego_world_model.data.importers.humanoid_everyday import HumanoidEverydaySource

        for folder in find_episodes(path):
            yield HumanoidEverydaySource(
                folder, root=path, kinematics=kinematics, index_first=index_first
            )

    _run(
        sources,
        out,
        robot=robot,
        fps=fps,
        size=size,
        camera_info=camera_info,
        task=task,
        split=split,
        storage=storage,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
    )


def xr_teleoperate(
    path: Annotated[Path, typer.Argument(help="Folder of tasks, a task or an episode.")],
    out: opt.Out,
    robot: opt.Robot = "g1_dex3",
    camera: Annotated[str, typer.Option(help="Head camera among an item's colors.")] = "color_0",
    fps: opt.Fps = 30.0,
    size: opt.Size = None,
    camera_info: opt.CameraFile = None,
    task: opt.Task = None,
    split: opt.SplitOption = opt.Split.train,
    storage: opt.StorageOption = None,
    min_seconds: opt.MinSeconds = 1.0,
    max_seconds: opt.MaxSeconds = 20.0,
) -> None:
    """Import episodes of Unitree's xr_teleoperate recorder (episode_NNNN/data.json)."""

    def sources(kinematics: HandKinematics) -> Iterable[Source]:
        from ego_world_model.data.importers.episode_folders import find_episodes
        from ego_world_model.data.importers.xr_teleoperate import XrTeleoperateSource

        for folder in find_episodes(path):
            yield XrTeleoperateSource(folder, root=path, kinematics=kinematics, camera=camera)

    _run(
        sources,
        out,
        robot=robot,
        fps=fps,
        size=size,
        camera_info=camera_info,
        task=task,
        split=split,
        storage=storage,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
    )


def lerobot(
    path: Annotated[Path, typer.Argument(help="Folder of a LeRobot set (v2.0, v2.1 or v3.0).")],
    out: opt.Out,
    robot: opt.Robot = "g1_dex3",
    image_key: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Head camera, such as observation.images.cam_left_high."),
    ] = None,
    fps: opt.Fps = 30.0,
    size: opt.Size = None,
    camera_info: opt.CameraFile = None,
    task: opt.Task = None,
    split: opt.SplitOption = opt.Split.train,
    storage: opt.StorageOption = None,
    min_seconds: opt.MinSeconds = 1.0,
    max_seconds: opt.MaxSeconds = 20.0,
) -> None:
    """Import a Unitree LeRobot set: joints by their names, each episode as a recording."""

    def sources(kinematics: HandKinematics) -> Iterable[Source]:
        from ego_world_model.data.importers.lerobot import LeRobotSet, LeRobotSource

        content = LeRobotSet.open(path, image_key=image_key)
        for episode in content.episodes:
            yield LeRobotSource(content, episode, kinematics)

    _run(
        sources,
        out,
        robot=robot,
        fps=fps,
        size=size,
        camera_info=camera_info,
        task=task,
        split=split,
        storage=storage,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
    )


def _run(
    sources: Callable[[HandKinematics], Iterable[Source]],
    out: Path,
    *,
    robot: str,
    fps: float,
    size: str | None,
    camera_info: Path | None,
    task: str | None,
    split: opt.Split,
    storage: opt.Storage | None,
    min_seconds: float,
    max_seconds: float,
) -> None:
    from ego_world_model.data.cli import parse_size
    from ego_world_model.data.importers.camera_file import read_camera_file
    from ego_world_model.data.importers.options import ImportOptions
    from ego_world_model.embodiment import load_embodiment
    from ego_world_model.kinematics import HandKinematics

    options = ImportOptions(
        fps=fps,
        size=None if size is None else parse_size(size),
        camera=None if camera_info is None else read_camera_file(camera_info),
        task=task,
        split=split.value,
        storage=None if storage is None else storage.value,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
    )
    kinematics = HandKinematics(load_embodiment(robot))
    import_and_report(sources(kinematics), kinematics, out, options)


def import_and_report(
    sources: Iterable[Source], kinematics: HandKinematics, out: Path, options: ImportOptions
) -> None:
    """Imports, says what became of every recording, exits with 1 where there is no episode."""
    from rich.console import Console

    from ego_world_model.data.importers.report import REPORT_NAME, SourceReport
    from ego_world_model.data.importers.run import run_import

    console, errors = Console(), Console(stderr=True)
    here = 0

    def on_source(entry: SourceReport) -> None:
        nonlocal here
        here += entry.tally.episodes
        count = f"{entry.tally.episodes} episodes, {entry.tally.written} frames"
        errors.print(f"{entry.name}: {entry.status}, {count}", markup=False, soft_wrap=True)

    try:
        report = run_import(sources, kinematics, out, options, on_source=on_source)
    except KeyboardInterrupt:
        errors.print("interrupted; what is written is kept and the same command goes on from there")
        raise typer.Exit(130) from None
    report.print(console)
    total = sum(entry.tally.episodes for entry in report.sources.values())
    console.print(f"{total} episodes in {out}; {out / REPORT_NAME} has all counts", markup=False)
    if not here:
        raise typer.Exit(1)
