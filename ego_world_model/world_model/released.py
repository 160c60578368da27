"""Use the published joint-control bundle: its weights on a Wan 2.1 I2V base, as a checkpoint.

The bundle is ``dit.safetensors`` (LoRA and the widened patch embedding, in the names of the
original Wan code) and ``hand-controller.safetensors`` (the control module).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ego_world_model.world_model.checkpoint import CheckpointError, PartSpec, WorldModelConfig
from ego_world_model.world_model.controls import JointControl
from ego_world_model.world_model.model import WorldModel
from ego_world_model.world_model.pretrained import LORA_NAME

DIT, CONTROL = "dit.safetensors", "hand-controller.safetensors"

_LAYERS = {
    "self_attn.q": "attn1.to_q",
    "self_attn.k": "attn1.to_k",
    "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "cross_attn.q": "attn2.to_q",
    "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
_LORA = re.compile(r"(?:^|\.)blocks\.(\d+)\.(.+)\.lora_([AB])(?:\.\w+)?\.weight$")
_PATCH = re.compile(r"(?:^|\.)patch_embedding\.(weight|bias)$")


def backbone_state(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Tensors of ``dit.safetensors`` under the names of our Wan backbone, and the LoRA rank.

    Raises:
        ValueError: naming tensors that are neither LoRA of a known layer nor patch embedding.
    """
    state, rank, unknown = {}, 0, []
    for key, tensor in tensors.items():
        if match := _PATCH.search(key):
            state[f"transformer.patch_embedding.{match[1]}"] = tensor
        elif (match := _LORA.search(key)) and match[2] in _LAYERS:
            name = f"blocks.{match[1]}.{_LAYERS[match[2]]}.lora_{match[3]}.{LORA_NAME}.weight"
            state[f"transformer.{name}"] = tensor
            rank = max(rank, min(tensor.shape))
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(f"{DIT} holds tensors of an unknown kind: {sorted(unknown)[:5]}")
    if not rank or "transformer.patch_embedding.weight" not in state:
        raise ValueError(f"{DIT} must hold LoRA layers and the widened patch embedding")
    return state, rank


def import_released(
    bundle: str | Path,
    base: str | Path,
    folder: str | Path,
    *,
    alpha: float | None = None,
    encoders: bool = True,
    dtype: str | None = "bfloat16",
    **config: Any,
) -> WorldModel:
    """Make a checkpoint folder of the published bundle on a Wan 2.1 I2V base, and load it.

    Args:
        bundle: folder with ``dit.safetensors`` and ``hand-controller.safetensors``.
        base: diffusers folder of Wan 2.1 I2V. It is referenced, not copied.
        folder: where the checkpoint (config.json, control, LoRA) is written.
        alpha: LoRA scale times rank; None: the rank, as in the published training.
        encoders: whether prompts are read, with the base's text and image encoders.
        dtype: of the base's transformer and encoders.
        config: other fields of WorldModelConfig, e.g. ``height=480, width=832``.

    Raises:
        CheckpointError, ValueError: naming the file that is missing or does not fit.
    """
    bundle, base = Path(bundle), Path(base).resolve()
    control = JointControl.from_released(bundle / CONTROL)
    state, rank = backbone_state(_read(bundle / DIT))
    if encoders:
        image = (base / "image_encoder").is_dir()
        options = {"base": str(base), "image": image, "dtype": dtype}
        config = {"encoders": PartSpec(name="wan", kwargs=options)} | config
    inherited = ("compat", "occlusion", "geometry_channels", "hidden_channels", "embed_channels")
    backbone = {
        "base": str(base),
        "geometry_channels": control.config.geometry_channels,
        "lora": {"rank": rank, "alpha": alpha or rank},
        "dtype": dtype,
    }
    defaults = {
        "fps": 16,
        "num_frames": 81,
        "height": 480,
        "width": 832,
        "steps": 50,
        "shift": 5.0,
        "guidance": 5.0 if encoders else 1.0,
        "autoencoder": PartSpec(name="wan", kwargs={"base": str(base)}),
        "backbone": PartSpec(name="wan_i2v", kwargs=backbone),
        "control": PartSpec(
            name="joint", kwargs={name: getattr(control.config, name) for name in inherited}
        ),
    }
    model = WorldModel(WorldModelConfig(**(defaults | config)))
    model.control.load_state_dict(control.state_dict())
    try:
        model.backbone.load_stored_state(state)
    except RuntimeError as error:
        raise CheckpointError(f"{bundle / DIT} does not fit the base {base}: {error}") from error
    model.metadata = {"source": "published joint-control bundle"}
    model.save_pretrained(folder)
    return model.eval().requires_grad_(False)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path} not found; the bundle holds {DIT} and {CONTROL}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
