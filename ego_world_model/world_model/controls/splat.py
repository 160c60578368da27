"""Gaussians on the latent grid: projecting joints, pooling under them, and writing along them.

A Gaussian is the outer product of a column and a row profile, so heatmaps are built from two short
vectors, a few latent frames at a time; the tensor of all heatmaps is never held.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Elements of one block of heatmaps: large enough to keep the matrix products busy, small enough
# (8 MB) that a block stays near the cache.
_BLOCK = 2_000_000


@dataclass(frozen=True)
class GridJoints:
    """Joints on the latent grid; cell (row, column) has its centre at integer coordinates.

    Attributes:
        uv: (B, T, J, 2) column and row in cells.
        disparity: (B, T, J) 1/metre (scaled in the released formulation).
        depth: (B, T, J) metres, always > 0.
        present: (B, T, J) 1 where the joint counts, 0 where it contributes nothing.
        motion_sigma, geometry_sigma: (B, T, J) cells; the same tensor where they do not differ.
        cells_per_metre: (B, T, J) size of a metre at the joint's depth.
    """

    uv: Tensor
    disparity: Tensor
    depth: Tensor
    present: Tensor
    motion_sigma: Tensor
    geometry_sigma: Tensor
    cells_per_metre: Tensor


def present_points(joints: Tensor, valid: Tensor, near: float) -> tuple[Tensor, Tensor]:
    """Joints (B, T, J, 3) that count, and which do: valid, and farther than ``near`` metres.

    Where a joint does not count, a harmless point keeps values and gradients finite.
    """
    present = valid & (joints[..., 2] > near)
    return torch.where(present[..., None], joints, joints.new_tensor([0.0, 0.0, 1.0])), present


def project(points: Tensor, intrinsics: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (B, T, J, 2) of points seen by a pinhole camera, and its focal lengths.

    points (B, T, J, 3), intrinsics (B, 3, 3) or (B, T, 3, 3), depth (B, T, J) to divide by.
    """
    k = intrinsics if intrinsics.ndim == 4 else intrinsics[:, None]
    k = k[:, :, None].to(points.dtype)
    focal = torch.stack([k[..., 0, 0], k[..., 1, 1]], dim=-1)
    centre = torch.stack([k[..., 0, 2], k[..., 1, 2]], dim=-1)
    skew = torch.stack([k[..., 0, 1] * points[..., 1], torch.zeros_like(depth)], dim=-1)
    # Written as K·point / depth: with the released clamp on depth, a missing joint (0, 0, 0)
    # must land on pixel (0, 0).
    image = focal * points[..., :2] + skew + centre * points[..., 2:]
    return image / depth[..., None], focal


def pixels_to_cells(pixels: Tensor, stride: int) -> Tensor:
    """Pixel centres are integers, and so are cell centres: cell 0 covers pixels 0 … stride-1."""
    return (pixels + 0.5) / stride - 0.5


def profiles(
    uv: Tensor, sigma: Tensor, present: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Row (..., h) and column (..., w) profiles whose outer product is the heatmap.

    uv (..., 2), sigma (...), present (...). An absent joint has a profile of exact zeros.
    """
    columns = torch.arange(width, device=uv.device, dtype=uv.dtype)
    rows = torch.arange(height, device=uv.device, dtype=uv.dtype)
    scale = -0.5 / sigma.square()[..., None]
    along_x = _tail_cut(scale * (columns - uv[..., 0:1]).square())
    along_y = _tail_cut(scale * (rows - uv[..., 1:2]).square())
    return along_y * present[..., None], along_x


def _tail_cut(exponent: Tensor) -> Tensor:
    """exp, and exact zeros below 1e-13: smaller values become subnormal numbers in the products
    that follow, with which CPUs calculate several times more slowly."""
    return torch.where(exponent > -30.0, exponent, -torch.inf).exp()


def pool(latent: Tensor, along_y: Tensor, along_x: Tensor, eps: float) -> Tensor:
    """Gaussian average of a latent under each joint.

    latent (B, C, h, w), along_y (B, J, h), along_x (B, J, w) → (B, J, C).
    """
    heat = torch.einsum("bjh,bjw->bjhw", along_y, along_x).flatten(2)
    total = heat.sum(dim=-1, keepdim=True)
    return heat @ latent.flatten(2).transpose(1, 2) / (total + eps)


def temporal_groups(frames: int, stride: int, device: torch.device) -> Tensor:
    """(t, stride) frame indices that each latent frame averages: frame 0 alone, then groups.

    Raises:
        ValueError: if the frames do not fill whole groups.
    """
    if (frames - 1) % stride:
        nearest = 1 + (frames - 1) // stride * stride
        raise ValueError(
            f"joints have {frames} frames, but a temporal stride of {stride} needs 1 + a multiple "
            f"of {stride} (for example {nearest} or {nearest + stride}); resample the trajectory"
        )
    first = torch.zeros(1, stride, dtype=torch.long, device=device)
    rest = torch.arange(1, frames, device=device).reshape(-1, stride)
    return torch.cat([first, rest])


def blocks(count: int, elements_each: int) -> list[slice]:
    """Slices over ``count`` latent frames, each of about ``_BLOCK`` heatmap elements."""
    step = max(1, _BLOCK // max(1, elements_each))
    return [slice(start, min(count, start + step)) for start in range(0, count, step)]


def heatmaps(along_y: Tensor, along_x: Tensor) -> Tensor:
    """(n, f, J, h) and (n, f, J, w) → (n, f, J, h·w)."""
    return (along_y[..., :, None] * along_x[..., None, :]).flatten(-2)


def write(heat: Tensor, values: Tensor) -> Tensor:
    """Values of the joints summed under their heatmaps, averaged over the frames of a group.

    heat (n, f, J, p), values (n, f, J, E) → (n, E, p).
    """
    n, f, j, p = heat.shape
    return values.reshape(n, f * j, -1).transpose(1, 2) @ heat.reshape(n, f * j, p) / f
