"""What every control asks of its sizes and arguments, checked in one place."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def require_sizes(**sizes: int) -> None:
    """Raise a ValueError that names the first size below 1."""
    for name, size in sizes.items():
        if int(size) < 1:
            raise ValueError(f"control config: {name} must be >= 1, got {size}")


def check_arguments(
    joints: Tensor,
    intrinsics: Tensor,
    reference_latent: Tensor,
    valid: Tensor | None,
    *,
    num_joints: int,
    latent_channels: int,
) -> Tensor:
    """Validate the arguments of a control; returns ``valid`` as (B, T, J) bool.

    Raises:
        ValueError: naming the argument whose shape or values do not fit.
    """
    if joints.ndim != 4 or joints.shape[2:] != (num_joints, 3):
        raise ValueError(
            f"joints must have shape (B, T, {num_joints}, 3), got {tuple(joints.shape)}"
        )
    batch, frames = joints.shape[:2]
    if tuple(intrinsics.shape) not in ((batch, 3, 3), (batch, frames, 3, 3)):
        raise ValueError(
            f"intrinsics must have shape ({batch}, 3, 3) or ({batch}, {frames}, 3, 3), "
            f"got {tuple(intrinsics.shape)}"
        )
    if reference_latent.ndim != 4 or reference_latent.shape[:2] != (batch, latent_channels):
        raise ValueError(
            f"reference_latent must have shape ({batch}, {latent_channels}, h, w), "
            f"got {tuple(reference_latent.shape)}"
        )
    if valid is None:
        valid = torch.ones(joints.shape[:3], dtype=torch.bool, device=joints.device)
    elif valid.shape != joints.shape[:3]:
        raise ValueError(
            f"valid must have shape {tuple(joints.shape[:3])}, got {tuple(valid.shape)}"
        )
    valid = valid.bool()
    if not torch.isfinite(joints[valid]).all():
        raise ValueError(
            "joints hold NaN or infinity where valid is true; mark unknown joints invalid"
        )
    return valid


def check_masks(masks: Tensor, frames: int, height: int, width: int, batch: int) -> None:
    """Validate segmentation masks against the (B, T, H, W) they must have.

    Raises:
        ValueError: if the shape differs, or the values are not class numbers.
    """
    expected = (batch, frames, height, width)
    if tuple(masks.shape) != expected:
        raise ValueError(f"masks must have shape {expected}, got {tuple(masks.shape)}")
    if masks.is_floating_point():
        raise ValueError(f"masks must hold integer classes, got {masks.dtype}")


def compute_dtype(module: nn.Module) -> torch.dtype:
    """What a control computes in: the type of its parameters, float32 where it has none."""
    return next((p.dtype for p in module.parameters()), torch.float32)
