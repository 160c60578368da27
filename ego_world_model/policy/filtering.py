"""Temporal orthogonal filtering: average every prediction that was made of the same time step.

As published with MEgoHand (eq. 4): uniform weights over the overlapping chunks; the mean of the
rotations is projected to the closest rotation. Two things are added for a robot: chunks that were
seen from a moving camera are averaged in one frame, and a chunk whose steps lie between those of
another one is interpolated there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ego_world_model.policy.chunk import HandChunk

_SAME_TIME = 1e-6  # seconds; clocks in floating point agree on a step to this


def project_to_rotation(matrix: ArrayLike) -> NDArray[np.float64]:
    """(..., 3, 3) → the rotation (..., 3, 3) closest to each in the Frobenius norm, determinant +1.

    Where several are equally close (the mean of opposite rotations), it is one of them.

    Raises:
        ValueError: for another shape, or numbers that are not finite.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.shape[-2:] != (3, 3):
        raise ValueError(f"matrices must have shape (..., 3, 3), got {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError("cannot project a matrix that holds NaN or infinity to a rotation")
    u, _, vt = np.linalg.svd(matrix)
    u[..., 2] *= np.sign(np.linalg.det(u @ vt))[..., None]
    return u @ vt


class _Steps(NamedTuple):
    """Steps of a chunk in the frame that stays; times (N,) on the caller's clock."""

    times: NDArray[np.float64]
    translation: NDArray[np.float64]
    rotation: NDArray[np.float64]
    fingers: NDArray[np.float64]


class TemporalOrthogonalFilter:
    """Smooths a stream of chunks; holds those that still say something of the future.

    Chunks of another instruction, or from before a jump in time, are not to be averaged with new
    ones: call ``reset``.

    Args:
        most: chunks that are averaged at most, the new one included. The default is as published:
            all that say something of a step. Where one of them ends, the mean takes a step, the
            larger the more they differ, and a robot that follows it does, too; 2 leaves one such
            step, at the newest chunk's end.

    Raises:
        ValueError: if ``most`` is below 1.
    """

    def __init__(self, *, most: int | None = None) -> None:
        if most is not None and most < 1:
            raise ValueError(f"most must be at least 1 chunk, got {most}")
        self._most = most
        self._held: list[_Steps] = []
        self._last: tuple[float, HandChunk] | None = None

    def __len__(self) -> int:
        """Chunks held, the newest one included."""
        return len(self._held)

    def reset(self) -> None:
        """Forget every chunk."""
        self._held.clear()
        self._last = None

    def push(
        self, time: float, chunk: HandChunk, camera_pose: ArrayLike | None = None
    ) -> HandChunk:
        """The new chunk, every step averaged with what earlier chunks say of that time.

        Args:
            time: seconds, when the chunk's observation was made, on a clock of the caller's.
            chunk: in the camera of its observation.
            camera_pose: (4, 4) pose of that camera in a frame that stays (the robot's root); None
                where the camera does not move.

        Returns:
            A chunk of the same times, in the camera of the new observation.

        Raises:
            ValueError: if ``time`` is not after that of the chunk before, the chunk is of other
                hands or not finite, or ``camera_pose`` is no pose. Nothing is forgotten then.
        """
        pose = _checked_pose(camera_pose)
        self._check(time, chunk)
        steps = _Steps(
            time + chunk.times,
            chunk.translation @ pose[:3, :3].T + pose[:3, 3],
            pose[:3, :3] @ chunk.rotation,
            chunk.fingers,
        )
        live = [held for held in self._held if held.times[-1] >= steps.times[0] - _SAME_TIME]
        if self._most is not None:
            live = live[max(0, len(live) + 1 - self._most) :]
        self._held, self._last = [*live, steps], (time, chunk)
        mean = _mean(self._held, steps.times)
        return replace(
            chunk,
            translation=(mean.translation - pose[:3, 3]) @ pose[:3, :3],
            rotation=pose[:3, :3].T @ mean.rotation,
            fingers=mean.fingers,
        )

    def _check(self, time: float, chunk: HandChunk) -> None:
        numbers = (chunk.translation, chunk.rotation, chunk.fingers)
        if not (np.isfinite(time) and all(np.isfinite(array).all() for array in numbers)):
            raise ValueError("a chunk or its time holds NaN or infinity; leave such a chunk out")
        if self._last is None:
            return
        last_time, last = self._last
        if time <= last_time:
            raise ValueError(
                f"chunk of time {time:.3f} s follows one of {last_time:.3f} s; push chunks in "
                "the order of their observations, and reset() after time jumped back"
            )
        if chunk.finger_names != last.finger_names or (chunk.valid != last.valid).any():
            raise ValueError(
                "chunk is of other hands than the one before (valid or finger_names differ); use "
                "one filter per robot, or reset()"
            )


def _checked_pose(pose: ArrayLike | None) -> NDArray[np.float64]:
    pose = np.eye(4) if pose is None else np.asarray(pose, dtype=np.float64)
    rotation = pose[:3, :3] if pose.shape == (4, 4) else np.zeros((3, 3))
    if not np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-5 or np.linalg.det(rotation) < 0:
        raise ValueError("camera_pose must be a (4, 4) pose: a rotation and a translation")
    return pose


def _mean(chunks: Sequence[_Steps], times: NDArray[np.float64]) -> _Steps:
    """Mean of all that chunks say of ``times`` (N,); the last one of them covers all."""
    newest = chunks[-1]
    translation, fingers = np.zeros_like(newest.translation), np.zeros_like(newest.fingers)
    rotation = np.zeros_like(newest.rotation)
    count = np.zeros(len(times))
    for chunk in chunks:
        inside = (times >= chunk.times[0] - _SAME_TIME) & (times <= chunk.times[-1] + _SAME_TIME)
        said = _interpolated(chunk, times[inside])
        translation[inside] += said.translation
        rotation[inside] += said.rotation
        fingers[inside] += said.fingers
        count += inside
    return _Steps(
        times,
        translation / count[:, None, None],
        project_to_rotation(rotation / count[:, None, None, None]),
        fingers / count[:, None, None],
    )


def _interpolated(chunk: _Steps, times: NDArray[np.float64]) -> _Steps:
    """The chunk at ``times`` (N,) within its own: linear, and rotations projected."""
    right = np.clip(np.searchsorted(chunk.times, times - _SAME_TIME), 0, len(chunk.times) - 1)
    left = np.maximum(right - 1, 0)
    span = chunk.times[right] - chunk.times[left]
    weight = np.clip((times - chunk.times[left]) / np.where(span > 0, span, 1.0), 0.0, 1.0)
    weight[np.abs(times - chunk.times[right]) <= _SAME_TIME] = 1.0  # a step is taken as it is
    w = weight[:, None, None]
    rotation = chunk.rotation[right].copy()
    between = weight < 1.0
    if between.any():
        u = w[between, None]
        mixed = (1 - u) * chunk.rotation[left[between]] + u * chunk.rotation[right[between]]
        rotation[between] = project_to_rotation(mixed)
    return _Steps(
        times,
        (1 - w) * chunk.translation[left] + w * chunk.translation[right],
        rotation,
        (1 - w) * chunk.fingers[left] + w * chunk.fingers[right],
    )
