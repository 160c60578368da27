"""sensor_msgs/CameraInfo ↔ PinholeCamera."""

from __future__ import annotations

import numpy as np
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from ego_world_model.camera import PinholeCamera
from ego_world_model.ros.conversions.errors import MessageError

_PLUMB_BOB = ("plumb_bob", "")


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
    plumb_bob = message.distortion_model in _PLUMB_BOB or (
        message.distortion_model == "rational_polynomial" and not distortion[5:].any()
    )
    if distortion.any() and not plumb_bob:
        raise MessageError(
            topic,
            "distortion_model",
            f"{message.distortion_model!r} is not supported",
            "publish plumb_bob coefficients (k1, k2, p1, p2, k3) or rectified images",
        )
    try:
        camera = PinholeCamera.from_matrix(
            k, int(message.width), int(message.height), distortion[:5]
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
    coefficients += [0.0] * (5 - len(coefficients))
    k = camera.matrix
    return CameraInfo(
        header=Header() if header is None else header,
        width=camera.width,
        height=camera.height,
        distortion_model="plumb_bob",
        d=coefficients,
        k=k.ravel(),
        r=np.eye(3).ravel(),
        p=np.hstack([k, np.zeros((3, 1))]).ravel(),
    )
