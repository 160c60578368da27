"""Controls: modules that turn hand joints into conditions of a video model."""

from ego_world_model.world_model.controls.base import Control
from ego_world_model.world_model.controls.config import ControlConfig, ControlSignal
from ego_world_model.world_model.controls.joint import JointControl
from ego_world_model.world_model.controls.occlusion import joint_visibility

__all__ = ["Control", "ControlConfig", "ControlSignal", "JointControl", "joint_visibility"]
