"""The two training runs, from datasets to a checkpoint folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ego_world_model.training.clips import ClipBatch, ClipCache, ClipSampler
from ego_world_model.training.config import (
    AutoencoderTraining,
    DataSettings,
    Stage,
    WorldModelTraining,
)
from ego_world_model.training.loop import Trainer
from ego_world_model.training.objectives import AutoencoderObjective, WorldModelObjective
from ego_world_model.training.validation import Validation
from ego_world_model.world_model.checkpoint import PartSpec, WorldModelConfig
from ego_world_model.world_model.model import WorldModel
from ego_world_model.world_model.parts import build_autoencoder
from ego_world_model.world_model.sampler import flow_sigmas, sample

Report = Callable[[str], None]


class _Episodes:
    """A dataset folder as a sequence of episodes."""

    def __init__(self, root: str) -> None:
        from ego_world_model.data import DatasetReader

        self.reader = DatasetReader(root)

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Any:
        return self.reader.episode(index)


def open_caches(data: DataSettings, folder: Path, report: Report) -> tuple[ClipCache, ClipCache]:
    """Training and validation frames, unpacked under ``folder`` the first time."""
    caches = []
    for split, root in (("train", data.train), ("validation", data.validation)):

        def progress(done: int, total: int, split: str = split) -> None:
            if done % 100 == 0 or done == total:
                report(f"unpacked {done}/{total} {split} episodes")

        caches.append(
            ClipCache.build(
                _Episodes(root),
                folder / split,
                width=data.width,
                height=data.height,
                extra_slots=data.extra_slots,
                report=progress,
            )
        )
    return caches[0], caches[1]


def _batches(sampler: ClipSampler, stages: Sequence[Stage]) -> Callable[[float], ClipBatch]:
    """The batch drawer of a run: the first stage that reaches beyond the progress applies."""
    if not stages or stages[-1].until < 1:
        raise ValueError("stages must end with one that lasts until 1.0")

    def draw(progress: float) -> ClipBatch:
        stage = next(s for s in stages if progress < s.until or s is stages[-1])
        return sampler.sample(
            stage.batch, stage.frames, max_stride=stage.max_stride, carried=stage.carried
        )

    return draw


def train_autoencoder(
    config: AutoencoderTraining, folder: Path, *, cache: Path | None = None, report: Report = print
) -> Path:
    """Train a per-frame autoencoder; returns the folder with autoencoder.{json,safetensors}.

    Args:
        folder: of the run; an unfinished run there is resumed.
        cache: where unpacked frames are kept; several runs may share it.
    """
    train, held_out = open_caches(config.data, cache or folder / "cache", report)
    torch.manual_seed(config.loop.seed)
    rng = np.random.default_rng(config.loop.seed)
    sampler = ClipSampler(train, rng, augmentation=config.augmentation)
    autoencoder = build_autoencoder(config.autoencoder.name, **config.autoencoder.kwargs)
    objective = AutoencoderObjective(autoencoder, config.weights, latent_noise=config.latent_noise)
    report(f"autoencoder: {_millions(autoencoder)} parameters, {len(train)} episodes")
    validation = Validation(held_out, config.validation.clips, config.stages[-1].frames)

    def predict(clip: ClipBatch) -> Tensor:
        with trainer.accelerator.autocast():
            latents = autoencoder.encode(clip.video.transpose(1, 2))
            return autoencoder.decode(latents, clip.reference).transpose(1, 2).float()

    def validate(step: int, progress: float) -> dict[str, Any]:
        validation.strips(predict, folder / "strips" / f"{step:06d}.png")
        _export_autoencoder(autoencoder, config.autoencoder, folder)
        return validation.scores(predict)

    trainer = Trainer(
        objective,
        _batches(sampler, config.stages),
        rng,
        folder,
        config.loop,
        validate=validate,
        report=report,
    )
    trainer.run()
    return folder


def _export_autoencoder(autoencoder: nn.Module, spec: PartSpec, folder: Path) -> None:
    tensors = {n: t.detach().clone().contiguous() for n, t in autoencoder.state_dict().items()}
    save_file(tensors, folder / "autoencoder.safetensors")
    (folder / "autoencoder.json").write_text(json.dumps(asdict(spec)))


def train_world_model(
    config: WorldModelTraining,
    autoencoder: Path | None,
    folder: Path,
    *,
    cache: Path | None = None,
    report: Report = print,
) -> Path:
    """Train control and backbone on a trained autoencoder; returns the checkpoint folder.

    Args:
        autoencoder: folder written by ``train_autoencoder``; None where the config names ``init``.
        folder: of the run; an unfinished run there is resumed. ``folder/checkpoint`` holds the
            averaged weights of the latest validation, ready for ``WorldModel.from_pretrained``.
        cache: where unpacked frames are kept; several runs may share it.
    """
    train, held_out = open_caches(config.data, cache or folder / "cache", report)
    torch.manual_seed(config.loop.seed)
    rng = np.random.default_rng(config.loop.seed)
    sampler = ClipSampler(train, rng, augmentation=config.augmentation)
    model = _new_model(config, train.fps, autoencoder)
    objective = WorldModelObjective(
        model.control,
        model.backbone,
        model.autoencoder,
        config.weights,
        config.noise,
        pixel_frames=config.pixel_frames,
        pixel_weight=config.pixel_weight,
        decoder_from=config.decoder_from,
    )
    sizes = ", ".join(f"{name} {_millions(part)}" for name, part in model.parts.items())
    report(f"world model: {sizes} parameters, {len(train)} episodes")
    judge = _Judge(config, model, objective, held_out, folder)
    trainer = Trainer(
        objective,
        _batches(sampler, config.stages),
        rng,
        folder,
        config.loop,
        validate=judge,
        report=report,
    )
    judge.trainer = trainer
    trainer.run()
    return folder / "checkpoint"


def _new_model(config: WorldModelTraining, fps: float, autoencoder: Path | None) -> WorldModel:
    """A world model around a trained autoencoder; otherwise untrained, or with init's weights."""
    start = WorldModel.from_pretrained(config.init) if config.init else None
    if start is not None:
        spec = start.config.autoencoder
    elif autoencoder is not None:
        spec = PartSpec(**json.loads((autoencoder / "autoencoder.json").read_text()))
    else:
        raise ValueError("give a trained autoencoder, or init in the training config")
    model = WorldModel(
        WorldModelConfig(
            fps=fps,
            num_frames=config.num_frames,
            height=config.data.height,
            width=config.data.width,
            extra_slots=config.data.extra_slots,
            autoencoder=spec,
            backbone=config.backbone,
            control=config.control,
            steps=config.steps,
            shift=config.shift,
        )
    )
    if start is None:
        model.autoencoder.load_state_dict(load_file(autoencoder / "autoencoder.safetensors"))
        return model
    for name, part in model.parts.items():
        try:
            part.load_state_dict(start.parts[name].state_dict())
        except RuntimeError as error:
            raise ValueError(f"init {config.init}: its {name} is another one: {error}") from error
    return model


class _Judge:
    """Validation of a world-model run: scores, baselines now and then, strips, checkpoint."""

    trainer: Trainer

    def __init__(
        self,
        config: WorldModelTraining,
        model: WorldModel,
        objective: WorldModelObjective,
        cache: ClipCache,
        folder: Path,
    ) -> None:
        self.config, self.model, self.objective, self.folder = config, model, objective, folder
        self.validation = Validation(cache, config.validation.clips, config.num_frames)
        self.checkpoint = folder / "checkpoint"
        self.calls = 0

    def __call__(self, step: int, progress: float) -> dict[str, Any]:
        numbers = self.validation.scores(self.predict)
        if self.calls % self.config.validation.baselines_every == 0 or progress >= 1:
            numbers |= self.validation.baselines(self.predict)
        self.calls += 1
        self.validation.strips(self.predict, self.folder / "strips" / f"{step:06d}.png")
        self.model.metadata = {
            "steps": step,
            "minutes": round(self.trainer.elapsed / 60, 1),
            "validation": {name: round(value, 3) for name, value in numbers.items()},
        }
        self._save()
        return numbers

    def _save(self) -> None:
        """Replace the checkpoint in one stroke: whoever reads it meanwhile gets a whole one."""
        fresh, old = self.folder / "checkpoint.new", self.folder / "checkpoint.old"
        shutil.rmtree(fresh, ignore_errors=True)
        self.model.save_pretrained(fresh)
        if self.checkpoint.exists():
            self.checkpoint.rename(old)
        fresh.rename(self.checkpoint)
        shutil.rmtree(old, ignore_errors=True)

    def predict(self, clip: ClipBatch) -> Tensor:
        """(1, T, 3, H, W) with the checkpoint's default sampling."""
        noise_rng = torch.Generator().manual_seed(0)
        with self.trainer.accelerator.autocast():
            reference = self.model.autoencoder.encode_reference(clip.reference)
            condition = self.objective.condition(clip, reference)
            noise = torch.randn(condition.motion.shape, generator=noise_rng)
            sigmas = flow_sigmas(self.config.steps, self.config.shift)
            latents = sample(self.model.backbone, condition, noise, sigmas)
            return self.model.autoencoder.decode(latents, clip.reference).transpose(1, 2).float()


def _millions(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M"
