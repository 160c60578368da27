"""The denoiser: what it is conditioned on, the protocol, and the diffusers Wan transformer.

A checkpoint names its backbone (see ``parts.BACKBONES``) and its arguments. Noise
follows flow matching, ``noisy = (1 - sigma) * clean + sigma * noise`` with sigma in [0, 1], and
every backbone answers with its estimate of the clean latents, whatever its network predicts inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ego_world_model.world_model.layers import PixelNorm, res_blocks
from ego_world_model.world_model.wan_attention import use_fast_attention


@dataclass(frozen=True)
class Condition:
    """What a rollout obeys; computed once, reused at every step.

    Attributes:
        reference: (B, C, h, w) latent of the reference frame.
        motion: (B, C, t, h, w) reference features carried along by the joints; frame 0 is the
            reference latent itself.
        geometry: (B, G, t, h, w) where the joints are.
        text: (B, L, D) text embedding, or None for a backbone that reads none.
        image: (B, L, D) embedding of the reference image, or None likewise.
    """

    reference: Tensor
    motion: Tensor
    geometry: Tensor
    text: Tensor | None = None
    image: Tensor | None = None

    def __post_init__(self) -> None:
        if self.motion.shape[:2] != self.reference.shape[:2]:
            raise ValueError(
                f"motion {tuple(self.motion.shape)} does not match the reference latent "
                f"{tuple(self.reference.shape)}"
            )
        if self.geometry.shape[2:] != self.motion.shape[2:]:
            raise ValueError(
                f"geometry {tuple(self.geometry.shape)} does not match motion "
                f"{tuple(self.motion.shape)}"
            )

    @classmethod
    def from_control(
        cls,
        reference: Tensor,
        motion: Tensor,
        geometry: Tensor,
        text: Tensor | None = None,
        image: Tensor | None = None,
    ) -> Condition:
        """From the joint control's output: frame 0 of the motion keeps the reference latent."""
        motion = torch.cat([reference[:, :, None].to(motion), motion[:, :, 1:]], dim=2)
        return cls(reference, motion, geometry, text, image)


@runtime_checkable
class Backbone(Protocol):
    """What the sampler and the trainer ask of a denoising network."""

    def forward(self, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Noisy latents (B, C, t, h, w), noise level (B,) → clean latents (B, C, t, h, w)."""
        ...


class WanBackbone(nn.Module):
    """diffusers' WanTransformer3DModel with a convolutional stem and head at latent resolution.

    The stem reads [noisy, motion, repeated reference, geometry] and feeds the tokens; the head
    joins the transformer's output with the stem's, so that fine structure does not have to pass
    through wide patches. The network predicts what differs from the repeated reference, scaled so
    that its target has unit variance at every noise level; at initialisation and full noise its
    answer is the reference, repeated.

    Args:
        latent_channels: C of the latents.
        geometry_channels: G of the joint control's geometry.
        channels: width of stem and head.
        stem_blocks, head_blocks: residual blocks in each.
        residual_std: typical deviation of future latents from the reference, for the scaling.
        transformer: arguments of WanTransformer3DModel beyond channels and text.
    """

    def __init__(
        self,
        *,
        latent_channels: int = 12,
        geometry_channels: int = 16,
        channels: int = 128,
        stem_blocks: int = 2,
        head_blocks: int = 2,
        residual_std: float = 0.5,
        transformer: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        from diffusers import WanTransformer3DModel

        settings = dict(num_layers=6, num_attention_heads=4, attention_head_dim=64, ffn_dim=1024)
        settings |= transformer or {}
        self.residual_std = residual_std
        inputs = 3 * latent_channels + geometry_channels
        self.stem = nn.Sequential(
            nn.Conv2d(inputs, channels, 3, padding=1), *res_blocks(channels, stem_blocks)
        )
        self.transformer = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            in_channels=channels,
            out_channels=channels // 2,
            text_dim=16,
            rope_max_seq_len=128,
            **settings,
        )
        self.transformer.patch_embedding = _PatchLinear(self.transformer.patch_embedding)
        use_fast_attention(self.transformer)
        self.join = nn.Conv2d(channels + channels // 2, channels, 3, padding=1)
        self.head = res_blocks(channels, head_blocks)
        self.norm = PixelNorm(channels)
        self.out = nn.Conv2d(channels, latent_channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        for module in (self.stem, self.join, self.head, self.out):
            module.to(memory_format=torch.channels_last)

    def forward(self, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        t = noisy.shape[2]
        base = condition.reference[:, :, None]  # (B, C, 1, h, w)
        s = sigma.float().view(-1, 1, 1, 1, 1)
        keep, spread = 1 - s, self.residual_std
        scale = (keep**2 * spread**2 + s**2).sqrt()
        residual = noisy - keep * base  # (1 - s) * (clean - reference) + s * noise
        inputs = torch.cat(
            [
                residual / scale,
                condition.motion,
                base.expand(-1, -1, t, -1, -1),
                condition.geometry,
            ],
            dim=1,
        )
        estimate = self._network(inputs, sigma)
        # The best linear guess from the noisy residual alone, plus what the network adds.
        return base + keep * spread**2 / scale**2 * residual + s * spread / scale * estimate

    def _network(self, inputs: Tensor, sigma: Tensor) -> Tensor:
        """(B, F, t, h, w) → (B, C, t, h, w)."""
        batch, t = inputs.shape[0], inputs.shape[2]
        stem = self.stem(_frames(inputs))  # (B*t, channels, h, w)
        tokens = stem.unflatten(0, (batch, t)).transpose(1, 2)
        nothing = tokens.new_zeros(batch, 1, self.transformer.config.text_dim)
        (global_,) = self.transformer(
            tokens, sigma * 1000, encoder_hidden_states=nothing, return_dict=False
        )
        joined = torch.cat([stem, _frames(global_).to(stem.dtype)], dim=1)
        x = self.head(self.join(joined.contiguous(memory_format=torch.channels_last)))
        x = self.out(F.silu(self.norm(x))).float()
        return x.unflatten(0, (batch, t)).transpose(1, 2)


class _PatchLinear(nn.Conv3d):
    """A patch embedding with a Conv3d's weights, computed as one matrix product.

    A strided Conv3d is about ten times slower than this on a CPU.
    """

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, t, h, w) → (B, D, t/pt, h/ph, w/pw)."""
        batch, channels, t, h, w = x.shape
        pt, ph, pw = self.kernel_size
        x = x.reshape(batch, channels, t // pt, pt, h // ph, ph, w // pw, pw)
        x = x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)  # (B, t', h', w', C*pt*ph*pw)
        return F.linear(x, self.weight.flatten(1), self.bias).permute(0, 4, 1, 2, 3)


def _frames(x: Tensor) -> Tensor:
    """(B, C, t, h, w) → (B*t, C, h, w), channels last."""
    return x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
