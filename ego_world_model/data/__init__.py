"""Episodes in the LeRobot v3.0 layout: what they are, and how they are written and read."""

from ego_world_model.data.layout import DatasetSpec
from ego_world_model.data.reader import DatasetReader, EpisodeRecord
from ego_world_model.data.schema import HAND_CLASSES, MASK_CLASSES, Episode
from ego_world_model.data.writer import DatasetWriter

__all__ = [
    "HAND_CLASSES",
    "MASK_CLASSES",
    "DatasetReader",
    "DatasetSpec",
    "DatasetWriter",
    "Episode",
    "EpisodeRecord",
]
