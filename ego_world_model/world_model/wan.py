"""Wan 2.1 image-to-video as published in diffusers' layout, steered by joint control.

The transformer reads [noisy latent 16, first-frame mask 4, condition 16, geometry 16] channels. The
condition's frames after the first are the motion features; its input layer is widened for the
geometry with zero weights, so an untrained control changes nothing through it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ego_world_model.world_model.backbones import Condition
from ego_world_model.world_model.pretrained import (
    PretrainedPart,
    add_lora,
    in_own_dtype,
    load_base,
    widen_input,
)

LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
MASK_CHANNELS = 4
TEXT_TOKENS = 512


class WanAutoencoder(PretrainedPart):
    """diffusers' AutoencoderKLWan: 8x down in space, 4x in time, latents of unit variance.

    Latent 0 is frame 0 alone and latent k >= 1 is frames 4k-3 … 4k. The encoder is causal, so the
    first latent of [image, zeros], which is all that joint control keeps of it, is that of the
    image alone.

    Args:
        base: diffusers folder with ``vae/``; None builds a new one from ``settings``.
        settings: arguments of AutoencoderKLWan, for a new one.
        dtype: name of a torch dtype for the base's weights.
        tiling: encode and decode in overlapping tiles, for little memory.
    """

    def __init__(
        self,
        *,
        base: str | None = None,
        settings: dict[str, Any] | None = None,
        dtype: str | None = None,
        tiling: bool = False,
    ) -> None:
        super().__init__()
        from diffusers import AutoencoderKLWan

        self.base = base
        self.vae = (
            load_base(AutoencoderKLWan, base, "vae", dtype)
            if base
            else AutoencoderKLWan(**(settings or {}))
        )
        config = self.vae.config
        if config.get("patch_size") is not None or config.get("is_residual"):
            raise ValueError("only the Wan 2.1 autoencoder is supported, not the one of Wan 2.2 5B")
        self.latent_channels: int = config.z_dim
        self.spatial_stride: int = 2 ** (len(config.dim_mult) - 1)
        self.temporal_stride: int = 2 ** sum(config.temperal_downsample)
        shape = (1, config.z_dim, 1, 1, 1)
        self.register_buffer("mean", torch.tensor(config.latents_mean).view(shape), False)
        self.register_buffer("std", torch.tensor(config.latents_std).view(shape), False)
        if tiling:
            self.vae.enable_tiling()

    def encode_reference(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → (B, C, h, w)."""
        return self.encode(image[:, :, None])[:, :, 0]

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] → (B, C, t, h, w), normalised by the base's statistics."""
        latents = self.vae.encode(video.to(self.vae.dtype)).latent_dist.mode()
        return (latents.float() - self.mean) / self.std

    def decode(self, latents: Tensor, reference: Tensor) -> Tensor:
        """Frame 0 is the reference itself, exactly."""
        latents = latents.float() * self.std + self.mean
        video = self.vae.decode(latents.to(self.vae.dtype)).sample.float()
        return torch.cat([reference[:, :, None].to(video), video[:, :, 1:]], dim=2)


class WanI2VBackbone(PretrainedPart):
    """diffusers' WanTransformer3DModel of the I2V layout, predicting the flow's velocity.

    Args:
        base: diffusers folder with ``transformer/``; None builds a new one from ``settings``.
        settings: arguments of WanTransformer3DModel beyond channels, for a new one.
        latent_channels, geometry_channels: C and G.
        lora: ``{"rank": …}`` (and ``alpha``, ``targets``) adds LoRA layers to the attention and
            feed-forward projections.
        dtype: name of a torch dtype for the base's weights, e.g. "bfloat16".
    """

    trained = ("transformer.patch_embedding.",)

    def __init__(
        self,
        *,
        base: str | None = None,
        settings: dict[str, Any] | None = None,
        latent_channels: int = 16,
        geometry_channels: int = 16,
        lora: dict[str, Any] | None = None,
        dtype: str | None = None,
    ) -> None:
        super().__init__()
        from diffusers import WanTransformer3DModel

        self.base = base
        base_channels = 2 * latent_channels + MASK_CHANNELS
        if base:
            self.transformer = load_base(WanTransformer3DModel, base, "transformer", dtype)
        else:
            channels = {"in_channels": base_channels, "out_channels": latent_channels}
            self.transformer = WanTransformer3DModel(**(settings or {}), **channels)
        inputs = base_channels + geometry_channels
        wide = widen_input(self.transformer.patch_embedding, inputs)
        self.transformer.patch_embedding = in_own_dtype(wide, lambda: self.dtype)
        self.transformer.register_to_config(in_channels=inputs)
        if lora:
            options = {"targets": LORA_TARGETS} | lora
            add_lora(self.transformer, **options)

    @property
    def dtype(self) -> torch.dtype:
        """That of the base's layers; what is trained on top may be in float32 beside them."""
        # A layer that no LoRA of ours and no layerwise casting touches.
        return self.transformer.condition_embedder.text_embedder.linear_1.weight.dtype

    def forward(self, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Noisy latents (B, C, t, h, w), noise level (B,) → clean latents (B, C, t, h, w)."""
        first = torch.zeros_like(noisy[:, :MASK_CHANNELS])
        first[:, :, 0] = 1
        inputs = torch.cat([noisy, first, condition.motion, condition.geometry], dim=1)
        config, dtype = self.transformer.config, self.dtype
        text = condition.text
        if text is None:
            text = inputs.new_zeros(len(noisy), TEXT_TOKENS, config.text_dim)
        if config.image_dim is not None and condition.image is None:
            raise ValueError(
                "this Wan transformer attends to image tokens: the checkpoint must declare its "
                "base's image encoder in `encoders`"
            )
        (velocity,) = self.transformer(
            inputs.to(dtype),
            sigma * 1000,
            encoder_hidden_states=text.to(dtype),
            encoder_hidden_states_image=(
                None if condition.image is None else condition.image.to(dtype)
            ),
            return_dict=False,
        )
        # noisy = (1 - sigma) clean + sigma noise, velocity = noise - clean
        return noisy - sigma.view(-1, 1, 1, 1, 1) * velocity.to(noisy.dtype)
