"""Messages of bags: Unitree's types, pictures in every common encoding, calibrations.

Bags in sqlite3 format before ROS 2 Iron hold no message definitions, so the types that robots
record are registered here; definitions that a bag brings along take precedence.
"""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from ego_world_model.camera import PinholeCamera
from ego_world_model.data.importers.camera_file import calibrated_camera

IMAGE, COMPRESSED_IMAGE = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
CAMERA_INFO, JOINT_STATE = "sensor_msgs/msg/CameraInfo", "sensor_msgs/msg/JointState"
STRING = "std_msgs/msg/String"
LOW_STATE, HAND_STATE = "unitree_hg/msg/LowState", "unitree_hg/msg/HandState"
MOTOR_STATES = "unitree_go/msg/MotorStates"

_HAND_STATE = """
unitree_hg/MotorState[] motor_state
{sensors}
float32 power_v
float32 power_a
float32 system_v
float32 device_v
uint32[2] error
uint32[2] reserve
"""
_PRESS, _IMU = "unitree_hg/PressSensorState[] press_sensor_state", "unitree_hg/IMUState imu_state"

UNITREE_TYPES: dict[str, str] = {
    "unitree_hg/msg/IMUState": """
float32[4] quaternion
float32[3] gyroscope
float32[3] accelerometer
float32[3] rpy
int16 temperature
""",
    "unitree_hg/msg/MotorState": """
uint8 mode
float32 q
float32 dq
float32 ddq
float32 tau_est
int16[2] temperature
float32 vol
uint32[2] sensor
uint32 motorstate
uint32[4] reserve
""",
    "unitree_hg/msg/PressSensorState": """
float32[12] pressure
float32[12] temperature
uint32 lost
uint32 reserve
""",
    LOW_STATE: """
uint32[2] version
uint8 mode_pr
uint8 mode_machine
uint32 tick
unitree_hg/IMUState imu_state
unitree_hg/MotorState[35] motor_state
uint8[40] wireless_remote
uint32[4] reserve
uint32 crc
""",
    HAND_STATE: _HAND_STATE.format(sensors=f"{_PRESS}\n{_IMU}"),
    "unitree_go/msg/MotorState": """
uint8 mode
float32 q
float32 dq
float32 ddq
float32 tau_est
float32 q_raw
float32 dq_raw
float32 ddq_raw
int8 temperature
uint32 lost
uint32[2] reserve
""",
    MOTOR_STATES: "unitree_go/MotorState[] states\n",
}
"""Fields of the Unitree messages that hold joint positions, by type."""

OLD_HAND_STATE = _HAND_STATE.format(sensors=f"{_IMU}\n{_PRESS}")
"""``unitree_hg/HandState`` before August 2025: the IMU came before the pressure sensors."""


@functools.cache
def typestore(hand_state: str = UNITREE_TYPES[HAND_STATE]) -> Typestore:
    """Standard messages and Unitree's, for bags without definitions of their own."""
    store = get_typestore(Stores.ROS2_HUMBLE)
    types: dict[str, Any] = {}
    for name, text in (UNITREE_TYPES | {HAND_STATE: hand_state}).items():
        types.update(get_types_from_msg(text, name))
    store.register(types)
    return store


# Channels of an encoding and, for colour, where red, green and blue lie. OpenCV's unnamed
# encodings (8UC3, 8UC4) are BGR.
_ENCODINGS: dict[str, tuple[type[np.generic], int, tuple[int, ...]]] = {
    "rgb8": (np.uint8, 3, (0, 1, 2)),
    "bgr8": (np.uint8, 3, (2, 1, 0)),
    "rgba8": (np.uint8, 4, (0, 1, 2)),
    "bgra8": (np.uint8, 4, (2, 1, 0)),
    "8UC3": (np.uint8, 3, (2, 1, 0)),
    "8UC4": (np.uint8, 4, (2, 1, 0)),
    "mono8": (np.uint8, 1, (0, 0, 0)),
    "8UC1": (np.uint8, 1, (0, 0, 0)),
    "mono16": (np.uint16, 1, (0, 0, 0)),
}


def rgb_from_message(message: Any) -> NDArray[np.uint8]:
    """An Image or CompressedImage (JPEG, PNG, …) as (H, W, 3) uint8 RGB.

    Raises:
        ValueError: an encoding that is no picture, or data that do not fit the message's size.
    """
    if message.__msgtype__ == COMPRESSED_IMAGE:
        try:
            # `format` tells what the compressed channels were before; the file itself is decoded
            # to RGB by every decoder, so nothing is to be swapped.
            with Image.open(io.BytesIO(message.data.tobytes())) as picture:
                return np.array(picture.convert("RGB"))
        except (OSError, SyntaxError) as error:
            raise ValueError(f"compressed picture ({message.format!r}): {error}") from error
    if message.encoding not in _ENCODINGS:
        raise ValueError(
            f"encoding {message.encoding!r} is not one of {', '.join(_ENCODINGS)}; record the "
            "decoded colour topic"
        )
    kind, channels, order = _ENCODINGS[message.encoding]
    pixels = _pixels(message, kind, channels)
    if pixels.dtype.itemsize == 2:
        pixels = pixels >> 8
    return np.ascontiguousarray(pixels[..., order], dtype=np.uint8)


def depth_from_message(message: Any) -> NDArray[np.uint16]:
    """A depth Image (16UC1 millimetres or 32FC1 metres) as (H, W) uint16 mm, 0 where unknown.

    Raises:
        ValueError: an encoding that is not depth, or data that do not fit the message's size.
    """
    if message.encoding in ("16UC1", "mono16"):
        return _pixels(message, np.uint16, 1)[..., 0].astype(np.uint16)
    if message.encoding == "32FC1":
        millimetres = 1000.0 * _pixels(message, np.float32, 1)[..., 0].astype(np.float64)
        known = (millimetres > 0) & (millimetres < 65535.5)  # false for NaN and infinity
        return np.rint(np.where(known, millimetres, 0)).astype(np.uint16)
    raise ValueError(
        f"depth encoding {message.encoding!r} is neither 16UC1 (mm) nor 32FC1 (m); record the "
        "decoded depth topic"
    )


def _pixels(message: Any, kind: type[np.generic], channels: int) -> NDArray[Any]:
    """(H, W, channels) of an Image, a view of its data."""
    height, width, step = int(message.height), int(message.width), int(message.step)
    dtype = np.dtype(kind).newbyteorder(">" if message.is_bigendian else "<")
    row = width * channels * dtype.itemsize
    data = np.ascontiguousarray(message.data)
    if height * width == 0 or step < row or data.size < step * (height - 1) + row:
        raise ValueError(
            f"{width}x{height} {message.encoding} with step {step} does not fit {data.size} bytes"
        )
    strides = (step, channels * dtype.itemsize, dtype.itemsize)
    return np.ndarray((height, width, channels), dtype, buffer=data, strides=strides)


def camera_from_message(message: Any) -> PinholeCamera:
    """Intrinsics and distortion of the picture that a CameraInfo came with.

    K describes the whole sensor; region of interest and binning are applied (REP-104).

    Raises:
        ValueError: no calibration, or an unknown distortion model.
    """
    camera = calibrated_camera(
        message.k,
        message.d,
        int(message.width),
        int(message.height),
        model=message.distortion_model,
    )
    roi = message.roi
    if roi.width and roi.height and (roi.width, roi.height) != (camera.width, camera.height):
        camera = camera.cropped(roi.x_offset, roi.y_offset, int(roi.width), int(roi.height))
    x, y = max(1, int(message.binning_x)), max(1, int(message.binning_y))
    if (x, y) != (1, 1):
        camera = camera.resized(camera.width // x, camera.height // y)
    return camera


def stamp_of(message: Any, received: int) -> int:
    """Nanoseconds of a message's header, or when it was received where it has none (or zero)."""
    header = getattr(message, "header", None)
    if header is None:
        return received
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec or received
