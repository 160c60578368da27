"""The one way by which camera images enter a node: raw or compressed, whole or one eye of two.

Every node that looks at the camera makes a :class:`CameraIntake`; the parameters
``image_transport`` and ``stereo`` then mean the same everywhere. What arrives is kept as received
and decoded only where somebody asks for pixels.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from ego_world_model.camera import PinholeCamera
from ego_world_model.media import decode_picture, picture_size
from ego_world_model.ros.conversions import MessageError, rgb_from_image, stamp_from_nanoseconds
from ego_world_model.ros.parameters import declare
from ego_world_model.ros.qos import subscribe
from ego_world_model.ros.raw_image import RawImage, read_bytes, read_header, read_string
from ego_world_model.ros.topics import IMAGE
from ego_world_model.stereo import EYES, eye_width, one_eye

TRANSPORTS = ("raw", "compressed")
"""How the images come: sensor_msgs/Image, or sensor_msgs/CompressedImage beside it."""


@dataclass(frozen=True)
class CameraFrame:
    """One image of the camera as received.

    Attributes:
        stamp: nanoseconds.
        width, height: pixels of the image: of one eye, where frames hold two.
        content: what arrived: an uncompressed image, or the bytes of a picture.
        topic: where it came from, named in errors.
        eye: which half of the frame the image is (see ``stereo.EYES``).
    """

    stamp: int
    frame_id: str
    width: int
    height: int
    content: RawImage | memoryview
    topic: str = "image"
    eye: str = "none"

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) pixels."""
        return self.width, self.height

    def header(self) -> Header:
        """A new header with the image's stamp and frame."""
        return Header(stamp=stamp_from_nanoseconds(self.stamp), frame_id=self.frame_id)

    def rgb(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8, contiguous and the caller's own.

        Raises:
            MessageError: an unsupported encoding, a broken message, or a damaged picture.
        """
        if isinstance(self.content, RawImage):
            frame = rgb_from_image(self.content, topic=self.topic)
        else:
            try:
                frame = decode_picture(self.content)
            except ValueError as error:
                raise MessageError(
                    self.topic, "data", f"cannot be decoded: {error}", "publish JPEG or PNG"
                ) from None
        return np.array(one_eye(frame, self.eye))

    def check_size(self, camera: PinholeCamera, info_topic: str) -> None:
        """Raise MessageError unless ``camera`` describes images of this size."""
        if self.size == (camera.width, camera.height):
            return
        described = f"{camera.width}x{camera.height}"
        remedy = "publish the CameraInfo of the images that are sent (same resolution)"
        if self.eye != "none":
            problem = (
                f"are {described} but {self.topic} is {2 * self.width}x{self.height}, two eyes of "
                f"{self.width}x{self.height} each by the parameter stereo={self.eye}"
            )
            remedy = "publish the CameraInfo of one eye, or set stereo to none for a single camera"
        else:
            problem = f"are {described} but {self.topic} is {self.width}x{self.height}"
            if self.size == (2 * camera.width, camera.height):
                remedy = "set the parameter stereo to left or right if frames hold two eyes"
        raise MessageError(info_topic, "width, height", problem, remedy)


class CameraIntake:
    """Declares ``image_transport`` and ``stereo`` and subscribes as they say.

    Args:
        node: declares the parameters; its remapping of ``camera/color/image_raw`` holds for the
            compressed images, too, as everywhere in ROS.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._transport = declare(
            node,
            "image_transport",
            "raw",
            "how the camera's images come: raw, or compressed (JPEG or PNG on …/compressed)",
            choices=TRANSPORTS,
            read_only=True,
        )
        self.eye: str = declare(
            node,
            "stereo",
            "none",
            "none: frames are the camera's images; left, right: frames of double width hold two "
            "eyes side by side, of which this one is used; CameraInfo and mount are this eye's",
            choices=EYES,
            read_only=True,
        )
        base = node.resolve_topic_name(IMAGE)
        self.topic: str = f"{base}/compressed" if self._transport == "compressed" else base
        """Where the images come from, resolved."""

    @property
    def description(self) -> str:
        """What is expected on ``topic``, for messages about silence."""
        if self._transport == "raw":
            return "camera images"
        return "compressed camera images (parameter image_transport)"

    def subscribe(
        self,
        callback: Callable[[CameraFrame], None],
        on_error: Callable[[MessageError], None],
        *,
        depth: int = 5,
    ) -> Subscription:
        """Calls back with every frame, or with what is wrong with it."""

        def receive(serialised: bytes) -> None:
            try:
                frame = self.frame(serialised)
            except MessageError as error:
                on_error(error)
                return
            callback(frame)

        kind = Image if self._transport == "raw" else CompressedImage
        return subscribe(self._node, kind, self.topic, receive, depth=depth, raw=True)

    def frame(self, serialised: bytes) -> CameraFrame:
        """A frame from the bytes of its message.

        Raises:
            MessageError: bytes of another type, data that is no picture, an odd width of two eyes.
        """
        if self._transport == "raw":
            image = RawImage.from_serialised(serialised, topic=self.topic)
            return self._frame(image.stamp, image.frame_id, image.size, image)
        return self._frame(*self._compressed(serialised))

    def _compressed(self, serialised: bytes) -> tuple[int, str, tuple[int, int], memoryview]:
        """Stamp, frame id, size and picture of a serialised sensor_msgs/CompressedImage."""
        try:
            order, stamp, frame_id, end = read_header(serialised)
            encoding, end = read_string(serialised, end, order)
            data = read_bytes(serialised, end, order)
        except (IndexError, struct.error, UnicodeDecodeError):
            raise MessageError(
                self.topic,
                "message",
                f"of {len(serialised)} bytes is not a sensor_msgs/CompressedImage",
                "check the type that is published on this topic",
            ) from None
        try:
            return stamp, frame_id, picture_size(data), data
        except ValueError as error:
            raise MessageError(
                self.topic,
                "data",
                f"of format {encoding!r} cannot be decoded: {error}",
                "publish JPEG or PNG (image_transport's compressed plugin does)",
            ) from None

    def _frame(
        self, stamp: int, frame_id: str, size: tuple[int, int], content: RawImage | memoryview
    ) -> CameraFrame:
        try:
            width = eye_width(size[0], self.eye)
        except ValueError as error:
            raise MessageError(
                self.topic, "width", str(error), "set the parameter stereo to none"
            ) from None
        return CameraFrame(stamp, frame_id, width, size[1], content, self.topic, self.eye)


def frame_from_message(message: Image, stamp: int, *, topic: str, eye: str = "none") -> CameraFrame:
    """A frame of an image that came in another message, at ``stamp`` nanoseconds.

    Args:
        eye: which half of the image is meant; its width must be even then.
    """
    raw = RawImage(
        stamp,
        message.header.frame_id,
        message.width,
        message.height,
        message.encoding,
        message.is_bigendian,
        message.step,
        memoryview(message.data),
    )
    width = eye_width(raw.width, eye)
    return CameraFrame(stamp, raw.frame_id, width, raw.height, raw, topic, eye)
