"""Images kept as received: the fields are read at once, the pixels only when somebody asks.

Building an Image message copies its pixels into Python, about a millisecond for a camera frame
that most callbacks never look at. A raw subscription hands over the serialised bytes instead; the
fields in front of the pixels are read here (CDR, the format every ROS 2 middleware uses), and the
pixels stay where they are.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from std_msgs.msg import Header

from ego_world_model.ros.conversions import MessageError, stamp_from_nanoseconds

_PREAMBLE = 4  # bytes of CDR encapsulation; alignment counts from behind them


@dataclass(frozen=True)
class RawImage:
    """The fields of a serialised sensor_msgs/Image; serves the conversions as the message would.

    Attributes:
        stamp: nanoseconds.
        data: the pixels' bytes, not copied.
    """

    stamp: int
    frame_id: str
    width: int
    height: int
    encoding: str
    is_bigendian: int = 0
    step: int = 0
    data: memoryview = memoryview(b"")

    @classmethod
    def from_serialised(cls, serialised: bytes, *, topic: str = "image") -> RawImage:
        """Reads the fields.

        Raises:
            MessageError: bytes that are not an Image.
        """
        try:
            order, stamp, frame_id, end = read_header(serialised)
            height, width = struct.unpack_from(f"{order}II", serialised, _aligned(end))
            encoding, end = read_string(serialised, _aligned(end) + 8, order)
            big = serialised[end]
            (step,) = struct.unpack_from(f"{order}I", serialised, _aligned(end + 1))
            data = read_bytes(serialised, _aligned(end + 1) + 4, order)
        except (IndexError, struct.error, UnicodeDecodeError):
            raise MessageError(
                topic,
                "message",
                f"of {len(serialised)} bytes is not a sensor_msgs/Image",
                "check the type that is published on this topic",
            ) from None
        return cls(stamp, frame_id, width, height, encoding, big, step, data)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) pixels."""
        return self.width, self.height

    def header(self) -> Header:
        """A new header with the image's stamp and frame."""
        return Header(stamp=stamp_from_nanoseconds(self.stamp), frame_id=self.frame_id)


def read_header(serialised: bytes) -> tuple[str, int, str, int]:
    """Byte order ("<" or ">"), stamp in nanoseconds and frame id of a message that begins with a
    header, and the offset behind it.

    Raises:
        IndexError, struct.error, UnicodeDecodeError: there is none.
    """
    order = "<" if serialised[1] & 1 else ">"
    seconds, nanoseconds = struct.unpack_from(f"{order}iI", serialised, _PREAMBLE)
    frame_id, end = read_string(serialised, _PREAMBLE + 8, order)
    return order, seconds * 1_000_000_000 + nanoseconds, frame_id, end


def read_string(data: bytes, offset: int, order: str) -> tuple[str, int]:
    """The CDR string at ``offset`` (aligned first) and the offset behind it."""
    offset = _aligned(offset)
    (length,) = struct.unpack_from(f"{order}I", data, offset)
    end = offset + 4 + length
    if length == 0 or end > len(data):
        raise struct.error("string beyond the message")
    return data[offset + 4 : end - 1].decode(), end


def read_bytes(data: bytes, offset: int, order: str) -> memoryview:
    """The CDR byte sequence at ``offset`` (aligned first), not copied."""
    offset = _aligned(offset)
    (length,) = struct.unpack_from(f"{order}I", data, offset)
    if offset + 4 + length > len(data):
        raise struct.error("sequence beyond the message")
    return memoryview(data)[offset + 4 : offset + 4 + length]


def _aligned(offset: int) -> int:
    return _PREAMBLE + (offset - _PREAMBLE + 3) // 4 * 4
