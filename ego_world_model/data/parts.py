"""One finished episode on its way into a dataset.

A *part* is a parquet file with one episode's frames, named by the episode's number and written
whole or not at all. Any process can write any part, so many workers fill one dataset and an
interrupted run goes on where it stopped; ``writer.DatasetWriter`` then gathers parts into
LeRobot's larger files. Readers take parts that are not yet gathered as they are.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ego_world_model.data.layout import (
    ACTION_KEY,
    DEPTH_KEY,
    EMBODIMENT_KEY,
    HANDS_KEY,
    IMAGE_KEY,
    INTRINSICS_KEY,
    MASK_KEY,
    POSE_KEY,
    STATE_KEY,
    VALID_KEY,
    VIDEO_PATTERN,
    DatasetSpec,
    arrow_type,
    intrinsics_vector,
    numbered,
)
from ego_world_model.data.schema import Episode
from ego_world_model.data.statistics import Stats, image_stats, vector_stats
from ego_world_model.media import encode_png, write_video

PARTS_FOLDER = "parts"
SUMMARY_KEY = b"ego_world_model.episode"
_NAME = re.compile(r"episode-(\d{6,})\.parquet")


def part_path(root: Path, index: int) -> Path:
    """Where the part of episode ``index`` lies."""
    return root / PARTS_FOLDER / f"episode-{index:06d}.parquet"


def part_indices(root: Path) -> list[int]:
    """Numbers of the complete parts in a dataset folder, rising."""
    folder = root / PARTS_FOLDER
    if not folder.is_dir():
        return []
    matches = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def write_part(root: Path, spec: DatasetSpec, index: int, episode: Episode) -> Path:
    """Encode an episode and write it (and its video, where frames are kept as video).

    Raises:
        ValueError: if the episode is not of the dataset's kind, naming the field.
    """
    check_matches(spec, episode)
    if spec.image_storage == "video":
        video = root / numbered(VIDEO_PATTERN, index, video_key=IMAGE_KEY)
        write_video(video, episode.images, fps=spec.fps)
    columns = _columns(spec, index, episode)
    summary = {
        "length": len(episode),
        "task": episode.task,
        "metadata": dict(episode.metadata),
        "stats": {
            key: {name: value.tolist() for name, value in stats.items()}
            for key, stats in _stats(spec, episode).items()
        },
    }
    schema = pa.schema([pa.field(name, column.type) for name, column in columns.items()])
    schema = schema.with_metadata({SUMMARY_KEY: json.dumps(summary).encode()})
    path = part_path(root, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    table = pa.Table.from_arrays(list(columns.values()), schema=schema)
    # PNG bytes do not compress further, so the plain encoding is the quick one.
    pq.write_table(table, temporary, compression="none", use_dictionary=[EMBODIMENT_KEY])
    temporary.replace(path)
    return path


def read_summary(path: Path) -> dict[str, Any]:
    """Length, task, metadata and statistics of a part."""
    return json.loads(pq.read_schema(path).metadata[SUMMARY_KEY])


def check_matches(spec: DatasetSpec, episode: Episode) -> None:
    """Refuse an episode that does not belong in the dataset."""
    pairs: list[tuple[str, Any, Any]] = [
        ("embodiment", spec.embodiment, episode.embodiment),
        ("fps", float(spec.fps), float(episode.fps)),
        (
            "image size",
            (spec.camera.width, spec.camera.height),
            (episode.camera.width, episode.camera.height),
        ),
        ("joint_names", spec.joint_names, episode.joint_names),
        ("slot_names", spec.slot_names, episode.slot_names),
    ]
    for name, expected, found in pairs:
        if expected != found:
            raise ValueError(
                f"the dataset's {name} is {expected}, the episode's is {found}; "
                "write episodes of another kind to another dataset"
            )
    for name, wanted, value in (
        ("masks", spec.masks, episode.masks),
        ("depth", spec.depth, episode.depth),
    ):
        if wanted != (value is not None):
            has, needs = ("has none", "has") if wanted else ("has them", "has no")
            raise ValueError(
                f"the dataset {needs} {name} but the episode {has}; give every episode the same, "
                f"or open the dataset with {name}={not wanted}"
            )


def _columns(spec: DatasetSpec, index: int, episode: Episode) -> dict[str, pa.Array]:
    """One arrow column per feature; ``index`` and ``task_index`` are given when gathered."""
    steps = len(episode)
    values: dict[str, NDArray[Any] | None] = {
        IMAGE_KEY: episode.images if spec.image_storage == "image" else None,
        MASK_KEY: episode.masks,
        DEPTH_KEY: episode.depth,
        STATE_KEY: episode.state,
        ACTION_KEY: episode.action,
        HANDS_KEY: episode.hand_positions,
        VALID_KEY: episode.hand_valid,
        POSE_KEY: episode.camera_pose,
        INTRINSICS_KEY: np.tile(intrinsics_vector(episode.camera), (steps, 1)),
        "timestamp": episode.times.astype(np.float32),
        "frame_index": np.arange(steps, dtype=np.int64),
        "episode_index": np.full(steps, index, dtype=np.int64),
    }
    columns: dict[str, pa.Array] = {}
    for name, feature in spec.features.items():
        if name == EMBODIMENT_KEY:
            columns[name] = pa.array([episode.embodiment] * steps)
        elif values.get(name) is None:
            continue
        elif feature["dtype"] == "image":
            columns[name] = _png_column(values[name])
        else:
            columns[name] = nested_column(values[name], arrow_type(feature))
    return columns


def nested_column(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """(T, ...) numbers as an arrow column of scalars, fixed-size lists or lists of lists."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    if not pa.types.is_nested(kind):  # LeRobot keeps vectors of one number as scalars, too
        return flat
    if values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    inner = pa.ListArray.from_arrays(
        _offsets(values.shape[0] * values.shape[1], values.shape[2]), flat
    )
    return pa.ListArray.from_arrays(_offsets(values.shape[0], values.shape[1]), inner).cast(kind)


def _offsets(count: int, size: int) -> pa.Array:
    return pa.array(np.arange(count + 1, dtype=np.int32) * np.int32(size))


def _png_column(images: NDArray[Any]) -> pa.Array:
    encoded = pa.array([encode_png(image) for image in images], pa.binary())
    paths = pa.nulls(len(images), pa.string())
    return pa.StructArray.from_arrays([encoded, paths], names=["bytes", "path"])


def _stats(spec: DatasetSpec, episode: Episode) -> dict[str, Stats]:
    stats = {IMAGE_KEY: image_stats(episode.images)}
    if episode.masks is not None:
        stats[MASK_KEY] = image_stats(episode.masks)
    if episode.depth is not None:
        stats[DEPTH_KEY] = image_stats(episode.depth, scale=1.0)
    intrinsics = np.tile(intrinsics_vector(episode.camera), (len(episode), 1))
    vectors = {
        STATE_KEY: episode.state,
        ACTION_KEY: episode.action,
        HANDS_KEY: episode.hand_positions,
        VALID_KEY: episode.hand_valid,
        POSE_KEY: episode.camera_pose,
        INTRINSICS_KEY: intrinsics,
        "timestamp": episode.times,
        "frame_index": np.arange(len(episode)),
    }
    return stats | {key: vector_stats(value) for key, value in vectors.items()}
