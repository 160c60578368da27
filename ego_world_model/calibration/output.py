"""What a calibration leaves behind: parameters for the launch files, and a report."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from transforms3d.euler import euler2mat, mat2euler

from ego_world_model.calibration.problem import CalibrationError
from ego_world_model.calibration.solver import CalibrationResult
from ego_world_model.camera import CameraPose, PinholeCamera
from ego_world_model.embodiment import Embodiment

SECTIONS = ("hand_kinematics", "world_model")
"""Nodes that take the correction of the mount."""

XYZ, RPY = "camera_correction_xyz", "camera_correction_rpy"


def correction(result: CalibrationResult) -> tuple[list[float], list[float]]:
    """Metres and (roll, pitch, yaw) radians of the nodes' parameters ``camera_correction_*``."""
    turn = mat2euler(Rotation.from_rotvec(result.rotation_vector).as_matrix())
    return (
        [round(float(v), 6) for v in result.translation],
        [round(float(v), 6) for v in turn],
    )


def cautions(result: CalibrationResult) -> list[str]:
    """Sentences on why the result should not be trusted as it is; empty for a sound one."""
    found = []
    if result.active_bounds:
        found.append(
            f"Held by its bound: {', '.join(result.active_bounds)}. The true value may lie "
            "outside: look for mislabelled joints and wrong joint states first, then widen the "
            "bounds."
        )
    if not result.observability.constrained:
        found.append(result.observability.sentence())
    return found


def summary(result: CalibrationResult) -> str:
    """One sentence: how many annotations, and how well they are met."""
    frames = len({item.frame for item in result.reprojections})
    slots = len({item.slot for item in result.reprojections})
    return (
        f"{len(result.reprojections)} pixels of {slots} joints in {frames} frames: RMS "
        f"{result.rms:.2f} px (nominal mount: {result.nominal_rms:.2f} px)"
    )


def write_parameters(path: str | Path, result: CalibrationResult, robot: Embodiment) -> Path:
    """Write the YAML that ``ros2 launch … calibration:=FILE`` and ``ego-world-model up`` take.

    It holds ROS parameters only; RMS, standard deviations and cautions stand in its comments.
    """
    path = Path(path)
    xyz, rpy = correction(result)
    deviations = result.standard_deviations
    shift = ", ".join(f"{1e3 * v:.2f}" for v in deviations[3:6])
    turn = ", ".join(f"{math.degrees(v):.3f}" for v in deviations[:3])
    lines = [
        f"Camera mount of {robot.name}, written by `ego-world-model calibrate`.",
        f"{summary(result)}.",
        f"Standard deviations: x, y, z {shift} mm; about x, y, z {turn} degrees.",
        *(f"CAUTION: {sentence}" for sentence in cautions(result)),
        "For the robot's launch file, or `ego-world-model up`: calibration:=/path/of/this/file",
    ]
    text = "".join(f"# {line}\n" for line in lines)
    for section in SECTIONS:
        text += (
            f"\n/**/{section}:\n  ros__parameters:\n"
            f"    {XYZ}: {xyz}   # m, in the nominal optical frame\n"
            f"    {RPY}: {rpy}   # rad, roll, pitch, yaw about its axes\n"
        )
    _write(path, text)
    return path


def read_mount(path: str | Path, robot: Embodiment) -> CameraPose:
    """The calibrated mount from a file of ``write_parameters``, for use without ROS.

    Raises:
        CalibrationError: if the file holds no correction of three numbers each.
    """
    path = Path(path)
    try:
        text = yaml.safe_load(path.read_text(encoding="utf-8"))
        section = text[f"/**/{SECTIONS[0]}"]["ros__parameters"]
        xyz, rpy = np.array(section[XYZ], float), np.array(section[RPY], float)
        if xyz.shape != (3,) or rpy.shape != (3,):
            raise ValueError
    except (KeyError, TypeError, ValueError, yaml.YAMLError):
        raise CalibrationError(
            f"{path} is no calibration: it needs {XYZ} and {RPY}, three numbers each, below "
            f"/**/{SECTIONS[0]} as `ego-world-model calibrate` writes them"
        ) from None
    mount = robot.camera_pose.matrix @ _homogeneous(euler2mat(*rpy), xyz)
    return CameraPose(robot.camera_pose.link, mount[:3, :3], mount[:3, 3])


def write_report(
    path: str | Path, result: CalibrationResult, robot: Embodiment, camera: PinholeCamera
) -> Path:
    """Write everything a calibration found as JSON.

    Args:
        camera: intrinsics of the pictures, to which a refinement applies.
    """
    path = Path(path)
    xyz, rpy = correction(result)
    refined = result.camera(camera)
    report: dict[str, Any] = {
        "robot": robot.name,
        "link": result.mount.link,
        "mount": result.mount.matrix.tolist(),
        XYZ: xyz,
        RPY: rpy,
        "rms_px": result.rms,
        "nominal_rms_px": result.nominal_rms,
        "noise_px": result.noise,
        "parameters": [p.name for p in result.parameters],
        "units": [p.unit for p in result.parameters],
        "values": result.values.tolist(),
        "bounds": [p.bound for p in result.parameters],
        # JSON has no NaN: unknowns held by a bound have no variance
        "covariance": [[None if np.isnan(v) else v for v in row] for row in result.covariance],
        "active_bounds": list(result.active_bounds),
        "constrained": result.observability.constrained,
        "observability": result.observability.sentence(),
        "condition": result.observability.condition,
        "loss": result.options.loss,
        "by_joint": _table(result.rms_by_slot()),
        "by_frame": _table(result.rms_by_frame()),
        "joint_offsets": dict(result.joint_offsets),
    }
    if result.options.refine_intrinsics:
        report["intrinsics"] = {
            name: getattr(refined, name) for name in ("width", "height", "fx", "fy", "cx", "cy")
        }
    _write(path, json.dumps(report, indent=1) + "\n")
    return path


def write_camera_info(path: str | Path, camera: PinholeCamera, name: str) -> Path:
    """Write intrinsics as the YAML of ROS's camera_calibration, for a driver's camera_info_url."""
    path = Path(path)
    k = camera.matrix
    distortion = (*camera.distortion, *[0.0] * (5 - len(camera.distortion)))
    matrices = {
        "camera_matrix": k,
        "distortion_coefficients": np.array([distortion]),
        "rectification_matrix": np.eye(3),
        "projection_matrix": np.hstack([k, np.zeros((3, 1))]),
    }
    text: dict[str, Any] = {
        "image_width": camera.width,
        "image_height": camera.height,
        "camera_name": name,
        "distortion_model": "plumb_bob",
    }
    for key, matrix in matrices.items():
        rows, cols = matrix.shape
        text[key] = {"rows": rows, "cols": cols, "data": [float(v) for v in matrix.ravel()]}
    _write(path, yaml.safe_dump(text, sort_keys=False, default_flow_style=None))
    return path


def _table(groups: dict[str, tuple[int, float, float, float]]) -> dict[str, dict[str, float]]:
    keys = ("count", "rms_px", "mean_u_px", "mean_v_px")
    return {name: dict(zip(keys, row, strict=True)) for name, row in groups.items()}


def _homogeneous(
    rotation: NDArray[np.float64], translation: NDArray[np.float64]
) -> NDArray[np.float64]:
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = rotation, translation
    return out


def _write(path: Path, text: str) -> None:
    """Whole or not at all; makes the folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
