"""Writes small bags with rosbags' own writer, as recorders on robots do."""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from recordings import HEIGHT, ROBOT, WIDTH, joints_at, picture
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys.store import Typestore

from ego_world_model.camera import PinholeCamera
from ego_world_model.data.importers.bag_messages import typestore
from ego_world_model.embodiment import Embodiment

START = 1_700_000_000_000_000_000
STORE = typestore()
IMAGE_TOPIC, INFO_TOPIC = "/camera/color/image_raw", "/camera/color/camera_info"
DEPTH_TOPIC = "/camera/aligned_depth_to_color/image_raw"
CAMERA = PinholeCamera(WIDTH, HEIGHT, 60.5, 60.4, 31.7, 24.2)


def make(kind: str, *values: Any, store: Typestore = STORE) -> Any:
    return store.types[kind](*values)


def header(stamp: int, frame: str = "camera_color_optical_frame") -> Any:
    time = make("builtin_interfaces/msg/Time", stamp // 10**9, stamp % 10**9)
    return make("std_msgs/msg/Header", time, frame)


def raw_image(stamp: int, image: NDArray[np.uint8], encoding: str = "rgb8", pad: int = 0) -> Any:
    """A sensor_msgs/Image, its rows padded by ``pad`` bytes."""
    if encoding == "bgr8":
        image = image[..., ::-1]
    elif encoding == "mono8":
        image = image[..., :1]
    rows = image.reshape(len(image), -1)
    rows = np.pad(rows, ((0, 0), (0, pad)))
    size = (image.shape[0], image.shape[1])
    return make(
        "sensor_msgs/msg/Image", header(stamp), *size, encoding, 0, rows.shape[1], rows.ravel()
    )


def compressed_image(stamp: int, image: NDArray[np.uint8], kind: str) -> Any:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=kind, **({"quality": 95} if kind == "JPEG" else {}))
    data = np.frombuffer(buffer.getvalue(), np.uint8)
    text = f"rgb8; {kind.lower()} compressed bgr8"
    return make("sensor_msgs/msg/CompressedImage", header(stamp), text, data)


def depth_image(stamp: int, millimetres: NDArray[np.uint16], encoding: str = "16UC1") -> Any:
    """A sensor_msgs/Image of depth, in millimetres (16UC1) or metres (32FC1)."""
    pixels = millimetres
    if encoding == "32FC1":
        pixels = np.where(millimetres > 0, millimetres * 1e-3, np.nan).astype(np.float32)
    rows = pixels.reshape(len(pixels), -1).view(np.uint8)
    size = (pixels.shape[0], pixels.shape[1])
    return make(
        "sensor_msgs/msg/Image", header(stamp), *size, encoding, 0, rows.shape[1], rows.ravel()
    )


def text(words: str) -> Any:
    """A std_msgs/String."""
    return make("std_msgs/msg/String", words)


def camera_info(stamp: int, camera: PinholeCamera = CAMERA) -> Any:
    roi = make("sensor_msgs/msg/RegionOfInterest", 0, 0, 0, 0, False)
    return make(
        "sensor_msgs/msg/CameraInfo",
        header(stamp),
        camera.height,
        camera.width,
        camera.distortion_model,
        np.array(camera.distortion or (0.0,) * 5),
        camera.matrix.ravel(),
        np.eye(3).ravel(),
        np.zeros(12),
        0,
        0,
        roi,
    )


def joint_state(stamp: int, joints: Mapping[str, float]) -> Any:
    nothing = np.zeros(0)
    position = np.array(list(joints.values()))
    return make(
        "sensor_msgs/msg/JointState", header(stamp, ""), list(joints), position, nothing, nothing
    )


def hg_motor(q: float, store: Typestore = STORE) -> Any:
    return make(
        "unitree_hg/msg/MotorState",
        1,
        q,
        0.0,
        0.0,
        0.0,
        np.zeros(2, np.int16),
        48.0,
        np.zeros(2, np.uint32),
        0,
        np.zeros(4, np.uint32),
        store=store,
    )


def hg_imu(store: Typestore = STORE) -> Any:
    zeros = [np.zeros(n, np.float32) for n in (3, 3, 3)]
    quaternion = np.array([1, 0, 0, 0], np.float32)
    return make("unitree_hg/msg/IMUState", quaternion, *zeros, 30, store=store)


def low_state(joints: Mapping[str, float], robot: Embodiment = ROBOT) -> Any:
    """A unitree_hg/LowState of the body's motors in the order of the wire."""
    order = robot.state_orders["unitree_hg/LowState"]
    motors = [hg_motor(joints.get(name, 0.0)) for name in order]
    motors += [hg_motor(9.9)] * (35 - len(motors))
    return make(
        "unitree_hg/msg/LowState",
        np.zeros(2, np.uint32),
        0,
        5,
        0,
        hg_imu(),
        motors,
        np.zeros(40, np.uint8),
        np.zeros(4, np.uint32),
        0,
    )


def hand_state(
    joints: Mapping[str, float], order: Iterable[str], *, store: Typestore = STORE
) -> Any:
    """A unitree_hg/HandState of ``store``'s version, with nine pressure sensors."""
    motors = [hg_motor(joints[name], store) for name in order]
    cells = [np.full(12, 30000.0, np.float32)] * 2
    press = [make("unitree_hg/msg/PressSensorState", *cells, 0, 0, store=store)] * 9
    fields = store.types["unitree_hg/msg/HandState"].__dataclass_fields__
    sensors = {"press_sensor_state": press, "imu_state": hg_imu(store)}
    ordered = [sensors[name] for name in fields if name in sensors]
    pair = np.zeros(2, np.uint32)
    return make(
        "unitree_hg/msg/HandState", motors, *ordered, 1.0, 2.0, 3.0, 4.0, pair, pair, store=store
    )


def motor_states(values: Iterable[float]) -> Any:
    """A unitree_go/MotorStates, as Inspire's driver publishes the openness of both hands."""
    rest = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 20, 0, np.zeros(2, np.uint32))
    return make(
        "unitree_go/msg/MotorStates",
        [make("unitree_go/msg/MotorState", 1, q, *rest) for q in values],
    )


Message = tuple[float, str, Any]
"""Seconds from the start at which a message is recorded, its topic, the message."""


def write_bag(
    path: Path,
    messages: Iterable[Message],
    *,
    plugin: StoragePlugin = StoragePlugin.MCAP,
    store: Typestore = STORE,
) -> Path:
    """A bag of messages, sorted by time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with Writer(path, version=9, storage_plugin=plugin) as writer:
        connections: dict[str, Any] = {}
        for seconds, topic, message in sorted(messages, key=lambda entry: entry[0]):
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=store)
            data = store.serialize_cdr(message, kind)
            writer.write(connections[topic], START + round(seconds * 1e9), data)
    return path


def write_mixed(
    path: Path, messages: Iterable[Message], *, stores: Callable[[str], Typestore]
) -> Path:
    """A sqlite3 bag as before ROS 2 Iron: no message definitions in it, types by topic."""
    with Writer(path, version=8, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connections: dict[str, Any] = {}
        for seconds, topic, message in sorted(messages, key=lambda entry: entry[0]):
            kind, store = message.__msgtype__, stores(topic)
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=store)
            data = store.serialize_cdr(message, kind)
            writer.write(connections[topic], START + round(seconds * 1e9), data)
    (database,) = path.glob("*.db3")
    with sqlite3.connect(database) as connection:
        connection.execute("DELETE FROM message_definitions")
    return path


def stamp(seconds: float) -> int:
    return START + round(seconds * 1e9)


def camera_messages(
    times: Iterable[float],
    *,
    image: Callable[[int, NDArray[np.uint8]], Any] = raw_image,
    topic: str = IMAGE_TOPIC,
    delay: float = 0.02,
    info: bool = True,
) -> list[Message]:
    """Pictures 0, 1, … at ``times``, recorded ``delay`` seconds later, with CameraInfo."""
    out: list[Message] = []
    for number, seconds in enumerate(times):
        out.append((seconds + delay, topic, image(stamp(seconds), picture(number))))
        if info:
            out.append((seconds + delay, INFO_TOPIC, camera_info(stamp(seconds))))
    return out


def distance(number: int) -> NDArray[np.uint16]:
    """(H, W) millimetres that say which frame it is; unknown (0) in the first columns."""
    depth = np.full((HEIGHT, WIDTH), 500 + 10 * number, np.uint16)
    depth[:, :5] = 0
    return depth


def depth_messages(
    times: Iterable[float], *, encoding: str = "16UC1", late: float = 0.0, delay: float = 0.02
) -> list[Message]:
    """Depth images of the frames at ``times``, stamped ``late`` seconds after them."""
    return [
        (t + delay, DEPTH_TOPIC, depth_image(stamp(t + late), distance(number), encoding))
        for number, t in enumerate(times)
    ]


def joint_messages(times: Iterable[float], topic: str = "/joint_states") -> list[Message]:
    return [(t, topic, joint_state(stamp(t), joints_at(t))) for t in times]
