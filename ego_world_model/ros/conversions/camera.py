"""sensor_msgs/CameraInfo ↔ PinholeCamera."""

from __future__ import annotations

import numpy as np
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from ego_world_model.camera import PinholeCamera
from ego_world_model.lens import DISTORTION_MODELS, fitted, model_named
from ego_world_model.ros.conversions.errors import MessageError


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
    try:
        model = model_named(message.distortion_model, distortion)
    except ValueError as error:
        raise MessageError(
            topic,
            "distortion_model",
            str(error),
            f"publish one of {', '.join(DISTORTION_MODELS)}, or rectified images with zero d",
        ) from None
    try:
        distortion = fitted(model, distortion)
    except ValueError as error:
        raise MessageError(
            topic,
            "d",
            str(error),
            "calibrate without thin-prism and tilt terms, or publish rectified images with zero d",
        ) from None
    try:
        camera = PinholeCamera.from_matrix(
            k, int(message.width), int(message.height), distortion, model=model
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
