"""Stable Video Diffusion's parts behind the same protocol: a U-Net backbone and its autoencoder.

The U-Net reads [noisy latent, reference latent, motion, geometry] a frame; the last two are ours,
and the input layer is widened for them with zero weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ego_world_model.world_model.backbones import Condition
from ego_world_model.world_model.pretrained import PretrainedPart, load_base, widen_input


class TemporalDecoderAutoencoder(PretrainedPart):
    """diffusers' AutoencoderKLTemporalDecoder: frames are encoded apart and decoded together.

    Args:
        base: diffusers folder with ``vae/``; None builds a new one from ``settings``.
        settings: arguments of AutoencoderKLTemporalDecoder, for a new one.
        dtype: name of a torch dtype for the base's weights.
    """

    temporal_stride = 1

    def __init__(
        self,
        *,
        base: str | None = None,
        settings: dict[str, Any] | None = None,
        dtype: str | None = None,
    ) -> None:
        super().__init__()
        from diffusers import AutoencoderKLTemporalDecoder

        self.base = base
        self.vae = (
            load_base(AutoencoderKLTemporalDecoder, base, "vae", dtype)
            if base
            else AutoencoderKLTemporalDecoder(**(settings or {}))
        )
        config = self.vae.config
        self.latent_channels: int = config.latent_channels
        self.spatial_stride: int = 2 ** (len(config.block_out_channels) - 1)

    def encode_reference(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → (B, C, h, w)."""
        latents = self.vae.encode(image.to(self.vae.dtype)).latent_dist.mode()
        return latents.float() * self.vae.config.scaling_factor

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] → (B, C, T, h, w)."""
        latents = self.encode_reference(video.transpose(1, 2).flatten(0, 1))
        return latents.unflatten(0, (len(video), -1)).transpose(1, 2)

    def decode(self, latents: Tensor, reference: Tensor) -> Tensor:
        """Frame 0 is the reference itself, exactly."""
        frames = latents.transpose(1, 2).flatten(0, 1) / self.vae.config.scaling_factor
        video = self.vae.decode(frames.to(self.vae.dtype), num_frames=latents.shape[2]).sample
        video = video.float().unflatten(0, (len(latents), -1)).transpose(1, 2)
        return torch.cat([reference[:, :, None].to(video), video[:, :, 1:]], dim=2)


class UNetBackbone(PretrainedPart):
    """diffusers' UNetSpatioTemporalConditionModel, preconditioned as Stable Video Diffusion is.

    With noise level s of the flow, SVD's own level is s / (1 - s); its skip, input and output
    scales are written in s, where they stay finite at pure noise.

    Args:
        base: diffusers folder with ``unet/``; None builds a new one from ``settings``.
        settings: arguments of UNetSpatioTemporalConditionModel beyond channels, for a new one.
        latent_channels, geometry_channels: C and G.
        condition_scale: the reference latent is divided by it before the U-Net reads it (SVD's
            conditions are unscaled: 0.18215).
        micro_conditions: SVD's frame rate - 1, motion bucket and noise of the conditioning image.
        dtype: name of a torch dtype for the base's weights.
    """

    trained = ("unet.conv_in.",)
    max_sigma = 700.0  # the highest noise level that SVD was trained on

    def __init__(
        self,
        *,
        base: str | None = None,
        settings: dict[str, Any] | None = None,
        latent_channels: int = 4,
        geometry_channels: int = 16,
        condition_scale: float = 0.18215,
        micro_conditions: Sequence[float] = (6, 127, 0.02),
        dtype: str | None = None,
    ) -> None:
        super().__init__()
        from diffusers import UNetSpatioTemporalConditionModel

        self.base, self.condition_scale = base, condition_scale
        if base:
            self.unet = load_base(UNetSpatioTemporalConditionModel, base, "unet", dtype)
        else:
            channels = {"in_channels": 2 * latent_channels, "out_channels": latent_channels}
            self.unet = UNetSpatioTemporalConditionModel(**(settings or {}), **channels)
        inputs = 3 * latent_channels + geometry_channels
        self.unet.conv_in = widen_input(self.unet.conv_in, inputs)
        self.unet.register_to_config(in_channels=inputs)
        ids = torch.tensor(list(micro_conditions), dtype=torch.float32)
        self.register_buffer("micro_conditions", ids, persistent=False)

    def forward(self, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Noisy latents (B, C, t, h, w), noise level (B,) → clean latents (B, C, t, h, w)."""
        s = sigma.float().view(-1, 1, 1, 1, 1)
        norm = (s.square() + (1 - s).square()).sqrt()
        base = condition.reference[:, :, None].expand_as(noisy) / self.condition_scale
        inputs = torch.cat([noisy / norm, base, condition.motion, condition.geometry], dim=1)
        dtype = self.unet.dtype
        tokens = condition.image
        if tokens is None:
            tokens = inputs.new_zeros(len(noisy), 1, self._token_width())
        level = (sigma / (1 - sigma).clamp_min(1e-9)).clamp(1e-3, self.max_sigma)
        (estimate,) = self.unet(
            inputs.transpose(1, 2).to(dtype),
            0.25 * level.log(),
            encoder_hidden_states=tokens.to(dtype),
            added_time_ids=self.micro_conditions.expand(len(noisy), -1).to(dtype),
            return_dict=False,
        )
        estimate = estimate.transpose(1, 2).to(noisy.dtype)
        return (1 - s) / norm.square() * noisy - s / norm * estimate

    def _token_width(self) -> int:
        width = self.unet.config.cross_attention_dim
        return width if isinstance(width, int) else width[0]
