"""From hand states to the numbers that the networks read, and from their answers to chunks.

A dimension always means the same thing: per hand a wrist translation, a 6-D rotation, and one
dimension for each kind of finger joint that a checkpoint knows, of whichever robot. A robot fills
the dimensions it has; the rest are masked, and the mask tells the networks which hand they see.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ego_world_model.kinematics.state import HandState, matrix_from_6d, rotation_6d
from ego_world_model.policy.chunk import HandChunk

POSE = 9
"""Dimensions of a wrist pose: translation (3) and 6-D rotation."""

_SMALLEST = {"translation": 0.005, "rotation": 0.02, "fingers": 0.05}  # half ranges: m, -, rad


def finger_kind(joint: str) -> str:
    """What a finger joint is, whichever hand it belongs to: its name without the side."""
    return re.sub(r"^(left|right|L|R)_", "", joint)


@dataclass(frozen=True)
class Layout:
    """Where each number of a hand vector stands: [left, right] x [translation, rotation, fingers].

    Attributes:
        fingers: kinds of finger joints, see ``finger_kind``.
    """

    fingers: tuple[str, ...]

    @property
    def per_hand(self) -> int:
        return POSE + len(self.fingers)

    @property
    def width(self) -> int:
        """D, numbers in a vector of both hands."""
        return 2 * self.per_hand

    def columns(self, names: tuple[str, ...]) -> NDArray[np.intp]:
        """Where finger joints ``names`` of one hand stand among ``fingers``.

        Raises:
            ValueError: for a joint that this layout does not know.
        """
        kinds = [finger_kind(name) for name in names]
        if unknown := [n for n, kind in zip(names, kinds, strict=True) if kind not in self.fingers]:
            raise ValueError(
                f"this policy knows no finger joint {unknown[0]!r}; it was trained on hands with "
                f"{', '.join(self.fingers)}; train one on this robot's data"
            )
        return np.array([self.fingers.index(kind) for kind in kinds], dtype=np.intp)

    def spread(
        self, fingers: ArrayLike, names: tuple[tuple[str, ...], tuple[str, ...]]
    ) -> NDArray[np.float64]:
        """Finger angles (..., 2, F) in a robot's order → (..., 2, V) in the layout's."""
        fingers = np.asarray(fingers, dtype=np.float64)
        out = np.zeros((*fingers.shape[:-1], len(self.fingers)))
        for row in range(2):
            out[..., row, self.columns(names[row])] = fingers[..., row, : len(names[row])]
        return out

    def gather(
        self, fingers: ArrayLike, names: tuple[tuple[str, ...], tuple[str, ...]]
    ) -> NDArray[np.float64]:
        """The inverse of ``spread``: (..., 2, V) → (..., 2, F), 0 beyond a hand's joints."""
        fingers = np.asarray(fingers, dtype=np.float64)
        count = max((len(n) for n in names), default=0)
        out = np.zeros((*fingers.shape[:-1], count))
        for row in range(2):
            out[..., row, : len(names[row])] = fingers[..., row, self.columns(names[row])]
        return out

    def mask(
        self, valid: ArrayLike, names: tuple[tuple[str, ...], tuple[str, ...]]
    ) -> NDArray[np.bool_]:
        """(D,) which dimensions a robot fills; ``valid`` (2,) says which hands it has."""
        out = np.zeros((2, self.per_hand), bool)
        out[:, :POSE] = True
        for row in range(2):
            out[row, POSE + self.columns(names[row])] = True
        return (out & np.asarray(valid, bool)[:, None]).reshape(-1)

    def join(self, translation: ArrayLike, rotation: ArrayLike, fingers: ArrayLike) -> NDArray:
        """(..., 2, 3), (..., 2, 3, 3), (..., 2, V) → (..., D)."""
        parts = [np.asarray(translation), rotation_6d(rotation), np.asarray(fingers)]
        hands = np.concatenate(parts, axis=-1)
        return hands.reshape(*hands.shape[:-2], self.width)

    def kinds(self) -> NDArray[np.str_]:
        """(D,) "translation", "rotation" or "fingers" of each dimension."""
        hand = ["translation"] * 3 + ["rotation"] * 6 + ["fingers"] * len(self.fingers)
        return np.array(hand * 2)


def relative(
    wrists: NDArray[np.float64], current: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Future wrists against the current one: what the policy predicts.

    Args:
        wrists: (..., N, 2, 4, 4) in the camera of the observation.
        current: (..., 2, 4, 4) in the same camera.

    Returns:
        translation (..., N, 2, 3), along the camera's axes, and rotation (..., N, 2, 3, 3), in the
        current wrist's frame.
    """
    current = current[..., None, :, :, :]
    translation = wrists[..., :3, 3] - current[..., :3, 3]
    turned = np.swapaxes(current[..., :3, :3], -1, -2) @ wrists[..., :3, :3]
    return translation, turned


@dataclass(frozen=True)
class Normaliser:
    """Maps the 1 % and 99 % quantiles of training data to -1 and 1.

    Actions have their own quantiles at every step of the chunk, since a hand is near its start
    after one step and anywhere after sixteen. They are kept with the checkpoint.

    Attributes:
        state_low, state_high: (D,). action_low, action_high: (N, D).
    """

    state_low: NDArray[np.float32]
    state_high: NDArray[np.float32]
    action_low: NDArray[np.float32]
    action_high: NDArray[np.float32]

    @classmethod
    def fit(
        cls,
        layout: Layout,
        states: NDArray[np.float32],
        state_mask: NDArray[np.bool_],
        actions: NDArray[np.float32],
        action_mask: NDArray[np.bool_],
    ) -> Normaliser:
        """From samples: states (M, D), actions (M, N, D), with masks of what is known."""
        floor = np.array([_SMALLEST[kind] for kind in layout.kinds()], np.float32)
        state = _quantiles(states, state_mask, floor)
        steps = [
            _quantiles(actions[:, k], action_mask[:, k], floor) for k in range(actions.shape[1])
        ]
        low, high = (np.stack(values) for values in zip(*steps, strict=True))
        return cls(*state, low, high)

    def state(self, values: ArrayLike) -> NDArray[np.float32]:
        """(..., D) normalised."""
        return _to_unit(values, self.state_low, self.state_high)

    def action(self, values: ArrayLike) -> NDArray[np.float32]:
        """(..., N, D) normalised."""
        return _to_unit(values, self.action_low, self.action_high)

    def action_back(self, values: ArrayLike) -> NDArray[np.float64]:
        """The inverse of ``action``."""
        middle = (self.action_high + self.action_low).astype(np.float64) / 2
        half = (self.action_high - self.action_low).astype(np.float64) / 2
        return np.asarray(values, dtype=np.float64) * half + middle

    def tensors(self) -> Mapping[str, NDArray[np.float32]]:
        """By name, as a checkpoint keeps them."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def _to_unit(values: ArrayLike, low: NDArray, high: NDArray) -> NDArray[np.float32]:
    middle, half = (high + low) / 2, (high - low) / 2
    return ((np.asarray(values, np.float32) - middle) / half).astype(np.float32)


def _quantiles(
    values: NDArray[np.float32], mask: NDArray[np.bool_], floor: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(M, D) → low, high (D,), at least ``floor`` from their middle; dimensions that nobody fills
    get the floor around 0."""
    low, high = np.zeros(len(floor), np.float32), np.zeros(len(floor), np.float32)
    for k in range(len(floor)):
        known = values[mask[:, k], k]
        if len(known):
            low[k], high[k] = np.quantile(known, (0.01, 0.99))
    middle, half = (high + low) / 2, np.maximum((high - low) / 2, floor)
    return middle - half, middle + half


def state_vector(layout: Layout, state: HandState) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A hand state as (D,) and its mask (D,)."""
    mask = layout.mask(state.valid, state.finger_names)
    fingers = layout.spread(state.fingers, state.finger_names)
    vector = layout.join(state.translation, matrix_from_6d(state.rotation), fingers)
    return np.where(mask, vector, 0.0), mask


def chunk_from(
    layout: Layout, actions: NDArray[np.float64], state: HandState, times: NDArray[np.float64]
) -> HandChunk:
    """A chunk from denormalised actions (N, D), relative to the hands' ``state``."""
    hands = actions.reshape(len(actions), 2, layout.per_hand)
    current = matrix_from_6d(state.rotation)
    return HandChunk(
        times,
        state.translation + hands[..., :3],
        current @ matrix_from_6d(hands[..., 3:POSE]),
        layout.gather(hands[..., POSE:], state.finger_names),
        state.valid,
        state.finger_names,
    )
