"""What a calibration leaves behind: parameters for the launch files, and a report."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from transforms3d.euler import euler2mat, mat2euler

from ego_world_model.calibration.delay import DelayEstimate
from ego_world_model.calibration.problem import CalibrationError
from ego_world_model.calibration.solver import CalibrationResult
from ego_world_model.camera import CameraPose, PinholeCamera
from ego_world_model.embodiment import Embodiment

SECTIONS = ("hand_kinematics", "motion_policy", "world_model")
"""Nodes that take the correction of the mount and the delay."""

XYZ, RPY = "camera_correction_xyz", "camera_correction_rpy"
OFFSET = "joint_time_offset"

_EXPLAINED = {
    XYZ: "m, in the nominal optical frame",
    RPY: "rad, roll, pitch, yaw about its axes",
    OFFSET: "s, added to the stamps of joint states",
}
_NOTE = re.compile(r"# (Camera mount|Camera-joint delay) of (\S+), written by")
_USE = "For the robot's launch file, or `ego-world-model up`: calibration:=/path/of/this/file"


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

    It holds ROS parameters only; RMS, standard deviations and cautions stand in its comments. A
    delay that the file holds already (``write_delay``) stays in it.

    Raises:
        CalibrationError: the file is of another robot, or no parameter file.
    """
    xyz, rpy = correction(result)
    deviations = result.standard_deviations
    shift = ", ".join(f"{1e3 * v:.2f}" for v in deviations[3:6])
    turn = ", ".join(f"{math.degrees(v):.3f}" for v in deviations[:3])
    lines = [
        f"Camera mount of {robot.name}, written by `ego-world-model calibrate`.",
        f"{summary(result)}.",
        f"Standard deviations: x, y, z {shift} mm; about x, y, z {turn} degrees.",
        *(f"CAUTION: {sentence}" for sentence in cautions(result)),
    ]
    return _merge(Path(path), lines, {XYZ: xyz, RPY: rpy}, robot)


def write_delay(path: str | Path, estimate: DelayEstimate, robot: Embodiment) -> Path:
    """Write the delay to the YAML of ``write_parameters``; a mount that it holds stays in it.

    Raises:
        CalibrationError: the file is of another robot, or no parameter file.
    """
    lines = [
        f"Camera-joint delay of {robot.name}, written by `ego-world-model calibrate-delay`.",
        f"Images are stamped {1e3 * estimate.delay:.1f} ms later than the joint states of the same "
        "instant",
        f"(standard deviation {1e3 * estimate.deviation:.1f} ms, from {estimate.seconds:.0f} s of "
        "motion).",
    ]
    return _merge(Path(path), lines, {OFFSET: round(estimate.delay, 4)}, robot)


def _merge(path: Path, note: list[str], values: Mapping[str, Any], robot: Embodiment) -> Path:
    """Put parameters of both nodes into a file that may hold others, with a note on top."""
    kept, parameters = _existing(path, robot) if path.exists() else ({}, {})
    text = "\n".join(f"# {line}" for line in note)
    kept[_title(text)] = text
    for section in SECTIONS:
        node = parameters.setdefault(f"/**/{section}", {}).setdefault("ros__parameters", {})
        node.update(values)
    out = "\n#\n".join([*kept.values(), f"# {_USE}"]) + "\n"
    for section, content in parameters.items():
        out += f"\n{section}:\n  ros__parameters:\n"
        for key, value in content["ros__parameters"].items():
            shown = yaml.safe_dump(value, default_flow_style=True, width=1000).splitlines()[0]
            out += f"    {key}: {shown}" + (f"   # {_EXPLAINED[key]}" if key in _EXPLAINED else "")
            out += "\n"
    _write(path, out)
    return path


def _existing(path: Path, robot: Embodiment) -> tuple[dict[str, str], dict[str, Any]]:
    """Notes by title and parameters by section of a file that is gone on with."""
    text = path.read_text(encoding="utf-8")
    try:
        parameters = yaml.safe_load(text) or {}
        sections = [section["ros__parameters"] for section in parameters.values()]
        if not all(isinstance(section, dict) for section in sections):
            raise TypeError
    except (AttributeError, KeyError, TypeError, yaml.YAMLError):
        raise CalibrationError(
            f"{path} is there already and holds no ROS parameters; give another --out"
        ) from None
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    paragraphs = [paragraph.strip("\n") for paragraph in comments.split("\n#\n")]
    notes = {_title(paragraph): paragraph for paragraph in paragraphs if _NOTE.match(paragraph)}
    for paragraph in notes.values():
        of = _NOTE.match(paragraph)
        if of is not None and of[2] != robot.name:
            raise CalibrationError(
                f"{path} is a calibration of {of[2]}, not of {robot.name}; give another --out, or "
                "the --robot that it is of"
            )
    # files of one note that were written before there were two have the advice in it
    return {key: note.removesuffix(f"\n# {_USE}") for key, note in notes.items()}, parameters


def _title(note: str) -> str:
    found = _NOTE.match(note)
    assert found is not None
    return found[1]


def read_time_offset(path: str | Path) -> float:
    """Seconds that a file of ``write_delay`` adds to joint states' stamps; 0 where it has none.

    Raises:
        CalibrationError: if the file is no calibration.
    """
    path = Path(path)
    try:
        text = yaml.safe_load(path.read_text(encoding="utf-8"))
        return float(text[f"/**/{SECTIONS[0]}"]["ros__parameters"].get(OFFSET, 0.0))
    except (AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError):
        raise CalibrationError(
            f"{path} is no calibration: {OFFSET} stands below /**/{SECTIONS[0]}, as "
            "`ego-world-model calibrate-delay` writes it"
        ) from None


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
    distortion = (*camera.distortion,)
    if camera.distortion_model == "plumb_bob":
        distortion += (0.0,) * (5 - len(distortion))
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
        "distortion_model": camera.distortion_model,
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
