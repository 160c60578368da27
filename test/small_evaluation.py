"""A small random world model, a drawn dataset and estimators, for tests of the evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import synthetic_scenes
import torch

from ego_world_model.data import DatasetReader, DatasetWriter
from ego_world_model.hands import EXTRA_SLOTS
from ego_world_model.perception import (
    EstimatorConfig,
    FramePrediction,
    KeypointEstimator,
    class_labels,
    visible_joints,
)
from ego_world_model.world_model import WorldModel
from ego_world_model.world_model.checkpoint import PartSpec, WorldModelConfig

FRAMES = 9
MM_PER_PX = 1000 * 0.5 / 120
"""Drawn joints lie half a metre before a camera with a focal length of 120 pixels."""


def world_model(seed: int = 0, num_frames: int = FRAMES) -> WorldModel:
    torch.manual_seed(seed)
    config = WorldModelConfig(
        fps=10,
        num_frames=num_frames,
        height=96,
        width=128,
        extra_slots=EXTRA_SLOTS,
        autoencoder=PartSpec(name="frame", kwargs={"latent_channels": 4, "channels": [8, 16, 16]}),
        backbone=PartSpec(
            name="wan",
            kwargs={
                "latent_channels": 4,
                "channels": 32,
                "transformer": {"num_layers": 1, "num_attention_heads": 2, "ffn_dim": 64},
            },
        ),
    )
    return WorldModel(config).eval()


def estimator() -> KeypointEstimator:
    torch.manual_seed(0)
    return KeypointEstimator(EstimatorConfig(synthetic_scenes.SLOTS, channels=(16, 16)))


def write_dataset(root: Path, episodes: int = 3, robot: str = "drawn") -> DatasetReader:
    first = synthetic_scenes.episode(0)
    with DatasetWriter(
        root,
        embodiment=robot,
        fps=first.fps,
        camera=first.camera,
        joint_names=first.joint_names,
        slot_names=first.slot_names,
        image_storage="image",
        depth=False,
        split="test",
    ) as writer:
        for seed in range(episodes):
            writer.write(replace(synthetic_scenes.episode(seed), embodiment=robot))
    return DatasetReader(root)


class Oracle(KeypointEstimator):
    """Reads the truth of one clip off its true frames, and nothing off any other frame.

    Args:
        offset: pixels (u, v) by which it misses every keypoint.
    """

    def __init__(self, clip, offset: tuple[float, float] = (0, 0)) -> None:
        super().__init__(EstimatorConfig(synthetic_scenes.SLOTS, channels=(16, 16)))
        slots = list(self.config.slot_numbers)
        pixels, _ = visible_joints(clip.hand_positions, clip.hand_valid, clip.masks, clip.camera)
        self.clip, self.pixels = clip, pixels[:, slots] + np.float32(offset)

    def __call__(self, frames, *, batch_size: int = 32) -> FramePrediction:
        same = np.array([(frames[k] == self.clip.images[1 + k]).all() for k in range(len(frames))])
        pixels = np.where(same[:, None, None], self.pixels[1:], np.float32(0))
        classes = class_labels(self.clip.masks[1:]) * same[:, None, None].astype(np.uint8)
        return FramePrediction(pixels, np.ones(pixels.shape[:2], np.float32), classes)
