"""``ego-world-model record``: a live graph or a bag becomes episodes.

Both ways end in the importers' code: frames are paired with joints by the same rules, put on the
same time grid, and cut into episodes of the same layout.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ego_world_model.data.importers import cli_options as opt

if TYPE_CHECKING:
    from ego_world_model.data.importers.bag_topics import TopicOptions
    from ego_world_model.data.importers.base import Tally
    from ego_world_model.data.importers.options import ImportOptions
    from ego_world_model.kinematics import HandKinematics
    from ego_world_model.ros.recorder_node import LiveTopics

_LINE_EVERY = 5.0
"""Seconds between two lines of progress where there is no terminal."""


def record(
    out: opt.Out,
    robot: opt.Robot = "g1_dex3",
    bag: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Take a rosbag2 recording, or a folder of them, in place of the graph."),
    ] = None,
    task: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Instruction in words; else what the topic `instruction` says."),
    ] = None,
    seconds: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.1, help="End after so many seconds; ctrl-C ends in any case."),
    ] = None,
    episodes: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="End after so many episodes (of --max-seconds each)."),
    ] = None,
    fps: opt.Fps = 30.0,
    camera: Annotated[
        str, typer.Option(help="Prefix of the camera's topics, as the launch argument `camera`.")
    ] = "camera",
    image_topic: Annotated[
        opt.Topic, typer.Option(help="Raw or …/compressed; CAMERA/color/image_raw if not given.")
    ] = None,
    camera_info_topic: Annotated[
        opt.Topic, typer.Option(help="CAMERA/color/camera_info if not given.")
    ] = None,
    depth_topic: Annotated[
        opt.Topic, typer.Option(help="CAMERA/aligned_depth_to_color/image_raw if not given.")
    ] = None,
    depth: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--depth/--no-depth", help="Depth images; where there are any if not given."),
    ] = None,
    stereo: opt.Stereo = opt.Eye.none,
    joint_topic: opt.JointTopics = None,
    instruction_topic: Annotated[
        opt.Topic, typer.Option(help="std_msgs/String; `instruction` if not given.")
    ] = None,
    namespace: Annotated[str, typer.Option(help="Namespace of relative topic names.")] = "",
    joint_tolerance: opt.Tolerance = 0.05,
    joint_time_offset: opt.TimeOffset = 0.0,
    calibration: opt.Calibration = None,
    camera_info: opt.CameraFile = None,
    size: opt.Size = None,
    split: opt.SplitOption = opt.Split.train,
    storage: opt.StorageOption = None,
    min_seconds: opt.MinSeconds = 1.0,
    max_seconds: opt.MaxSeconds = 20.0,
) -> None:
    """Record the running graph, or a bag, as episodes of a LeRobot v3.0 dataset.

    Ctrl-C ends a recording and keeps it; the same command appends to the dataset. A gap in the
    pictures, or another instruction, ends an episode and begins the next.
    """
    from ego_world_model.calibration.output import read_mount
    from ego_world_model.data.cli import parse_size
    from ego_world_model.data.importers.bag_topics import TopicOptions
    from ego_world_model.data.importers.camera_file import read_camera_file
    from ego_world_model.data.importers.options import ImportOptions
    from ego_world_model.embodiment import load_embodiment
    from ego_world_model.kinematics import HandKinematics

    kinematics = HandKinematics(load_embodiment(robot))
    options = ImportOptions(
        fps=fps,
        size=None if size is None else parse_size(size),
        camera=None if camera_info is None else read_camera_file(camera_info),
        mount=None if calibration is None else read_mount(calibration, kinematics.robot),
        task=task,
        split=split.value,
        storage=None if storage is None else storage.value,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        episodes=episodes,
    )
    topics = TopicOptions(
        image=image_topic,
        camera_info=camera_info_topic,
        joints=tuple(joint_topic or ()),
        depth=depth_topic,
        read_depth=_with_depth(out, depth),
        instruction=instruction_topic,
        read_camera_info=camera_info is None,
        tolerance=joint_tolerance,
        time_offset=joint_time_offset,
        eye=stereo.value,
    )
    if bag is None:
        _from_graph(
            kinematics, out, options, topics, camera=camera, namespace=namespace, seconds=seconds
        )
    elif seconds is not None or episodes is not None:
        raise typer.BadParameter("--seconds and --episodes are for the live graph, not for a --bag")
    else:
        _from_bags(bag, kinematics, out, options, topics)


def _with_depth(out: Path, asked: bool | None) -> bool | None:
    """Whether depth is recorded; a dataset that is gone on with decides where nothing is asked."""
    from ego_world_model.data.layout import INFO, DatasetSpec

    if asked is None and (out / INFO).exists():
        return DatasetSpec.from_folder(out).depth
    return asked


def _from_bags(
    bag: Path, kinematics: HandKinematics, out: Path, options: ImportOptions, topics: TopicOptions
) -> None:
    from ego_world_model.data.importers.bag import BagSource, find_bags
    from ego_world_model.data.importers.cli import import_and_report

    sources = (
        BagSource(path, root=bag, kinematics=kinematics, options=topics) for path in find_bags(bag)
    )
    import_and_report(sources, kinematics, out, options)


def _from_graph(
    kinematics: HandKinematics,
    out: Path,
    options: ImportOptions,
    topics: TopicOptions,
    *,
    camera: str,
    namespace: str,
    seconds: float | None,
) -> None:
    from ego_world_model.bringup import environment, load_bringup

    # The middleware reads these when it is loaded: room for images in shared memory.
    os.environ.update(environment(load_bringup("g1"), {}, os.environ))

    from ego_world_model.data.importers.base import spell_out
    from ego_world_model.data.importers.cli import import_and_report
    from ego_world_model.ros.live_source import LiveSource
    from ego_world_model.ros.recorder_node import recorder

    stop = threading.Event()
    _stop_on_signals(stop)
    live = _live_topics(topics, camera, task=options.task)
    with recorder(live, namespace=namespace) as node, _progress(seconds) as report:
        source = LiveSource(
            node,
            kinematics,
            topics,
            default_task=spell_out(out.resolve().name),
            seconds=seconds,
            stop=stop,
            on_frame=report,
        )
        import_and_report([source], kinematics, out, options)


def _live_topics(topics: TopicOptions, camera: str, *, task: str | None) -> LiveTopics:
    from ego_world_model.ros.recorder_node import LiveTopics

    info = topics.camera_info or f"{camera}/color/camera_info"
    depth = topics.depth or f"{camera}/aligned_depth_to_color/image_raw"
    return LiveTopics(
        image=topics.image or f"{camera}/color/image_raw",
        joint_states=topics.joints or ("joint_states",),
        camera_info=info if topics.read_camera_info else None,
        depth=None if topics.read_depth is False else depth,
        depth_required=topics.read_depth is True,
        instruction=None if task is not None else topics.instruction or "instruction",
    )


def _stop_on_signals(stop: threading.Event) -> None:
    """The first ctrl-C ends the recording, a second one the program."""

    def end(*_: object) -> None:
        if not stop.is_set():
            os.write(2, b"\nending; what was recorded is written now\n")
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)


@contextmanager
def _progress(seconds: float | None) -> Iterator[Callable[[Tally], None]]:
    """A line that counts what is recorded; in a log file, a line now and then.

    It appears with the first frame: until then the node says what is missing.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    columns = (TextColumn("recording"), BarColumn(), TimeElapsedColumn())
    bar = Progress(*columns, TextColumn("{task.fields[count]}"), console=console, transient=True)
    line = bar.add_task("", total=seconds, count="")
    begin = last = 0.0
    frames = 0

    def on_frame(tally: Tally) -> None:
        nonlocal begin, last, frames
        now = time.monotonic()
        frames += 1
        if frames == 1:
            begin = last = now
            console.print("recording; ctrl-C ends it and keeps what was recorded")
            if console.is_terminal:
                bar.start()
        dropped = sum(count for count, _ in tally.dropped.values())
        count = f"{frames} frames, {tally.rate or 0:.1f} Hz, {dropped} dropped, "
        count += f"{tally.episodes} episodes written"
        bar.update(line, completed=now - begin, count=count)
        if not console.is_terminal and now - last >= _LINE_EVERY:
            last = now
            console.print(f"{now - begin:.0f} s: {count}")

    try:
        yield on_frame
    finally:
        bar.stop()
