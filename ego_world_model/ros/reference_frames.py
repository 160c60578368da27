"""The newest camera frames, each with its intrinsics: what a rollout may start from."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, Image

from ego_world_model.camera import PinholeCamera
from ego_world_model.ros.conversions import (
    MessageError,
    camera_from_info,
    nanoseconds,
    rgb_from_image,
)
from ego_world_model.ros.motion_source import Motion
from ego_world_model.ros.raw_image import RawImage

Fit = TypeVar("Fit")


class MissingInput(MessageError):
    """A message that did not come (yet), as opposed to one that is wrong."""


@dataclass(frozen=True)
class Reference:
    """A camera frame that a rollout starts from.

    Attributes:
        stamp: nanoseconds, the image's own.
        received: nanoseconds on the node's clock, when it arrived.
        frame_id: the camera's optical frame.
        image: (H, W, 3) uint8 RGB.
    """

    stamp: int
    received: int
    frame_id: str
    image: NDArray[np.uint8]
    camera: PinholeCamera


def reference_from_messages(
    image: Image, info: CameraInfo, *, received: int, image_topic: str, info_topic: str
) -> Reference:
    """Decode a frame and check that its intrinsics belong to it.

    Raises:
        MessageError: unsupported encoding, broken image or calibration, or different sizes.
    """
    camera = camera_from_info(info, topic=info_topic)
    if (camera.width, camera.height) != (image.width, image.height):
        raise MessageError(
            info_topic,
            "width, height",
            f"are {camera.width}x{camera.height} but {image_topic} is {image.width}x{image.height}",
            "publish the CameraInfo of the images that are sent (same resolution)",
        )
    return Reference(
        stamp=nanoseconds(image.header.stamp),
        received=received,
        frame_id=image.header.frame_id,
        image=rgb_from_image(image, topic=image_topic),
        camera=camera,
    )


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
        self._frames: deque[tuple[int, RawImage]] = deque(maxlen=64)
        self._info: CameraInfo | None = None
        self._lock = threading.Lock()

    def add_image(self, message: RawImage, received: int) -> None:
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

    def candidates(self, now: int) -> list[tuple[int, RawImage]]:
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

    def newest_fitting(self, fit: Callable[[int, str], Fit], now: int) -> tuple[int, RawImage, Fit]:
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

    def decode(self, received: int, image: RawImage) -> Reference:
        """The frame with the intrinsics that hold now.

        Raises:
            MessageError: as :func:`reference_from_messages`.
        """
        with self._lock:
            info = self._info
        if info is None:
            raise RuntimeError("decode() before any CameraInfo: ask candidates() first")
        return reference_from_messages(
            image.decode(),
            info,
            received=received,
            image_topic=self.image_topic,
            info_topic=self.info_topic,
        )
