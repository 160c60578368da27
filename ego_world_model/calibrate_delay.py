"""``ego-world-model calibrate-delay``: how much later images are stamped than joint states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import numpy as np
import typer
from numpy.typing import NDArray

from ego_world_model.calibration import CalibrationError, read_mount
from ego_world_model.calibration.delay import (
    MAX_DELAY,
    DelayEstimate,
    Take,
    estimate_delay,
    reduced,
)
from ego_world_model.calibration.output import XYZ, write_delay
from ego_world_model.camera import CameraPose, PinholeCamera
from ego_world_model.embodiment import load_embodiment
from ego_world_model.kinematics import HandKinematics

if TYPE_CHECKING:
    from ego_world_model.data.importers.bag_topics import TopicOptions
    from ego_world_model.data.importers.base import Tally

_LONGEST_GAP = 1.0
"""Seconds without a frame at which a recording falls into two."""


def calibrate_delay(
    recording: Annotated[
        Path,
        typer.Argument(help="A rosbag2 recording (best: joint states at full rate) or a dataset."),
    ],
    out: Annotated[
        Path,
        typer.Option(help="YAML to write for the launch files; a mount in it stays and is used."),
    ] = Path("calibration.yaml"),
    robot: Annotated[str, typer.Option(help="Embodiment name or YAML file.")] = "g1_dex3",
    seconds: Annotated[float, typer.Option(min=1.0, help="Of recording to look at.")] = 120.0,
    max_delay: Annotated[
        float, typer.Option(min=0.05, max=1.0, help="Seconds to either side that are searched.")
    ] = MAX_DELAY,
    max_deviation: Annotated[
        float, typer.Option(min=0.1, help="Milliseconds of uncertainty that are accepted.")
    ] = 5.0,
    episode: Annotated[
        Optional[list[int]],  # noqa: UP045 - Typer evaluates this on Python 3.10
        typer.Option(help="Only this episode of a dataset (may be repeated)."),
    ] = None,
    image_topic: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Of a bag: head camera; found by type if one."),
    ] = None,
    camera_info_topic: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Of a bag: beside the image if not given."),
    ] = None,
    joint_topic: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Of a bag: JointState, LowState, HandState or MotorStates; repeatable."),
    ] = None,
    camera_info: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Of a bag: ROS calibration YAML in place of its CameraInfo."),
    ] = None,
    middle_first: Annotated[
        bool, typer.Option("--middle-first", help="The right Dex3 hand lists middle before index.")
    ] = False,
) -> None:
    """Measure the delay between camera and joint states from hands that move in view.

    Prints the delay with its uncertainty and writes it as joint_time_offset. It refuses where the
    recording does not tell it.
    """
    from rich.console import Console

    kinematics = HandKinematics(load_embodiment(robot))
    mount = _mount(out, kinematics)
    console = Console(soft_wrap=True, highlight=False)
    if (recording / "meta" / "info.json").is_file():
        takes = list(_dataset_takes(recording, kinematics, mount, episode, seconds))
    else:
        from ego_world_model.data.importers.bag_topics import TopicOptions
        from ego_world_model.data.importers.base import Tally
        from ego_world_model.data.importers.camera_file import read_camera_file

        if episode:
            raise CalibrationError(f"--episode is for datasets; {recording} has no meta/info.json")
        topics = TopicOptions(
            image=image_topic,
            camera_info=camera_info_topic,
            joints=tuple(joint_topic or ()),
            read_camera_info=camera_info is None,
            middle_first=middle_first,
        )
        bag = _Bag(
            recording, topics, None if camera_info is None else read_camera_file(camera_info)
        )
        tally = Tally()
        takes = list(bag.takes(kinematics, mount, seconds, tally))
        for note in tally.notes:
            console.print(note, markup=False)
    estimate = estimate_delay(takes, max_delay=max_delay, max_deviation=max_deviation * 1e-3)
    written = write_delay(out, estimate, kinematics.robot)
    console.print(_summary(estimate), markup=False)
    console.print(f"Saved {written}\nstart with it: calibration:={out}", markup=False)


def _summary(estimate: DelayEstimate) -> str:
    later = "later" if estimate.delay >= 0 else "earlier"
    return (
        f"Images are stamped {abs(estimate.delay) * 1e3:.1f} ms {later} than the joint states of "
        f"the same instant (standard deviation {estimate.deviation * 1e3:.1f} ms): "
        f"joint_time_offset {estimate.delay:+.4f} s, from {estimate.seconds:.0f} s of motion that "
        f"explains {estimate.explained:.0%} of the change around the hands"
    )


def _mount(out: Path, kinematics: HandKinematics) -> CameraPose | None:
    """The calibrated mount, where the file that is gone on with holds one."""
    if out.is_file() and XYZ in out.read_text(encoding="utf-8"):
        return read_mount(out, kinematics.robot)
    return None


def _points(
    kinematics: HandKinematics, q: NDArray[np.float64], mount: CameraPose | None
) -> NDArray[np.float64]:
    """(N, S, 3) m, every joint of hands and forearms that the robot has, in the camera."""
    positions, valid = kinematics.hand_joints_batch(
        q, mount, extra_slots=kinematics.robot.extra_slots
    )
    return positions[:, valid].astype(np.float64)


def _dataset_takes(
    source: Path,
    kinematics: HandKinematics,
    mount: CameraPose | None,
    episodes: list[int] | None,
    seconds: float,
) -> Iterator[Take]:
    """Each episode: its joints are those of its frames, paired by the stamps as they were.

    Without a calibrated mount the hands are taken as the dataset has them.
    """
    from ego_world_model.data.reader import DatasetReader

    reader = DatasetReader(source)
    robot = kinematics.robot
    if reader.spec.embodiment != robot.name:
        raise CalibrationError(
            f"{source} is of {reader.spec.embodiment!r}; give --robot {reader.spec.embodiment}"
        )
    numbers = list(range(len(reader))) if episodes is None else episodes
    if any(not 0 <= number < len(reader) for number in numbers) or not numbers:
        raise CalibrationError(f"{source} has {len(reader)} episodes, numbered from 0")
    left = seconds
    for number in numbers:
        if left <= 0:
            return
        episode = reader.episode(number, masks=False)
        stamps = episode.metadata.get("source_stamps_ns")
        # a camera's own stamps, to which the joints were interpolated, are not quite regular
        times = (
            np.arange(len(episode)) / episode.fps
            if stamps is None
            else (np.array(stamps, np.int64) - stamps[0]) * 1e-9
        )
        if mount is None:
            points = episode.hand_positions[:, episode.hand_valid.all(axis=0)]
        else:
            order = [episode.joint_names.index(name) for name in robot.joint_names]
            points = _points(kinematics, episode.state[:, order], mount)
        small = [reduced(image, episode.camera) for image in episode.images]
        yield Take(
            times=times,
            images=np.stack([image for image, _ in small]),
            camera=small[0][1],
            joint_times=times,
            points=points.astype(np.float64),
        )
        left -= float(times[-1])


@dataclass(frozen=True)
class _Bag:
    """A rosbag2 recording, read at its own rates."""

    path: Path
    topics: TopicOptions
    camera: PinholeCamera | None

    def takes(
        self,
        kinematics: HandKinematics,
        mount: CameraPose | None,
        seconds: float,
        tally: Tally,
    ) -> Iterator[Take]:
        """One take per stretch of frames without a long gap and of one camera."""
        from ego_world_model.data.importers.bag import BagSource, find_bags
        from ego_world_model.data.importers.runs import picture_camera

        (bag,) = find_bags(self.path)[:1]
        source = BagSource(bag, root=self.path, kinematics=kinematics, options=self.topics)
        stamps, q = source.joints(tally)
        points = _points(kinematics, q, mount)
        epoch: int | None = None
        times: list[float] = []
        images: list[NDArray[np.uint8]] = []
        camera: PinholeCamera | None = None

        def take() -> Take:
            assert camera is not None
            return Take(
                times=np.array(times),
                images=np.stack(images),
                camera=camera,
                joint_times=(stamps - (epoch or 0)) * 1e-9,
                points=points,
            )

        for frame in source.frames(tally):
            image = frame.load()
            height, width = image.shape[:2]
            full = picture_camera(
                self.camera or frame.camera, width, height, kinematics.robot, tally
            )
            small, view = reduced(image, full)
            epoch = frame.stamp if epoch is None else epoch
            time = (frame.stamp - epoch) * 1e-9
            if images and (view != camera or not 0 < time - times[-1] < _LONGEST_GAP):
                yield take()
                times, images = [], []
            camera = view
            times.append(time)
            images.append(small)
            if time > seconds:
                break
        if images:
            yield take()
