"""The joint-conditioned video model: ``WorldModel.from_pretrained("tiny").imagine(...)``."""

from ego_world_model.world_model.checkpoint import CheckpointError, WorldModelConfig
from ego_world_model.world_model.controls import JointControl
from ego_world_model.world_model.model import ImaginationResult, WorldModel
from ego_world_model.world_model.sampler import ImaginationCancelled

__all__ = [
    "CheckpointError",
    "ImaginationCancelled",
    "ImaginationResult",
    "JointControl",
    "WorldModel",
    "WorldModelConfig",
]
