"""The model that a world-model run starts from: its parts, their weights, and what is trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import load_file
from torch import nn

from ego_world_model.training.config import WorldModelTraining
from ego_world_model.world_model.checkpoint import (
    CheckpointError,
    PartSpec,
    WorldModelConfig,
    load_weights,
    read_config,
)
from ego_world_model.world_model.model import SHIPPED, WorldModel
from ego_world_model.world_model.pretrained import PretrainedPart


def checkpoint_config(
    config: WorldModelTraining, fps: float, autoencoder: Path | None
) -> WorldModelConfig:
    """What the run's checkpoints declare; bases are absolute.

    Args:
        fps: of the training clips.
        autoencoder: folder written by ``train_autoencoder``, or None.

    Raises:
        ValueError: unless exactly one source of the autoencoder is given.
    """
    sources = {
        "--autoencoder": autoencoder,
        "`init` in the training config": config.init,
        "`autoencoder` in the training config": config.autoencoder,
    }
    given = [name for name, source in sources.items() if source]
    if len(given) != 1:
        raise ValueError(
            f"give one of {', '.join(sources)}; got {' and '.join(given) if given else 'none'}"
        )
    if autoencoder is not None:
        spec = PartSpec(**json.loads((autoencoder / "autoencoder.json").read_text()))
    elif config.autoencoder is not None:
        spec = config.autoencoder
        if spec.kwargs.get("base") is None:
            raise ValueError(
                "autoencoder: without a `base` it has no weights; train one first and give it by "
                "--autoencoder"
            )
    else:
        folder = _init_folder(config)
        spec = read_config(folder)[0].relative_to(folder).autoencoder
    try:
        return WorldModelConfig(
            fps=fps,
            num_frames=config.num_frames,
            height=config.data.height,
            width=config.data.width,
            extra_slots=config.data.extra_slots,
            autoencoder=spec,
            backbone=config.backbone,
            encoders=config.encoders,
            control=config.control,
            steps=config.steps,
            shift=config.shift,
            solver=config.solver,
            guidance=config.guidance,
            control_guidance=config.control_guidance,
        ).relative_to(Path.cwd())
    except CheckpointError as error:
        raise ValueError(str(error)) from error


def new_model(
    config: WorldModelTraining, declared: WorldModelConfig, autoencoder: Path | None
) -> WorldModel:
    """Control and backbone that train, around an autoencoder that is trained already.

    It has no encoders: what they say is cached.

    Raises:
        ValueError: if the weights of ``init`` do not fit the parts.
    """
    model = WorldModel(replace(declared, encoders=None, guidance=1.0))
    if config.init:
        folder = _init_folder(config)
        _, hashes, _ = read_config(folder)
        for name, part in model.parts.items():
            try:
                load_weights(folder, name, part, hashes)
            except CheckpointError as error:
                raise ValueError(f"init {config.init}: {error}") from error
    elif autoencoder is not None:
        model.autoencoder.load_state_dict(load_file(autoencoder / "autoencoder.safetensors"))
    for part in (model.control, model.backbone):
        if isinstance(part, PretrainedPart):
            part.train_on_top()
    if config.gradient_checkpointing:
        checkpoint_gradients(model.backbone)
    return model


def checkpoint_gradients(backbone: nn.Module) -> None:
    """Let the diffusers model inside compute its activations again instead of holding them.

    Raises:
        ValueError: if there is none that can.
    """
    inside = [module for module in backbone.modules() if isinstance(module, ModelMixin)]
    if not inside:
        raise ValueError(
            f"gradient_checkpointing: {type(backbone).__name__} has no part that can do it"
        )
    for module in inside:
        module.enable_gradient_checkpointing()


def _init_folder(config: WorldModelTraining) -> Path:
    folder = Path(config.init)
    return folder if folder.exists() or folder.name != config.init else SHIPPED / folder.name
