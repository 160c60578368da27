"""Segmentation masks of the future as control: the second stage of Mask2IV."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ego_world_model.data.schema import HAND_CLASSES, MASK_CLASSES
from ego_world_model.world_model.controls.arguments import check_masks
from ego_world_model.world_model.controls.config import ControlSignal
from ego_world_model.world_model.controls.tracks import PeerControl


class HandMaskControl(PeerControl):
    """Masks of both hands, after Mask2IV (arXiv 2510.03135), whose paper's table calls this H.

    Only the second stage, in which a video follows given masks, stands here. The masks are those of
    the true future frames, from the simulator. A planner does not have them, and they show more
    than joints do (outlines, and what hides what): an advantage over every other control.

    The masks of each latent cell's pixels are averaged over the frames of a latent and encoded cell
    by cell into the geometry map, by a small encoder that is trained along, with a norm that gives
    the map the scale that ours has; the published model brings mask frames into a pretrained video
    model. The motion map is zeros.

    Of the joints only ``visibility`` is computed.
    """

    reads_masks = True
    classes: ClassVar[tuple[int, ...]] = HAND_CLASSES

    def __init__(self, *, hidden_channels: int = 64, **sizes: Any) -> None:
        super().__init__(**sizes)
        read = len(self.classes) * self.spatial_stride**2
        self.encoder = nn.Sequential(
            nn.Conv2d(read, hidden_channels, 1),
            nn.SiLU(),
            nn.Conv2d(hidden_channels, self.geometry_channels, 1),
        )
        self.norm = nn.LayerNorm(self.geometry_channels)

    def forward(
        self,
        joints: Tensor,
        intrinsics: Tensor,
        reference_latent: Tensor,
        valid: Tensor | None = None,
        *,
        masks: Tensor,
    ) -> ControlSignal:
        """See :class:`Control`.

        Raises:
            ValueError: naming the argument whose shape or values do not fit.
        """
        with torch.autocast(joints.device.type, enabled=False):
            tracks = self.tracks(joints, intrinsics, reference_latent, valid)
            groups = self.groups(tracks)
            height, width = (s * self.spatial_stride for s in reference_latent.shape[-2:])
            batch, frames = joints.shape[:2]
            check_masks(masks, frames, height, width, batch)
            pixels = self._cells(masks).to(tracks.uv.dtype)  # (B, T, K·s², h, w)
            pixels = pixels[:, groups].mean(dim=2)
            encoded = self.encoder(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
            geometry = self.norm(encoded.movedim(2, -1)).movedim(-1, 1)
            return self.signal(tracks, reference_latent, geometry=geometry)

    def _cells(self, masks: Tensor) -> Tensor:
        """One-hot classes (B, T, H, W) of the pixels of each cell: (B, T, K·s², h, w)."""
        layers = torch.stack([masks == number for number in self.classes], dim=2)
        return F.pixel_unshuffle(layers.to(torch.uint8), self.spatial_stride)


class HandObjectMaskControl(HandMaskControl):
    """Masks of both hands and of the manipulated object: Mask2IV's HO."""

    classes: ClassVar[tuple[int, ...]] = (*HAND_CLASSES, MASK_CLASSES.index("manipulated_object"))
