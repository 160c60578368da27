"""How well hands' motion is predicted: errors on recorded futures, success in the simulation."""

from ego_world_model.evaluation.policy.errors import ChunkErrors, chunk_errors
from ego_world_model.evaluation.policy.predictors import MODALITIES, Moment, Predictor

__all__ = ["MODALITIES", "ChunkErrors", "Moment", "Predictor", "chunk_errors"]
