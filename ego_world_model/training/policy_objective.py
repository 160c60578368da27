"""What a policy is trained to do: flow matching on chunks, with depth alignment and pointing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ego_world_model.perception.depth_noise import DepthNoise, noisy_depth
from ego_world_model.policy.cerebrum import MODALITIES, Observation, Prefix, grid_centres
from ego_world_model.policy.flow import draw_times, interpolate
from ego_world_model.policy.policy import MotionPolicy, normalised_depth
from ego_world_model.training.policy_sampling import PolicyBatch

COMBINATIONS: dict[str, tuple[str, ...]] = {
    "TID": ("text", "image", "depth"),
    "TI": ("text", "image"),
    "ID": ("image", "depth"),
    "I": ("image",),
    "T": ("text",),
}
"""Combinations of modalities that a policy is trained and measured on."""

_SPREAD = 0.6  # cells by which the place to point at is blurred
_CLOSE = 0.05  # of TARGET_SCALE, below which a pointing error counts squared


@dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """Weights and chances.

    Attributes:
        draws: noise samples of each observation in a step; the prefix is computed once for all.
        modalities: combination → chance that an observation is reduced to it; 0 where unnamed.
        translation, rotation, fingers: weight of an action's dimensions.
        align: weight of the squared distance between the depth encoder's features of measured and
            of true depth. pointing: weight of the pointing head's losses; both need data that
            know better, and are 0 elsewhere.
        depth_noise: what makes measured depth of simulated depth; None for measured data.
    """

    draws: int = 4
    modalities: dict[str, float] = field(
        default_factory=lambda: {"TID": 0.5, "TI": 0.2, "ID": 0.1, "I": 0.1, "T": 0.1}
    )
    translation: float = 2.0
    rotation: float = 1.0
    fingers: float = 1.0
    align: float = 0.1
    pointing: float = 0.2
    depth_noise: DepthNoise | None = field(default_factory=DepthNoise)

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.modalities) - set(COMBINATIONS)):
            raise ValueError(
                f"modalities: unknown {', '.join(unknown)}; known: {', '.join(COMBINATIONS)}"
            )
        if sum(self.modalities.values()) <= 0:
            raise ValueError("modalities: give at least one combination a chance above 0")


class PolicyObjective(nn.Module):
    """Losses of a policy on a batch."""

    def __init__(self, policy: MotionPolicy, loss: PolicyLoss) -> None:
        super().__init__()
        self.policy, self.loss = policy, loss
        weight = {kind: getattr(loss, kind) for kind in ("translation", "rotation", "fingers")}
        weights = torch.tensor([weight[kind] for kind in policy.layout.kinds()])
        self.register_buffer("weights", weights, persistent=False)
        chances = [loss.modalities.get(name, 0.0) for name in COMBINATIONS]
        self.register_buffer("chances", torch.tensor(chances), persistent=False)
        rows = [[m in kept for m in MODALITIES] for kept in COMBINATIONS.values()]
        self.register_buffer("kept", torch.tensor(rows), persistent=False)

    def forward(
        self, batch: PolicyBatch, progress: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Mean losses of the batch; "loss" is what is minimised."""
        seen = self._observed(batch, generator)
        prefix = self.policy.cerebrum(seen)
        losses = {"flow": self._flow(batch, seen, prefix, generator)}
        if self.loss.align and self.loss.depth_noise is not None:
            losses["align"] = self._alignment(batch, seen)
        if self.loss.pointing:
            losses["point"], losses["locate"] = self._pointing(batch, seen, prefix)
        weights = {"align": self.loss.align, "point": self.loss.pointing}
        weights["locate"] = self.loss.pointing
        losses["loss"] = sum(weights.get(name, 1.0) * value for name, value in losses.items())
        return losses

    def _observed(self, batch: PolicyBatch, generator: torch.Generator) -> Observation:
        """The observation with measured depth, reduced to a random combination of modalities."""
        seen = batch.observation
        depth = seen.depth
        if self.loss.depth_noise is not None:
            depth = noisy_depth(depth, generator=generator, noise=self.loss.depth_noise)
        chances = self.chances.cpu().expand(len(batch), -1)
        # what only names an object is of use where both words and image are there
        both = self.kept[:, :2].all(dim=1).cpu()
        useful = chances * (_demonstrates(batch).cpu()[:, None] | both)
        chances = torch.where(useful.sum(dim=1, keepdim=True) > 0, useful, chances)
        picked = torch.multinomial(chances, 1, generator=generator)[:, 0]
        return replace(
            seen,
            depth=normalised_depth(depth, self.policy.config.depth_range),
            present=seen.present & self.kept[picked.to(seen.present.device)],
        )

    def _flow(
        self, batch: PolicyBatch, seen: Observation, prefix: Prefix, generator: torch.Generator
    ) -> Tensor:
        draws, rows = self.loss.draws, _demonstrates(batch)
        memory, steering = self.policy.cerebellum.remember(
            prefix.tokens[rows], prefix.summary[rows]
        )

        def repeated(value: Tensor) -> Tensor:
            return value.repeat_interleave(draws, dim=0)

        clean = repeated(batch.actions[rows])  # (B draws, N, D)
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        times = draw_times(len(clean), generator, clean.device)
        noisy, velocity = interpolate(clean, noise, times)
        predicted = self.policy.cerebellum(
            noisy,
            repeated(seen.known[rows]),
            times,
            [(repeated(key), repeated(value)) for key, value in memory],
            repeated(steering),
            repeated(prefix.mask[rows]),
        )
        weight = repeated(batch.mask[rows]).float() * self.weights
        return ((predicted - velocity).square() * weight).sum() / weight.sum().clamp_min(1)

    def _alignment(self, batch: PolicyBatch, seen: Observation) -> Tensor:
        cerebrum = self.policy.cerebrum
        measured = cerebrum.depth_features(seen.depth)
        with torch.no_grad():
            true = normalised_depth(batch.depth, self.policy.config.depth_range)
            wanted = cerebrum.depth_features(true)
        error = (measured - wanted).square().mean(dim=(1, 2, 3))
        there = batch.observation.present[:, MODALITIES.index("depth")].float()
        return (error * there).sum() / there.sum().clamp_min(1)

    def _pointing(
        self, batch: PolicyBatch, seen: Observation, prefix: Prefix
    ) -> tuple[Tensor, Tensor]:
        text, image, _ = seen.present.unbind(1)
        inside = (batch.pixel.abs() < 1).all(dim=1)  # false where it is NaN
        told = (text & image & inside).float()
        side = self.policy.cerebrum.pointing_side
        centres = grid_centres(side).to(batch.pixel)
        gap = torch.nan_to_num(batch.pixel)[:, None] - centres  # (B, F, 2)
        nearness = -(gap * side / 2).square().sum(-1) / (2 * _SPREAD**2)
        point = F.cross_entropy(prefix.pointing, nearness.softmax(-1), reduction="none")
        error = prefix.target - torch.nan_to_num(batch.target)
        locate = F.smooth_l1_loss(
            error, torch.zeros_like(error), beta=_CLOSE, reduction="none"
        ).mean(dim=1)
        count = told.sum().clamp_min(1)
        return (point * told).sum() / count, (10 * locate * told).sum() / count


def _demonstrates(batch: PolicyBatch) -> Tensor:
    """(B,) bool: rows of which actions are known."""
    return batch.mask.flatten(1).any(dim=1)
