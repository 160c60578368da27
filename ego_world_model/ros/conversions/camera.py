"""sensor_msgs/CameraInfo ↔ PinholeCamera."""

from __future__ import annotations

import numpy as np
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from ego_world_model.camera import PinholeCamera
from ego_world_model.lens import DISTORTION_MODELS
from ego_world_model.ros.conversions.errors import MessageError

_NO_LENS = ("", "none")  # what drivers without a lens model write beside zeros


def camera_from_info(message: CameraInfo, *, topic: str = "camera_info") -> PinholeCamera:
    """Intrinsics and distortion of the raw (unrectified) image, in pixels of the published size.

    K describes the calibrated sensor; binning and region of interest are applied, because the
    image that arrives with this message is already binned and cropped (REP-104).

    Raises:
        MessageError: no calibration, an unsupported distortion model, or broken numbers.
    """
    k = np.asarray(message.k, dtype=np.float64)
    if not k.any():
        raise MessageError(
            topic,
            "k",
            "is all zero: the camera is not calibrated",
            "publish a calibrated CameraInfo (camera_calibration writes one)",
        )
    distortion = np.asarray(message.d, dtype=np.float64)
    model = message.distortion_model
    if model in _NO_LENS and (model == "" or not distortion.any()):
        model = "plumb_bob"
    if model not in DISTORTION_MODELS:
        raise MessageError(
            topic,
            "distortion_model",
            f"{model!r} is not supported",
            f"publish one of {', '.join(DISTORTION_MODELS)}, or rectified images with zero d",
        )
    most = max(DISTORTION_MODELS[model])
    if distortion[most:].any():
        raise MessageError(
            topic,
            "d",
            f"holds {len(distortion)} coefficients but {model} has {most}",
            "calibrate without thin-prism and tilt terms, or publish rectified images with zero d",
        )
    if model != "plumb_bob":  # trailing zeros may be left out
        distortion = np.pad(distortion, (0, max(0, most - len(distortion))))
    try:
        camera = PinholeCamera.from_matrix(
            k, int(message.width), int(message.height), distortion[:most], model=model
        )
    except ValueError as error:
        raise MessageError(
            topic, "k, d, width, height", f"are wrong ({error})", "fix the driver's calibration"
        ) from None
    roi = message.roi
    if roi.width and roi.height and (roi.width, roi.height) != (camera.width, camera.height):
        camera = camera.cropped(roi.x_offset, roi.y_offset, int(roi.width), int(roi.height))
    binning_x, binning_y = max(1, message.binning_x), max(1, message.binning_y)
    if (binning_x, binning_y) != (1, 1):
        camera = camera.resized(camera.width // binning_x, camera.height // binning_y)
    return camera


def info_from_camera(camera: PinholeCamera, *, header: Header | None = None) -> CameraInfo:
    """A CameraInfo for an image of exactly the camera's size: no binning, no region."""
    coefficients = list(camera.distortion) or [0.0] * 5
    if camera.distortion_model == "plumb_bob":
        coefficients += [0.0] * (5 - len(coefficients))
    k = camera.matrix
    return CameraInfo(
        header=Header() if header is None else header,
        width=camera.width,
        height=camera.height,
        distortion_model=camera.distortion_model,
        d=coefficients,
        k=k.ravel(),
        r=np.eye(3).ravel(),
        p=np.hstack([k, np.zeros((3, 1))]).ravel(),
    )
