"""Camera images kept as received: the header is read at once, the pixels only when somebody asks.

Building an Image message copies its pixels into Python, about a millisecond for a camera frame
that most callbacks never look at. A raw subscription hands over the serialised bytes instead; the
few header fields in front of the pixels are read here (CDR, the format every ROS 2 middleware
uses), and the whole message is decoded when pixels are wanted.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from ego_world_model.ros.conversions import MessageError, stamp_from_nanoseconds

_PREAMBLE = 4  # bytes of CDR encapsulation; alignment counts from behind them


@dataclass(frozen=True)
class RawImage:
    """A serialised sensor_msgs/Image and the fields in front of its pixels.

    Attributes:
        stamp: nanoseconds.
    """

    stamp: int
    frame_id: str
    width: int
    height: int
    encoding: str
    serialised: bytes

    @classmethod
    def from_serialised(cls, serialised: bytes, *, topic: str = "image") -> RawImage:
        """Reads the header fields.

        Raises:
            MessageError: bytes that are not an Image.
        """
        try:
            order = "<" if serialised[1] & 1 else ">"
            seconds, nanoseconds = struct.unpack_from(f"{order}iI", serialised, _PREAMBLE)
            frame_id, end = _string(serialised, _PREAMBLE + 8, order)
            height, width = struct.unpack_from(f"{order}II", serialised, _aligned(end))
            encoding, _ = _string(serialised, _aligned(end) + 8, order)
        except (IndexError, struct.error, UnicodeDecodeError):
            raise MessageError(
                topic,
                "message",
                f"of {len(serialised)} bytes is not a sensor_msgs/Image",
                "check the type that is published on this topic",
            ) from None
        stamp = seconds * 1_000_000_000 + nanoseconds
        return cls(stamp, frame_id, width, height, encoding, serialised)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) pixels."""
        return self.width, self.height

    def header(self) -> Header:
        """A new header with the image's stamp and frame."""
        return Header(stamp=stamp_from_nanoseconds(self.stamp), frame_id=self.frame_id)

    def decode(self) -> Image:
        """The whole message."""
        return deserialize_message(self.serialised, Image)


def _aligned(offset: int) -> int:
    return _PREAMBLE + (offset - _PREAMBLE + 3) // 4 * 4


def _string(data: bytes, offset: int, order: str) -> tuple[str, int]:
    """A CDR string and the offset behind it."""
    (length,) = struct.unpack_from(f"{order}I", data, offset)
    end = offset + 4 + length
    if length == 0 or end > len(data):
        raise struct.error("string beyond the message")
    return data[offset + 4 : end - 1].decode(), end
