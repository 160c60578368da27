"""What all candidates of a rollout share, and the conditions of some of them made from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ego_world_model.world_model.backbones import Condition
from ego_world_model.world_model.checkpoint import WorldModelConfig
from ego_world_model.world_model.controls.base import Control
from ego_world_model.world_model.controls.config import ControlSignal
from ego_world_model.world_model.guidance import WITHOUT_CONTROL, WITHOUT_TEXT, GuidanceBranch
from ego_world_model.world_model.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Computed once for a call, whatever the number of candidates and batches.

    Attributes:
        reference: (1, C, h, w) latent of the reference frame.
        matrix: (1, 3, 3) intrinsics at the model's size.
        image, text: (1, L, D) tokens, or None for a model that reads none.
        without_text: (1, L, D) tokens that text guidance leads away from; None without it.
        without_control: signal that control guidance leads away from; None without it.
        sampling: how the rollout is sampled.
    """

    reference: Tensor
    matrix: Tensor
    image: Tensor | None
    text: Tensor | None
    without_text: Tensor | None
    without_control: ControlSignal | None
    sampling: Sampling

    def conditions(
        self, control: Control, joints: Tensor, valid: Tensor, masks: dict[str, Tensor]
    ) -> tuple[Condition, list[GuidanceBranch]]:
        """The condition of B candidates, and what guidance leads them away from.

        Args:
            joints, valid: (B, T, J, 3) metres and (B, T, J).
            masks: ``{"masks": (B, T, h, w)}`` for a control that reads them, else nothing.
        """
        count = len(joints)
        reference, matrix, text, image = (
            None if x is None else x.expand(count, *x.shape[1:])
            for x in (self.reference, self.matrix, self.text, self.image)
        )
        signal = control(joints, matrix, reference, valid=valid, **masks)
        full = Condition.from_control(reference, signal.motion, signal.geometry, text, image)
        branches = []
        if self.without_text is not None:
            away = replace(full, text=self.without_text.expand(count, -1, -1))
            scale = self.sampling.guidance
            branches.append(GuidanceBranch(name=WITHOUT_TEXT, condition=away, scale=scale))
        if (bare := self.without_control) is not None:
            maps = (x.expand(count, -1, -1, -1, -1) for x in (bare.motion, bare.geometry))
            away = Condition.from_control(reference, *maps, text, image)
            scale = self.sampling.control_guidance
            branches.append(GuidanceBranch(name=WITHOUT_CONTROL, condition=away, scale=scale))
        return full, branches


def signal_of_unknown_hands(
    control: Control, config: WorldModelConfig, reference: Tensor, matrix: Tensor
) -> ControlSignal:
    """What the control says of one candidate if no joint is known and masks show background.

    Args:
        reference: (1, C, h, w) latent of the reference frame.
        matrix: (1, 3, 3) intrinsics at the model's size.
    """
    joints = reference.new_zeros(1, config.num_frames, config.num_slots, 3)
    valid = torch.zeros_like(joints[..., 0], dtype=torch.bool)
    masks = {}
    if control.reads_masks:
        size = (1, config.num_frames, config.height, config.width)
        masks["masks"] = torch.zeros(size, dtype=torch.uint8, device=reference.device)
    return control(joints, matrix, reference, valid=valid, **masks)
