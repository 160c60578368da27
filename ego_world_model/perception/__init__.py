"""What can be read off a frame: hand keypoints and segmentation, learned from real frames only."""

from ego_world_model.perception.estimator import (
    EstimatorConfig,
    FramePrediction,
    KeypointEstimator,
)
from ego_world_model.perception.labels import CLASS_NAMES, class_labels, visible_joints

__all__ = [
    "CLASS_NAMES",
    "EstimatorConfig",
    "FramePrediction",
    "KeypointEstimator",
    "class_labels",
    "visible_joints",
]
