"""2-D tracks that spread latent features softly: the control of ATI."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ego_world_model.world_model.controls import splat
from ego_world_model.world_model.controls.config import ControlSignal
from ego_world_model.world_model.controls.tracks import PeerControl, Tracks


class ATIControl(PeerControl):
    """Gaussian replication along 2-D tracks, after ATI (arXiv 2505.22944).

    A joint's feature is read bilinearly from the reference latent. Its target in a latent frame is
    the mean of its track over the frames in which it is in the image. A cell sums the features of
    the two joints with the largest Gaussian weights there, times those weights, and the sum of the
    weights is written as well: to geometry channel 0 here, to the channels of the image mask in the
    published model; it is 1 all over frame 0, which is known. Nothing is trained.

    What differs from the published code, and why:

    - Where no track is, the motion is zero, as everywhere here; it keeps the latents of empty
      frames.
    - The published Gaussian, exp(−220 d²) with the image's short side as 2, is 1.4 cells wide
      at 480 rows and 0.3 cells at the 96 rows of a tiny model, where it would fall between cells.
      ``min_sigma`` keeps it as wide as ours at least.
    - A joint outside the reference image carries nothing; the published code moves its start to
      the border. Features at the image's edge are not mixed with zeros beyond it.
    - Tracks do not end at random in training; hidden joints are drawn by the training itself.
    """

    def __init__(self, *, temperature: float = 220.0, min_sigma: float = 0.7, **sizes: Any) -> None:
        """``temperature`` of the Gaussian with the short side as 2; ``min_sigma`` in cells."""
        super().__init__(**sizes)
        self.temperature, self.min_sigma = temperature, min_sigma

    def sigma(self, height: int, width: int) -> float:
        """Width of the Gaussian in cells."""
        published = min(height, width) / 2 / math.sqrt(2 * self.temperature)
        return max(published, self.min_sigma)

    def forward(
        self,
        joints: Tensor,
        intrinsics: Tensor,
        reference_latent: Tensor,
        valid: Tensor | None = None,
    ) -> ControlSignal:
        """See :class:`Control`; of the geometry map only channel 0 is not zero."""
        with torch.autocast(joints.device.type, enabled=False):
            tracks = self.tracks(joints, intrinsics, reference_latent, valid)
            weight = self._weights(tracks, *reference_latent.shape[-2:])  # (B, t, J, h·w)
            features = sample(reference_latent.to(weight.dtype), tracks.uv[:, 0])  # (B, J, C)
            motion = features.transpose(1, 2)[:, None] @ weight  # (B, t, C, h·w)
            total = weight.sum(dim=2, keepdim=True)
            total = torch.cat([torch.ones_like(total[:, :1]), total[:, 1:]], dim=1)
            rest = total.new_zeros(1).expand(
                *total.shape[:2], self.geometry_channels - 1, total.shape[3]
            )
            motion, geometry = (
                maps.transpose(1, 2).unflatten(-1, reference_latent.shape[-2:])
                for maps in (motion, torch.cat([total, rest], dim=2))
            )
            return self.signal(tracks, reference_latent, motion=motion, geometry=geometry)

    def _weights(self, tracks: Tracks, height: int, width: int) -> Tensor:
        """(B, t, J, h·w) Gaussian weights, zero but for the two largest of a cell."""
        groups = self.groups(tracks)
        seen = tracks.seen[:, groups].to(tracks.uv.dtype)  # (B, t, f, J)
        count = seen.sum(dim=2)
        target = (tracks.uv[:, groups] * seen[..., None]).sum(dim=2)
        target = target / count.clamp_min(1)[..., None]
        shown = (count > 0) & tracks.seen[:, :1]
        sigma = torch.full_like(count, self.sigma(height, width))
        rows, columns = splat.profiles(target, sigma, shown.to(count.dtype), height, width)
        heat = splat.heatmaps(rows, columns)
        largest, which = heat.topk(min(2, self.num_joints), dim=2)
        return torch.zeros_like(heat).scatter(2, which, largest)


def sample(latent: Tensor, uv: Tensor) -> Tensor:
    """Bilinear reading of a latent (B, C, h, w) at positions (B, J, 2) in cells → (B, J, C)."""
    height, width = latent.shape[-2:]
    grid = (uv + 0.5) * 2 / uv.new_tensor([width, height]) - 1
    read = F.grid_sample(latent, grid[:, None], padding_mode="border", align_corners=False)
    return read[:, :, 0].transpose(1, 2)
