"""Metric depth from one image, by a published estimator in a local folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoImageProcessor, AutoModelForDepthEstimation

from ego_world_model.world_model.checkpoint import CheckpointError

_METRIC = ("zoedepth", "depth_pro")
"""Model types of transformers whose answer is in metres always."""


class MonocularDepth:
    """A depth estimator of transformers: Depth Anything V2 metric, ZoeDepth, DepthPro.

    Use ``MonocularDepth.from_pretrained(folder)``.
    """

    def __init__(self, model: nn.Module, processor: object) -> None:
        self._model, self._processor = model.eval().requires_grad_(False), processor

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, device: str = "cpu") -> MonocularDepth:
        """Load from a folder in transformers' layout.

        Raises:
            CheckpointError: if there is none, or if its answer is not in metres.
        """
        try:
            model = AutoModelForDepthEstimation.from_pretrained(folder, local_files_only=True)
            processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder} is not a depth estimator's folder: {error}") from error
        config = model.config
        kind = getattr(config, "depth_estimation_type", None)
        if kind != "metric" and config.model_type not in _METRIC:
            raise CheckpointError(
                f"{folder}: {config.model_type} answers with relative depth; the policy needs "
                "metres, such as Depth Anything V2 metric (indoor) gives"
            )
        return cls(model.to(device), processor)

    @torch.no_grad()
    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(H, W, 3) uint8 RGB → (H, W) metres along the camera's axis."""
        inputs = self._processor(images=image, return_tensors="pt")
        outputs = self._model(inputs["pixel_values"].to(self._model.device))
        (answer,) = self._processor.post_process_depth_estimation(
            outputs, target_sizes=[image.shape[:2]]
        )
        return answer["predicted_depth"].float().cpu().numpy()
