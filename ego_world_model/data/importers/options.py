"""How recordings become episodes: the choices that all importers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ego_world_model.camera import CameraPose, PinholeCamera
from ego_world_model.data.generate import Split
from ego_world_model.data.layout import ImageStorage
from ego_world_model.embodiment import Embodiment


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """How recordings become episodes.

    Attributes:
        fps: frames per second of the dataset.
        size: (width, height) to resize pictures to, or None to keep theirs.
        camera: intrinsics at the recordings' own size, in place of those that they hold.
        mount: where the camera sits on the robot; None: the embodiment's nominal place.
        task: instruction, in place of the recordings' own.
        storage: ``"image"`` or ``"video"``; None: by width.
        min_seconds: shorter runs of frames are dropped.
        max_seconds: longer runs are cut; an episode is held in memory while it is encoded.
        episodes: stop a recording after so many episodes; None: at its end.
    """

    fps: float = 30.0
    size: tuple[int, int] | None = None
    camera: PinholeCamera | None = None
    mount: CameraPose | None = None
    task: str | None = None
    split: Split = "train"
    storage: ImageStorage | None = None
    min_seconds: float = 1.0
    max_seconds: float = 20.0
    episodes: int | None = None

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
