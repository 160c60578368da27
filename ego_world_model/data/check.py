"""Say exactly what is wrong with a dataset, and what it must look like instead.

Findings name the file, column and episode. Everything that training reads is looked at: metadata,
columns and their types, numbering, timestamps, finite numbers, rotations, pictures of the right
size and kind, videos of the right length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ego_world_model.data import tables
from ego_world_model.data.layout import (
    CODEBASE_VERSION,
    DATA_PATTERN,
    EMBODIMENT_KEY,
    INFO,
    MODALITY,
    STATS,
    TASKS,
    DatasetSpec,
    read_json,
)
from ego_world_model.data.reader import DatasetReader

_INFO_FIELDS: dict[str, type | tuple[type, ...]] = {
    "codebase_version": str,
    "robot_type": str,
    "total_episodes": int,
    "total_frames": int,
    "total_tasks": int,
    "chunks_size": int,
    "data_files_size_in_mb": (int, float),
    "video_files_size_in_mb": (int, float),
    "fps": (int, float),
    "splits": dict,
    "data_path": str,
    "features": dict,
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: where, what, and what it must be."""

    place: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}. It must be: {self.remedy}"


def check_dataset(
    root: str | Path, *, pictures: bool = True, on_episode: Callable[[int, int], None] | None = None
) -> list[Finding]:
    """All findings of a dataset folder; an empty list means that it is sound.

    Args:
        pictures: also decode every frame, mask and depth image (slower).
        on_episode: called with (episodes looked at, episodes in all), for progress.
    """
    root = Path(root)
    findings = _check_metadata(root)
    if findings:
        return findings  # without sound metadata nothing else can be located
    spec = DatasetSpec.from_folder(root)
    try:
        rows = tables.read_episode_rows(root)
    except (ValueError, KeyError, pa.ArrowInvalid) as error:
        return [Finding("meta/episodes", str(error), "one row per episode, numbered from 0")]
    findings += _check_totals(root, rows)
    findings += _check_numbering(rows)
    findings += _check_columns(root, spec, rows)
    if findings:
        return findings
    tasks = tables.read_tasks(root / TASKS)
    reader = DatasetReader(root)
    for index in range(len(rows)):
        findings += _check_episode(reader, index, rows[index], tasks, pictures=pictures)
        if on_episode is not None:
            on_episode(index + 1, len(rows))
    return findings


def _check_metadata(root: Path) -> list[Finding]:
    out: list[Finding] = []
    for name in (INFO, MODALITY, STATS, TASKS):
        if not (root / name).exists():
            out.append(Finding(name, "the file is missing", f"see docs/data_format.md, {name}"))
    if out:
        return out
    try:
        info = read_json(root / INFO)
        read_json(root / MODALITY)
        stats = read_json(root / STATS)
        tables.read_tasks(root / TASKS)
    except (ValueError, pa.ArrowInvalid) as error:
        return [Finding("meta", str(error), "valid JSON and parquet")]
    for name, kind in _INFO_FIELDS.items():
        if not isinstance(info.get(name), kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            wanted = " or ".join(k.__name__ for k in kinds)
            out.append(Finding(INFO, f"{name} is {info.get(name)!r}", f"a {wanted}"))
    if out:
        return out
    if info["codebase_version"] != CODEBASE_VERSION:
        version = info["codebase_version"]
        return [Finding(INFO, f"codebase_version is {version!r}", repr(CODEBASE_VERSION))]
    try:
        spec = DatasetSpec.from_folder(root)
    except ValueError as error:
        return [Finding("meta", str(error), "the fields of docs/data_format.md")]
    for name, feature in spec.features.items():
        out += _check_feature(name, feature, info["features"].get(name))
        if name != EMBODIMENT_KEY and name not in stats:
            out.append(Finding(STATS, f"{name} is missing", "min, max, mean, std and count"))
    return out


def _check_feature(name: str, wanted: dict[str, Any], found: Any) -> list[Finding]:
    place = f"{INFO}, features, {name}"
    if found is None:
        return [Finding(place, "the feature is missing", f"{wanted['dtype']} {wanted['shape']}")]
    return [
        Finding(place, f"{field} is {found.get(field)!r}", repr(wanted[field]))
        for field in ("dtype", "shape", "names")
        if found.get(field) != wanted[field]
    ]


def _check_totals(root: Path, rows: list[dict[str, Any]]) -> list[Finding]:
    info = read_json(root / INFO)
    totals = {
        "total_episodes": len(rows),
        "total_frames": sum(row["length"] for row in rows),
        "total_tasks": len(tables.read_tasks(root / TASKS)),
    }
    return [
        Finding(INFO, f"{name} is {info[name]}", f"{number} (open it with a DatasetWriter to mend)")
        for name, number in totals.items()
        if info[name] != number
    ]


def _check_numbering(rows: list[dict[str, Any]]) -> list[Finding]:
    out: list[Finding] = []
    first = 0
    for row in rows:
        place = f"meta/episodes, episode {row['episode_index']}"
        if row["dataset_from_index"] != first:
            found = row["dataset_from_index"]
            out.append(
                Finding(place, f"dataset_from_index is {found}", f"{first}: the frames before it")
            )
        last = row["dataset_from_index"] + row["length"]
        if row["dataset_to_index"] != last:
            found = row["dataset_to_index"]
            out.append(Finding(place, f"dataset_to_index is {found}", f"{last}: from + length"))
        first = row["dataset_to_index"]
    return out


def _check_columns(root: Path, spec: DatasetSpec, rows: list[dict[str, Any]]) -> list[Finding]:
    out: list[Finding] = []
    schema = tables.data_schema(spec)
    files: dict[str, int] = {}
    for row in rows:
        name = DATA_PATTERN.format(
            chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
        )
        files[name] = files.get(name, 0) + row["length"]
    for name, frames in files.items():
        try:
            file = pq.ParquetFile(root / name)
        except FileNotFoundError:
            out.append(Finding(name, "the file is missing", f"{frames} frames"))
            continue
        except pa.ArrowInvalid as error:
            out.append(Finding(name, f"not readable ({error})", "a parquet file"))
            continue
        if file.metadata.num_rows != frames:
            out.append(
                Finding(name, f"{file.metadata.num_rows} rows", f"{frames}, as meta/episodes says")
            )
        found = {field.name: field.type for field in file.schema_arrow}
        for field in schema:
            kind = found.get(field.name)
            if kind is None:
                out.append(Finding(f"{name}, column {field.name}", "missing", str(field.type)))
            elif not _same_kind(kind, field.type):
                out.append(Finding(f"{name}, column {field.name}", f"type {kind}", str(field.type)))
    return out


def _same_kind(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether two types hold the same values (list field names and fixed sizes aside)."""
    while pa.types.is_list(wanted) or pa.types.is_fixed_size_list(wanted):
        if not (pa.types.is_list(found) or pa.types.is_fixed_size_list(found)):
            return False
        found, wanted = found.value_type, wanted.value_type
    return found.equals(wanted)


def _check_episode(
    reader: DatasetReader, index: int, row: dict[str, Any], tasks: dict[str, int], *, pictures: bool
) -> list[Finding]:
    spec, record = reader.spec, reader.records[index]
    place = f"{record.path.relative_to(reader.root)}, episode {index}"
    out: list[Finding] = []
    try:
        columns = reader.columns(index, ["timestamp", "frame_index", "episode_index", "task_index"])
    except ValueError as error:
        return [Finding(place, str(error), f"{record.length} rows")]
    steps = np.arange(record.length)
    wanted = {
        "frame_index": (steps, "0, 1, 2, ... within the episode"),
        "episode_index": (np.full(len(steps), index), f"{index} in all its frames"),
        "timestamp": (steps / spec.fps, f"frame_index / fps ({spec.fps:g} frames per second)"),
    }
    for name, (expected, remedy) in wanted.items():
        wrong = np.flatnonzero(np.abs(columns[name] - expected) > 1e-4)
        if len(wrong):
            k = int(wrong[0])
            problem = f"{columns[name][k]} at frame {k} ({len(wrong)} frames differ)"
            out.append(Finding(f"{place}, column {name}", problem, remedy))
    for task in row["tasks"]:
        if task not in tasks:
            out.append(Finding(f"{TASKS}", f"the task {task!r} is missing", "a row for each task"))
    unknown = set(columns["task_index"].tolist()) - set(tasks.values())
    if unknown:
        problem = f"numbers {sorted(unknown)} are not in {TASKS}"
        out.append(Finding(f"{place}, column task_index", problem, "a number of that table"))
    if record.video is not None and not record.video.exists():
        name = str(record.video.relative_to(reader.root))
        return [*out, Finding(name, "the video is missing", f"{record.length} frames")]
    try:
        reader.episode(index, images=pictures, masks=pictures, depth=pictures)
    except (ValueError, OSError, pa.ArrowInvalid) as error:
        out.append(Finding(place, str(error), "as docs/data_format.md describes it"))
    return out
