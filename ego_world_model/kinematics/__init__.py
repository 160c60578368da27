"""Forward and inverse kinematics of an embodiment, and the hand state between them."""

from ego_world_model.kinematics.forward import HandKinematics
from ego_world_model.kinematics.inverse import ArmSolver, UnreachableError
from ego_world_model.kinematics.state import HandState, matrix_from_6d, rotation_6d

__all__ = [
    "ArmSolver",
    "HandKinematics",
    "HandState",
    "UnreachableError",
    "matrix_from_6d",
    "rotation_6d",
]
