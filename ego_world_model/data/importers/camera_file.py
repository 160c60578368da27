"""Camera calibrations: ROS's YAML files and the fields of a CameraInfo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import ArrayLike

from ego_world_model.camera import PinholeCamera


def plumb_bob(
    k: ArrayLike, distortion: ArrayLike, width: int, height: int, *, model: str
) -> PinholeCamera:
    """Intrinsics of a raw image from a camera matrix and plumb-bob coefficients.

    Raises:
        ValueError: an uncalibrated camera or another distortion model.
    """
    k, distortion = np.asarray(k, np.float64), np.asarray(distortion, np.float64).ravel()
    if not k.any():
        raise ValueError("the camera matrix is all zero: the camera is not calibrated")
    rational = model == "rational_polynomial" and not distortion[5:].any()
    if distortion.any() and model not in ("plumb_bob", "") and not rational:
        raise ValueError(
            f"distortion model {model!r} is not supported, only plumb_bob (k1, k2, p1, p2, k3)"
        )
    return PinholeCamera.from_matrix(k, width, height, distortion[:5])


def read_camera_file(path: Path) -> PinholeCamera:
    """A calibration as ROS's ``camera_calibration`` writes it (``image_width``, …).

    Raises:
        ValueError: naming the file and the field that is missing or wrong.
    """
    try:
        text: Any = yaml.safe_load(path.read_text())
        return plumb_bob(
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
