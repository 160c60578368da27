"""One calibration in progress: frames, annotations, and the solution that follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ego_world_model.calibration.annotations import Annotations
from ego_world_model.calibration.frames import CalibrationFrame
from ego_world_model.calibration.problem import (
    AnnotatedFrame,
    CalibrationError,
    CalibrationOptions,
    check_annotations,
)
from ego_world_model.calibration.solver import CalibrationResult, calibrate
from ego_world_model.kinematics import HandKinematics


@dataclass(frozen=True, kw_only=True)
class Solution:
    """What the present annotations give: a result, or why there is none yet."""

    result: CalibrationResult | None
    problem: str


class CalibrationSession:
    """Frames under annotation. Not thread-safe.

    Args:
        frames: with unique names.
        annotations: those of earlier sessions included.
        kinematics: of the robot.
        options: of the solver.

    Raises:
        CalibrationError: for annotations of frames that are not here, or that cannot be right.
    """

    def __init__(
        self,
        frames: Sequence[CalibrationFrame],
        annotations: Annotations,
        kinematics: HandKinematics,
        options: CalibrationOptions,
    ) -> None:
        self.frames = {frame.name: frame for frame in frames}
        if len(self.frames) != len(frames):
            raise CalibrationError("two frames have the same name")
        self.annotations = annotations
        self.kinematics = kinematics
        self.options = options
        unknown = [name for name in annotations.frames if name not in self.frames]
        if unknown:
            raise CalibrationError(
                f"{annotations.path} annotates {', '.join(unknown[:3])}"
                f"{' …' if len(unknown) > 3 else ''}, no frame of this source; give another file "
                "with --annotations, or the frames that it was made on"
            )
        check_annotations(self._annotated(), kinematics.robot)
        self._solution: Solution | None = None

    @property
    def slots(self) -> tuple[str, ...]:
        """Joints that can be annotated: every slot the robot fills, arms included."""
        return tuple(self.kinematics.robot.slots)

    def annotate(self, frame: str, slot: str, pixel: tuple[float, float] | None) -> None:
        """Set, move or remove (None) an annotation.

        Raises:
            CalibrationError: for a frame or joint that is not there, or an impossible pixel.
        """
        if frame not in self.frames:
            raise CalibrationError(f"no frame {frame!r}")
        if pixel is None:
            pixel_of: dict[str, tuple[float, float]] = {}
        else:
            pixel_of = {slot: pixel}
        source = self.frames[frame]
        check_annotations(
            [AnnotatedFrame(name=frame, q=source.q, camera=source.camera, pixels=pixel_of)],
            self.kinematics.robot,
        )
        self.annotations.set(frame, slot, pixel)
        self._solution = None

    def undo(self) -> tuple[str, str] | None:
        """Take back the last change; the frame and slot it was in, or None."""
        self._solution = None
        return self.annotations.undo()

    def solution(self) -> Solution:
        """The calibration by the present annotations; kept until they change."""
        if self._solution is None:
            try:
                result = calibrate(self._annotated(), self.kinematics, options=self.options)
                self._solution = Solution(result=result, problem="")
            except CalibrationError as error:
                self._solution = Solution(result=None, problem=str(error))
        return self._solution

    def projections(self, frame: str, *, calibrated: bool) -> NDArray[np.float64]:
        """(S, 2) pixels of every slot by the solution or the nominal mount; NaN behind the camera.

        Without a solution the nominal mount stands in.
        """
        source, robot = self.frames[frame], self.kinematics.robot
        result = self.solution().result if calibrated else None
        mount, camera, q = robot.camera_pose, source.camera, source.q
        if result is not None:
            mount, camera = result.mount, result.camera(camera)
            q = result.corrected(q, robot)
        points = self.kinematics.slot_positions(q[None], self.slots)[0]
        pose = self.kinematics.camera_pose(q, mount)
        return camera.project((points - pose[:3, 3]) @ pose[:3, :3])

    def _annotated(self) -> list[AnnotatedFrame]:
        return [
            AnnotatedFrame(
                name=frame.name,
                q=frame.q,
                camera=frame.camera,
                pixels=self.annotations.of(frame.name),
            )
            for frame in self.frames.values()
        ]
