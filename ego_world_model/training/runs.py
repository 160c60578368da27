"""The two training runs, from datasets to a checkpoint folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ego_world_model.training.clips import ClipBatch, ClipCache, ClipSampler
from ego_world_model.training.config import (
    AutoencoderTraining,
    DataSettings,
    Stage,
    WorldModelTraining,
)
from ego_world_model.training.display import Report
from ego_world_model.training.judge import Judge
from ego_world_model.training.loop import Trainer, process_rng
from ego_world_model.training.objectives import AutoencoderObjective, WorldModelObjective
from ego_world_model.training.processes import processes
from ego_world_model.training.start import checkpoint_config, new_model
from ego_world_model.training.validation import Validation, save_picture
from ego_world_model.training.windows import WindowCache, WindowSampler, window_starts
from ego_world_model.world_model.checkpoint import PartSpec
from ego_world_model.world_model.model import WorldModel
from ego_world_model.world_model.parts import build_autoencoder


class _Episodes:
    """Dataset folders, of several robots perhaps, as one sequence of episodes."""

    def __init__(self, roots: Sequence[str]) -> None:
        from ego_world_model.data import DatasetReader

        self.readers = [DatasetReader(root) for root in roots]
        self.ends = np.cumsum([len(reader) for reader in self.readers])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> Any:
        number = int(np.searchsorted(self.ends, index, side="right"))
        reader = self.readers[number]
        return reader.episode(index - int(self.ends[number]) + len(reader))


def open_caches(
    data: DataSettings, folder: Path, report: Report, *, masks: bool = True
) -> tuple[ClipCache, ClipCache]:
    """Training and validation frames, unpacked under ``folder`` the first time."""
    caches = []
    for split, roots in (("train", data.train), ("validation", data.validation)):

        def progress(done: int, total: int, split: str = split) -> None:
            if done % 100 == 0 or done == total:
                report(f"unpacked {done}/{total} {split} episodes")

        with processes().main_process_first():
            caches.append(
                ClipCache.build(
                    _Episodes(roots),
                    folder / split,
                    width=data.width,
                    height=data.height,
                    extra_slots=data.extra_slots,
                    masks=masks,
                    report=progress,
                )
            )
    return caches[0], caches[1]


def _stage(stages: Sequence[Stage], progress: float) -> Stage:
    """The first stage that reaches beyond the progress."""
    return next(s for s in stages if progress < s.until or s is stages[-1])


def _batches(sampler: ClipSampler, stages: Sequence[Stage]) -> Callable[[float], ClipBatch]:
    """The batch drawer of a run on frames."""
    _check_stages(stages)

    def draw(progress: float) -> ClipBatch:
        stage = _stage(stages, progress)
        return sampler.sample(
            stage.batch, stage.frames, max_stride=stage.max_stride, carried=stage.carried
        )

    return draw


def _check_stages(stages: Sequence[Stage]) -> None:
    if not stages or stages[-1].until < 1:
        raise ValueError("stages must end with one that lasts until 1.0")


def train_autoencoder(
    config: AutoencoderTraining, folder: Path, *, cache: Path | None = None, report: Report = print
) -> Path:
    """Train a per-frame autoencoder; returns the folder with autoencoder.{json,safetensors}.

    Args:
        folder: of the run; an unfinished run there is resumed.
        cache: where unpacked frames are kept; several runs may share it.
    """
    report = _main_only(report)
    train, held_out = open_caches(config.data, cache or folder / "cache", report)
    torch.manual_seed(config.loop.seed)
    rng = process_rng(config.loop.seed)
    sampler = ClipSampler(train, rng, augmentation=config.augmentation)
    autoencoder = build_autoencoder(config.autoencoder.name, **config.autoencoder.kwargs)
    objective = AutoencoderObjective(autoencoder, config.weights, latent_noise=config.latent_noise)
    report(f"autoencoder: {_millions(autoencoder)} parameters, {len(train)} episodes")
    validation = Validation(held_out, config.validation.clips, config.stages[-1].frames)

    def predict(clip: ClipBatch) -> Tensor:
        clip = clip.to(trainer.device)
        with trainer.autocast():
            latents = autoencoder.encode(clip.video.transpose(1, 2))
            video = autoencoder.decode(latents, clip.reference)
        return video.transpose(1, 2).float().cpu()

    def validate(step: int, progress: float) -> dict[str, Any]:
        videos = validation.run(predict)
        strips = validation.strips(videos)
        trainer.display.picture("strips", strips, step)
        if processes().is_main_process:
            save_picture(strips, folder / "strips" / f"{step:06d}.png")
            _export_autoencoder(autoencoder, config.autoencoder, folder)
        return validation.scores(videos)

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
        autoencoder: folder written by ``train_autoencoder``; None where the config names ``init``
            or an ``autoencoder`` with a base.
        folder: of the run; an unfinished run there is resumed. ``folder/checkpoint`` holds the
            averaged weights of the latest validation, ready for ``WorldModel.from_pretrained``.
        cache: where unpacked frames and windows are kept; several runs may share it.
    """
    report = _main_only(report)
    cache = cache or folder / "cache"
    train, held_out = open_caches(config.data, cache, report, masks=config.weights is not None)
    torch.manual_seed(config.loop.seed)
    stride = config.windows.stride if config.windows else 1
    declared = checkpoint_config(config, train.fps / stride, autoencoder)
    model = new_model(config, declared, autoencoder)
    objective = WorldModelObjective(
        model.control,
        model.backbone,
        model.autoencoder,
        config.weights,
        config.noise,
        loss=config.loss,
        reference_weight=config.reference_weight,
        pixel_frames=config.pixel_frames,
        pixel_weight=config.pixel_weight,
        decoder_from=config.decoder_from,
    )
    model.autoencoder.to(processes().device)  # unless it trains, no one else moves it
    sizes = ", ".join(f"{name} {_millions(part)}" for name, part in model.parts.items())
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    report(
        f"world model: {sizes} parameters, {trained / 1e6:.2f} M of them trained, "
        f"{len(train)} episodes"
    )
    validation = Validation(held_out, config.validation.clips, config.num_frames, stride=stride)
    rng = process_rng(config.loop.seed)
    windows, known = _open_windows(config, model, train, validation, cache, report)
    judge = Judge(config, declared, model, validation, known, folder)
    trainer = Trainer(
        objective,
        _drawer(config, train, windows, rng),
        rng,
        folder,
        config.loop,
        skips_parameters=config.pixel_weight > 0,  # the decoder trains only late in the run
        validate=judge,
        report=report,
    )
    judge.trainer = trainer
    trainer.run()
    return folder / "checkpoint"


def _open_windows(
    config: WorldModelTraining,
    model: WorldModel,
    train: ClipCache,
    validation: Validation,
    folder: Path,
    report: Report,
) -> tuple[WindowCache, WindowCache] | tuple[None, None]:
    """Windows of the training data and of the validation clips, if the config asks for any."""
    if config.windows is None:
        return None, None
    starts = window_starts(train, config.num_frames, config.windows)
    index = starts[:, None] + config.windows.stride * np.arange(config.num_frames)
    shared = {
        "autoencoder": model.autoencoder,
        "encoders": config.encoders and config.encoders.relative_to(Path.cwd()),
        "report": report,
    }
    return (
        WindowCache.build(train, index, folder / "train_windows", **shared),
        WindowCache.build(
            validation.cache, validation.index, folder / "validation_windows", **shared
        ),
    )


def _drawer(
    config: WorldModelTraining,
    train: ClipCache,
    windows: WindowCache | None,
    rng: np.random.Generator,
) -> Callable[[float], ClipBatch]:
    """What draws the batches of a run, from frames or from windows."""
    if windows is None:
        return _batches(ClipSampler(train, rng, augmentation=config.augmentation), config.stages)
    _check_stages(config.stages)
    sampler = WindowSampler(windows, rng, augmentation=config.augmentation)
    return lambda progress: sampler.sample(_stage(config.stages, progress).batch)


def _main_only(report: Report) -> Report:
    return report if processes().is_main_process else lambda line: None


def _millions(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M"
