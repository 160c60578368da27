"""``ego-world-model train policy CONFIG.yaml``: from datasets to a policy checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ego_world_model.policy.cerebellum import CerebellumConfig
from ego_world_model.policy.cerebrum import CerebrumConfig
from ego_world_model.policy.checkpoint import PolicyConfig, read_tokenizer
from ego_world_model.policy.policy import MotionPolicy
from ego_world_model.policy.spaces import Normaliser
from ego_world_model.policy.tokenizer import with_vocabulary, word_tokenizer
from ego_world_model.training.display import Report
from ego_world_model.training.loop import LoopSettings, Trainer, process_rng
from ego_world_model.training.policy_data import PolicyCache
from ego_world_model.training.policy_objective import PolicyLoss, PolicyObjective
from ego_world_model.training.policy_sampling import PolicyBatch, PolicySampler, all_words
from ego_world_model.training.policy_validation import PolicyValidation
from ego_world_model.training.processes import processes

_FITTED = 60_000  # windows from which quantiles are taken


@dataclass(frozen=True, kw_only=True)
class PolicyDataSettings:
    """Which episodes.

    Attributes:
        train, validation: dataset folders, one or several each, of several robots perhaps; at
            the policy's frame rate.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PolicyTraining:
    """What a policy's training YAML may say. The defaults are MEgoHand's, where it gives them.

    Attributes:
        cerebrum, cerebellum: the networks. Folders of bases are taken from the current directory.
        init: checkpoint (name or folder) whose networks, normalisation and tokenizer the run
            starts from; ``cerebrum`` and ``cerebellum`` are then left out.
        chunk, steps, depth_range, prompt: see ``PolicyConfig``.
        batch: observations per step, in each process and each accumulated part of a step.
        naming: rows per batch beside those that only name an object of a scene, see
            ``PolicySampler.sample``; 0 where the data do not list their objects.
        brightness, rephrase: see ``PolicySampler``.
        validation_windows: held-out windows that are measured while training.
    """

    data: PolicyDataSettings
    cerebrum: CerebrumConfig | None = None
    cerebellum: CerebellumConfig | None = None
    init: str = ""
    chunk: int = 16
    steps: int = 10
    depth_range: float = 2.0
    prompt: str = "{instruction}"
    batch: int = 64
    naming: int = 0
    brightness: float = 0.15
    rephrase: bool = True
    validation_windows: int = 256
    loss: PolicyLoss = field(default_factory=PolicyLoss)
    loop: LoopSettings = field(
        default_factory=lambda: LoopSettings(
            max_steps=50_000,
            learning_rate=3e-4,
            weight_decay=1e-5,
            betas=(0.95, 0.999),
            warmup_fraction=0.05,
            final_fraction=0.0,
        )
    )

    def __post_init__(self) -> None:
        parts = (self.cerebrum, self.cerebellum)
        if self.init and any(parts):
            raise ValueError("init: the checkpoint says what its networks are; leave them out")
        if not self.init and not all(parts):
            raise ValueError("give cerebrum and cerebellum, or `init`")


def train_policy(
    config: PolicyTraining, folder: Path, *, cache: Path | None = None, report: Report = print
) -> Path:
    """Train a policy; returns the checkpoint folder, ``folder/checkpoint``.

    Args:
        folder: of the run; an unfinished run there is resumed.
        cache: where unpacked frames are kept; several runs may share it.
    """
    report = report if processes().is_main_process else lambda line: None
    cache = cache or folder / "cache"
    start = MotionPolicy.from_pretrained(config.init) if config.init else None
    size = start.config.cerebrum.image_size if start else config.cerebrum.image_size
    fingers = start.config.fingers if start else None
    with processes().main_process_first():
        train, held_out = (
            PolicyCache.build(roots, cache / split, size=size, fingers=own, report=report)
            for split, roots, own in _splits(config, fingers, cache, size, report)
        )
    torch.manual_seed(config.loop.seed)
    policy = start.requires_grad_(True).train() if start else _new_policy(config, train)
    policy.metadata = {
        "data": f"{len(train)} episodes, {len(train.task)} frames",
        "robots": "hands with " + ", ".join(policy.layout.fingers),
    }
    objective = PolicyObjective(policy, config.loss)
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    report(
        f"policy: {trained / 1e6:.2f} M trained parameters, {len(train)} episodes, "
        f"{len(train.task)} frames"
    )
    rng = process_rng(config.loop.seed)
    sampler = PolicySampler(
        train,
        policy.normaliser,
        policy.tokens,
        chunk=policy.config.chunk,
        rng=rng,
        brightness=config.brightness,
        rephrase=config.rephrase,
    )
    validation = PolicyValidation(policy, held_out, config.validation_windows, config.loss)

    def validate(step: int, progress: float) -> dict[str, Any]:
        numbers = validation()
        if processes().is_main_process:
            policy.metadata |= {"steps": step, "validation": numbers}
            policy.save_pretrained(folder / "checkpoint", dtype=torch.float16)
        return numbers

    def draw(progress: float) -> PolicyBatch:
        return sampler.sample(config.batch, config.naming)

    trainer = Trainer(
        objective,
        draw,
        rng,
        folder,
        config.loop,
        skips_parameters=True,  # what stands for absent modalities
        validate=validate,
        report=report,
    )
    trainer.run()
    return folder / "checkpoint"


def _splits(
    config: PolicyTraining,
    fingers: tuple[str, ...] | None,
    cache: Path,
    size: int,
    report: Report,
) -> Any:
    """(split, dataset folders, kinds of fingers) of both splits; the second knows those of the
    first."""
    yield "train", config.data.train, fingers
    known = fingers
    if known is None:
        known = PolicyCache(cache / "train").layout.fingers
    yield "validation", config.data.validation, known


def _new_policy(config: PolicyTraining, train: PolicyCache) -> MotionPolicy:
    """A policy without training: normalisation and tokenizer from the data."""
    declared = PolicyConfig(
        fps=train.fps,
        fingers=train.layout.fingers,
        cerebrum=config.cerebrum,
        cerebellum=config.cerebellum,
        chunk=config.chunk,
        steps=config.steps,
        depth_range=config.depth_range,
        prompt=config.prompt,
    ).relative_to(Path.cwd())
    tokenizer: PreTrainedTokenizerBase
    if declared.cerebrum.base is not None:
        tokenizer = read_tokenizer(Path(declared.cerebrum.base))
    else:
        tokenizer = word_tokenizer(all_words(train.instructions, train.names))
        vlm = with_vocabulary(declared.cerebrum.vlm, tokenizer)
        declared = replace(declared, cerebrum=replace(declared.cerebrum, vlm=vlm))
    return MotionPolicy(declared, fitted_normaliser(train, config.chunk), tokenizer)


def fitted_normaliser(cache: PolicyCache, chunk: int) -> Normaliser:
    """Quantiles of a cache's windows (of at most 60,000, evenly spread)."""
    sampler = PolicySampler(cache, None, None, chunk=chunk)
    frames = sampler.frames[:: max(1, len(sampler.frames) // _FITTED)]
    states, known, actions, mask = sampler.vectors(frames)
    return Normaliser.fit(
        cache.layout, states.astype(np.float32), known, actions.astype(np.float32), mask
    )
