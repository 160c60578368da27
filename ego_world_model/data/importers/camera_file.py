"""Camera calibrations: ROS's YAML files and the fields of a CameraInfo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import ArrayLike

from ego_world_model.camera import PinholeCamera
from ego_world_model.lens import DISTORTION_MODELS, fitted, model_named


def calibrated_camera(
    k: ArrayLike, distortion: ArrayLike, width: int, height: int, *, model: str
) -> PinholeCamera:
    """Intrinsics of a raw image from a camera matrix and what a lens model of ROS says of it.

    Raises:
        ValueError: an uncalibrated camera, an unknown distortion model, or coefficients that it
            does not have.
    """
    k, distortion = np.asarray(k, np.float64), np.asarray(distortion, np.float64).ravel()
    if not k.any():
        raise ValueError("the camera matrix is all zero: the camera is not calibrated")
    try:
        model = model_named(model, distortion)
    except ValueError as error:
        raise ValueError(f"distortion model {error}, only {', '.join(DISTORTION_MODELS)}") from None
    try:
        distortion = fitted(model, distortion)
    except ValueError as error:
        raise ValueError(f"distortion {error}") from None
    return PinholeCamera.from_matrix(k, width, height, distortion, model=model)


def read_camera_file(path: Path) -> PinholeCamera:
    """A calibration as ROS's ``camera_calibration`` writes it (``image_width``, …).

    Raises:
        ValueError: naming the file and the field that is missing or wrong.
    """
    try:
        text: Any = yaml.safe_load(path.read_text())
        return calibrated_camera(
            text["camera_matrix"]["data"],
            text.get("distortion_coefficients", {}).get("data", ()),
            int(text["image_width"]),
            int(text["image_height"]),
            model=text.get("distortion_model", "plumb_bob"),
        )
    except KeyError as error:
        raise ValueError(
            f"{path}: {error} is missing; a calibration has image_width, image_height, "
            "camera_matrix.data and distortion_coefficients.data"
        ) from error
    except (yaml.YAMLError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is not a camera calibration ({error})") from error
