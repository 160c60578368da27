"""What the two trainers minimise: one module each, from a batch of clips to scalar losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ego_world_model.training.clips import ClipBatch
from ego_world_model.training.losses import RegionWeights, latent_loss, pixel_loss
from ego_world_model.world_model.backbones import Condition


class AutoencoderObjective(nn.Module):
    """Reconstruct frames from noisy latents, painted over the clip's reference.

    Args:
        latent_noise: largest deviation of the noise put on latents; the world model's latents are
            never exact, and the decoder must bear that.
    """

    def __init__(
        self, autoencoder: nn.Module, weights: RegionWeights, *, latent_noise: float = 0.3
    ) -> None:
        super().__init__()
        self.autoencoder, self.weights, self.latent_noise = autoencoder, weights, latent_noise

    def forward(
        self, batch: ClipBatch, progress: float, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        target = batch.video[:, 1:]  # (B, T-1, 3, H, W)
        latents = self.autoencoder.encode_frames(target.flatten(0, 1))
        latents = latents.unflatten(0, target.shape[:2])
        if self.training:
            strength = torch.rand(*target.shape[:2], 1, 1, 1, generator=generator)
            noise = torch.randn(latents.shape, generator=generator)
            latents = latents + self.latent_noise * strength * noise
        decoded = self.autoencoder.decode_frames(latents, batch.reference)
        return {"loss": pixel_loss(decoded, target, self.weights(batch.masks))}


@dataclass(frozen=True, kw_only=True)
class NoiseSettings:
    """How noise levels are drawn in training.

    Attributes:
        pure: probability of sigma = 1, which is all that a single sampling step ever sees.
        lowest: other levels are uniform between this and 1.
    """

    pure: float = 0.6
    lowest: float = 0.1

    def draw(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """(count,) noise levels."""
        level, pure = torch.rand(2, count, generator=generator)
        return torch.where(pure < self.pure, 1.0, self.lowest + (1 - self.lowest) * level)


class WorldModelObjective(nn.Module):
    """Denoise the future latents of a clip under its joints; judged in latents and in pixels.

    Args:
        control, backbone: trained.
        autoencoder: its encoder and statistics stay fixed; its decoder trains once progress passes
            ``decoder_from``, so that it learns to paint from predicted latents.
        pixel_frames: future frames per clip that are decoded for the pixel loss.
        pixel_weight: of that loss.
    """

    def __init__(
        self,
        control: nn.Module,
        backbone: nn.Module,
        autoencoder: nn.Module,
        weights: RegionWeights,
        noise: NoiseSettings,
        *,
        pixel_frames: int = 2,
        pixel_weight: float = 1.0,
        decoder_from: float = 0.5,
    ) -> None:
        super().__init__()
        self.control, self.backbone, self.autoencoder = control, backbone, autoencoder
        self.weights, self.noise = weights, noise
        self.pixel_frames, self.pixel_weight = pixel_frames, pixel_weight
        self.decoder_from = decoder_from
        self._thaw(decoder_from)  # so that the optimiser sees the decoder, too
        self.train()

    def _thaw(self, progress: float) -> None:
        """Let the decoder learn once progress has passed ``decoder_from``; never the encoder."""
        for name, parameter in self.autoencoder.named_parameters():
            parameter.requires_grad_(
                progress >= self.decoder_from and not name.startswith("encoder.")
            )

    def train(self, mode: bool = True) -> WorldModelObjective:
        super().train(mode)
        self.autoencoder.eval()  # its latent statistics are fixed by now
        return self

    def forward(
        self, batch: ClipBatch, progress: float, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        self._thaw(progress)
        with torch.no_grad():
            clean = self.autoencoder.encode(batch.video.transpose(1, 2))  # (B, C, T, h, w)
        condition = self.condition(batch, clean[:, :, 0])
        sigma = self.noise.draw(len(clean), generator)
        s = sigma.view(-1, 1, 1, 1, 1)
        noisy = (1 - s) * clean + s * torch.randn(clean.shape, generator=generator)
        predicted = self.backbone(noisy, sigma, condition)
        weight = self.weights(batch.masks)  # (B, T-1, H, W)
        losses = {"latent": latent_loss(predicted[:, :, 1:], clean[:, :, 1:], weight)}
        losses["pixel"] = self._pixel(predicted, batch, weight, generator)
        losses["loss"] = losses["latent"] + self.pixel_weight * losses["pixel"]
        return losses

    def condition(self, batch: ClipBatch, reference: Tensor) -> Condition:
        """The control's answer, in full precision: pixel coordinates do not survive bfloat16."""
        with torch.autocast(reference.device.type, enabled=False):
            masks = {"masks": batch.masks} if self.control.reads_masks else {}
            signal = self.control(
                batch.joints, batch.intrinsics, reference.float(), valid=batch.valid, **masks
            )
        return Condition.from_control(reference, signal.motion, signal.geometry)

    def _pixel(
        self,
        predicted: Tensor,
        batch: ClipBatch,
        weight: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        future = batch.video.shape[1] - 1
        chosen = torch.randperm(future, generator=generator)[: self.pixel_frames]
        latents = predicted[:, :, 1:][:, :, chosen].transpose(1, 2)
        decoded = self.autoencoder.decode_frames(latents, batch.reference)
        return pixel_loss(decoded, batch.video[:, 1:][:, chosen], weight[:, chosen])
