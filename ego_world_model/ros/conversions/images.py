"""sensor_msgs/Image ↔ numpy, without cv_bridge (which may be built for another NumPy)."""

from __future__ import annotations

import sys
from array import array
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from ego_world_model.ros.conversions.errors import MessageError


class ImageFields(Protocol):
    """What is read of an image: a sensor_msgs/Image, or a ``RawImage``."""

    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: Any


_FORMATS: dict[str, tuple[type[np.generic], int]] = {
    "rgb8": (np.uint8, 3),
    "bgr8": (np.uint8, 3),
    "rgba8": (np.uint8, 4),
    "bgra8": (np.uint8, 4),
    "mono8": (np.uint8, 1),
    "mono16": (np.uint16, 1),
    "8UC1": (np.uint8, 1),
    "8UC3": (np.uint8, 3),
    "8UC4": (np.uint8, 4),
    "16UC1": (np.uint16, 1),
    "16SC1": (np.int16, 1),
    "32FC1": (np.float32, 1),
    "32FC3": (np.float32, 3),
}

SUPPORTED_ENCODINGS: tuple[str, ...] = tuple(_FORMATS)
"""Encodings that ``array_from_image`` reads and ``image_from_array`` writes."""

# How each colour encoding becomes rgb8; OpenCV's unnamed 8UC3/8UC4 are BGR by its own convention.
_TO_RGB: dict[str, list[int]] = {
    "rgb8": [0, 1, 2],
    "bgr8": [2, 1, 0],
    "rgba8": [0, 1, 2],
    "bgra8": [2, 1, 0],
    "8UC3": [2, 1, 0],
    "8UC4": [2, 1, 0],
}
_GREY = ("mono8", "8UC1", "mono16")
_DEPTH_TO_METRES = {"16UC1": 1e-3, "mono16": 1e-3, "32FC1": 1.0}


def array_from_image(message: ImageFields, *, topic: str = "image") -> NDArray[np.generic]:
    """An image message as (H, W) or (H, W, C), in its own encoding and native byte order.

    The array shares the message's memory where padding and byte order allow it; treat it as
    read-only.

    Raises:
        MessageError: unsupported encoding, or sizes that contradict each other.
    """
    if message.encoding not in _FORMATS:
        raise MessageError(
            topic,
            "encoding",
            f"{message.encoding!r} is not supported",
            f"publish one of {', '.join(SUPPORTED_ENCODINGS)} (for a Bayer stream, subscribe "
            "to the driver's decoded colour topic)",
        )
    kind, channels = _FORMATS[message.encoding]
    height, width, step = int(message.height), int(message.width), int(message.step)
    dtype = np.dtype(kind).newbyteorder(">" if message.is_bigendian else "<")
    row_bytes = width * channels * dtype.itemsize
    if height == 0 or width == 0:
        raise MessageError(
            topic, "width, height", f"are {width}x{height}", "publish images that are not empty"
        )
    if step < row_bytes:
        raise MessageError(
            topic,
            "step",
            f"is {step} bytes but a {message.encoding} row of {width} pixels needs {row_bytes}",
            "set step to the bytes of one row",
        )
    data = np.frombuffer(message.data, np.uint8)
    # The last row may lack its padding: some drivers publish exactly the pixels that exist.
    if data.size < step * (height - 1) + row_bytes:
        raise MessageError(
            topic,
            "data",
            f"holds {data.size} bytes but {width}x{height} {message.encoding} with step {step} "
            f"needs {step * height}",
            "publish whole images",
        )
    itemsize = dtype.itemsize
    pixels = np.ndarray(
        (height, width, channels),
        dtype,
        buffer=data,
        strides=(step, channels * itemsize, itemsize),
    )
    pixels = pixels[..., 0] if channels == 1 else pixels
    return pixels if dtype.isnative else pixels.astype(dtype.newbyteorder("="))


def rgb_from_image(message: ImageFields, *, topic: str = "image") -> NDArray[np.uint8]:
    """An image message as (H, W, 3) uint8 RGB, contiguous; grey images repeat their channel.

    Raises:
        MessageError: an encoding without colour or grey values (depth), or a broken message.
    """
    pixels = array_from_image(message, topic=topic)
    encoding = message.encoding
    if encoding == "rgb8":
        return np.ascontiguousarray(pixels)
    if encoding in _TO_RGB:
        return np.ascontiguousarray(pixels[..., _TO_RGB[encoding]])
    if encoding in _GREY:
        if encoding == "mono16":
            pixels = pixels >> 8
        return np.repeat(pixels.astype(np.uint8)[..., None], 3, axis=2)
    raise MessageError(
        topic,
        "encoding",
        f"{encoding!r} is not a colour image",
        f"publish one of {', '.join((*_TO_RGB, *_GREY))}",
    )


def depth_from_image(message: ImageFields, *, topic: str = "depth image") -> NDArray[np.float32]:
    """A depth message as (H, W) float32 metres; 0 where the camera saw no depth (REP-118).

    Raises:
        MessageError: an encoding that is not depth, or a broken message.
    """
    if message.encoding not in _DEPTH_TO_METRES:
        raise MessageError(
            topic,
            "encoding",
            f"{message.encoding!r} is not a depth image",
            "publish 16UC1 (millimetres) or 32FC1 (metres)",
        )
    depth = array_from_image(message, topic=topic).astype(np.float32)
    depth *= np.float32(_DEPTH_TO_METRES[message.encoding])
    if message.encoding == "32FC1":
        depth[~np.isfinite(depth)] = 0.0
    return depth


def image_from_array(
    pixels: NDArray[np.generic], encoding: str, *, header: Header | None = None
) -> Image:
    """(H, W) or (H, W, C) pixels as an image message.

    Raises:
        ValueError: if the array's type or channels do not fit ``encoding``.
    """
    if encoding not in _FORMATS:
        raise ValueError(
            f"encoding {encoding!r} is unknown; use one of {', '.join(SUPPORTED_ENCODINGS)}"
        )
    dtype, channels = _FORMATS[encoding]
    shape_fits = pixels.ndim == 2 if channels == 1 else pixels.ndim == 3
    if not shape_fits or pixels.dtype != dtype or (channels > 1 and pixels.shape[2] != channels):
        raise ValueError(
            f"{encoding} needs {np.dtype(dtype).name} pixels of shape (H, W"
            f"{'' if channels == 1 else f', {channels}'}), got {pixels.dtype} {pixels.shape}"
        )
    height, width = pixels.shape[:2]
    # An array.array is the one container that message fields take by reference; any other is
    # converted element by element (30-180 ms for a camera image).
    data = array("B")
    data.frombytes(memoryview(np.ascontiguousarray(pixels)).cast("B"))
    return Image(
        header=Header() if header is None else header,
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=int(sys.byteorder == "big"),
        step=width * channels * np.dtype(dtype).itemsize,
        data=data,
    )
