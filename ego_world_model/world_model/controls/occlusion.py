"""Which joints of the reference frame are seen: the pairwise occlusion of the paper.

Joint k hides joint j as far as it projects onto it and lies in front of it,
``O(k→j) = G_k(u_j) · sigmoid((z_j − z_k − margin) / softness)``, and what nothing hides is visible,
``v_j = Π_{k≠j} (1 − O(k→j))``.

Two lengths are metric where the paper has grid cells and raw disparity. A radius of fixed cells
covers a whole hand on a small grid, and without a margin two joints at the same depth hide each
other by half; either makes an open flat hand vanish. The radius of G_k in cells is therefore
``radius · focal length / (stride · z_k)``: finger-wide within a hand, wider towards the other hand,
whose joints stand for the palm and bones between them as well.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ego_world_model.hands import EXTRA_SLOTS, SLOT_NAMES
from ego_world_model.world_model.controls.config import ControlConfig, Occlusion


def joint_visibility(
    uv: Tensor,
    depth: Tensor,
    present: Tensor,
    *,
    cells_per_metre: Tensor,
    mode: Occlusion = "soft",
    finger_radius: float = ControlConfig.finger_radius,
    hand_radius: float = ControlConfig.hand_radius,
    margin: float = ControlConfig.occlusion_margin,
    softness: float = ControlConfig.occlusion_softness,
) -> Tensor:
    """Visibility (..., J) in 0..1 of joints against each other; absent joints get 0.

    Args:
        uv: (..., J, 2) image position in any unit (latent cells, pixels).
        depth: (..., J) metres, > 0.
        present: (..., J) 1 or 0; an absent joint hides nothing.
        cells_per_metre: (..., J) focal length / depth in that unit: size of a metre at the joint.
        mode: "soft", "hard" (hidden or not, no gradient) or "none".
        finger_radius, hand_radius: metres hidden around a joint of the same and the other hand.
        margin, softness: metres, see the module.
    """
    if mode == "none":
        return present.clone()
    # [..., j, k]: joint j as seen past joint k
    distance2 = (uv[..., :, None, :] - uv[..., None, :, :]).square().sum(dim=-1)
    behind = depth[..., :, None] - depth[..., None, :] - margin
    sides = _sides(uv.shape[-2], uv.device)
    radius = torch.where(sides[:, None] == sides, finger_radius, hand_radius).to(uv.dtype)
    sigma = radius * cells_per_metre[..., None, :]
    if mode == "hard":
        hides = ((distance2 < sigma.square()) & (behind > 0)).to(uv.dtype)
    else:
        hides = torch.exp(-0.5 * distance2 / sigma.square()) * torch.sigmoid(behind / softness)
    others = 1 - torch.eye(uv.shape[-2], device=uv.device, dtype=uv.dtype)
    hides = hides * others * present[..., None, :]
    return torch.prod(1 - hides, dim=-1) * present


def _sides(joints: int, device: torch.device) -> Tensor:
    """(J,) 0 for slots of the left arm and hand, 1 for those of the right."""
    names = (SLOT_NAMES + EXTRA_SLOTS)[:joints]
    sides = [int(name.startswith("right_")) for name in names]
    # Slots beyond the named ones come in pairs, left first, like the extra slots.
    sides += [i % 2 for i in range(len(names), joints)]
    return torch.tensor(sides, device=device)


def inside_image(uv: Tensor, height: int, width: int, *, blur: float = 0.1) -> Tensor:
    """How far positions lie inside the grid, (..., 2) cells → (...) in 0..1.

    1 from two blurs (cells) inside the border, 0 from two outside, smooth between: a joint that the
    reference frame does not show has no appearance to carry.
    """
    low = torch.tensor([-0.5, -0.5], device=uv.device, dtype=uv.dtype)
    high = torch.tensor([width - 0.5, height - 0.5], device=uv.device, dtype=uv.dtype)
    scale = 1 / (blur * math.sqrt(2))
    inside = 0.5 * (torch.erf((high - uv) * scale) - torch.erf((low - uv) * scale))
    return inside.prod(dim=-1)


def released_visibility(uv: Tensor, disparity: Tensor) -> Tensor:
    """The published weights' hard test: hidden within 1 cell of a joint nearer by 1e-3 (scaled)."""
    distance2 = (uv[..., :, None, :] - uv[..., None, :, :]).square().sum(dim=-1)
    nearer = disparity[..., :, None] < disparity[..., None, :] - 1e-3
    return (~((distance2 < 1.0) & nearer).any(dim=-1)).to(uv.dtype)
