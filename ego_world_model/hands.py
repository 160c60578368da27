"""The hand language that every robot and every model shares: 42 joint slots.

A slot always means the same anatomical joint. An embodiment fills the slots it has and marks the
rest invalid, so one checkpoint can serve three-fingered, five-fingered and human hands. The order
is that of the published joint-control weights: slots 0-20 are the left hand, 21-41 the right hand,
each in OpenPose order (wrist, then four joints for thumb, index, middle, ring and pinky).

A checkpoint may declare extra slots behind the 42 (see ``EXTRA_SLOTS``); every array here therefore
has J >= 42 slots, and code reads J from the array.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

SLOTS_PER_HAND = 21
NUM_SLOTS = 2 * SLOTS_PER_HAND

HAND_JOINT_NAMES: tuple[str, ...] = (
    "wrist",
    *(f"thumb_{joint}" for joint in ("cmc", "mcp", "ip", "tip")),
    *(
        f"{finger}_{joint}"
        for finger in ("index", "middle", "ring", "pinky")
        for joint in ("mcp", "pip", "dip", "tip")
    ),
)
"""The 21 joints of one hand, in slot order."""

SLOT_NAMES: tuple[str, ...] = tuple(
    f"{side}_{joint}" for side in ("left", "right") for joint in HAND_JOINT_NAMES
)
"""Name of each of the 42 slots; ``SLOT_NAMES.index("right_thumb_tip")`` is its number."""

EXTRA_SLOTS: tuple[str, ...] = ("left_elbow", "right_elbow", "left_forearm", "right_forearm")
"""Points outside the hands that a checkpoint may ask for, so that forearms are placed too."""

# Fingers as chains of slot offsets within one hand; bones skip invalid joints when drawn.
_FINGER_CHAINS: tuple[tuple[int, ...], ...] = tuple(
    (0, *range(first, first + 4)) for first in range(1, SLOTS_PER_HAND, 4)
)


def slot_index(name: str) -> int:
    """Number of a slot, extra slots included (they follow the 42 in ``EXTRA_SLOTS`` order).

    Raises:
        KeyError: if no slot has that name.
    """
    try:
        return (SLOT_NAMES + EXTRA_SLOTS).index(name)
    except ValueError:
        raise KeyError(
            f"unknown hand slot {name!r}; slots are named side_joint, e.g. 'left_wrist', "
            f"'right_index_tip', or one of {', '.join(EXTRA_SLOTS)}"
        ) from None


def bones(valid: ArrayLike) -> list[tuple[int, int]]:
    """Pairs of slots to connect when hands are drawn, given which slots are valid.

    A bone spans the nearest valid joints of a finger chain, so a three-jointed robot finger is
    still one connected line. Extra elbow and forearm slots, where present, extend the wrist.
    """
    valid = np.asarray(valid, dtype=bool)
    extra = {
        name: NUM_SLOTS + i for i, name in enumerate(EXTRA_SLOTS[: max(0, len(valid) - NUM_SLOTS)])
    }
    pairs: list[tuple[int, int]] = []
    for side, base in (("left", 0), ("right", SLOTS_PER_HAND)):
        chains = [tuple(base + offset for offset in chain) for chain in _FINGER_CHAINS]
        arm = [extra[n] for n in (f"{side}_elbow", f"{side}_forearm") if n in extra]
        chains.append((*arm, base))
        for chain in chains:
            present = [slot for slot in chain if valid[slot]]
            pairs.extend(zip(present[:-1], present[1:], strict=True))
    return pairs


@dataclass(frozen=True)
class HandJoints:
    """Hand joints at one instant, in the camera optical frame (x right, y down, z forward).

    Attributes:
        positions: (J, 3) float32 metres; the value of an invalid slot is 0 and carries no meaning.
        valid: (J,) bool; whether the embodiment has this joint and its position is known.
    """

    positions: NDArray[np.float32]
    valid: NDArray[np.bool_]

    def __post_init__(self) -> None:
        positions = np.asarray(self.positions, dtype=np.float32)
        valid = np.asarray(self.valid, dtype=bool)
        if positions.ndim != 2 or positions.shape[1] != 3 or positions.shape[0] < NUM_SLOTS:
            raise ValueError(
                f"positions must have shape (J, 3) with J >= {NUM_SLOTS}, got {positions.shape}"
            )
        if valid.shape != positions.shape[:1]:
            raise ValueError(f"valid must have shape {positions.shape[:1]}, got {valid.shape}")
        if not np.isfinite(positions[valid]).all():
            bad = np.flatnonzero(valid & ~np.isfinite(positions).all(axis=1))
            raise ValueError(f"positions of valid slots {bad.tolist()} are not finite")
        object.__setattr__(self, "positions", np.where(valid[:, None], positions, np.float32(0)))
        object.__setattr__(self, "valid", valid)


@dataclass(frozen=True)
class HandTrajectory:
    """Hand joints over time, each frame in the coordinates of the camera at that time.

    Attributes:
        times: (T,) float64 seconds from the reference frame; ``times[0] == 0``, strictly rising.
        positions: (T, J, 3) float32 metres in the camera optical frame **at time k**.
        valid: (T, J) bool.
        camera_pose: (T, 4, 4) float64, camera k in the reference camera (T_ref_k); identity where
            the head is still. ``camera_pose[0]`` is the identity.
    """

    times: NDArray[np.float64]
    positions: NDArray[np.float32]
    valid: NDArray[np.bool_]
    camera_pose: NDArray[np.float64]

    def __init__(
        self,
        times: ArrayLike,
        positions: ArrayLike,
        valid: ArrayLike | None = None,
        camera_pose: ArrayLike | None = None,
    ) -> None:
        times = np.asarray(times, dtype=np.float64)
        positions = np.asarray(positions, dtype=np.float32)
        if times.ndim != 1 or len(times) == 0:
            raise ValueError(f"times must have shape (T,) with T >= 1, got {times.shape}")
        steps = len(times)
        if positions.ndim != 3 or positions.shape[0] != steps or positions.shape[2] != 3:
            raise ValueError(
                f"positions must have shape ({steps}, J, 3) to match times, got {positions.shape}"
            )
        slots = positions.shape[1]
        if slots < NUM_SLOTS:
            raise ValueError(
                f"positions must have at least {NUM_SLOTS} slots (21 per hand), got {slots}"
            )
        valid = np.ones((steps, slots), bool) if valid is None else np.asarray(valid, dtype=bool)
        if valid.shape == (slots,):
            valid = np.repeat(valid[None], steps, axis=0)
        if valid.shape != (steps, slots):
            raise ValueError(f"valid must have shape ({steps}, {slots}), got {valid.shape}")
        if camera_pose is None:
            camera_pose = np.repeat(np.eye(4)[None], steps, axis=0)
        camera_pose = np.asarray(camera_pose, dtype=np.float64)
        if camera_pose.shape != (steps, 4, 4):
            raise ValueError(
                f"camera_pose must have shape ({steps}, 4, 4), got {camera_pose.shape}"
            )
        if not np.isfinite(times).all() or abs(times[0]) > 1e-6 or (np.diff(times) <= 0).any():
            raise ValueError(
                "times must be finite, start at 0 (the reference frame) and strictly rise, "
                f"got {np.array2string(times, threshold=6)}"
            )
        if not np.isfinite(positions[valid]).all():
            frames = np.unique(np.nonzero(valid & ~np.isfinite(positions).all(axis=2))[0])
            raise ValueError(
                f"positions hold NaN or infinity in valid slots of frames {frames.tolist()}; "
                "mark unknown joints invalid instead"
            )
        if not np.isfinite(camera_pose).all():
            raise ValueError("camera_pose holds NaN or infinity")
        rotation = camera_pose[:, :3, :3]
        if np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max() > 1e-4:
            raise ValueError("camera_pose[:, :3, :3] must be rotation matrices")
        if np.abs(camera_pose[0] - np.eye(4)).max() > 1e-5:
            raise ValueError("camera_pose[0] must be the identity: frame 0 is the reference camera")
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "positions", np.where(valid[..., None], positions, np.float32(0)))
        object.__setattr__(self, "valid", valid)
        object.__setattr__(self, "camera_pose", camera_pose)

    def __len__(self) -> int:
        return len(self.times)

    @property
    def num_slots(self) -> int:
        return self.positions.shape[1]

    @property
    def duration(self) -> float:
        """Seconds from the reference frame to the last frame."""
        return float(self.times[-1])

    def frame(self, k: int) -> HandJoints:
        """Joints of frame k, in camera k."""
        return HandJoints(self.positions[k], self.valid[k])

    def in_reference(self) -> HandTrajectory:
        """The same motion with every frame's joints in the reference camera (camera_pose = I)."""
        rotation, translation = self.camera_pose[:, :3, :3], self.camera_pose[:, :3, 3]
        positions = np.einsum("tab,tjb->tja", rotation, self.positions) + translation[:, None]
        return HandTrajectory(self.times, positions, self.valid)

    def resample(self, times: ArrayLike) -> HandTrajectory:
        """Linear interpolation at new times; a joint is valid where both its neighbours are.

        Joints are interpolated in the reference camera, so that a moving head is handled exactly;
        camera rotation is interpolated by slerp.

        Raises:
            ValueError: if a requested time lies outside the trajectory (it is never padded).
        """
        times = np.asarray(times, dtype=np.float64)
        if times.ndim != 1 or len(times) == 0:
            raise ValueError(f"times must have shape (T,) with T >= 1, got {times.shape}")
        if times[0] < -1e-6 or times[-1] > self.duration + 1e-6:
            raise ValueError(
                f"trajectory covers 0 to {self.duration:.3f} s but {times[0]:.3f} to "
                f"{times[-1]:.3f} s was asked for; give a trajectory that covers the whole horizon"
            )
        right = np.clip(np.searchsorted(self.times, times), 1, max(1, len(self) - 1))
        left = right - 1
        right = np.minimum(right, len(self) - 1)
        span = self.times[right] - self.times[left]
        weight = np.clip(
            np.where(span > 0, (times - self.times[left]) / np.where(span > 0, span, 1), 0), 0, 1
        )
        still = np.abs(self.camera_pose - np.eye(4)).max() < 1e-12
        source = self if still else self.in_reference()
        w = weight[:, None, None].astype(np.float32)
        positions = (1 - w) * source.positions[left] + w * source.positions[right]
        exact_left, exact_right = weight < 1e-9, weight > 1 - 1e-9
        valid = np.where(
            exact_left[:, None],
            self.valid[left],
            np.where(exact_right[:, None], self.valid[right], self.valid[left] & self.valid[right]),
        )
        if still:
            return HandTrajectory(times, positions, valid)
        pose = _interpolate_poses(self.camera_pose, left, right, weight)
        positions = np.einsum("tba,tjb->tja", pose[:, :3, :3], positions - pose[:, None, :3, 3])
        return HandTrajectory(times, positions, valid, pose)

    def with_slots_masked(self, slots: Sequence[int]) -> HandTrajectory:
        """The same trajectory with the given slots marked invalid in every frame."""
        valid = self.valid.copy()
        valid[:, list(slots)] = False
        return HandTrajectory(self.times, self.positions, valid, self.camera_pose)


def _interpolate_poses(
    poses: NDArray[np.float64],
    left: NDArray[np.intp],
    right: NDArray[np.intp],
    weight: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Slerp of rotation and lerp of translation between poses[left] and poses[right], (N, 4, 4)."""
    from transforms3d.axangles import axangle2mat, mat2axangle

    out = np.repeat(np.eye(4)[None], len(left), axis=0)
    for i, (a, b, w) in enumerate(zip(left, right, weight, strict=True)):
        relative = poses[a, :3, :3].T @ poses[b, :3, :3]
        axis, angle = mat2axangle(relative)
        out[i, :3, :3] = poses[a, :3, :3] @ axangle2mat(axis, w * angle)
        out[i, :3, 3] = (1 - w) * poses[a, :3, 3] + w * poses[b, :3, 3]
    return out


def random_joint_mask(
    valid: ArrayLike, fraction: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """``valid`` (T, J) with a random ``fraction`` of its valid slots hidden in all frames."""
    valid = np.asarray(valid, dtype=bool)
    present = np.flatnonzero(valid.any(axis=0))
    hidden = rng.choice(present, size=int(round(fraction * len(present))), replace=False)
    out = valid.copy()
    out[:, hidden] = False
    return out
