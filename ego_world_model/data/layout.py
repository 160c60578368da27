"""Where everything lies in a dataset folder, and what its metadata files say.

The folder is a LeRobot v3.0 dataset: many episodes per parquet file, found through
``meta/episodes``. To its own columns we add hand slots, their validity, camera pose and
intrinsics, embodiment, and (lossless PNG) masks and depth; ``meta/modality.json`` says what every
number of every vector means.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from ego_world_model.camera import PinholeCamera
from ego_world_model.data.schema import MASK_CLASSES

CODEBASE_VERSION = "v3.0"
FILES_PER_CHUNK = 1000
DATA_FILE_MB = 100
VIDEO_FILE_MB = 500

INFO, STATS, TASKS, MODALITY = (
    "meta/info.json",
    "meta/stats.json",
    "meta/tasks.parquet",
    "meta/modality.json",
)
DATA_PATTERN = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATTERN = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATTERN = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"

IMAGE_KEY = "observation.images.head"
MASK_KEY = "observation.masks.head"
DEPTH_KEY = "observation.depth.head"
STATE_KEY, ACTION_KEY = "observation.state", "action"
HANDS_KEY, VALID_KEY = "observation.hands.positions", "observation.hands.valid"
POSE_KEY, INTRINSICS_KEY = "observation.camera.pose", "observation.camera.intrinsics"
EMBODIMENT_KEY = "observation.embodiment"
METADATA_COLUMN = "metadata"
"""Column of ``meta/episodes`` with each episode's own metadata as JSON."""

INTRINSIC_NAMES = ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3")
ImageStorage = Literal["video", "image"]


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """What all episodes of one dataset have in common.

    Attributes:
        embodiment: the robot's name, also LeRobot's ``robot_type``.
        fps: frames per second.
        camera: nominal intrinsics; its size is every image's size (each frame keeps its own
            intrinsics, since mounts and lenses are jittered).
        joint_names: order of ``state`` and ``action``.
        slot_names: order of the hand slots.
        image_storage: ``"video"`` (H.264, small, LeRobot's default) or ``"image"`` (PNG in the
            parquet files: lossless and quick at random access; the choice for training frames).
        masks, depth: whether episodes carry segmentation masks and depth.
        joint_limits: optional (lower, upper) in rad, written to modality.json as ranges.
    """

    embodiment: str
    fps: float
    camera: PinholeCamera
    joint_names: tuple[str, ...]
    slot_names: tuple[str, ...]
    image_storage: ImageStorage = "video"
    masks: bool = True
    depth: bool = True
    joint_limits: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def __post_init__(self) -> None:
        if self.image_storage not in ("video", "image"):
            raise ValueError(
                f"image_storage must be 'video' or 'image', got {self.image_storage!r}"
            )
        object.__setattr__(self, "joint_names", tuple(self.joint_names))
        object.__setattr__(self, "slot_names", tuple(self.slot_names))

    @property
    def features(self) -> dict[str, dict[str, Any]]:
        """LeRobot's ``features`` of info.json, in column order."""
        size = [self.camera.height, self.camera.width]
        joints, slots = list(self.joint_names), list(self.slot_names)
        axes = ["height", "width", "channels"]
        image: dict[str, Any] = {"dtype": self.image_storage, "shape": [*size, 3], "names": axes}
        if self.image_storage == "video":
            image["info"] = {
                "video.height": size[0],
                "video.width": size[1],
                "video.codec": "h264",
                "video.pix_fmt": "yuv420p",
                "video.is_depth_map": False,
                "video.fps": whole(self.fps),
                "video.channels": 3,
                "has_audio": False,
            }
        features = {IMAGE_KEY: image}
        if self.masks:
            features[MASK_KEY] = {"dtype": "image", "shape": [*size, 1], "names": axes}
        if self.depth:
            features[DEPTH_KEY] = {
                "dtype": "image",
                "shape": [*size, 1],
                "names": axes,
                "info": {"is_depth_map": True},
            }
        vector = {"dtype": "float32", "shape": [len(joints)], "names": joints}
        names = {"slots": slots, "axes": ["x", "y", "z"]}
        matrix = {"rows": ["x", "y", "z", "w"], "columns": ["x", "y", "z", "translation"]}
        return features | {
            STATE_KEY: vector,
            ACTION_KEY: dict(vector),
            HANDS_KEY: {"dtype": "float32", "shape": [len(slots), 3], "names": names},
            VALID_KEY: {"dtype": "bool", "shape": [len(slots)], "names": slots},
            POSE_KEY: {"dtype": "float64", "shape": [4, 4], "names": matrix},
            INTRINSICS_KEY: {
                "dtype": "float64",
                "shape": [len(INTRINSIC_NAMES)],
                "names": list(INTRINSIC_NAMES),
            },
            EMBODIMENT_KEY: {"dtype": "string", "shape": [1], "names": None},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
            "frame_index": {"dtype": "int64", "shape": [1], "names": None},
            "episode_index": {"dtype": "int64", "shape": [1], "names": None},
            "index": {"dtype": "int64", "shape": [1], "names": None},
            "task_index": {"dtype": "int64", "shape": [1], "names": None},
        }

    def info(self, *, episodes: int, frames: int, tasks: int, split: str) -> dict[str, Any]:
        """The content of meta/info.json."""
        return {
            "codebase_version": CODEBASE_VERSION,
            "robot_type": self.embodiment,
            "total_episodes": episodes,
            "total_frames": frames,
            "total_tasks": tasks,
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": DATA_FILE_MB,
            "video_files_size_in_mb": VIDEO_FILE_MB,
            "fps": whole(self.fps),
            "splits": {split: f"0:{episodes}"},
            "data_path": DATA_PATTERN,
            "video_path": VIDEO_PATTERN if self.image_storage == "video" else None,
            "features": self.features,
        }

    def modality(self) -> dict[str, Any]:
        """The content of meta/modality.json: parts, units, ranges and frames of every vector."""
        joints: dict[str, Any] = {
            "joints": {
                "start": 0,
                "end": len(self.joint_names),
                "names": list(self.joint_names),
                "unit": "rad",
                "dtype": "float32",
                "absolute": True,
            }
        }
        if self.joint_limits is not None:
            lower, upper = self.joint_limits
            joints["joints"]["range"] = [list(lower), list(upper)]
        camera = self.camera
        return {
            "state": {"joints": joints["joints"] | {"original_key": STATE_KEY}},
            "action": {
                "joints": joints["joints"]
                | {"original_key": ACTION_KEY, "meaning": "joint positions commanded for frame k+1"}
            },
            "hands": {
                "positions": {
                    "original_key": HANDS_KEY,
                    "shape": ["slots", "xyz"],
                    "names": list(self.slot_names),
                    "unit": "m",
                    "frame": "camera optical frame at frame k (x right, y down, z forward)",
                    "validity": VALID_KEY,
                }
            },
            "camera": {
                "pose": {
                    "original_key": POSE_KEY,
                    "meaning": "root_T_optical: camera k in the robot's root frame",
                    "unit": "m",
                    "rotation": "matrix",
                },
                "intrinsics": {
                    "original_key": INTRINSICS_KEY,
                    "names": list(INTRINSIC_NAMES),
                    "unit": "pixels; k1 to k3 are 0: pictures are rectified",
                    "pixel_centres": "integers",
                    "nominal": intrinsics_vector(camera),
                    "width": camera.width,
                    "height": camera.height,
                },
            },
            "video": {"head": {"original_key": IMAGE_KEY, "unit": "RGB uint8"}},
            "masks": {"head": {"original_key": MASK_KEY, "classes": list(MASK_CLASSES)}}
            if self.masks
            else {},
            "depth": {"head": {"original_key": DEPTH_KEY, "unit": "mm", "unknown": 0}}
            if self.depth
            else {},
            "embodiment": {"original_key": EMBODIMENT_KEY},
            "annotation": {"task": {"original_key": "task_index"}},
        }

    @classmethod
    def from_folder(cls, root: Path) -> DatasetSpec:
        """The spec that a dataset folder was written with."""
        info, modality = read_json(root / INFO), read_json(root / MODALITY)
        if info.get("codebase_version") != CODEBASE_VERSION:
            raise ValueError(
                f"{root / INFO}: codebase_version is {info.get('codebase_version')!r}, this "
                f"package reads {CODEBASE_VERSION!r}; convert older datasets with lerobot's "
                "own v2.1 to v3.0 converter"
            )
        try:
            features, joints = info["features"], modality["state"]["joints"]
            intrinsics = modality["camera"]["intrinsics"]
            limits = joints.get("range")
            return cls(
                embodiment=info["robot_type"],
                fps=float(info["fps"]),
                camera=camera_from_vector(
                    intrinsics["nominal"], intrinsics["width"], intrinsics["height"]
                ),
                joint_names=tuple(joints["names"]),
                slot_names=tuple(modality["hands"]["positions"]["names"]),
                image_storage=features[IMAGE_KEY]["dtype"],
                masks=MASK_KEY in features,
                depth=DEPTH_KEY in features,
                joint_limits=None if limits is None else (tuple(limits[0]), tuple(limits[1])),
            )
        except KeyError as error:
            raise ValueError(
                f"{root}: {error} is missing from {INFO} or {MODALITY}; "
                "is this dataset from another program? see docs/data_format.md for what is needed"
            ) from error


def whole(number: float) -> int | float:
    """Integers as int (LeRobot wants a whole fps as an int), others unchanged."""
    return int(number) if float(number).is_integer() else float(number)


def intrinsics_vector(camera: PinholeCamera) -> list[float]:
    """fx, fy, cx, cy and five distortion coefficients, which are 0.

    Raises:
        ValueError: a camera with a lens; what reads a dataset projects through ideal pinholes.
    """
    if camera.distortion:
        raise ValueError(
            f"datasets hold pictures of ideal pinholes, but the camera has "
            f"{camera.distortion_model} distortion {camera.distortion}; rectify the pictures "
            "(ego_world_model.rectification) and give the camera that sees them then"
        )
    return [camera.fx, camera.fy, camera.cx, camera.cy, 0.0, 0.0, 0.0, 0.0, 0.0]


def camera_from_vector(vector: Any, width: int, height: int) -> PinholeCamera:
    """The inverse of ``intrinsics_vector``.

    Raises:
        ValueError: a dataset whose pictures a lens bends.
    """
    fx, fy, cx, cy, *distortion = (float(x) for x in vector)
    if any(distortion):
        raise ValueError(
            f"the dataset's pictures have lens distortion {distortion}, for which nothing here "
            "corrects; import the recordings again into a new folder: they are rectified then"
        )
    return PinholeCamera(width, height, fx, fy, cx, cy)


def numbered(pattern: str, number: int, **keys: str) -> str:
    """Path of the ``number``-th file of a kind, FILES_PER_CHUNK to a chunk folder."""
    chunk, file = divmod(number, FILES_PER_CHUNK)
    return pattern.format(chunk_index=chunk, file_index=file, **keys)


def arrow_type(feature: Mapping[str, Any]) -> pa.DataType:
    """Parquet column type of a feature, as LeRobot's own writer stores it."""
    dtype, shape = feature["dtype"], feature["shape"]
    if dtype == "image":
        return pa.struct({"bytes": pa.binary(), "path": pa.string()})
    value = {"bool": pa.bool_(), "string": pa.string()}.get(dtype) or pa.type_for_alias(
        {"float32": "float", "float64": "double"}.get(dtype, dtype)
    )
    if list(shape) == [1]:
        return value
    if len(shape) == 1:
        return pa.list_(value, shape[0])
    return pa.list_(pa.list_(value))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file as a dict, with an error that names the file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: not a LeRobot v3.0 dataset folder?") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=4, ensure_ascii=False))
    temporary.replace(path)
