"""What the two trainers minimise: one module each, from a batch of clips to scalar losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

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
            noise = strength * torch.randn(latents.shape, generator=generator)
            latents = latents + self.latent_noise * noise.to(latents)
        decoded = self.autoencoder.decode_frames(latents, batch.reference)
        return {"loss": pixel_loss(decoded, target, self.weights(batch.masks))}


@dataclass(frozen=True, kw_only=True)
class NoiseSettings:
    """How noise levels are drawn in training.

    Attributes:
        pure: probability of sigma = 1, which is all that a single sampling step ever sees.
        lowest: other levels lie between this and 1.
        distribution: of those, before the shift: "uniform", or "logit_normal", which favours
            middle levels (arXiv 2403.03206).
        mean, deviation: of the normal behind "logit_normal".
        shift: above 1 moves levels towards noise, by the same map as a checkpoint's own shift.
    """

    pure: float = 0.6
    lowest: float = 0.1
    distribution: Literal["uniform", "logit_normal"] = "uniform"
    mean: float = 0.0
    deviation: float = 1.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.distribution not in ("uniform", "logit_normal"):
            raise ValueError(
                f"noise: distribution must be uniform or logit_normal, got {self.distribution!r}"
            )

    def draw(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """(count,) noise levels, on the CPU."""
        level, pure = torch.rand(2, count, generator=generator)
        if self.distribution == "logit_normal":
            normal = torch.special.ndtri(level.double().clamp(1e-6, 1 - 1e-6)).float()
            level = torch.sigmoid(self.mean + self.deviation * normal)
        level = self.shift * level / (1 + (self.shift - 1) * level)
        return torch.where(pure < self.pure, 1.0, self.lowest + (1 - self.lowest) * level)


Loss = Literal["clean", "velocity"]


class WorldModelObjective(nn.Module):
    """Denoise the future latents of a clip under its joints; judged in latents and in pixels.

    Backbones answer with clean latents x'. With noisy = (1 - s) x + s n, a network that predicts
    the flow's velocity n - x answers noisy - s v', so its velocity error is (x' - x) / s: the loss
    "velocity" is the flow-matching loss of Wan, SD3 and others, written on the clean latents. It
    asks most of low noise, where details are made, over the many steps of a large model. "clean"
    leaves the factor 1 / s² out, for models that sample in one or two steps and so live near s = 1.

    Args:
        control, backbone: trained, as far as their parameters require gradients.
        autoencoder: used as it is, unless there is a pixel loss: then its encoder and statistics
            stay fixed and its decoder trains once progress passes ``decoder_from``, so that it
            learns to paint from predicted latents.
        weights: of regions; None weighs all pixels alike.
        loss: see above.
        reference_weight: of the reference's own latent in the latent loss, relative to another
            latent. Published models denoise it with the rest (1); ours are given it (0).
        pixel_frames: future frames per clip that are decoded for the pixel loss.
        pixel_weight: of that loss; 0 leaves it out.

    Raises:
        ValueError: if the loss is unknown, or pixels are asked of an autoencoder that cannot decode
            frames apart.
    """

    def __init__(
        self,
        control: nn.Module,
        backbone: nn.Module,
        autoencoder: nn.Module,
        weights: RegionWeights | None,
        noise: NoiseSettings,
        *,
        loss: Loss = "clean",
        reference_weight: float = 0.0,
        pixel_frames: int = 2,
        pixel_weight: float = 1.0,
        decoder_from: float = 0.5,
    ) -> None:
        super().__init__()
        if loss not in get_args(Loss):
            raise ValueError(f"loss must be {' or '.join(get_args(Loss))}, got {loss!r}")
        if pixel_weight and not hasattr(autoencoder, "decode_frames"):
            raise ValueError(
                f"pixel_weight {pixel_weight}: {type(autoencoder).__name__} cannot decode frames "
                "apart from their clip; set pixel_weight to 0"
            )
        self.control, self.backbone = control, backbone
        self.weights, self.noise, self.loss = weights, noise, loss
        self.reference_weight = reference_weight
        self.pixel_frames, self.pixel_weight = pixel_frames, pixel_weight
        self.decoder_from = decoder_from
        if pixel_weight:
            self.autoencoder = autoencoder
            self._thaw(decoder_from)  # so that the optimiser sees the decoder, too
        else:
            # Not a part of this module: nothing should shard, average or save what never changes.
            autoencoder.requires_grad_(False).eval()
            object.__setattr__(self, "autoencoder", autoencoder)
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
        if self.pixel_weight:
            self._thaw(progress)
        clean = batch.latents  # (B, C, t, h, w)
        if clean is None:
            with torch.no_grad():
                clean = self.autoencoder.encode(batch.video.transpose(1, 2))
        condition = self.condition(batch, clean[:, :, 0])
        sigma = self.noise.draw(len(clean), generator).to(clean.device)
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        s = sigma.view(-1, 1, 1, 1, 1)
        predicted = self.backbone((1 - s) * clean + s * noise, sigma, condition)
        weight = self._weight(batch)
        losses = {"latent": self._latent(predicted, clean, s, weight)}
        losses["loss"] = losses["latent"]
        if self.pixel_weight:
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
        return Condition.from_control(
            reference, signal.motion, signal.geometry, batch.text, batch.image
        )

    def _weight(self, batch: ClipBatch) -> Tensor:
        """(B, T-1, H, W) of the future frames' pixels."""
        if self.weights is None:
            return torch.ones(batch.masks[:, 1:].shape, device=batch.masks.device)
        return self.weights(batch.masks)

    def _latent(self, predicted: Tensor, clean: Tensor, sigma: Tensor, weight: Tensor) -> Tensor:
        if self.loss == "velocity":
            predicted, clean = predicted / sigma, clean / sigma
        future = latent_loss(predicted[:, :, 1:], clean[:, :, 1:], weight)
        if not self.reference_weight:
            return future
        reference = (predicted[:, :, 0] - clean[:, :, 0]).square().mean()
        count, own = clean.shape[2] - 1, self.reference_weight
        return (count * future + own * reference) / (count + own)

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
