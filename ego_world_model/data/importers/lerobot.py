"""Unitree's LeRobot sets, layouts v2.0, v2.1 and v3.0: names mapped, never positions.

A set of our own layout is read by ``DatasetReader``; this importer is for sets that know joints
and pictures only. Each episode is a recording of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ego_world_model.data.importers import joints as naming
from ego_world_model.data.importers.base import (
    RejectedError,
    SourceFrame,
    Tally,
    one_eye,
    spell_out,
)
from ego_world_model.data.layout import ACTION_KEY, INFO, STATE_KEY, read_json
from ego_world_model.kinematics import HandKinematics
from ego_world_model.media import decode_png, iterate_video

_HEAD = ("head", "cam_left_high", "cam_high", "egocentric", "ego_view", "cam_front")
"""What head cameras are called, the likeliest first."""


@dataclass(frozen=True, kw_only=True)
class _Episode:
    """Where an episode's frames lie."""

    index: int
    tasks: tuple[str, ...]
    data: Path
    video: Path | None
    video_start: float


@dataclass(frozen=True, kw_only=True)
class LeRobotSet:
    """A set's description: what its vectors name, where its head camera is."""

    root: Path
    fps: float
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    image_key: str
    is_video: bool
    episodes: tuple[_Episode, ...]

    @classmethod
    def open(cls, root: Path, *, image_key: str | None = None) -> LeRobotSet:
        """Reads ``meta/``.

        Raises:
            FileNotFoundError: not a LeRobot set.
            ValueError: an unknown version, vectors without names, or an unclear head camera.
        """
        info = read_json(root / INFO)
        version = str(info.get("codebase_version"))
        if version not in ("v2.0", "v2.1", "v3.0"):
            raise ValueError(
                f"{root / INFO}: codebase_version {version!r} is not v2.0, v2.1 or v3.0; convert "
                "the set with lerobot's own converters"
            )
        features = info["features"]
        key = image_key or _head_camera(features)
        if features.get(key, {}).get("dtype") not in ("image", "video"):
            raise ValueError(
                f"{root / INFO}: {key!r} is no picture; --image-key is one of "
                f"{', '.join(_pictures(features))}"
            )
        is_video = features[key]["dtype"] == "video"
        read = _episodes_v3 if version == "v3.0" else _episodes_v2
        return cls(
            root=root,
            fps=float(info["fps"]),
            state_names=_names(features, STATE_KEY, root),
            action_names=_names(features, ACTION_KEY, root) if ACTION_KEY in features else (),
            image_key=key,
            is_video=is_video,
            episodes=tuple(read(root, info, key if is_video else None)),
        )


class LeRobotSource:
    """One episode of a set; see ``base.Source``."""

    def __init__(self, content: LeRobotSet, episode: _Episode, kinematics: HandKinematics) -> None:
        self.name = f"{content.root.resolve().name}/episode_{episode.index:06d}"
        self.kind = "lerobot"
        self._set, self._episode = content, episode
        self._robot = kinematics.robot
        self._required = naming.required_joints(kinematics)

    def task(self) -> str:
        return next(iter(self._episode.tasks), "") or spell_out(self._set.root.resolve().name)

    def frames(self, tally: Tally) -> Iterator[SourceFrame]:
        robot, content = self._robot, self._set
        state_map = naming.JointMap(
            robot, content.state_names, required=self._required, where=STATE_KEY, tally=tally
        )
        naming.note_assumed(robot, state_map.joints, tally)
        action_map = naming.JointMap(
            robot, content.action_names, required=(), where=ACTION_KEY, tally=tally
        )
        rows = self._rows()
        pictures = self._pictures(rows, tally)
        for number, time in enumerate(rows["timestamp"]):
            tally.read += 1
            load = next(pictures, None)
            if load is None:
                tally.drop("the video ends before the frame", f"frame {number}")
                continue
            action = None
            if content.action_names:
                action = naming.vector(robot, action_map.values(rows[ACTION_KEY][number]))
            yield SourceFrame(
                stamp=round(float(time) * 1e9),
                load=load,
                q=robot.q_from(state_map.values(rows[STATE_KEY][number])),
                action=action,
                number=number,
            )

    def _rows(self) -> dict[str, Any]:
        """Columns of the episode, in order of its frames."""
        content = self._set
        wanted = ["timestamp", "frame_index", STATE_KEY]
        wanted += [ACTION_KEY] if content.action_names else []
        wanted += [] if content.is_video else [content.image_key]
        only = [("episode_index", "=", self._episode.index)]
        table = pq.read_table(self._episode.data, columns=wanted, filters=only)
        if not table.num_rows:
            raise RejectedError(
                f"{self._episode.data.name} holds no frame of episode {self._episode.index}",
                "download the set again: data and meta do not belong together",
            )
        table = table.sort_by("frame_index")
        return {name: table[name].to_pylist() for name in wanted}

    def _pictures(self, rows: dict[str, Any], tally: Tally) -> Iterator[Any]:
        """What loads each frame's picture, in order."""
        content, episode = self._set, self._episode
        if not content.is_video:
            for entry in rows[content.image_key]:
                yield partial(_still, entry, content.root, tally)
            return
        assert episode.video is not None
        first = round(episode.video_start * content.fps)
        count = len(rows["timestamp"])
        for image in iterate_video(episode.video, start=first, stop=first + count):
            yield partial(one_eye, image, tally)


def _still(entry: dict[str, Any], root: Path, tally: Tally) -> NDArray[np.uint8]:
    data = entry["bytes"] if entry.get("bytes") else (root / entry["path"]).read_bytes()
    image = decode_png(data)
    return one_eye(image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1), tally)


def _names(features: dict[str, Any], key: str, root: Path) -> tuple[str, ...]:
    """Names of a vector: a flat list, a list in a list, or a mapping of lists."""
    if key not in features:
        raise ValueError(f"{root / INFO}: no feature {key!r}; an import needs joint positions")
    names = features[key].get("names")
    if isinstance(names, dict):
        names = [name for group in names.values() for name in group]
    if isinstance(names, list) and len(names) == 1 and isinstance(names[0], list):
        names = names[0]
    count = int(np.prod(features[key]["shape"]))
    if not isinstance(names, list) or len(names) != count:
        raise ValueError(
            f"{root / INFO}: {key} has {count} numbers but its names are {names!r}; joints are "
            "mapped by name only: write one name per number there"
        )
    return tuple(map(str, names))


def _pictures(features: dict[str, Any]) -> list[str]:
    return [key for key, entry in features.items() if entry.get("dtype") in ("image", "video")]


def _head_camera(features: dict[str, Any]) -> str:
    pictures = [key for key in _pictures(features) if "depth" not in key]
    for likely in _HEAD:
        for key in pictures:
            if likely in key:
                return key
    rest = [key for key in pictures if "wrist" not in key]
    if len(rest) == 1:
        return rest[0]
    raise ValueError(
        f"which of {', '.join(pictures) or 'no pictures'} is the head camera? name it with "
        "--image-key"
    )


def _episodes_v2(root: Path, info: dict[str, Any], video_key: str | None) -> Iterator[_Episode]:
    """One parquet and one video file per episode, listed in ``meta/episodes.jsonl``."""
    for line in (root / "meta/episodes.jsonl").read_text().splitlines():
        if not line.strip():
            continue
        row = json.loads(line)
        index = int(row["episode_index"])
        place = {"episode_chunk": index // int(info["chunks_size"]), "episode_index": index}
        video = None
        if video_key is not None:
            video = root / info["video_path"].format(video_key=video_key, **place)
        yield _Episode(
            index=index,
            tasks=tuple(row.get("tasks", ())),
            data=root / info["data_path"].format(**place),
            video=video,
            video_start=0.0,
        )


def _episodes_v3(root: Path, info: dict[str, Any], video_key: str | None) -> Iterator[_Episode]:
    """Many episodes per file, listed in ``meta/episodes/**.parquet``."""
    wanted = ["episode_index", "tasks", "data/chunk_index", "data/file_index"]
    prefix = f"videos/{video_key}"
    if video_key is not None:
        wanted += [f"{prefix}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    for path in sorted((root / "meta/episodes").rglob("*.parquet")):
        for row in pq.read_table(path, columns=wanted).to_pylist():
            video, start = None, 0.0
            if video_key is not None:
                start = float(row[f"{prefix}/from_timestamp"])
                video = root / info["video_path"].format(
                    video_key=video_key,
                    chunk_index=row[f"{prefix}/chunk_index"],
                    file_index=row[f"{prefix}/file_index"],
                )
            yield _Episode(
                index=row["episode_index"],
                tasks=tuple(row["tasks"] or ()),
                data=root
                / info["data_path"].format(
                    chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
                ),
                video=video,
                video_start=start,
            )
