"""Command-line options that all ways to make a dataset of recordings share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer


class Split(str, Enum):
    train = "train"
    validation = "validation"
    test = "test"


class Storage(str, Enum):
    image = "image"
    video = "video"


class Eye(str, Enum):
    """As ``stereo.EYES``."""

    none = "none"
    left = "left"
    right = "right"


# Options that every importer has. Optional[...]: Typer evaluates annotations on Python 3.10.
Robot = Annotated[str, typer.Option(help="Embodiment name or YAML file of the recorded robot.")]
Out = Annotated[Path, typer.Option(help="Dataset folder; made or gone on with.")]
Fps = Annotated[float, typer.Option(min=0.1, help="Frames per second of the dataset.")]
Size = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Resize pictures to WIDTHxHEIGHT; theirs is kept if not given."),
]
CameraFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--camera-info",
        help="ROS calibration YAML at the recordings' size, in place of what they hold.",
    ),
]
Task = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Instruction, in place of the recordings' own."),
]
SplitOption = Annotated[Split, typer.Option(help="Split that the folder holds.")]
StorageOption = Annotated[
    Optional[Storage],  # noqa: UP045
    typer.Option(help="Frames as PNG or video; by size unless given."),
]
MinSeconds = Annotated[float, typer.Option(min=0.0, help="Drop shorter runs without a gap.")]
MaxSeconds = Annotated[float, typer.Option(min=0.1, help="Cut longer runs into episodes.")]
Stereo = Annotated[
    Eye,
    typer.Option(help="Pictures hold two eyes side by side: which one is used; CameraInfo is its."),
]
Topic = Optional[str]  # noqa: UP045
JointTopics = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--joint-topic", help="JointState, LowState, HandState or MotorStates; repeat for several."
    ),
]
Tolerance = Annotated[
    float,
    typer.Option("--joint-tolerance", min=0.001, help="Seconds: never interpolate wider gaps."),
]
TimeOffset = Annotated[
    float,
    typer.Option(
        "--joint-time-offset",
        help="Seconds added to the joint states' stamps, positive where images are stamped late.",
    ),
]
Calibration = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--calibration", help="Camera mount, as `ego-world-model calibrate` wrote it."),
]
