"""A camera and joint states on real topics, for tests that break one of them on purpose."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import Header

from ego_world_model.camera import PinholeCamera
from ego_world_model.embodiment import load_embodiment
from ego_world_model.ros.conversions import (
    image_from_array,
    info_from_camera,
    stamp_from_nanoseconds,
)
from ego_world_model.ros.qos import advertise, subscribe

ROBOT = load_embodiment("g1_dex3")
FRAME = "camera_color_optical_frame"


class RobotPlayer:
    """Plays 20 Hz images with CameraInfo and 100 Hz joint states until closed.

    Attributes that a test may change while it plays: ``images``, ``infos``, ``joints`` (what is
    published), ``size`` of images, ``info_size`` (None: as the images), ``encoding``, ``names``
    and ``positions`` of the joint states, ``depth`` (16UC1 beside the images), ``frame`` (the
    picture; None: grey), ``lens`` (CameraInfo; None: the robot's at ``size``),
    ``distortion_model`` (what CameraInfo calls it; empty: the lens's own), ``compress`` (picture →
    data of a CompressedImage; None: raw images), ``depth_image`` (mm or m; None: a wall at 1.5 m in
    the right half) and ``depth_frame``.
    """

    def __init__(self, node: Any) -> None:
        self._image = advertise(node, Image, "camera/color/image_raw")
        self._info = advertise(node, CameraInfo, "camera/color/camera_info")
        self._compressed = advertise(node, CompressedImage, "camera/color/image_raw/compressed")
        self._depth = advertise(node, Image, "camera/aligned_depth_to_color/image_raw")
        self._joint = advertise(node, JointState, "joint_states", depth=50)
        self.images = self.infos = self.joints = True
        self.depth = False
        self.frame: NDArray[np.uint8] | None = None
        self.lens: PinholeCamera | None = None
        self.distortion_model = ""
        self.compress: Callable[[NDArray[np.uint8]], bytes] | None = None
        self.depth_image: NDArray[Any] | None = None
        self.depth_frame = FRAME
        self.size = (160, 120)
        self.info_size: tuple[int, int] | None = None
        self.encoding = "rgb8"
        self.names = list(ROBOT.joint_names)
        self.positions = ROBOT.neutral.tolist()
        self.stamps: list[int] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._play, args=(rate, action), daemon=True)
            for rate, action in ((20.0, self._publish_frame), (100.0, self._publish_joints))
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2.0)

    def camera(self) -> PinholeCamera:
        if self.lens is not None:
            return self.lens
        return ROBOT.camera.resized(*(self.info_size or self.size))

    def _play(self, rate: float, action: Any) -> None:
        while not self._stop.wait(1.0 / rate):
            action()

    def _publish_frame(self) -> None:
        stamp = time.time_ns()
        header = Header(stamp=stamp_from_nanoseconds(stamp), frame_id=FRAME)
        width, height = self.size
        if self.infos:
            info = info_from_camera(self.camera(), header=header)
            info.distortion_model = self.distortion_model or info.distortion_model
            self._info.publish(info)
        if self.images:
            self.stamps.append(stamp)
            pixels = np.full((height, width, 3), 90, np.uint8) if self.frame is None else self.frame
            if self.compress is not None:
                message = CompressedImage(header=header, format="jpeg", data=self.compress(pixels))
                self._compressed.publish(message)
            else:
                message = image_from_array(pixels, "rgb8", header=header)
                message.encoding = self.encoding
                self._image.publish(message)
        if self.depth:
            depth = self.depth_image
            if depth is None:
                depth = np.full((height, width), 1500, np.uint16)
                depth[:, : width // 2] = 0
            encoding = "16UC1" if depth.dtype == np.uint16 else "32FC1"
            header = Header(stamp=header.stamp, frame_id=self.depth_frame)
            self._depth.publish(image_from_array(depth, encoding, header=header))

    def _publish_joints(self) -> None:
        if self.joints:
            header = Header(stamp=stamp_from_nanoseconds(time.time_ns()))
            message = JointState(header=header, name=self.names, position=self.positions)
            self._joint.publish(message)


@contextmanager
def playing(node: Any) -> Iterator[RobotPlayer]:
    """A player that is closed at the end."""
    player = RobotPlayer(node)
    try:
        yield player
    finally:
        player.close()


class Inbox:
    """Messages of topics, as they arrive: ``inbox[topic]`` is the list."""

    def __init__(self, node: Any) -> None:
        self._node = node
        self._messages: dict[str, list[Any]] = {}

    def listen(self, message_type: type, topic: str, *, reliable: bool = True) -> list[Any]:
        """Subscribes and returns the list that fills."""
        messages = self._messages.setdefault(topic, [])
        subscribe(self._node, message_type, topic, messages.append, depth=50, reliable=reliable)
        return messages

    def __getitem__(self, topic: str) -> list[Any]:
        return self._messages[topic]


class Reports:
    """The newest diagnostic status of one node."""

    def __init__(self, node: Any, name: str) -> None:
        self._name = name
        self.latest: DiagnosticStatus | None = None
        subscribe(node, DiagnosticArray, "/diagnostics", self._receive, depth=20, reliable=True)

    @property
    def message(self) -> str:
        return "" if self.latest is None else self.latest.message

    @property
    def values(self) -> dict[str, str]:
        return {} if self.latest is None else {v.key: v.value for v in self.latest.values}

    def _receive(self, array: DiagnosticArray) -> None:
        for status in array.status:
            if status.name.endswith(self._name):
                self.latest = status
