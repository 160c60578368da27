"""Batches that a policy learns from: windows of demonstrations, and objects named in pictures."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ego_world_model.policy.cerebrum import Observation
from ego_world_model.policy.policy import hand_features
from ego_world_model.policy.spaces import Normaliser, relative
from ego_world_model.simulation.goals import instruction
from ego_world_model.simulation.poses import SIDES
from ego_world_model.training.policy_data import PolicyCache

# The simulation says everything in one way; people do not.
_OTHER_WORDS = (
    (r" and move it$", ("", "", " and move it", " and put it elsewhere")),
    (r"^grasp", ("grasp", "grasp", "pick up", "take", "grab")),
    (r"^reach for", ("reach for", "reach for", "point at", "go to")),
    (r"^lift", ("lift", "lift", "raise")),
    (r"with the (left|right) hand", (r"with the \1 hand", r"using the \1 hand")),
)


@dataclass(frozen=True)
class PolicyBatch:
    """B observations with what happened next; ``Observation`` says what the networks read.

    Of rows that name an object without a demonstration no action is known: their mask is false.

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

    def sample(self, batch: int, naming: int = 0) -> PolicyBatch:
        """``batch`` windows that begin at random frames, among them ``naming`` more rows that name
        any object of any frame: what is pointed at must follow the words, not the scene.

        Raises:
            ValueError: if objects are to be named and no episode lists any.
        """
        frames = self.rng.choice(self.frames, batch)
        if not naming:
            return self.gather(frames)
        counts = self.object_counts
        if not counts.any():
            raise ValueError(
                "naming: no episode lists its objects in its metadata (`objects`, `places`); "
                "simulate the datasets anew, or set naming to 0"
            )
        episode = self.rng.choice(np.flatnonzero(counts), naming)
        length = np.diff(self.cache.first)[episode]
        pictures = self.cache.first[episode] + (self.rng.random(naming) * length).astype(np.int64)
        named = (self.rng.random(naming) * counts[episode]).astype(np.int64)
        # evenly mixed, since a batch is dealt out to workers in pieces
        places = [(np.arange(n) + 0.5) / n for n in (batch, naming)]
        order = np.argsort(np.concatenate(places), kind="stable")
        both = np.concatenate([frames, pictures])[order]
        return self.gather(both, np.concatenate([np.full(batch, -1), named])[order])

    @cached_property
    def frames(self) -> NDArray[np.int64]:
        """Frames at which a window may begin."""
        return np.flatnonzero(self.cache.useful)

    @cached_property
    def object_counts(self) -> NDArray[np.int64]:
        """(E,) how many objects each episode lists."""
        return (self.cache.objects >= 0).sum(axis=1)

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

    def gather(
        self, frames: NDArray[np.int64], named: NDArray[np.int64] | None = None
    ) -> PolicyBatch:
        """The windows that begin at ``frames`` (B,), counted over all episodes.

        Args:
            named: (B,) number of the object in its scene that an instruction is made up for, of
                which no action is known; -1 for the window as it was recorded. None: all are.
        """
        named = np.full(len(frames), -1) if named is None else named
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
        mask = mask & (named < 0)[:, None, None]
        said = [
            self._said(
                cache.instructions[number]
                if k < 0
                else self._naming(cache.names[cache.objects[e, k]], frame)
            )
            for number, e, k, frame in zip(cache.words[frames], episode, named, frames, strict=True)
        ]
        words, word_mask = self.tokens(said)
        depth = torch.from_numpy(cache.depth[frames].astype(np.float32))[:, None]
        present = torch.tensor([[True, True, cache.has_depth]]).repeat(len(frames), 1)
        target = np.where(
            (named < 0)[:, None], cache.target[frames], cache.places[frames, np.maximum(named, 0)]
        ).astype(np.float32)
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

    def _said(self, text: str) -> str:
        return other_words(text, self.rng) if self.rng is not None and self.rephrase else text

    def _naming(self, name: str, frame: int) -> str:
        """An instruction about an object; always the same of a frame where nothing is drawn."""
        rng = self.rng if self.rng is not None else np.random.default_rng(frame)
        tasks = ("reach", "bimanual") if name.startswith("large") else ("reach", "grasp")
        return instruction(tasks[rng.integers(2)], name, SIDES[rng.integers(2)])


def other_words(text: str, rng: np.random.Generator) -> str:
    """An instruction of the simulation as somebody else might put it."""
    for pattern, choices in _OTHER_WORDS:
        text = re.sub(pattern, choices[rng.integers(len(choices))], text)
    return text


def all_words(instructions: Sequence[str], names: Sequence[str]) -> list[str]:
    """Instructions, their variants and names of objects, for a tokenizer that shall know every
    word."""
    rng = np.random.default_rng(0)
    return [*instructions, *names, *(other_words(t, rng) for t in instructions for _ in range(20))]
