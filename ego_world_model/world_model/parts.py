"""Which networks a checkpoint may declare by name; each is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn

AUTOENCODERS: dict[str, str] = {
    "frame": "autoencoders:FrameAutoencoder",
    "wan": "wan:WanAutoencoder",
    "temporal_decoder": "svd:TemporalDecoderAutoencoder",
}
"""Autoencoder's name in a checkpoint's config → its module and class."""

CONTROLS: dict[str, str] = {
    "joint": "controls.joint:JointControl",
    "wan_move": "controls.wan_move:WanMoveControl",
    "ati": "controls.ati:ATIControl",
    "motion_stream": "controls.motion_stream:MotionStreamControl",
    "skeleton": "controls.skeleton:SkeletonControl",
    "mask_hand": "controls.masks:HandMaskControl",
    "mask_hand_object": "controls.masks:HandObjectMaskControl",
}
"""Control's name in a checkpoint's config → its module and class; see ``controls.Control``.

"joint" is ours; the rest stand for other published methods (docs/peers.md).
"""

BACKBONES: dict[str, str] = {
    "wan": "backbones:WanBackbone",
    "wan_i2v": "wan:WanI2VBackbone",
    "unet": "svd:UNetBackbone",
}
"""Backbone's name in a checkpoint's config → its module and class."""


def build_autoencoder(name: str, **kwargs: Any) -> nn.Module:
    """The autoencoder a checkpoint declares.

    Raises:
        ValueError: if the name is unknown.
    """
    return _build("autoencoder", AUTOENCODERS, name, kwargs)


def build_control(name: str, **kwargs: Any) -> nn.Module:
    """The control a checkpoint declares.

    Raises:
        ValueError: if the name is unknown.
    """
    return _build("control", CONTROLS, name, kwargs)


def build_backbone(name: str, **kwargs: Any) -> nn.Module:
    """The backbone a checkpoint declares.

    Raises:
        ValueError: if the name is unknown.
    """
    return _build("backbone", BACKBONES, name, kwargs)


def _build(kind: str, table: Mapping[str, str], name: str, kwargs: dict[str, Any]) -> nn.Module:
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(sorted(table))}")
    module, attribute = table[name].split(":")
    return getattr(import_module(f"{__package__}.{module}"), attribute)(**kwargs)
