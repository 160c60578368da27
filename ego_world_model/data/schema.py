"""What an episode is: the one record that simulation, robots and videos all become.

Training, evaluation and replay read only this. An episode is a run of frames at a fixed rate from
one head camera, with the robot's joints, its hand slots, and where the camera was at every frame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ego_world_model.camera import PinholeCamera
from ego_world_model.hands import NUM_SLOTS, SLOT_NAMES, HandTrajectory

MASK_CLASSES: tuple[str, ...] = (
    "background",
    "left_hand",
    "right_hand",
    "left_arm",
    "right_arm",
    "manipulated_object",
    "other_objects",
)
"""Meaning of each value of a segmentation mask; ``MASK_CLASSES.index("left_hand")`` is 1."""

HAND_CLASSES: tuple[int, int] = (1, 2)
"""Mask values of the hands alone (arms are 3 and 4)."""


@dataclass(frozen=True)
class Episode:
    """T frames of one robot in front of one camera, at a fixed rate.

    Attributes:
        fps: frames per second; frame k is at k / fps seconds.
        images: (T, H, W, 3) uint8 RGB.
        state: (T, nq) float32 rad, measured joint positions in ``joint_names`` order.
        action: (T, nq) float32 rad, the joint positions commanded for frame k + 1.
        hand_positions: (T, J, 3) float32 metres in the camera optical frame at frame k.
        hand_valid: (T, J) bool; a (J,) array is taken to hold for every frame.
        slot_names: the J slots, the 42 of ``hands.SLOT_NAMES`` first, then extra slots.
        camera_pose: (T, 4, 4) float64, camera k in the robot's root frame (root_T_optical).
        camera: intrinsics of ``images``.
        task: instruction in plain words.
        embodiment: name of the robot (or "human").
        joint_names: the nq joints.
        masks: (T, H, W) uint8 with the values of ``MASK_CLASSES``, or None.
        depth: (T, H, W) uint16 millimetres along z, 0 where unknown, or None.
        metadata: anything JSON can hold (seed, split, ...), kept per episode.

    Raises:
        ValueError: naming the field, the shape or range expected and the one found.
    """

    fps: float
    images: NDArray[np.uint8]
    state: NDArray[np.float32]
    action: NDArray[np.float32]
    hand_positions: NDArray[np.float32]
    hand_valid: NDArray[np.bool_]
    slot_names: tuple[str, ...]
    camera_pose: NDArray[np.float64]
    camera: PinholeCamera
    task: str
    embodiment: str
    joint_names: tuple[str, ...]
    masks: NDArray[np.uint8] | None = None
    depth: NDArray[np.uint16] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"fps must be a positive number of frames per second, got {self.fps}")
        for name in ("task", "embodiment"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f"{name} must be a non-empty string, got {getattr(self, name)!r}")
        _set(self, "slot_names", _names("slot_names", self.slot_names))
        _set(self, "joint_names", _names("joint_names", self.joint_names))
        if self.slot_names[:NUM_SLOTS] != SLOT_NAMES:
            raise ValueError(
                f"slot_names must begin with the {NUM_SLOTS} names of hands.SLOT_NAMES in their "
                f"order (extra slots follow), got {len(self.slot_names)}: {self.slot_names[:3]}..."
            )
        self._check_images()
        steps, joints, slots = len(self.images), len(self.joint_names), len(self.slot_names)
        for name, shape, dtype in (
            ("state", (steps, joints), np.float32),
            ("action", (steps, joints), np.float32),
            ("hand_positions", (steps, slots, 3), np.float32),
            ("camera_pose", (steps, 4, 4), np.float64),
        ):
            _set(self, name, _numbers(name, getattr(self, name), shape, dtype))
        valid = np.asarray(self.hand_valid, dtype=bool)
        if valid.shape == (slots,):
            valid = np.repeat(valid[None], steps, axis=0)
        if valid.shape != (steps, slots):
            raise ValueError(f"hand_valid must have shape ({steps}, {slots}), got {valid.shape}")
        _set(self, "hand_valid", valid)
        _set(
            self,
            "hand_positions",
            np.where(valid[..., None], self.hand_positions, np.float32(0)),
        )
        rotation = self.camera_pose[:, :3, :3]
        if np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max() > 1e-4:
            raise ValueError("camera_pose[:, :3, :3] must be rotation matrices (root_T_optical)")
        if np.abs(self.camera_pose[:, 3] - (0, 0, 0, 1)).max() > 1e-9:
            raise ValueError("camera_pose[:, 3] must be (0, 0, 0, 1)")

    def _check_images(self) -> None:
        images = np.asarray(self.images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
            raise ValueError(
                "images must be uint8 RGB of shape (T, H, W, 3) with T >= 1, got "
                f"{images.dtype} {images.shape}"
            )
        size = images.shape[1:3]
        if size != (self.camera.height, self.camera.width):
            raise ValueError(
                f"camera is {self.camera.width}x{self.camera.height} but images are "
                f"{size[1]}x{size[0]}; use camera.resized(width, height) for resized images"
            )
        _set(self, "images", images)
        for name, dtype in (("masks", np.uint8), ("depth", np.uint16)):
            value = getattr(self, name)
            if value is None:
                continue
            value = np.asarray(value)
            if value.dtype != dtype or value.shape != images.shape[:3]:
                raise ValueError(
                    f"{name} must be {np.dtype(dtype)} of shape {images.shape[:3]}, got "
                    f"{value.dtype} {value.shape}"
                )
            _set(self, name, value)
        if self.masks is not None and self.masks.max() >= len(MASK_CLASSES):
            raise ValueError(
                f"masks hold class {self.masks.max()}; classes are 0 to {len(MASK_CLASSES) - 1} "
                f"({', '.join(MASK_CLASSES)})"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def times(self) -> NDArray[np.float64]:
        """(T,) seconds from the first frame."""
        return np.arange(len(self)) / self.fps

    def trajectory(self, start: int = 0, stop: int | None = None) -> HandTrajectory:
        """Hand motion of frames start..stop, with frame ``start`` as the reference camera."""
        frames = slice(*slice(start, stop).indices(len(self)))
        if frames.stop - frames.start < 1:
            raise ValueError(f"no frames in {start}..{stop} of an episode of {len(self)} frames")
        poses = self.camera_pose[frames]
        relative = np.linalg.inv(poses[0]) @ poses
        relative[0] = np.eye(4)
        times = np.arange(len(poses)) / self.fps
        return HandTrajectory(times, self.hand_positions[frames], self.hand_valid[frames], relative)

    def clip(self, start: int, stop: int) -> Episode:
        """Frames start..stop as an episode of their own."""
        frames = slice(*slice(start, stop).indices(len(self)))
        names = ("images", "state", "action", "hand_positions", "hand_valid", "camera_pose")
        cut = {name: getattr(self, name)[frames] for name in names}
        for name in ("masks", "depth"):
            value = getattr(self, name)
            cut[name] = None if value is None else value[frames]
        return replace(self, **cut)


def _set(episode: Episode, name: str, value: Any) -> None:
    object.__setattr__(episode, name, value)


def _names(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{name} must be a sequence of strings, got {value!r}")
    names = tuple(value)
    if len(set(names)) != len(names):
        twice = sorted({item for item in names if names.count(item) > 1})
        raise ValueError(f"{name} must be unique, {twice} appear more than once")
    return names


def _numbers(name: str, value: Any, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
    """The array as dtype, checked for shape and finiteness."""
    array = np.asarray(value, dtype=dtype)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    finite = np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{name} holds NaN or infinity in frames {np.flatnonzero(~finite)[:10].tolist()}"
        )
    return array
