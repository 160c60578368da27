"""Errors of a predicted chunk against the true future, as the MEgoHand paper defines them.

Per hand and step, so that they can be averaged over steps, hands and windows as a table needs:

- **MPJPE**: distance of each hand slot that the robot fills, metres.
- **MPJPE-PA**: the same once the predicted slots were moved onto the true ones by the best
  rotation, translation **and scale**. ``pa_mpjpe`` aligns each hand at each step (the usual
  reading: errors of the hand's shape alone); ``pa_mpjpe_path`` aligns each hand once for all steps
  of the chunk (the paper's "single transformation" of the trajectories: shape and motion). A
  robot's hand does not change its size, so the scale can only hide errors, as it does in the paper.
- **MWTE**: distance of the wrists, metres.
- **MRE**: mean angle between predicted and true joint rotations over the wrist and the finger
  joints, radians. A robot's finger joint is a hinge, so the difference of its angles is that of its
  rotations. ``wrist_rotation`` is the wrist's part alone (geodesic on SO(3)).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ego_world_model.evaluation.policy.chunks import chunk_slots
from ego_world_model.evaluation.pose import joint_distances, procrustes
from ego_world_model.kinematics import HandKinematics
from ego_world_model.policy.chunk import HandChunk

ERRORS: tuple[str, ...] = (
    "mpjpe",
    "pa_mpjpe",
    "pa_mpjpe_path",
    "mwte",
    "mre",
    "wrist_rotation",
)
"""Errors of a chunk, in the order of tables; the last two in radians, the others in metres."""

MOVING = 0.02
"""Metres that a true wrist must travel within a chunk for its hand to count as moving."""


@dataclass(frozen=True)
class ChunkErrors:
    """Errors of one chunk.

    Attributes:
        of: each of ``ERRORS`` → (N, 2) per step and hand, NaN where it does not count.
        moving: (2,) bool, whether the true wrist travels at least ``MOVING`` in the chunk.
    """

    of: dict[str, NDArray[np.float64]]
    moving: NDArray[np.bool_]

    def mean(self, name: str, *, moving: bool = False) -> float:
        """Mean over steps and hands (those that move alone, if asked); NaN where none counts."""
        return _mean(self.of[name][:, self.moving] if moving else self.of[name])

    def by_step(self, name: str) -> NDArray[np.float64]:
        """(N,) mean over hands of each step; NaN where none counts."""
        return np.array([_mean(row) for row in self.of[name]])


def chunk_errors(
    found: HandChunk,
    truth: HandChunk,
    kinematics: HandKinematics,
    known: ArrayLike | None = None,
) -> ChunkErrors:
    """Errors of ``found`` where ``truth`` is the motion that followed.

    Args:
        known: (N,) bool, steps whose truth is known; None for all.

    Raises:
        ValueError: if the chunks are not of the same times.
    """
    if found.times.shape != truth.times.shape or np.abs(found.times - truth.times).max() > 1e-6:
        raise ValueError(f"chunks of different times: {found.times} and {truth.times}")
    steps = len(truth)
    known = np.ones(steps, bool) if known is None else np.asarray(known, dtype=bool)
    counts = known[:, None] & (found.valid & truth.valid)  # (N, 2)
    points, filled = chunk_slots(found, kinematics)
    true_points, true_filled = chunk_slots(truth, kinematics)
    points, true_points = (p.reshape(steps, 2, -1, 3) for p in (points, true_points))
    valid = counts[..., None] & (filled & true_filled).reshape(2, -1)  # (N, 2, 21)
    turned = rotation_angles(found.rotation, truth.rotation)  # (N, 2)
    wrist = np.linalg.norm(found.translation - truth.translation, axis=-1)
    travel = np.where(known[:, None, None], truth.translation, np.nan)
    errors = {
        "mpjpe": _over_slots(joint_distances(points, true_points, valid)),
        "pa_mpjpe": _over_slots(
            joint_distances(procrustes(points, true_points, valid), true_points, valid)
        ),
        "pa_mpjpe_path": _over_slots(_path_aligned(points, true_points, valid)),
        "mwte": np.where(counts, wrist, np.nan),
        "mre": np.where(counts, _joint_rotations(found, truth, turned), np.nan),
        "wrist_rotation": np.where(counts, turned, np.nan),
    }
    return ChunkErrors(errors, _travelled(travel) >= MOVING)


def rotation_angles(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Angle in radians, 0 to pi, between rotations (..., 3, 3)."""
    relative = np.swapaxes(np.asarray(a, float), -1, -2) @ np.asarray(b, float)
    twist = np.stack(
        [
            relative[..., 2, 1] - relative[..., 1, 2],
            relative[..., 0, 2] - relative[..., 2, 0],
            relative[..., 1, 0] - relative[..., 0, 1],
        ],
        axis=-1,
    )
    # The arc cosine of the trace loses small angles to rounding; the sine beside it does not.
    return np.arctan2(np.linalg.norm(twist, axis=-1), np.trace(relative, axis1=-2, axis2=-1) - 1)


def _joint_rotations(found: HandChunk, truth: HandChunk, wrist: NDArray) -> NDArray[np.float64]:
    """(N, 2) mean angle over the wrist and the finger joints that drive a hand."""
    out = np.empty_like(wrist)
    for row, names in enumerate(truth.finger_names):
        others = found.finger_names[row]
        if set(others) != set(names):
            raise ValueError(f"chunks of different finger joints: {others} and {names}")
        columns = [others.index(name) for name in names]
        bent = np.abs(found.fingers[:, row, columns] - truth.fingers[:, row, : len(names)])
        out[:, row] = (wrist[:, row] + bent.sum(axis=1)) / (1 + len(names))
    return out


def _path_aligned(points: NDArray, truth: NDArray, valid: NDArray) -> NDArray[np.float64]:
    """(N, 2, S) distances after one similarity transform of each hand for all steps."""
    steps, hands, slots = valid.shape
    # (N, 2, S, 3) → (2, N * S, 3): a hand's slots at all steps are one cloud of points.
    cloud, goal = (np.swapaxes(p, 0, 1).reshape(hands, steps * slots, 3) for p in (points, truth))
    counted = np.swapaxes(valid, 0, 1).reshape(hands, steps * slots)
    aligned = procrustes(cloud, goal, counted)
    return np.swapaxes(joint_distances(aligned, goal, counted).reshape(hands, steps, slots), 0, 1)


def _travelled(wrist: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2,) metres between the first and the farthest of the known places (N, 2, 3)."""
    known = np.isfinite(wrist).all(axis=(1, 2))
    if not known.any():
        return np.zeros(2)
    return np.linalg.norm(wrist[known] - wrist[known][0], axis=-1).max(axis=0)


def _over_slots(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., S) → (...) mean over the slots that count, NaN where none does."""
    counted = np.isfinite(distances)
    number = counted.sum(axis=-1)
    total = np.where(counted, distances, 0.0).sum(axis=-1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
