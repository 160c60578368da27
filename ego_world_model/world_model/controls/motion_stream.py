"""2-D tracks written as embeddings of their identity: the control of MotionStream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ego_world_model.world_model.controls.config import ControlSignal
from ego_world_model.world_model.controls.embedding import sinusoids
from ego_world_model.world_model.controls.tracks import PeerControl, place


class MotionStreamControl(PeerControl):
    """Track embeddings through a light head, after MotionStream (arXiv 2511.01266).

    Every track has a sinusoidal embedding of its number. It is written to the track's cell in each
    frame, and a head that joins the frames of a latent and then mixes channels makes the geometry
    map. No appearance is carried: the motion map is zeros.

    What differs from the paper, whose code is not public, and why:

    - Tracks are numbered by joint slot, not at random: a slot always means the same joint.
    - Width of the embedding and the SiLU between the two layers of the head are ours, and so is
      the norm at its end, which gives the map the scale that ours has.
    - Where several tracks share a cell, the one nearest to its centre is written.
    """

    def __init__(
        self, *, embed_channels: int = 64, hidden_channels: int = 64, **sizes: Any
    ) -> None:
        super().__init__(**sizes)
        numbers = torch.arange(self.num_joints, dtype=torch.float32)
        self.register_buffer("identity", sinusoids(numbers, embed_channels), persistent=False)
        self.compress = nn.Linear(self.temporal_stride * embed_channels, hidden_channels)
        self.project = nn.Linear(hidden_channels, self.geometry_channels)
        self.norm = nn.LayerNorm(self.geometry_channels)

    def forward(
        self,
        joints: Tensor,
        intrinsics: Tensor,
        reference_latent: Tensor,
        valid: Tensor | None = None,
    ) -> ControlSignal:
        """See :class:`Control`; the motion map is zeros."""
        with torch.autocast(joints.device.type, enabled=False):
            tracks = self.tracks(joints, intrinsics, reference_latent, valid)
            height, width = reference_latent.shape[-2:]
            compressed = self.compress.bias
            for frame, values in zip(self.groups(tracks).T, self._compressed(), strict=True):
                uv, seen = tracks.uv[:, frame], tracks.seen[:, frame]
                values = values.expand(*seen.shape, -1)
                compressed = compressed + place(values, uv, seen, height, width)
            geometry = self.norm(self.project(F.silu(compressed)))  # (B, t, h·w, G)
            geometry = geometry.movedim(-1, 1).unflatten(-1, (height, width))
            return self.signal(tracks, reference_latent, geometry=geometry)

    def _compressed(self) -> Tensor:
        """(f, J, hidden) what the first layer makes of each embedding in each frame of a latent.

        The layer is linear, so it may come before the embeddings are written, when they are few.
        """
        taps = self.compress.weight.unflatten(1, (self.temporal_stride, -1))  # (hidden, f, E)
        return torch.einsum("je,ofe->fjo", self.identity.to(taps.dtype), taps)
