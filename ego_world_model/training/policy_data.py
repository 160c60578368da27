"""What a policy learns from: windows of episodes, unpacked once into memory-mapped arrays."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from ego_world_model.data import DatasetReader
from ego_world_model.data.schema import Episode
from ego_world_model.embodiment import load_embodiment
from ego_world_model.kinematics import HandKinematics
from ego_world_model.policy.cerebrum import Observation
from ego_world_model.policy.policy import hand_features, resize_depth, resize_image
from ego_world_model.policy.spaces import Layout, Normaliser, finger_kind, relative
from ego_world_model.simulation.goals import Goal

# The simulation says everything in one way; people do not.
_OTHER_WORDS = (
    (r" and move it$", ("", "", " and move it", " and put it elsewhere")),
    (r"^grasp", ("grasp", "grasp", "pick up", "take", "grab")),
    (r"^reach for", ("reach for", "reach for", "point at", "go to")),
    (r"^lift", ("lift", "lift", "raise")),
    (r"with the (left|right) hand", (r"with the \1 hand", r"using the \1 hand")),
)


_CARRIED, _STILL = 0.05, 0.002  # metres that a carried object moves in all; in a frame, at rest


@dataclass(frozen=True)
class PolicyBatch:
    """B observations with what happened next; ``Observation`` says what the networks read.

    Attributes:
        observation: everything is there; what is withheld is decided by the objective.
        depth: (B, 1, S, S) metres without noise, 0 where unknown or where there is no depth.
        actions: (B, N, D) normalised. mask: (B, N, D) bool, what is known of them.
        target: (B, 3) metres in the camera, the object of the task; NaN where there is none.
        pixel: (B, 2) where it is in the image, in [-1, 1].
    """

    observation: Observation
    depth: Tensor
    actions: Tensor
    mask: Tensor
    target: Tensor
    pixel: Tensor

    def __len__(self) -> int:
        return len(self.actions)

    def split(self, parts: int) -> list[PolicyBatch]:
        """Dealt out to ``parts`` batches of nearly equal size (fewer if there are too few)."""
        own = [f.name for f in fields(self) if f.name != "observation"]
        pieces = {name: getattr(self, name).tensor_split(parts) for name in own}
        seen = {
            f.name: getattr(self.observation, f.name).tensor_split(parts)
            for f in fields(Observation)
        }
        out = []
        for i in range(parts):
            observation = Observation(**{name: values[i] for name, values in seen.items()})
            batch = PolicyBatch(observation, **{name: values[i] for name, values in pieces.items()})
            if len(batch):
                out.append(batch)
        return out

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PolicyBatch:
        """The same batch on another device."""

        def moved(item: Any) -> dict[str, Tensor]:
            return {
                f.name: getattr(item, f.name).to(device, non_blocking=non_blocking)
                for f in fields(item)
                if isinstance(getattr(item, f.name), Tensor)
            }

        return replace(self, observation=Observation(**moved(self.observation)), **moved(self))


class PolicyCache:
    """Raw arrays of datasets under one folder.

    Attributes:
        images (N, S, S, 3) uint8, depth (N, S, S) float16 metres: all frames.
        wrists, next_wrists: (N, 2, 4, 4) measured now, and commanded for the next frame, root.
        fingers, next_fingers: (N, 2, V) in the layout's order. camera: (N, 4, 4) root_T_optical.
        target: (N, 3) metres in the camera or NaN.
        task: (N,) counts the tasks of all episodes, so that two frames of one task share it.
        words: (N,) number of the instruction in ``instructions``.
        first (E + 1,), intrinsics (E, 3, 3), known (E, D), shape (E, 2): of the episodes.
        useful (N,) bool, last (N,), done (N,) bool: see ``task_ends``.
    """

    ARRAYS = ("images", "depth", "wrists", "next_wrists", "fingers", "next_fingers")
    ARRAYS += ("camera", "target", "task", "words", "first", "intrinsics", "known", "shape")

    def __init__(self, folder: Path) -> None:
        info = json.loads((folder / "cache.json").read_text())
        self.fps, self.has_depth = float(info["fps"]), bool(info["has_depth"])
        self.layout = Layout(tuple(info["fingers"]))
        self.instructions: list[str] = info["instructions"]
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
            "known": [],
            "shape": [],
        }

    def add(self, episode: Episode, kinematics: HandKinematics) -> None:
        """One episode of the robot that ``kinematics`` describes."""
        rows = slice(self.at, self.at + len(episode))
        robot, arrays = kinematics.robot, self.arrays
        order = [episode.joint_names.index(name) for name in robot.joint_names]
        hands = [robot.hands.get(side) for side in ("left", "right")]
        names = tuple(hand.fingers if hand else () for hand in hands)
        for prefix, q in (("", episode.state), ("next_", episode.action)):
            q = np.asarray(q, np.float64)[:, order]
            arrays[f"{prefix}wrists"][rows] = kinematics.wrist_poses(q)
            count = max(len(own) for own in names)
            angles = np.zeros((len(q), 2, count))
            for row, own in enumerate(names):
                angles[:, row, : len(own)] = q[:, robot.indices(own)]
            arrays[f"{prefix}fingers"][rows] = self.layout.spread(angles, names)
        arrays["camera"][rows] = episode.camera_pose
        for k, row in enumerate(range(rows.start, rows.stop)):
            pixels = (resize_image(episode.images[k], self.size)[0] + 1) * 127.5
            arrays["images"][row] = pixels.round().byte().permute(1, 2, 0).numpy()
            if episode.depth is not None:
                metres = episode.depth[k].astype(np.float32) / 1000
                arrays["depth"][row] = resize_depth(metres, self.size)[0, 0].numpy()
        targets = episode.metadata.get("targets") or [None] * len(episode)
        arrays["target"][rows] = [t if t is not None else [np.nan] * 3 for t in targets]
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
        self.episodes["known"].append(self.layout.mask(valid, names))
        self.episodes["shape"].append((episode.camera.height, episode.camera.width))

    def close(self) -> None:
        """Write what is left."""
        for array in self.arrays.values():
            array.flush()
        for name, values in self.episodes.items():
            np.save(self.folder / f"{name}.npy", np.array(values))


class PolicySampler:
    """Windows of a cache: observations with the chunk that followed.

    Args:
        rng: drives what is drawn; None for plain windows without augmentation.
        brightness: largest relative change of an image's brightness. rephrase: whether
            instructions of the simulation are said in other words now and then.
    """

    def __init__(
        self,
        cache: PolicyCache,
        normaliser: Normaliser | None,
        tokens: Callable[[list[str]], tuple[Tensor, Tensor]] | None,
        *,
        chunk: int,
        rng: np.random.Generator | None = None,
        brightness: float = 0.15,
        rephrase: bool = True,
    ) -> None:
        self.cache, self.normaliser, self.tokens, self.chunk = cache, normaliser, tokens, chunk
        self.rng, self.brightness, self.rephrase = rng, brightness, rephrase

    def sample(self, batch: int) -> PolicyBatch:
        """``batch`` windows that begin at random frames."""
        return self.gather(self.rng.choice(self.frames, batch))

    @cached_property
    def frames(self) -> NDArray[np.int64]:
        """Frames at which a window may begin."""
        return np.flatnonzero(self.cache.useful)

    def vectors(self, frames: NDArray[np.int64]) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        """States (B, D), what is known of them (B, D), actions (B, N, D) and their mask, as they
        are, without normalisation."""
        cache, layout = self.cache, self.cache.layout
        episode = np.searchsorted(cache.first, frames, side="right") - 1
        steps = frames[:, None] + np.arange(self.chunk)  # command of frame k is for k + 1
        last = cache.last[frames][:, None]
        inside = (steps <= last) | cache.done[frames][:, None]
        steps = np.minimum(steps, last)  # what is done is done: the hands rest
        to_camera = np.linalg.inv(cache.camera[frames].astype(np.float64))
        now = to_camera[:, None] @ cache.wrists[frames]
        then = to_camera[:, None, None] @ cache.next_wrists[steps]
        states = layout.join(now[..., :3, 3], now[..., :3, :3], cache.fingers[frames])
        actions = layout.join(*relative(then, now), cache.next_fingers[steps])
        known = cache.known[episode]
        return states, known, actions, inside[..., None] & known[:, None]

    def gather(self, frames: NDArray[np.int64]) -> PolicyBatch:
        """The windows that begin at ``frames`` (B,), counted over all episodes."""
        cache, layout = self.cache, self.cache.layout
        episode = np.searchsorted(cache.first, frames, side="right") - 1
        states, known, actions, mask = self.vectors(frames)
        features = np.empty((len(frames), 2, 2 * layout.per_hand + 6), np.float32)
        intrinsics = cache.intrinsics[episode]
        for shape in {tuple(s) for s in cache.shape[episode].tolist()}:
            rows = (cache.shape[episode] == shape).all(axis=1)
            features[rows] = hand_features(
                layout, self.normaliser, states[rows], known[rows], intrinsics[rows], shape
            )
        images = torch.from_numpy(cache.images[frames]).permute(0, 3, 1, 2).float() / 127.5 - 1
        if self.rng is not None and self.brightness:
            gain = 1 + self.brightness * self.rng.uniform(-1, 1, (len(frames), 1, 1, 1))
            images = ((images + 1) * torch.from_numpy(gain).float() - 1).clamp_(-1, 1)
        words, word_mask = self.tokens([self._said(n) for n in cache.words[frames]])
        depth = torch.from_numpy(cache.depth[frames].astype(np.float32))[:, None]
        present = torch.tensor([[True, True, cache.has_depth]]).repeat(len(frames), 1)
        target = cache.target[frames].astype(np.float32)
        with np.errstate(invalid="ignore"):
            projected = np.einsum("bij,bj->bi", intrinsics, target / target[:, 2:])[:, :2]
        pixel = 2 * (projected + 0.5) / cache.shape[episode][:, ::-1] - 1
        observation = Observation(
            images,
            depth,
            words,
            word_mask,
            present,
            torch.from_numpy(features),
            torch.from_numpy(states.reshape(len(frames), 2, -1)[..., :3]).float(),
            torch.from_numpy(known),
        )
        return PolicyBatch(
            observation,
            depth,
            torch.from_numpy(np.where(mask, self.normaliser.action(actions), 0)).float(),
            torch.from_numpy(mask),
            torch.from_numpy(target),
            torch.from_numpy(pixel).float(),
        )

    def _said(self, number: int) -> str:
        text = self.cache.instructions[number]
        return other_words(text, self.rng) if self.rng is not None and self.rephrase else text


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
    that should have carried theirs and did not are left out.

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
            gap = np.linalg.norm(wrists[start:stop, :, :3, 3] - place[:, None], axis=-1)
            end = start + int(gap.min(axis=1).argmin())
        useful[end + 1 : stop] = False
        last[start:stop], done[start:stop] = end, end < stop - 1
    return useful, last, done


def other_words(text: str, rng: np.random.Generator) -> str:
    """An instruction of the simulation as somebody else might put it."""
    for pattern, choices in _OTHER_WORDS:
        text = re.sub(pattern, choices[rng.integers(len(choices))], text)
    return text


def all_words(instructions: Sequence[str]) -> list[str]:
    """Instructions and their variants, for a tokenizer that shall know every word."""
    rng = np.random.default_rng(0)
    return [*instructions, *(other_words(t, rng) for t in instructions for _ in range(20))]
