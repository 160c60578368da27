"""Write episodes into a LeRobot v3.0 dataset, surviving interruption at any instant.

Every ``write`` leaves a complete part on disk. Parts are gathered, in episode order, into data
files of about 100 MB; the file under ``meta/episodes`` that lists a data file's episodes appears
last and is what makes them count. ``info.json``, ``stats.json`` and ``tasks.parquet`` follow from
those lists and are rebuilt whenever a writer opens the folder, so a process killed anywhere loses
at most the episode that it was encoding.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ego_world_model.camera import PinholeCamera
from ego_world_model.data import tables
from ego_world_model.data.layout import (
    DATA_FILE_MB,
    DATA_PATTERN,
    EMBODIMENT_KEY,
    EPISODES_PATTERN,
    INFO,
    MODALITY,
    STATS,
    TASKS,
    DatasetSpec,
    ImageStorage,
    numbered,
    write_json,
)
from ego_world_model.data.parts import (
    PARTS_FOLDER,
    part_indices,
    part_path,
    read_summary,
    write_part,
)
from ego_world_model.data.schema import Episode
from ego_world_model.data.statistics import pooled


class DatasetWriter:
    """Creates a dataset folder or goes on with one; a context manager.

    Args:
        root: the dataset folder; made if absent. An existing dataset must be of the same kind.
        split: name under which info.json lists the episodes; one folder holds one split.
        Others: see ``layout.DatasetSpec``.

    Raises:
        ValueError: if the folder holds a dataset of another kind, naming what differs.
        RuntimeError: if another process is writing to the folder.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        embodiment: str,
        fps: float,
        camera: PinholeCamera,
        joint_names: tuple[str, ...] | list[str],
        slot_names: tuple[str, ...] | list[str],
        image_storage: ImageStorage = "video",
        masks: bool = True,
        depth: bool = True,
        split: str = "train",
        joint_limits: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
        file_mb: float = DATA_FILE_MB,
    ) -> None:
        self.root = Path(root)
        self.split = split
        self.spec = DatasetSpec(
            embodiment=embodiment,
            fps=fps,
            camera=camera,
            joint_names=tuple(joint_names),
            slot_names=tuple(slot_names),
            image_storage=image_storage,
            masks=masks,
            depth=depth,
            joint_limits=joint_limits,
        )
        self._file_bytes = file_mb * 2**20
        (self.root / PARTS_FOLDER).mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        try:
            self._open()
        except BaseException:
            self._lock.close()
            raise

    def __len__(self) -> int:
        """Episodes written so far, those of earlier runs included (up to the first gap)."""
        return self._gathered + len(self._pending())

    @property
    def missing(self) -> list[int]:
        """Episode numbers below the highest part that have no part yet (parallel writing)."""
        have = set(part_indices(self.root))
        return [i for i in range(self._gathered, max(have, default=-1) + 1) if i not in have]

    def has(self, index: int) -> bool:
        """Whether episode ``index`` is already on disk."""
        return index < self._gathered or part_path(self.root, index).exists()

    def write(self, episode: Episode) -> int:
        """Append an episode; it is on disk when this returns. Returns its number."""
        index = len(self)
        write_part(self.root, self.spec, index, episode)
        self.gather(only_full_files=True)
        return index

    def gather(self, *, only_full_files: bool = False) -> None:
        """Move finished parts, in order and up to the first missing one, into data files."""
        batch: list[int] = []
        size = 0
        for index in self._pending():
            batch.append(index)
            size += part_path(self.root, index).stat().st_size
            if size >= self._file_bytes:
                self._gather(batch)
                batch, size = [], 0
        if batch and not only_full_files:
            self._gather(batch)

    def close(self) -> None:
        """Gather what is left and let go of the folder."""
        if self._lock.closed:
            return
        try:
            self.gather()
            folder = self.root / PARTS_FOLDER
            if not part_indices(self.root):
                for path in folder.iterdir():
                    path.unlink()
                folder.rmdir()
        finally:
            self._lock.close()

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _take_lock(self) -> TextIO:
        # flock ends with its process, so a killed writer never leaves a stale lock.
        lock = (self.root / PARTS_FOLDER / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise RuntimeError(
                f"{self.root} is being written by another process; wait for it or choose "
                "another folder"
            ) from None
        return lock

    def _open(self) -> None:
        if (self.root / INFO).exists() and (self.root / MODALITY).exists():
            self._check_same_kind(DatasetSpec.from_folder(self.root))
        else:
            write_json(self.root / MODALITY, self.spec.modality())
        rows = tables.read_episode_rows(self.root, stats=True)
        self._gathered = len(rows)
        self._frames = rows[-1]["dataset_to_index"] if rows else 0
        self._files = 1 + max((tables.file_number(row) for row in rows), default=-1)
        self._tasks: dict[str, int] = {}
        for row in rows:
            for task in row["tasks"]:
                self._tasks.setdefault(task, len(self._tasks))
        self._stats = [tables.row_stats(row) for row in rows]
        for index in part_indices(self.root):
            if index < self._gathered:  # killed between gathering and tidying up
                part_path(self.root, index).unlink()
        for path in (self.root / PARTS_FOLDER).glob(".episode-*"):
            path.unlink()
        tables.write_tasks(self.root / TASKS, self._tasks)
        self._write_summary()

    def _check_same_kind(self, found: DatasetSpec) -> None:
        for name in DatasetSpec.__dataclass_fields__:
            mine, theirs = getattr(self.spec, name), getattr(found, name)
            if name != "joint_limits" and mine != theirs:
                raise ValueError(
                    f"{self.root} already holds a dataset whose {name} is {theirs}, but {mine} "
                    "was asked for; use the same settings or another folder"
                )

    def _pending(self) -> list[int]:
        """Parts from the first ungathered episode to the first gap."""
        out: list[int] = []
        while part_path(self.root, self._gathered + len(out)).exists():
            out.append(self._gathered + len(out))
        return out

    def _gather(self, batch: list[int]) -> None:
        summaries = [read_summary(part_path(self.root, index)) for index in batch]
        for summary in summaries:
            self._tasks.setdefault(summary["task"], len(self._tasks))
        tables.write_tasks(self.root / TASKS, self._tasks)
        rows = self._write_data(batch, summaries)
        path = self.root / numbered(EPISODES_PATTERN, self._files)
        tables.write_episode_rows(path, rows)  # from here on the episodes count
        self._files += 1
        self._gathered += len(rows)
        self._frames = rows[-1]["dataset_to_index"]
        self._stats += [tables.row_stats(row) for row in rows]
        self._write_summary()
        for index in batch:
            part_path(self.root, index).unlink()

    def _write_data(
        self, batch: list[int], summaries: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Write the batch as one data file, a row group per episode; their meta rows."""
        path = self.root / numbered(DATA_PATTERN, self._files)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        schema = tables.data_schema(self.spec)
        first, rows = self._frames, []
        with pq.ParquetWriter(
            temporary, schema, compression="snappy", use_dictionary=[EMBODIMENT_KEY]
        ) as writer:
            for index, summary in zip(batch, summaries, strict=True):
                length, task = summary["length"], self._tasks[summary["task"]]
                table = pq.read_table(part_path(self.root, index), memory_map=True)
                numbers = {
                    "index": np.arange(first, first + length, dtype=np.int64),
                    "task_index": np.full(length, task, dtype=np.int64),
                }
                for name, column in numbers.items():
                    table = table.append_column(name, pa.array(column))
                writer.write_table(table.select(schema.names).cast(schema))
                rows.append(
                    tables.episode_row(
                        self.spec, index, summary, first=first, file=self._files, extra=numbers
                    )
                )
                first += length
        temporary.replace(path)
        return rows

    def _write_summary(self) -> None:
        """info.json and stats.json from the episode lists."""
        info = self.spec.info(
            episodes=self._gathered, frames=self._frames, tasks=len(self._tasks), split=self.split
        )
        existing = self.root / INFO
        if existing.exists():
            splits = json.loads(existing.read_text()).get("splits", {})
            if splits and self.split not in splits:
                raise ValueError(
                    f"{self.root} holds the split {next(iter(splits))!r}; write {self.split!r} "
                    "to a folder of its own"
                )
        write_json(existing, info)
        if self._stats:
            write_json(self.root / STATS, pooled(self._stats))
