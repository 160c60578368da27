"""What a policy learns from: windows of episodes, unpacked once into memory-mapped arrays."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from ego_world_model.data import DatasetReader
from ego_world_model.data.schema import Episode
from ego_world_model.embodiment import load_embodiment
from ego_world_model.kinematics import HandKinematics
from ego_world_model.policy.policy import resize_depth, resize_image
from ego_world_model.policy.spaces import Layout, finger_kind
from ego_world_model.simulation.goals import Goal

_CARRIED, _STILL = 0.05, 0.002  # metres that a carried object moves in all; in a frame, at rest
_REACHED = 0.25  # metres from wrist to object within which a reach has arrived
_OBJECTS = 8  # objects of an episode that are kept
_FORMAT = 2  # of caches; older ones are made anew


class PolicyCache:
    """Raw arrays of datasets under one folder.

    Attributes:
        images (N, S, S, 3) uint8, depth (N, S, S) float16 metres: all frames.
        wrists, next_wrists: (N, 2, 4, 4) measured now, and commanded for the next frame, root.
        fingers, next_fingers: (N, 2, V) in the layout's order. camera: (N, 4, 4) root_T_optical.
        target: (N, 3) metres in the camera or NaN.
        places: (N, 8, 3) metres in the camera, of all objects of a scene; NaN where there is none.
        objects: (E, 8) numbers of their names in ``names``; -1 where there are fewer.
        task: (N,) counts the tasks of all episodes, so that two frames of one task share it.
        words: (N,) number of the instruction in ``instructions``.
        first (E + 1,), intrinsics (E, 3, 3), known (E, D), shape (E, 2): of the episodes.
        useful (N,) bool, last (N,), done (N,) bool: see ``task_ends``.
    """

    ARRAYS = ("images", "depth", "wrists", "next_wrists", "fingers", "next_fingers")
    ARRAYS += ("camera", "target", "places", "objects", "task", "words")
    ARRAYS += ("first", "intrinsics", "known", "shape")

    def __init__(self, folder: Path) -> None:
        info = json.loads((folder / "cache.json").read_text())
        self.fps, self.has_depth = float(info["fps"]), bool(info["has_depth"])
        self.layout = Layout(tuple(info["fingers"]))
        self.instructions: list[str] = info["instructions"]
        self.names: list[str] = info["names"]
        for name in self.ARRAYS:
            setattr(self, name, np.load(folder / f"{name}.npy", mmap_mode="r"))
        carries = np.array(info["carries"])[self.words]
        self.useful, self.last, self.done = task_ends(
            self.task, self.target, self.camera, self.wrists, carries
        )

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.first) - 1

    @classmethod
    def build(
        cls,
        roots: Sequence[str],
        folder: Path,
        *,
        size: int,
        fingers: Sequence[str] | None = None,
        report: Callable[[str], None] = print,
    ) -> PolicyCache:
        """Unpack the datasets ``roots``; a finished cache of the same is reused.

        Args:
            size: pixels of the square that pictures are resized to.
            fingers: kinds of finger joints; None takes those of the datasets' robots.

        Raises:
            ValueError: if the datasets' rates differ, or only some have depth.
        """
        readers = [DatasetReader(root) for root in roots]
        robots = [load_embodiment(reader.spec.embodiment) for reader in readers]
        if fingers is None:
            names = [n for r in robots for hand in r.hands.values() for n in hand.fingers]
            fingers = list(dict.fromkeys(finger_kind(name) for name in names))
        rates = {float(reader.spec.fps) for reader in readers}
        depths = {bool(reader.spec.depth) for reader in readers}
        if len(rates) > 1 or len(depths) > 1:
            raise ValueError(
                f"datasets must share one frame rate and all have depth or none; got {rates} fps, "
                f"depth {depths}: {', '.join(map(str, roots))}"
            )
        key = {
            "roots": [str(Path(root).resolve()) for root in roots],
            "episodes": [len(reader) for reader in readers],
            "size": size,
            "fingers": list(fingers),
            "format": _FORMAT,
        }
        info = folder / "cache.json"
        if info.exists() and {k: json.loads(info.read_text()).get(k) for k in key} == key:
            return cls(folder)
        folder.mkdir(parents=True, exist_ok=True)
        info.unlink(missing_ok=True)
        frames = int(sum(reader.lengths.sum() for reader in readers))
        layout = Layout(tuple(fingers))
        writer = _Writer(folder, frames, size, layout)
        done, total = 0, sum(key["episodes"])
        for reader, robot in zip(readers, robots, strict=True):
            kinematics = HandKinematics(robot)
            for index in range(len(reader)):
                writer.add(reader.episode(index, masks=False, depth=True), kinematics)
                done += 1
                if done % 200 == 0 or done == total:
                    report(f"unpacked {done}/{total} episodes")
        writer.close()
        extra = {
            "fps": rates.pop(),
            "has_depth": depths.pop(),
            "instructions": list(writer.instructions),
            "names": list(writer.names),
            "carries": [writer.carries[text] for text in writer.instructions],
        }
        info.write_text(json.dumps(key | extra))
        return cls(folder)


class _Writer:
    """Fills the arrays of a cache, episode by episode."""

    def __init__(self, folder: Path, frames: int, size: int, layout: Layout) -> None:
        self.folder, self.size, self.layout, self.at = folder, size, layout, 0
        self.instructions: dict[str, int] = {}
        self.carries: dict[str, bool] = {}
        self.names: dict[str, int] = {}
        self.tasks = 0
        hands = (frames, 2, len(layout.fingers))
        shapes: dict[str, tuple[tuple[int, ...], type]] = {
            "images": ((frames, size, size, 3), np.uint8),
            "depth": ((frames, size, size), np.float16),
            "wrists": ((frames, 2, 4, 4), np.float32),
            "next_wrists": ((frames, 2, 4, 4), np.float32),
            "fingers": (hands, np.float32),
            "next_fingers": (hands, np.float32),
            "camera": ((frames, 4, 4), np.float32),
            "target": ((frames, 3), np.float32),
            "places": ((frames, _OBJECTS, 3), np.float32),
            "task": ((frames,), np.int64),
            "words": ((frames,), np.int64),
        }
        self.arrays = {
            name: open_memmap(folder / f"{name}.npy", "w+", dtype, shape)
            for name, (shape, dtype) in shapes.items()
        }
        self.episodes: dict[str, list[Any]] = {
            "first": [0],
            "intrinsics": [],
            "objects": [],
            "known": [],
            "shape": [],
        }

    def add(self, episode: Episode, kinematics: HandKinematics) -> None:
        """One episode of the robot that ``kinematics`` describes."""
        rows = slice(self.at, self.at + len(episode))
        robot, arrays = kinematics.robot, self.arrays
        order = [episode.joint_names.index(name) for name in robot.joint_names]
        hands = [robot.hands.get(side) for side in ("left", "right")]
        fingers = tuple(hand.fingers if hand else () for hand in hands)
        for prefix, q in (("", episode.state), ("next_", episode.action)):
            q = np.asarray(q, np.float64)[:, order]
            arrays[f"{prefix}wrists"][rows] = kinematics.wrist_poses(q)
            count = max(len(own) for own in fingers)
            angles = np.zeros((len(q), 2, count))
            for row, own in enumerate(fingers):
                angles[:, row, : len(own)] = q[:, robot.indices(own)]
            arrays[f"{prefix}fingers"][rows] = self.layout.spread(angles, fingers)
        arrays["camera"][rows] = episode.camera_pose
        for k, row in enumerate(range(rows.start, rows.stop)):
            pixels = (resize_image(episode.images[k], self.size)[0] + 1) * 127.5
            arrays["images"][row] = pixels.round().byte().permute(1, 2, 0).numpy()
            if episode.depth is not None:
                metres = episode.depth[k].astype(np.float32) / 1000
                arrays["depth"][row] = resize_depth(metres, self.size)[0, 0].numpy()
        targets = episode.metadata.get("targets") or [None] * len(episode)
        arrays["target"][rows] = [t if t is not None else [np.nan] * 3 for t in targets]
        names = episode.metadata.get("objects", [])[:_OBJECTS]
        arrays["places"][rows] = np.nan
        if names:
            places = np.array(episode.metadata["places"], np.float32)
            arrays["places"][rows, : len(names)] = places[:, : len(names)]
        numbers = [self.names.setdefault(name, len(self.names)) for name in names]
        self.episodes["objects"].append(numbers + [-1] * (_OBJECTS - len(names)))
        listed = episode.metadata.get("tasks") or [(0, "any", episode.task)]
        self.carries |= {text: Goal(name, text).carries for _, name, text in listed}
        starts = np.array([start for start, _, _ in listed])
        number = np.searchsorted(starts, np.arange(len(episode)), side="right") - 1
        known = [self.instructions.setdefault(t, len(self.instructions)) for _, _, t in listed]
        arrays["words"][rows] = np.array(known)[number]
        arrays["task"][rows] = self.tasks + number
        self.tasks += len(listed)
        self.at = rows.stop
        self.episodes["first"].append(self.at)
        self.episodes["intrinsics"].append(episode.camera.matrix)
        valid = [hand is not None for hand in hands]
        self.episodes["known"].append(self.layout.mask(valid, fingers))
        self.episodes["shape"].append((episode.camera.height, episode.camera.width))

    def close(self) -> None:
        """Write what is left."""
        for array in self.arrays.values():
            array.flush()
        for name, values in self.episodes.items():
            np.save(self.folder / f"{name}.npy", np.array(values))


def task_ends(
    task: NDArray[np.int64],
    target: NDArray[np.float32],
    camera: NDArray[np.float32],
    wrists: NDArray[np.float32],
    carries: NDArray[np.bool_],
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.bool_]]:
    """Where demonstrations have done what they were told.

    Scripted tasks go on after that: they let go, and draw back. One picture cannot tell a hand
    that draws back from one that approaches, so a policy that learnt both would hover. An object
    that is carried is where it belongs when it moves no more; an object that is reached for, when
    the nearest wrist is nearest. Tasks whose object is unknown count to their last frame; those
    that never carried or reached theirs are left out.

    Args:
        task (N,), target (N, 3), camera (N, 4, 4), wrists (N, 2, 4, 4), carries (N,): of all
            frames, see ``PolicyCache``.

    Returns:
        useful (N,) frames at which a window may begin; last (N,) frame whose command still belongs
        to the frame's task; done (N,) whether the hands rest after that.
    """
    count = len(task)
    useful, done = np.ones(count, bool), np.zeros(count, bool)
    last = np.empty(count, np.int64)
    edges = np.flatnonzero(np.diff(task, prepend=-1, append=task[-1] + 1))
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        last[start:stop] = stop - 1
        known = target[start:stop].astype(np.float64)
        if not np.isfinite(known).all():
            continue
        pose = camera[start:stop].astype(np.float64)
        place = np.einsum("tij,tj->ti", pose[:, :3, :3], known) + pose[:, :3, 3]  # root frame
        if carries[start]:
            if np.linalg.norm(place - place[0], axis=1).max() < _CARRIED:
                useful[start:stop] = False
                continue
            moving = np.linalg.norm(np.diff(place, axis=0), axis=1) > _STILL
            end = start + int(np.flatnonzero(moving)[-1]) + 1
        else:
            gap = np.linalg.norm(wrists[start:stop, :, :3, 3] - place[:, None], axis=-1).min(axis=1)
            if gap.min() > _REACHED:
                useful[start:stop] = False
                continue
            end = start + int(gap.argmin())
        useful[end + 1 : stop] = False
        last[start:stop], done[start:stop] = end, end < stop - 1
    return useful, last, done
