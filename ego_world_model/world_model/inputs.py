"""What a caller gives ``imagine``, checked, and brought to the model's clock, size and slots."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from ego_world_model.hands import NUM_SLOTS, HandTrajectory
from ego_world_model.world_model.checkpoint import WorldModelConfig


def clock(config: WorldModelConfig) -> NDArray[np.float64]:
    """(T,) seconds of a rollout's frames from the reference."""
    return np.arange(config.num_frames) / config.fps


def read_joints(
    trajectories: Sequence[HandTrajectory], config: WorldModelConfig
) -> tuple[Tensor, Tensor]:
    """Positions (K, T, J, 3) and validity (K, T, J) on the model's clock and slots.

    Raises:
        ValueError: naming the trajectory that does not fit.
    """
    if not trajectories:
        raise ValueError("trajectories is empty: give at least one HandTrajectory")
    slots, positions, valid = config.num_slots, [], []
    for number, trajectory in enumerate(trajectories):
        if trajectory.num_slots not in (NUM_SLOTS, slots):
            raise ValueError(
                f"trajectory {number} has {trajectory.num_slots} slots; this checkpoint "
                f"reads {NUM_SLOTS} hand slots, optionally followed by "
                f"{list(config.extra_slots)}"
            )
        try:
            trajectory = trajectory.resample(clock(config))
        except ValueError as error:
            raise ValueError(f"trajectory {number}: {error}") from error
        missing = slots - trajectory.num_slots
        positions.append(np.pad(trajectory.positions, ((0, 0), (0, missing), (0, 0))))
        valid.append(np.pad(trajectory.valid, ((0, 0), (0, missing))))
    return torch.from_numpy(np.stack(positions)), torch.from_numpy(np.stack(valid))


def read_masks(
    masks: ArrayLike | None, count: int, config: WorldModelConfig, *, wanted: bool
) -> Tensor | None:
    """``masks`` as (K, T, h, w) uint8 at the model's size; None where the control reads none.

    Raises:
        ValueError: if they are missing, not wanted, or of another length.
    """
    if not wanted:
        if masks is not None:
            raise ValueError("masks: this checkpoint's control reads none; leave masks out")
        return None
    if masks is None:
        raise ValueError(
            f"masks is missing: control {config.control.name!r} is steered by segmentation "
            f"masks of all {config.num_frames} frames"
        )
    stack = torch.from_numpy(np.array(masks, dtype=np.uint8))
    stack = stack.expand(count, *stack.shape[-3:])
    if stack.shape[1] != config.num_frames:
        raise ValueError(f"masks has {stack.shape[1]} frames, not {config.num_frames}")
    size = (config.height, config.width)
    if stack.shape[2:] != size:
        stack = F.interpolate(stack.float(), size, mode="nearest-exact").byte()
    return stack


def read_image(
    image: ArrayLike, intrinsics: ArrayLike, config: WorldModelConfig
) -> tuple[Tensor, Tensor]:
    """The image as (1, 3, h, w) in [-1, 1] and its camera matrix (1, 3, 3), at model size.

    Raises:
        ValueError: if either has another shape or holds values that make no sense.
    """
    image, matrix = np.asarray(image), np.array(intrinsics, dtype=np.float64)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"image must be (H, W, 3) uint8 RGB, got shape {image.shape} {image.dtype}"
        )
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or matrix[0, 0] <= 0:
        raise ValueError(
            f"intrinsics must be a finite (3, 3) camera matrix in pixels of the image, got "
            f"{np.array2string(matrix, threshold=10)}"
        )
    height, width = config.height, config.width
    frame = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    if image.shape[:2] != (height, width):
        shrinks = image.shape[0] >= height and image.shape[1] >= width
        mode = {"mode": "area"} if shrinks else {"mode": "bilinear", "align_corners": False}
        frame = F.interpolate(frame, (height, width), **mode)
        scale = np.array([width / image.shape[1], height / image.shape[0]])
        matrix[:2] *= scale[:, None]
        matrix[:2, 2] += 0.5 * scale - 0.5  # pixel centres lie at integer coordinates
    return frame / 127.5 - 1, torch.from_numpy(matrix)[None].float()


def draw_noise(shape: torch.Size | Sequence[int], seed: int | None) -> Tensor:
    """Standard normal noise, on the CPU so that a seed means the same on every device."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return torch.randn(shape, generator=generator)
