"""The parquet tables of a LeRobot v3.0 dataset: frames, episodes and tasks."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ego_world_model.data.layout import (
    FILES_PER_CHUNK,
    IMAGE_KEY,
    METADATA_COLUMN,
    DatasetSpec,
    arrow_type,
)
from ego_world_model.data.statistics import vector_stats

_STAT_NAMES = ("min", "max", "mean", "std", "count")


def data_schema(spec: DatasetSpec) -> pa.Schema:
    """Columns of the data files (videos lie beside them, not in them)."""
    features = {k: f for k, f in spec.features.items() if f["dtype"] != "video"}
    schema = pa.schema([pa.field(name, arrow_type(f)) for name, f in features.items()])
    described = {name: _hugging_face_feature(feature) for name, feature in features.items()}
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": described}})})


def _hugging_face_feature(feature: Mapping[str, Any]) -> dict[str, Any]:
    """How the `datasets` library describes a column, so that it decodes images by itself."""
    if feature["dtype"] == "image":
        return {"_type": "Image"}
    value = {"dtype": feature["dtype"], "_type": "Value"}
    if feature["shape"] == [1]:
        return value
    if len(feature["shape"]) == 1:
        return {"feature": value, "length": feature["shape"][0], "_type": "Sequence"}
    return {"shape": feature["shape"], "dtype": feature["dtype"], "_type": "Array2D"}


def episode_row(
    spec: DatasetSpec,
    index: int,
    summary: Mapping[str, Any],
    *,
    first: int,
    file: int,
    extra: Mapping[str, NDArray[Any]],
) -> dict[str, Any]:
    """One row of meta/episodes.

    Args:
        first: the episode's first frame in the whole dataset.
        file: number of its data file (and of the episode file that lists it).
        extra: per-frame numbers that were not known when the episode was encoded.
    """
    chunk, number = divmod(file, FILES_PER_CHUNK)
    row: dict[str, Any] = {
        "episode_index": index,
        "tasks": [summary["task"]],
        "length": summary["length"],
        "data/chunk_index": chunk,
        "data/file_index": number,
        "dataset_from_index": first,
        "dataset_to_index": first + summary["length"],
    }
    if spec.image_storage == "video":
        video_chunk, video_file = divmod(index, FILES_PER_CHUNK)
        row |= {
            f"videos/{IMAGE_KEY}/chunk_index": video_chunk,
            f"videos/{IMAGE_KEY}/file_index": video_file,
            f"videos/{IMAGE_KEY}/from_timestamp": 0.0,
            f"videos/{IMAGE_KEY}/to_timestamp": summary["length"] / spec.fps,
        }
    constant = np.full(summary["length"], index)
    stats: dict[str, Mapping[str, Any]] = dict(summary["stats"])
    for key, values in {"episode_index": constant, **extra}.items():
        stats[key] = {name: value.tolist() for name, value in vector_stats(values).items()}
    for key, entry in stats.items():
        row |= {f"stats/{key}/{name}": entry[name] for name in _STAT_NAMES}
    return row | {
        METADATA_COLUMN: json.dumps(summary["metadata"]),
        "meta/episodes/chunk_index": chunk,
        "meta/episodes/file_index": number,
    }


def row_stats(row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The statistics of a meta/episodes row, by feature."""
    out: dict[str, dict[str, Any]] = {}
    for column, value in row.items():
        if column.startswith("stats/"):
            _, key, name = column.split("/")
            out.setdefault(key, {})[name] = value
    return out


def file_number(row: Mapping[str, Any]) -> int:
    """Number of the episode file that a row came from."""
    return row["meta/episodes/chunk_index"] * FILES_PER_CHUNK + row["meta/episodes/file_index"]


def write_episode_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one meta/episodes file, whole or not at all."""
    write_table(path, pa.Table.from_pylist(rows))


def read_episode_rows(root: Path, *, stats: bool = False) -> list[dict[str, Any]]:
    """All rows of meta/episodes in episode order.

    Raises:
        ValueError: if episode numbers do not run 0, 1, 2, ... without a gap.
    """
    rows: list[dict[str, Any]] = []
    for path in sorted((root / "meta/episodes").glob("chunk-*/file-*.parquet")):
        file = pq.ParquetFile(path)
        names = [n for n in file.schema_arrow.names if stats or not n.startswith("stats/")]
        rows += file.read(columns=names).to_pylist()
    rows.sort(key=lambda row: row["episode_index"])
    numbers = [row["episode_index"] for row in rows]
    if numbers != list(range(len(rows))):
        wrong = next(i for i, number in enumerate(numbers) if number != i)
        raise ValueError(
            f"{root}/meta/episodes: row {wrong} has episode_index {numbers[wrong]}, "
            "but episodes must be numbered 0, 1, 2, ... without gaps"
        )
    return rows


def write_tasks(path: Path, tasks: Mapping[str, int]) -> None:
    """meta/tasks.parquet: task_index with the instruction as the (pandas) row label.

    pandas itself is not needed: its label column is marked in the schema's metadata.
    """
    label = "__index_level_0__"
    text = {"pandas_type": "unicode", "numpy_type": "object"}
    pandas = {
        "index_columns": [label],
        "column_indexes": [
            {"name": None, "field_name": None, "metadata": {"encoding": "UTF-8"}} | text
        ],
        "columns": [
            {
                "name": "task_index",
                "field_name": "task_index",
                "pandas_type": "int64",
                "numpy_type": "int64",
                "metadata": None,
            },
            {"name": None, "field_name": label, "metadata": None} | text,
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    schema = pa.schema([("task_index", pa.int64()), (label, pa.string())])
    columns = [pa.array(list(tasks.values()), pa.int64()), pa.array(list(tasks), pa.string())]
    schema = schema.with_metadata({"pandas": json.dumps(pandas)})
    write_table(path, pa.Table.from_arrays(columns, schema=schema))


def read_tasks(path: Path) -> dict[str, int]:
    """Instruction → task_index, whichever name the label column has."""
    table = pq.read_table(path)
    labels = [name for name in table.column_names if name != "task_index"]
    if len(labels) != 1 or "task_index" not in table.column_names:
        raise ValueError(
            f"{path} must have the column task_index and one column of instructions, "
            f"found {table.column_names}"
        )
    numbers = table["task_index"].to_pylist()
    return dict(zip(table[labels[0]].to_pylist(), numbers, strict=True))


def write_table(path: Path, table: pa.Table) -> None:
    """Write a parquet file so that it appears whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table, temporary, compression="snappy")
    temporary.replace(path)
