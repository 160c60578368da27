"""2-D tracks that copy single latent cells: the control of Wan-Move."""

from __future__ import annotations

import torch
from torch import Tensor

from ego_world_model.world_model.controls.config import ControlSignal
from ego_world_model.world_model.controls.tracks import PeerControl, nearest_cell, place


class WanMoveControl(PeerControl):
    """Hard replication of latent cells along 2-D tracks, after Wan-Move (arXiv 2512.08765).

    Each joint takes the latent cell that it is in at frame 0 along with it: at latent frame k it
    replaces the cell of the track at frame k · temporal_stride. Nothing is trained.

    What differs from the published method, and why:

    - Cells without a track are zeros, as everywhere here, not the latents of empty frames.
    - Where several tracks meet, the published overwrite keeps whichever is written last; here it
      is the one nearest to the cell's centre, whatever the order. Depth has no say in either.
    - A joint outside the reference image copies nothing. The published code pastes the
      bottom-right cell in its place.
    - Tracks are the joints' (sparse), not a dense grid of points on everything that moves.
    """

    def forward(
        self,
        joints: Tensor,
        intrinsics: Tensor,
        reference_latent: Tensor,
        valid: Tensor | None = None,
    ) -> ControlSignal:
        """See :class:`Control`; the geometry map is zeros."""
        with torch.autocast(joints.device.type, enabled=False):
            tracks = self.tracks(joints, intrinsics, reference_latent, valid)
            height, width = reference_latent.shape[-2:]
            taken = self.groups(tracks)[:, -1]  # (t,) frames
            source = nearest_cell(tracks.uv[:, 0], height, width)
            index = (source[..., 1] * width + source[..., 0]).long()  # (B, J)
            cells = reference_latent.to(tracks.uv.dtype).flatten(2).transpose(1, 2)
            features = cells.gather(1, index[..., None].expand(-1, -1, cells.shape[-1]))
            seen = tracks.seen[:, taken] & tracks.seen[:, :1]
            features = features[:, None].expand(-1, len(taken), -1, -1)  # (B, t, J, C)
            motion = place(features, tracks.uv[:, taken], seen, height, width)
            motion = motion.movedim(-1, 1).unflatten(-1, (height, width))
            return self.signal(tracks, reference_latent, motion=motion)
