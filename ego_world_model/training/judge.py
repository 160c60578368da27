"""Validation of a world-model run: scores, baselines now and then, strips, and the checkpoint."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ego_world_model.training.clips import ClipBatch
from ego_world_model.training.config import WorldModelTraining
from ego_world_model.training.loop import Trainer
from ego_world_model.training.processes import processes, whole
from ego_world_model.training.validation import Validation, save_picture
from ego_world_model.training.windows import NO_PROMPT, WindowCache
from ego_world_model.world_model.checkpoint import BasedPart, WorldModelConfig, save_checkpoint
from ego_world_model.world_model.inputs import draw_noise
from ego_world_model.world_model.model import WorldModel
from ego_world_model.world_model.sampler import sample
from ego_world_model.world_model.sampling import choose_sampling
from ego_world_model.world_model.scene import Scene, signal_of_unknown_hands


class Judge:
    """What a run calls to validate; all processes do, the main one writes.

    Args:
        declared: what its checkpoints declare.
        model: with the weights that are trained.
        windows: what the model reads of the clips of ``validation`` beside their frames, in their
            order; None where it reads nothing else.
        folder: of the run.

    Attributes:
        trainer: must be set before the first call.
    """

    trainer: Trainer

    def __init__(
        self,
        config: WorldModelTraining,
        declared: WorldModelConfig,
        model: WorldModel,
        validation: Validation,
        windows: WindowCache | None,
        folder: Path,
    ) -> None:
        self.settings, self.declared, self.model = config.validation, declared, model
        self.validation, self.windows, self.folder = validation, windows, folder
        if windows is not None:
            read = [windows.gather(np.array([row])) for row in range(len(windows))]
            validation.clips = [
                replace(clip, text=own.text, image=own.image)
                for clip, own in zip(validation.clips, read, strict=True)
            ]
        self.sampling = choose_sampling(declared, steps=config.validation.steps)
        self.checkpoint = folder / "checkpoint"
        self.calls = 0
        self._shapes = {  # as checkpoints have them; sharding changes some
            name: {key: value.shape for key, value in _stored(part).items()}
            for name, part in model.parts.items()
        }

    def __call__(self, step: int, progress: float) -> dict[str, Any]:
        videos = self.validation.run(self.predict)
        numbers = self.validation.scores(videos)
        every = self.settings.baselines_every
        if every and (self.calls % every == 0 or progress >= 1):
            numbers |= self.validation.baselines(self.predict)
        self.calls += 1
        strips = self.validation.strips(videos)
        self.trainer.display.picture("strips", strips, step)
        parts = {name: _Snapshot(p, self._shapes[name]) for name, p in self.model.parts.items()}
        if processes().is_main_process:
            save_picture(strips, self.folder / "strips" / f"{step:06d}.png")
            metadata = {
                "steps": step,
                "minutes": round(self.trainer.elapsed / 60, 1),
                "validation": {name: round(value, 3) for name, value in numbers.items()},
            }
            self._save(parts, metadata)
        return numbers

    def _save(self, parts: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Replace the checkpoint in one stroke: whoever reads it meanwhile gets a whole one."""
        fresh, old = self.folder / "checkpoint.new", self.folder / "checkpoint.old"
        shutil.rmtree(fresh, ignore_errors=True)
        save_checkpoint(fresh, self.declared, parts, metadata=metadata)
        if self.checkpoint.exists():
            self.checkpoint.rename(old)
        fresh.rename(self.checkpoint)
        shutil.rmtree(old, ignore_errors=True)

    def predict(self, clip: ClipBatch) -> Tensor:
        """(1, T, 3, H, W) with the checkpoint's default sampling, or the settings' steps."""
        clip = clip.to(self.trainer.device)
        model, sampling = self.model, self.sampling
        with self.trainer.autocast():
            reference = model.autoencoder.encode_reference(clip.reference)
            bare = None
            if sampling.control_guidance != 1:
                bare = signal_of_unknown_hands(
                    model.control, self.declared, reference, clip.intrinsics
                )
            scene = Scene(
                reference=reference,
                matrix=clip.intrinsics,
                image=clip.image,
                text=clip.text,
                without_text=None if sampling.guidance == 1 else self._no_text(),
                without_control=bare,
                sampling=sampling,
            )
            masks = {"masks": clip.masks} if model.control.reads_masks else {}
            condition, branches = scene.conditions(model.control, clip.joints, clip.valid, masks)
            noise = draw_noise(condition.motion.shape, 0).to(reference.device)
            latents = sample(
                model.backbone,
                condition,
                noise,
                sampling.sigmas,
                guidance=branches,
                solver=sampling.solver,
            )
            video = model.autoencoder.decode(latents, clip.reference)
        return video.transpose(1, 2).float().cpu()

    def _no_text(self) -> Tensor:
        assert self.windows is not None  # guidance needs encoders, and those need windows
        text = self.windows.text([NO_PROMPT])
        assert text is not None
        return text.to(self.trainer.device)


def _stored(part: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint stores of a part."""
    return part.stored_state() if isinstance(part, BasedPart) else part.state_dict()


class _Snapshot:
    """A part as a checkpoint stores it: weights that are sharded among processes are gathered."""

    def __init__(self, part: nn.Module, shapes: dict[str, torch.Size]) -> None:
        self.parameters = part.parameters
        self._tensors = {
            name: whole(value.detach()).reshape(shapes[name])
            for name, value in _stored(part).items()
        }

    def state_dict(self) -> dict[str, Tensor]:
        return self._tensors
