"""From pixels to latents and back: the protocol, and the small per-frame autoencoder.

A checkpoint names its autoencoder (see ``parts.AUTOENCODERS``) and its arguments.
Images and videos are float tensors in [-1, 1]; latents have roughly unit variance.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ego_world_model.world_model.layers import PixelNorm, res_blocks


@runtime_checkable
class Autoencoder(Protocol):
    """What the world model asks of an autoencoder.

    Attributes:
        latent_channels: C of the latents.
        spatial_stride: pixels per latent cell, in both directions.
        temporal_stride: frames per latent frame; T frames give t = 1 + (T-1)/temporal_stride.
    """

    latent_channels: int
    spatial_stride: int
    temporal_stride: int

    def encode_reference(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, C, h, w), the latent of the reference frame."""
        ...

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) → (B, C, t, h, w), unit variance."""
        ...

    def decode(self, latents: Tensor, reference: Tensor) -> Tensor:
        """Latents (B, C, t, h, w) and the reference (B, 3, H, W) → video (B, 3, T, H, W)."""
        ...


class FrameAutoencoder(nn.Module):
    """Per-frame autoencoder, 8x down, whose decoder sees the reference frame.

    The decoder paints over the reference, ``frame = reference + mask * (rgb - reference)``, so the
    still background stays crisp and the latents spend their few channels on what moves.

    Args:
        latent_channels: channels of the latents.
        channels: widths at stride 2, 4 and 8.
    """

    spatial_stride = 8
    temporal_stride = 1

    def __init__(
        self, *, latent_channels: int = 12, channels: tuple[int, int, int] = (32, 64, 128)
    ) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.encoder = _Encoder(latent_channels, channels)
        # Keeps the latents at zero mean and unit variance per channel, from running statistics.
        self.standardise = nn.BatchNorm2d(latent_channels, affine=False, momentum=0.02)
        self.reference_pyramid = _ReferencePyramid(channels)
        self.decoder = _Decoder(latent_channels, channels)
        self.to(memory_format=torch.channels_last)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] → (N, C, H/8, W/8)."""
        latents = self.encoder(frames.contiguous(memory_format=torch.channels_last))
        return self.standardise(latents.float())

    def decode_frames(self, latents: Tensor, reference: Tensor) -> Tensor:
        """Latents (B, T, C, h, w) painted over references (B, 3, H, W) → (B, T, 3, H, W)."""
        frames = latents.shape[1]
        reference = reference.contiguous(memory_format=torch.channels_last)
        features = [_repeat(level, frames) for level in self.reference_pyramid(reference)]
        out = self.decoder(latents.flatten(0, 1), features)
        rgb, mask = out[:, :3], torch.sigmoid(out[:, 3:])
        base = _repeat(reference, frames)
        return (base + mask * (rgb - base)).unflatten(0, (-1, frames))

    def encode_reference(self, image: Tensor) -> Tensor:
        return self.encode_frames(image)

    def encode(self, video: Tensor) -> Tensor:
        latents = self.encode_frames(video.transpose(1, 2).flatten(0, 1))
        return latents.unflatten(0, (len(video), -1)).transpose(1, 2)

    def decode(self, latents: Tensor, reference: Tensor) -> Tensor:
        """Frame 0 is the reference itself, exactly; the others are painted over it."""
        future = self.decode_frames(latents[:, :, 1:].transpose(1, 2), reference)
        return torch.cat([reference[:, None].to(future), future], dim=1).transpose(1, 2)


class _Encoder(nn.Module):
    def __init__(self, latent_channels: int, channels: tuple[int, int, int]) -> None:
        super().__init__()
        _, mid, low = channels
        self.stem = nn.Conv2d(3 * 16, mid, 3, padding=1)
        self.mid = res_blocks(mid, 2)
        self.down = nn.Conv2d(4 * mid, low, 1)
        self.low = res_blocks(low, 1)
        self.norm = PixelNorm(low)
        self.out = nn.Conv2d(low, latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) → (N, C, H/8, W/8)."""
        x = self.mid(self.stem(_unshuffle(x, 4)))
        x = self.low(self.down(_unshuffle(x, 2)))
        return self.out(F.silu(self.norm(x)))


class _ReferencePyramid(nn.Module):
    """Features of the reference frame at stride 2, 4 and 8."""

    def __init__(self, channels: tuple[int, int, int]) -> None:
        super().__init__()
        high, mid, low = channels
        self.high = nn.Conv2d(3 * 4, high, 3, padding=1)
        self.mid = nn.Sequential(nn.Conv2d(4 * high, mid, 1), *res_blocks(mid, 1))
        self.low = nn.Sequential(nn.Conv2d(4 * mid, low, 1), *res_blocks(low, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        high = self.high(_unshuffle(image, 2))
        mid = self.mid(_unshuffle(F.silu(high), 2))
        low = self.low(_unshuffle(F.silu(mid), 2))
        return high, mid, low


class _Decoder(nn.Module):
    def __init__(self, latent_channels: int, channels: tuple[int, int, int]) -> None:
        super().__init__()
        high, mid, low = channels
        self.stem = nn.Conv2d(latent_channels, low, 3, padding=1)
        self.low = res_blocks(low, 2)
        self.up_mid = nn.Conv2d(low, 4 * mid, 1)
        self.mid = res_blocks(mid, 2)
        self.up_high = nn.Conv2d(mid, 4 * high, 1)
        self.high = res_blocks(high, 1)
        self.norm = PixelNorm(high)
        self.out = nn.Conv2d(high, 4 * 4, 3, padding=1)

    def forward(self, latents: Tensor, reference: list[Tensor]) -> Tensor:
        """(N, C, h, w) and the pyramid (high, mid, low) → (N, 4, 8h, 8w): rgb and mask logit."""
        high, mid, low = reference
        latents = latents.contiguous(memory_format=torch.channels_last)
        x = self.low(self.stem(latents) + low)
        x = self.mid(_shuffle(self.up_mid(x), 2) + mid)
        x = self.high(_shuffle(self.up_high(x), 2) + high)
        return _shuffle(self.out(F.silu(self.norm(x))).float(), 2)


def _repeat(x: Tensor, frames: int) -> Tensor:
    """(B, ...) → (B*frames, ...), each item repeated for its frames, channels last."""
    x = x[:, None].expand(-1, frames, *x.shape[1:]).flatten(0, 1)
    return x.contiguous(memory_format=torch.channels_last)


def _unshuffle(x: Tensor, factor: int) -> Tensor:
    return F.pixel_unshuffle(x, factor).contiguous(memory_format=torch.channels_last)


def _shuffle(x: Tensor, factor: int) -> Tensor:
    return F.pixel_shuffle(x, factor).contiguous(memory_format=torch.channels_last)
