"""Joints as 2-D tracks, which is all that most of the peers' controls see of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ego_world_model.world_model.controls import splat
from ego_world_model.world_model.controls.arguments import (
    check_arguments,
    compute_dtype,
    require_sizes,
)
from ego_world_model.world_model.controls.config import ControlSignal


@dataclass(frozen=True)
class Tracks:
    """Projected joints; depth is gone.

    Attributes:
        pixels: (B, T, J, 2) column and row.
        uv: (B, T, J, 2) the same in latent cells; cell centres are integers.
        present: (B, T, J) bool: valid and before the camera.
        seen: (B, T, J) bool: present and inside the image. Whether something hides the joint does
            not matter: a tracker would tell from the pixels, which the future does not have.
    """

    pixels: Tensor
    uv: Tensor
    present: Tensor
    seen: Tensor


class PeerControl(nn.Module):
    """Sizes, arguments and output that the peers' controls share.

    A map that a peer does not have is zeros, so that every control feeds the same backbone.
    """

    reads_masks = False

    def __init__(
        self,
        *,
        num_joints: int = 42,
        latent_channels: int = 16,
        spatial_stride: int = 8,
        temporal_stride: int = 4,
        geometry_channels: int = 16,
        near: float = 0.05,
    ) -> None:
        """Sizes as in :class:`ControlConfig`; joints nearer than ``near`` metres are invalid."""
        super().__init__()
        require_sizes(
            num_joints=num_joints,
            latent_channels=latent_channels,
            spatial_stride=spatial_stride,
            temporal_stride=temporal_stride,
            geometry_channels=geometry_channels,
        )
        self.num_joints, self.latent_channels = num_joints, latent_channels
        self.spatial_stride, self.temporal_stride = spatial_stride, temporal_stride
        self.geometry_channels, self.near = geometry_channels, near

    def tracks(
        self, joints: Tensor, intrinsics: Tensor, reference_latent: Tensor, valid: Tensor | None
    ) -> Tracks:
        """Check the arguments of ``forward`` and project the joints.

        Raises:
            ValueError: naming the argument whose shape or values do not fit.
        """
        valid = check_arguments(
            joints,
            intrinsics,
            reference_latent,
            valid,
            num_joints=self.num_joints,
            latent_channels=self.latent_channels,
        )
        points, present = splat.present_points(joints.to(compute_dtype(self)), valid, self.near)
        pixels, _ = splat.project(points, intrinsics, points[..., 2])
        uv = splat.pixels_to_cells(pixels, self.spatial_stride)
        height, width = reference_latent.shape[-2:]
        size = uv.new_tensor([width, height])
        inside = ((uv >= -0.5) & (uv < size - 0.5)).all(dim=-1)
        return Tracks(pixels, uv, present, present & inside)

    def groups(self, tracks: Tracks) -> Tensor:
        """(t, f) which frames each latent frame covers, see :func:`splat.temporal_groups`."""
        frames = tracks.uv.shape[1]
        return splat.temporal_groups(frames, self.temporal_stride, tracks.uv.device)

    def signal(
        self,
        tracks: Tracks,
        reference_latent: Tensor,
        *,
        motion: Tensor | None = None,
        geometry: Tensor | None = None,
    ) -> ControlSignal:
        """Maps (B, C, t, h, w) and (B, G, t, h, w), zeros where None, and who is in the image."""
        batch, frames = tracks.uv.shape[:2]
        grid = (1 + (frames - 1) // self.temporal_stride, *reference_latent.shape[-2:])
        if motion is None:
            motion = reference_latent.new_zeros(batch, self.latent_channels, *grid)
        if geometry is None:
            geometry = reference_latent.new_zeros(batch, self.geometry_channels, *grid)
        return ControlSignal(
            motion.to(reference_latent.dtype),
            geometry.to(reference_latent.dtype),
            tracks.seen[:, 0].to(tracks.uv.dtype),
        )


def place(values: Tensor, uv: Tensor, seen: Tensor, height: int, width: int) -> Tensor:
    """Write each seen track's value to the one cell that it is in.

    Where several tracks share a cell, the one nearest to the cell's centre writes it alone (equally
    near ones: the lower slot), so the result depends on neither order nor device.

    values (B, n, J, E), uv (B, n, J, 2) cells, seen (B, n, J) → (B, n, h·w, E).
    """
    centre = nearest_cell(uv, height, width)
    index = (centre[..., 1] * width + centre[..., 0]).long()
    distance = (uv - centre).square().sum(dim=-1)
    # [..., j, k]: track k takes the cell from track j
    slots = torch.arange(uv.shape[-2], device=uv.device)
    near, far = distance[..., None, :], distance[..., :, None]
    nearer = (near < far) | ((near == far) & (slots < slots[:, None]))
    same = index[..., None, :] == index[..., :, None]
    writes = seen & ~(same & nearer & seen[..., None, :]).any(dim=-1)
    written = torch.where(writes[..., None], values, 0.0)
    batch, frames, _, channels = values.shape
    canvas = values.new_zeros(batch, frames, height * width, channels)
    return canvas.scatter_add(2, index[..., None].expand_as(written), written)


def nearest_cell(uv: Tensor, height: int, width: int) -> Tensor:
    """Centre (column, row) of the cell that each position is in, kept inside the grid."""
    limit = uv.new_tensor([width - 1, height - 1])
    return (uv + 0.5).floor().clamp_min(0).minimum(limit)
