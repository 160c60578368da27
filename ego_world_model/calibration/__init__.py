"""Calibration of the head camera: pixels of named joints in diverse frames → its true mount."""

from ego_world_model.calibration.observability import Observability
from ego_world_model.calibration.output import read_mount, write_parameters
from ego_world_model.calibration.problem import (
    LOSSES,
    AnnotatedFrame,
    CalibrationError,
    CalibrationOptions,
    Parameter,
    corrected_camera,
    corrected_mount,
)
from ego_world_model.calibration.solver import CalibrationResult, Reprojection, calibrate

__all__ = [
    "LOSSES",
    "AnnotatedFrame",
    "CalibrationError",
    "CalibrationOptions",
    "CalibrationResult",
    "Observability",
    "Parameter",
    "Reprojection",
    "calibrate",
    "corrected_camera",
    "corrected_mount",
    "read_mount",
    "write_parameters",
]
