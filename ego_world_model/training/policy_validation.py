"""Held-out windows measured while a policy trains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ego_world_model.perception.depth_noise import noisy_depth
from ego_world_model.policy.cerebrum import MODALITIES
from ego_world_model.policy.policy import MotionPolicy, normalised_depth
from ego_world_model.policy.spaces import POSE
from ego_world_model.training.policy_data import PolicyCache
from ego_world_model.training.policy_objective import COMBINATIONS, PolicyLoss
from ego_world_model.training.policy_sampling import PolicyBatch, PolicySampler

_MOVING = 0.05  # metres that a wrist moves within a chunk that counts as moving
_BATCH = 64


class PolicyValidation:
    """Errors on fixed windows with fixed noise.

    Args:
        windows: how many, evenly spread over the data.
    """

    def __init__(
        self, policy: MotionPolicy, cache: PolicyCache, windows: int, loss: PolicyLoss
    ) -> None:
        self.policy, self.loss = policy, loss
        sampler = PolicySampler(cache, policy.normaliser, policy.tokens, chunk=policy.config.chunk)
        spread = np.linspace(0, len(sampler.frames) - 1, windows).astype(np.int64)
        frames = sampler.frames[np.unique(spread)]
        self.batches = [
            sampler.gather(frames[start : start + _BATCH])
            for start in range(0, len(frames), _BATCH)
        ]
        frames, named = _choices(sampler, windows)
        self.namings = [
            (sampler.gather(frames[rows], named[rows]), cache.places[frames[rows]], named[rows])
            for rows in (slice(k, k + _BATCH) for k in range(0, len(frames), _BATCH))
        ]

    def __call__(self) -> dict[str, float]:
        """Wrist errors (cm) of hands that move, for combinations of modalities and for a hand that
        stays where it is; the median pointing error (cm); the share of objects, each named in its
        turn at the beginning of an episode with several, that are told from the others."""
        numbers: dict[str, float] = {}
        for name in ("TID", "TI", "ID"):
            errors = [self._errors(batch, name) for batch in self.batches]
            wrist, still, angle = (np.concatenate(values) for values in zip(*errors, strict=True))
            numbers[f"wrist_cm_{name}"] = 100 * float(wrist.mean())
            if name == "TID":
                numbers["rotation_rad"] = float(angle.mean())
                numbers["wrist_cm_still"] = 100 * float(still.mean())
        pointed = np.concatenate([self._pointing(batch) for batch in self.batches])
        numbers["target_cm"] = 100 * float(np.median(pointed))
        if self.namings:
            right = [self._found(*naming) for naming in self.namings]
            numbers["named"] = float(np.concatenate(right).mean())
        return numbers

    def _found(self, batch: PolicyBatch, places: np.ndarray, named: np.ndarray) -> np.ndarray:
        """(B,) bool, whether the object believed in is nearer to the named one than to others."""
        believed = self.policy.cerebrum(self._observed(batch, "TID").observation).target
        gaps = np.linalg.norm(places - believed.float().cpu().numpy()[:, None], axis=-1)
        return np.nanargmin(gaps, axis=1) == named

    def _observed(self, batch: PolicyBatch, name: str) -> PolicyBatch:
        device = self.policy.device
        batch = batch.to(device)
        generator = torch.Generator().manual_seed(0)
        depth = batch.observation.depth
        if self.loss.depth_noise is not None:
            depth = noisy_depth(depth, generator=generator, noise=self.loss.depth_noise)
        kept = torch.tensor([m in COMBINATIONS[name] for m in MODALITIES], device=device)
        observation = replace(
            batch.observation,
            depth=normalised_depth(depth, self.policy.config.depth_range),
            present=batch.observation.present & kept,
        )
        return replace(batch, observation=observation)

    def _errors(self, batch: PolicyBatch, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean over the chunk, of each hand that moves: wrist error (m), that of a hand that stays
        (m), rotation error (rad)."""
        policy, layout = self.policy, self.policy.layout
        batch = self._observed(batch, name)
        noise = torch.randn(batch.actions.shape, generator=torch.Generator().manual_seed(1))
        made = policy.denoise(batch.observation, noise.to(policy.device), policy.config.steps)
        shape = (*made.shape[:2], 2, layout.per_hand)
        predicted, true = (
            policy.normaliser.action_back(value.float().cpu().numpy()).reshape(shape)
            for value in (made, batch.actions)
        )
        known = batch.mask.cpu().numpy().reshape(shape)[..., 0]  # (B, N, 2)
        moved = np.linalg.norm(true[..., :3], axis=-1) * known
        rows = (moved.max(axis=1) > _MOVING) & known.any(axis=1)  # (B, 2)
        count = np.maximum(known.sum(axis=1), 1)
        wrist = (np.linalg.norm((predicted - true)[..., :3], axis=-1) * known).sum(1) / count
        cosine = (_columns(predicted) * _columns(true)).sum(-1).mean(-1)
        angle = (np.arccos(np.clip(cosine, -1, 1)) * known).sum(1) / count
        return wrist[rows], (moved.sum(1) / count)[rows], angle[rows]

    def _pointing(self, batch: PolicyBatch) -> np.ndarray:
        """Metres between the object of the task and where the pointing head believes it."""
        batch = self._observed(batch, "TID")
        prefix = self.policy.cerebrum(batch.observation)
        gap = (prefix.target.float() - batch.target).norm(dim=1)
        return gap[torch.isfinite(gap)].cpu().numpy()


def _choices(sampler: PolicySampler, most: int) -> tuple[np.ndarray, np.ndarray]:
    """First frames of episodes that list several objects, with each object's number in turn."""
    first, counts = sampler.cache.first, sampler.object_counts
    pairs = [(first[e], k) for e in np.flatnonzero(counts > 1) for k in range(counts[e])]
    pairs = pairs[:: max(1, len(pairs) // most)][:most]
    frames, named = np.array(pairs, np.int64).reshape(-1, 2).T
    return frames, named


def _columns(hands: np.ndarray) -> np.ndarray:
    """(..., H) → (..., 2, 3): the two columns of the 6-D rotation, at unit length."""
    six = hands[..., 3:POSE].reshape(*hands.shape[:-1], 2, 3)
    return six / np.linalg.norm(six, axis=-1, keepdims=True).clip(1e-6)
