"""Skeletons of the hands drawn as pictures: the control of Wan-Fun."""

from __future__ import annotations

import colorsys
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ego_world_model.hands import EXTRA_SLOTS, HAND_JOINT_NAMES, NUM_SLOTS, SLOT_NAMES, bones
from ego_world_model.world_model.controls import splat
from ego_world_model.world_model.controls.config import ControlSignal
from ego_world_model.world_model.controls.tracks import PeerControl

_PARTS = ("arm", "thumb", "index", "middle", "ring", "pinky")
_TILE = 8  # pixels; side of the squares in which lines are drawn


class SkeletonControl(PeerControl):
    """Hand skeletons drawn in the image, after Wan2.1-Fun-Control, a pose-guided video model.

    The bones between projected joints are drawn at pixel resolution, in a colour for each finger
    and hand; an encoder turns each drawing into the geometry map. No appearance is carried: the
    motion map is zeros.

    What differs from the published model, and why:

    - It encodes the drawn video with its VAE. A control has none here, and our autoencoder of
      single frames never saw drawings, so a small convolutional encoder is trained instead. Frames
      of one latent are averaged after it, and a norm gives the map the scale that ours has.
    - It was trained on whole human bodies; here are both hands and, where slots for them exist,
      forearms. A bone skips missing joints, so a robot's three-jointed finger is one line.
    """

    def __init__(self, *, hidden_channels: int = 32, line_width: float = 2.0, **sizes: Any) -> None:
        """``line_width`` in pixels of the model's image."""
        super().__init__(**sizes)
        if self.num_joints < NUM_SLOTS:
            raise ValueError(
                f"control config: skeleton needs num_joints >= {NUM_SLOTS} (two hands), got "
                f"{self.num_joints}"
            )
        self.line_width = line_width
        stride = self.spatial_stride
        self.encoder = nn.Sequential(
            nn.Conv2d(3, hidden_channels, stride, stride=stride),
            nn.SiLU(),
            nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1),
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
    ) -> ControlSignal:
        """See :class:`Control`; the motion map is zeros, and no gradient reaches the joints."""
        with torch.autocast(joints.device.type, enabled=False):
            tracks = self.tracks(joints, intrinsics, reference_latent, valid)
            groups = self.groups(tracks)
            height, width = (s * self.spatial_stride for s in reference_latent.shape[-2:])
            drawing = draw_skeletons(
                tracks.pixels.flatten(0, 1),
                tracks.present.flatten(0, 1),
                height,
                width,
                line_width=self.line_width,
            )
            encoded = self.encoder(drawing).unflatten(0, tracks.present.shape[:2])
            encoded = encoded[:, groups].mean(dim=2)  # (B, t, G, h, w)
            geometry = self.norm(encoded.movedim(2, -1)).movedim(-1, 1)
            return self.signal(tracks, reference_latent, geometry=geometry)


@torch.no_grad()
def draw_skeletons(
    pixels: Tensor, present: Tensor, height: int, width: int, *, line_width: float
) -> Tensor:
    """Bones as anti-aliased lines on black, (n, 3, H, W) in 0..1; a pixel shows the nearest bone.

    pixels (n, J, 2) column and row of the joints, present (n, J) bool, line_width in pixels.
    """
    ends, drawn = _bones_of(present)  # (n, S, 2), (n, S)
    tall, wide = -(-height // _TILE), -(-width // _TILE)
    if not ends.shape[1]:
        return pixels.new_zeros(len(pixels), 3, height, width)
    pictures = []
    for part in splat.blocks(len(pixels), ends.shape[1] * tall * wide):
        start, stop = (
            pixels[part].gather(1, ends[part, :, end, None].expand(-1, -1, 2)) for end in (0, 1)
        )
        nearest, slot = _nearest_bone(
            start, stop - start, ends[part, :, 1], drawn[part], tall, wide, (line_width + 1) / 2
        )
        ink = ((line_width + 1) / 2 - nearest.sqrt()).clamp(0, 1)
        colours = bone_colours(present.shape[1]).to(pixels)
        tiles = (colours[slot] * ink[..., None]).unflatten(0, (-1, tall, wide))
        pictures.append(tiles.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3))
    return torch.cat(pictures)[..., :height, :width]


def _nearest_bone(
    start: Tensor, along: Tensor, slots: Tensor, drawn: Tensor, tall: int, wide: int, reach: float
) -> tuple[Tensor, Tensor]:
    """Squared distance of each pixel to the nearest bone, and the slot at which that bone ends.

    Both (n·tall·wide, tile, tile), right within ``reach`` pixels of a bone: only tiles that a bone
    comes near are looked at, which are few. start, along (n, S, 2); slots, drawn (n, S).
    """
    rows, columns = (
        (torch.arange(count, device=start.device) + 0.5) * _TILE - 0.5 for count in (tall, wide)
    )
    middle = _distance2(columns, rows[:, None], start[:, :, None, None], along[:, :, None, None])
    close = middle.sqrt() <= _TILE / math.sqrt(2) + reach
    frame, bone, row, column = (close & drawn[..., None, None]).nonzero(as_tuple=True)
    inside = torch.arange(_TILE, device=start.device)
    distance2 = _distance2(
        (column[:, None] * _TILE + inside)[:, None],
        (row[:, None] * _TILE + inside)[:, :, None],
        start[frame, bone, None, None],
        along[frame, bone, None, None],
    )  # (pairs of bone and tile, tile, tile)
    tile = ((frame * tall + row) * wide + column)[:, None, None].expand_as(distance2)
    canvas = (len(start) * tall * wide, _TILE, _TILE)
    nearest = start.new_full(canvas, torch.inf).scatter_reduce(0, tile, distance2, "amin")
    winner = torch.where(
        distance2 == nearest.gather(0, tile), slots[frame, bone, None, None], slots.new_zeros(1)
    )
    return nearest, slots.new_zeros(canvas).scatter_reduce(0, tile, winner, "amax")


def _distance2(x: Tensor, y: Tensor, start: Tensor, along: Tensor) -> Tensor:
    """Squared distance of points to segments from ``start`` to ``start + along``, (..., 2)."""
    across, down = x - start[..., 0], y - start[..., 1]
    length2 = along.square().sum(dim=-1).clamp_min(1e-6)
    part = ((across * along[..., 0] + down * along[..., 1]) / length2).clamp(0, 1)
    return (across - part * along[..., 0]).square() + (down - part * along[..., 1]).square()


def _bones_of(present: Tensor) -> tuple[Tensor, Tensor]:
    """Slots (n, S, 2) that the bones of each frame connect, and which of the S exist (n, S)."""
    patterns, which = torch.unique(present, dim=0, return_inverse=True)
    pairs = [torch.tensor(bones(p)).reshape(-1, 2).long() for p in patterns.cpu().numpy()]
    drawn = pad_sequence([torch.ones(len(p), dtype=torch.bool) for p in pairs], batch_first=True)
    ends = pad_sequence(pairs, batch_first=True)
    return ends.to(present.device)[which], drawn.to(present.device)[which]


def bone_colours(slots: int) -> Tensor:
    """(J, 3) RGB of the bone that ends at each slot: hue by finger and hand, brighter to the tip.

    Bones that end at a wrist or at a slot behind the 42 are the arm's.
    """
    rows = []
    for name in (SLOT_NAMES + EXTRA_SLOTS)[:slots]:
        side, joint = name.split("_", 1)
        finger = joint.split("_")[0] if joint in HAND_JOINT_NAMES and joint != "wrist" else "arm"
        ring = 0 if finger == "arm" else (HAND_JOINT_NAMES.index(joint) - 1) % 4
        hue = (2 * _PARTS.index(finger) + (side == "right")) / (2 * len(_PARTS))
        rows.append(colorsys.hsv_to_rgb(hue, 1.0, 0.55 + 0.15 * ring))
    rows += [(0.0, 0.0, 0.0)] * (slots - len(rows))  # slots that no bone reaches
    return torch.tensor(rows)
