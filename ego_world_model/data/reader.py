"""Read episodes back, one at a time, decoding only what is asked for."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ego_world_model.data import tables
from ego_world_model.data.layout import (
    ACTION_KEY,
    DEPTH_KEY,
    HANDS_KEY,
    IMAGE_KEY,
    INFO,
    INTRINSICS_KEY,
    MASK_KEY,
    METADATA_COLUMN,
    POSE_KEY,
    STATE_KEY,
    VALID_KEY,
    VIDEO_PATTERN,
    DatasetSpec,
    camera_from_vector,
    numbered,
    read_json,
)
from ego_world_model.data.parts import part_path, read_summary
from ego_world_model.data.schema import Episode
from ego_world_model.media import decode_png, read_video

_OPEN_FILES = 8


@dataclass(frozen=True)
class EpisodeRecord:
    """Where one episode lies and what is known without decoding it.

    Attributes:
        path: parquet file; ``first`` is the episode's first row in it.
        video: MP4 with the frames and ``video_start``, the episode's first frame in it; or None.
    """

    index: int
    length: int
    task: str
    metadata: dict[str, Any]
    path: Path
    first: int
    video: Path | None
    video_start: int


class DatasetReader:
    """Episodes of a dataset folder, also while it is being written or after a crash.

    Opening reads the episode lists alone; frames are decoded by ``episode``. Safe to hand to
    worker processes (open files are not pickled). ``refresh`` picks up episodes written since.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.spec = DatasetSpec.from_folder(self.root)
        self._files: OrderedDict[Path, pq.ParquetFile] = OrderedDict()
        self.refresh()

    def refresh(self) -> None:
        """Look again for episodes; numbers already known keep their meaning."""
        self._files.clear()
        rows = tables.read_episode_rows(self.root)
        starts: dict[Path, int] = {}
        self.records: list[EpisodeRecord] = []
        for row in rows:
            path = self.root / _path(self._info["data_path"], row, "data")
            starts.setdefault(path, row["dataset_from_index"])
            self.records.append(self._record(row, path, starts[path]))
        while (path := part_path(self.root, len(self.records))).exists():
            self.records.append(self._part_record(path))

    @property
    def _info(self) -> dict[str, Any]:
        return read_json(self.root / INFO)

    def _record(self, row: dict[str, Any], path: Path, start: int) -> EpisodeRecord:
        video, video_start = None, 0
        if self.spec.image_storage == "video":
            keys = {"video_key": IMAGE_KEY}
            video = self.root / _path(self._info["video_path"], row, f"videos/{IMAGE_KEY}", **keys)
            video_start = round(row[f"videos/{IMAGE_KEY}/from_timestamp"] * self.spec.fps)
        return EpisodeRecord(
            index=row["episode_index"],
            length=row["length"],
            task=row["tasks"][0],
            metadata=json.loads(row.get(METADATA_COLUMN) or "{}"),
            path=path,
            first=row["dataset_from_index"] - start,
            video=video,
            video_start=video_start,
        )

    def _part_record(self, path: Path) -> EpisodeRecord:
        summary, index = read_summary(path), len(self.records)
        video = None
        if self.spec.image_storage == "video":
            video = self.root / numbered(VIDEO_PATTERN, index, video_key=IMAGE_KEY)
        return EpisodeRecord(
            index, summary["length"], summary["task"], summary["metadata"], path, 0, video, 0
        )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Episode:
        return self.episode(index)

    def __iter__(self) -> Iterator[Episode]:
        """All episodes with images and masks, one in memory at a time."""
        return (self.episode(i) for i in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict()}

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(episodes,) number of frames of each."""
        return np.array([record.length for record in self.records], dtype=np.int64)

    def episode(
        self,
        index: int,
        *,
        start: int = 0,
        stop: int | None = None,
        images: bool = True,
        masks: bool = True,
        depth: bool = False,
    ) -> Episode:
        """Episode ``index``, or its frames start..stop alone (a clip).

        Args:
            images: False leaves images black (all zero) and saves decoding them.
            masks, depth: whether to decode them, where the dataset has them.

        Raises:
            IndexError: for an episode or frames that do not exist.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.root} has {len(self)} episodes; episode {index} is not there")
        record = self.records[index]
        stop = record.length if stop is None else stop
        if not 0 <= start < stop <= record.length:
            raise IndexError(
                f"episode {index} has frames 0 to {record.length - 1}; {start}..{stop} was asked"
            )
        spec = self.spec
        wanted = [STATE_KEY, ACTION_KEY, HANDS_KEY, VALID_KEY, POSE_KEY, INTRINSICS_KEY]
        pictures = {
            IMAGE_KEY: images and spec.image_storage == "image",
            MASK_KEY: masks and spec.masks,
            DEPTH_KEY: depth and spec.depth,
        }
        wanted += [key for key, want in pictures.items() if want]
        table = self._rows(record, wanted, start, stop)
        decoded = {key: _decode(table[key]) for key, want in pictures.items() if want}
        size = (spec.camera.height, spec.camera.width)
        if images and record.video is not None:
            first = record.video_start + start
            decoded[IMAGE_KEY], _ = read_video(record.video, start=first, stop=first + stop - start)
        elif not images:
            decoded[IMAGE_KEY] = np.zeros((stop - start, *size, 3), np.uint8)
        return Episode(
            fps=spec.fps,
            images=decoded[IMAGE_KEY],
            state=_numbers(table[STATE_KEY], (len(spec.joint_names),)),
            action=_numbers(table[ACTION_KEY], (len(spec.joint_names),)),
            hand_positions=_numbers(table[HANDS_KEY], (len(spec.slot_names), 3)),
            hand_valid=_numbers(table[VALID_KEY], (len(spec.slot_names),)),
            slot_names=spec.slot_names,
            camera_pose=_numbers(table[POSE_KEY], (4, 4)),
            camera=camera_from_vector(_numbers(table[INTRINSICS_KEY], (9,))[0], size[1], size[0]),
            task=record.task,
            embodiment=spec.embodiment,
            joint_names=spec.joint_names,
            masks=decoded.get(MASK_KEY),
            depth=decoded.get(DEPTH_KEY),
            metadata=record.metadata,
        )

    def columns(self, index: int, names: list[str]) -> dict[str, NDArray[Any]]:
        """Columns of plain numbers (timestamps, indices) of episode ``index``, (T,) each."""
        record = self.records[index]
        table = self._rows(record, names, 0, record.length)
        return {name: table[name].to_numpy() for name in names}

    def _rows(self, record: EpisodeRecord, names: list[str], start: int, stop: int) -> pa.Table:
        """Columns of frames start..stop, reading only the row groups that hold them."""
        try:
            file = self._file(record.path)
        except FileNotFoundError:
            # The writer gathered this part into a data file since we looked.
            self.refresh()
            record = self.records[record.index]
            file = self._file(record.path)
        missing = set(names) - set(file.schema_arrow.names)
        if missing:
            raise ValueError(
                f"{record.path} lacks the columns {sorted(missing)}; "
                "check it with `ego-world-model data check`"
            )
        first, last = record.first + start, record.first + stop
        groups, offset, base = [], 0, None
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if offset < last and offset + rows > first:
                groups.append(group)
                base = offset if base is None else base
            offset += rows
        if base is None or offset < last:
            raise ValueError(
                f"{record.path} has {offset} rows, but episode {record.index} needs rows "
                f"{first} to {last}; the file is cut short"
            )
        return file.read_row_groups(groups, columns=names).slice(first - base, last - first)

    def _file(self, path: Path) -> pq.ParquetFile:
        if path not in self._files:
            self._files[path] = pq.ParquetFile(path, memory_map=True)
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(path)
        return self._files[path]


def _path(pattern: str, row: dict[str, Any], kind: str, **keys: str) -> str:
    return pattern.format(
        chunk_index=row[f"{kind}/chunk_index"], file_index=row[f"{kind}/file_index"], **keys
    )


def _numbers(column: pa.ChunkedArray, shape: tuple[int, ...]) -> NDArray[Any]:
    """A column of nested lists as (T, *shape)."""
    array = column.combine_chunks()
    count = len(array)
    while pa.types.is_nested(array.type):
        array = array.flatten()
    return array.to_numpy(zero_copy_only=False).reshape(count, *shape).copy()


def _decode(column: pa.ChunkedArray) -> NDArray[Any]:
    """Pictures of a PNG column, (T, H, W[, 3])."""
    encoded = column.combine_chunks().field("bytes")
    return np.stack([decode_png(memoryview(value.as_buffer())) for value in encoded])
