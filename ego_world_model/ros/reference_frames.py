"""The newest camera frames, each with its intrinsics: what a rollout may start from."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo

from ego_world_model.camera import PinholeCamera
from ego_world_model.rectification import rectified
from ego_world_model.ros.camera_frames import CameraFrame
from ego_world_model.ros.conversions import MessageError, camera_from_info
from ego_world_model.ros.motion_source import Motion

Fit = TypeVar("Fit")


class MissingInput(MessageError):
    """A message that did not come (yet), as opposed to one that is wrong."""


@dataclass(frozen=True)
class Reference:
    """A camera frame that a rollout starts from, rectified: the model knows no lens.

    Attributes:
        stamp: nanoseconds, the image's own.
        received: nanoseconds on the node's clock, when it arrived.
        frame_id: the camera's optical frame.
        image: (H, W, 3) uint8 RGB.
        camera: the ideal pinhole that sees ``image``.
    """

    stamp: int
    received: int
    frame_id: str
    image: NDArray[np.uint8]
    camera: PinholeCamera


def reference_from_frame(
    frame: CameraFrame, info: CameraInfo, *, received: int, info_topic: str
) -> Reference:
    """Decode a frame, check that its intrinsics belong to it, and take the lens out of both.

    Raises:
        MessageError: unsupported encoding, broken image or calibration, or different sizes.
    """
    camera = camera_from_info(info, topic=info_topic)
    frame.check_size(camera, info_topic)
    image, camera = rectified(frame.rgb(), camera)
    return Reference(frame.stamp, received, frame.frame_id, image, camera)


class ReferenceFrames:
    """Holds the last frames by arrival; thread-safe; decodes nothing until asked.

    Args:
        max_age: seconds after which a frame no longer counts as new.
    """

    def __init__(self, *, max_age: float, image_topic: str, info_topic: str) -> None:
        self.max_age = max_age
        self.image_topic = image_topic
        self.info_topic = info_topic
        self.received = 0
        self._frames: deque[tuple[int, CameraFrame]] = deque(maxlen=64)
        self._info: CameraInfo | None = None
        self._lock = threading.Lock()

    def add_image(self, message: CameraFrame, received: int) -> None:
        """Take a frame that arrived at ``received`` nanoseconds on the node's clock."""
        with self._lock:
            self.received += 1
            if self._frames and received < self._frames[-1][0]:  # simulated time was set back
                self._frames.clear()
            self._frames.append((received, message))
            while received - self._frames[0][0] > self.max_age * 1e9:
                self._frames.popleft()

    def add_info(self, message: CameraInfo) -> None:
        """Take the intrinsics that hold from now on."""
        with self._lock:
            self._info = message

    def clear(self) -> None:
        """Forget everything, as before the first message."""
        with self._lock:
            self._frames.clear()
            self._info = None

    def candidates(self, now: int) -> list[tuple[int, CameraFrame]]:
        """(received, image) of the frames that are new enough at ``now`` ns, newest first.

        Raises:
            MissingInput: if none is, or no CameraInfo has come.
        """
        with self._lock:
            frames = [f for f in reversed(self._frames) if now - f[0] <= self.max_age * 1e9]
            if not frames:
                seen = (
                    f"are older than max_staleness ({self.max_age:.2f} s)"
                    if self._frames
                    else "have not arrived"
                )
                raise MissingInput(
                    self.image_topic,
                    "images",
                    seen,
                    "start the camera driver, or remap the topic (ros2 topic list shows its name)",
                )
            if self._info is None:
                raise MissingInput(
                    self.info_topic,
                    "messages",
                    "have not arrived",
                    "publish the camera's CameraInfo beside its images, or remap the topic",
                )
        return frames

    def newest_for(self, motions: Sequence[Motion], horizon: float, now: int) -> Reference:
        """The newest frame from which every motion reaches a rollout of ``horizon`` seconds.

        A motion that was planned from a frame one or two back, and reaches just the horizon, thus
        starts from the frame that it was planned from.

        Raises:
            MessageError: no frame, no CameraInfo, a frame that cannot be read, or a motion that
                fits no frame (what is said is what is wrong with the newest frame).
        """
        received, image = self.newest_fitting(
            lambda stamp, frame_id: [m.check(stamp, frame_id, horizon) for m in motions], now
        )[:2]
        return self.decode(received, image)

    def newest_fitting(
        self, fit: Callable[[int, str], Fit], now: int
    ) -> tuple[int, CameraFrame, Fit]:
        """(received, image, what ``fit`` made of it) of the newest frame that ``fit`` accepts.

        Args:
            fit: called with a frame's stamp (ns) and frame_id; raises MessageError to decline it.

        Raises:
            MessageError: as :meth:`newest_for`.
        """
        declined: MessageError | None = None
        for received, image in self.candidates(now):
            try:
                fitted = fit(image.stamp, image.frame_id)
            except MessageError as error:
                declined = declined or error
                continue
            return received, image, fitted
        assert declined is not None  # candidates() never returns an empty list
        raise declined

    def decode(self, received: int, image: CameraFrame) -> Reference:
        """The frame with the intrinsics that hold now.

        Raises:
            MessageError: as :func:`reference_from_frame`.
        """
        with self._lock:
            info = self._info
        if info is None:
            raise RuntimeError("decode() before any CameraInfo: ask candidates() first")
        return reference_from_frame(image, info, received=received, info_topic=self.info_topic)
