"""Random changes to training clips, and what they mean for slots and masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ego_world_model.hands import SLOT_NAMES, random_joint_mask

MASK_PAIRS = ((1, 2), (3, 4))
"""Mask classes that trade places when an image is mirrored: hands, arms."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes to a training clip, applied to the whole clip alike.

    Attributes:
        mirror: probability of a left-right flip (slots, masks and camera follow).
        colour: strength of brightness, contrast and per-channel gain changes.
        hide_joints: probability that a clip has a random 10-30 % of its joints hidden.
        hide_all: probability that all joints of a clip are hidden, so that the model also knows
            motion without control, which guidance on control compares with.
        drop_prompt: probability that a clip's instruction is left out, for guidance on text.
    """

    mirror: float = 0.5
    colour: float = 0.15
    hide_joints: float = 0.2
    hide_all: float = 0.0
    drop_prompt: float = 0.0


def hide_joints(
    valid: NDArray[np.bool_], augmentation: Augmentation, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """(B, T, J) with some or all joints of some clips marked invalid."""
    valid = valid.copy()
    for row in np.flatnonzero(rng.random(len(valid)) < augmentation.hide_joints):
        valid[row] = random_joint_mask(valid[row], rng.uniform(0.1, 0.3), rng)
    valid[rng.random(len(valid)) < augmentation.hide_all] = False
    return valid


def mirrored_slots(extra_slots: Sequence[str]) -> NDArray[np.int64]:
    """For each of the 42 + extra slots, the slot of the same joint on the other side."""
    names = (*SLOT_NAMES, *extra_slots)
    column = {name: i for i, name in enumerate(names)}
    sides = {"left": "right", "right": "left"}
    other = [f"{sides[n.split('_', 1)[0]]}_{n.split('_', 1)[1]}" for n in names]
    missing = [name for name in other if name not in column]
    if missing:
        raise ValueError(f"slots {missing} are needed to mirror a clip but not among the extras")
    return np.array([column[name] for name in other])
