"""What the world model and its training ask of a control, ours or a peer's."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from ego_world_model.world_model.controls.config import ControlSignal


@runtime_checkable
class Control(Protocol):
    """A module that turns what is known of the hands into conditions of a video model.

    Constructors take ``num_joints``, ``latent_channels``, ``spatial_stride`` and
    ``temporal_stride`` as keywords beside their own.

    Attributes:
        reads_masks: whether ``forward`` needs ``masks`` as well.
    """

    reads_masks: bool

    def forward(
        self,
        joints: Tensor,
        intrinsics: Tensor,
        reference_latent: Tensor,
        valid: Tensor | None = None,
    ) -> ControlSignal:
        """Joints (B, T, J, 3) in metres, intrinsics (B, 3, 3) in pixels, reference latent
        (B, C, h, w), valid (B, T, J) → the signal. A control that reads masks takes ``masks``
        (B, T, H, W) uint8 classes of ``data.schema.MASK_CLASSES`` as a keyword too.
        """
        ...
