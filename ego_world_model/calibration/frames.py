"""Pictures to annotate: an image folder with joint states, and the choice of diverse frames."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ego_world_model.calibration.problem import CalibrationError
from ego_world_model.camera import PinholeCamera
from ego_world_model.embodiment import Embodiment
from ego_world_model.kinematics import HandKinematics
from ego_world_model.media import read_image

FRAMES_FILE = "frames.json"
"""Beside the pictures of an image folder: intrinsics, and the joint angles of every picture."""

VISIBLE = 8
"""Joints that must lie in the picture by the nominal mount for a frame to be worth annotating."""

_INTRINSICS = ("width", "height", "fx", "fy", "cx", "cy")


@dataclass(frozen=True, kw_only=True)
class CalibrationFrame:
    """A picture and the robot's state when it was taken.

    Attributes:
        name: unique, also the key of its annotations.
        image: (H, W, 3) uint8 RGB. camera: its intrinsics.
        q: (nq,) rad in ``Embodiment.joint_names`` order.
        lens: the camera with the lens that took the picture, where that was rectified since.
    """

    name: str
    image: NDArray[np.uint8]
    camera: PinholeCamera
    q: NDArray[np.float64]
    lens: PinholeCamera | None = None

    def __post_init__(self) -> None:
        height, width = self.image.shape[:2]
        if (self.camera.width, self.camera.height) != (width, height):
            raise CalibrationError(
                f"frame {self.name!r} is {width}x{height} but its intrinsics are of "
                f"{self.camera.width}x{self.camera.height}"
            )


def read_image_folder(folder: str | Path, robot: Embodiment) -> list[CalibrationFrame]:
    """Every frame that ``frames.json`` of a folder lists; docs/calibration.md shows the format.

    Without ``camera`` in the file the robot's nominal intrinsics are taken, at the pictures' size.

    Raises:
        CalibrationError: naming the file and the field that is missing or wrong.
    """
    path = Path(folder) / FRAMES_FILE
    if not path.is_file():
        raise CalibrationError(
            f"{path} is missing: it lists the pictures with the joint angles of each, "
            '{"frames": [{"image": "0001.png", "joints": {"left_elbow_joint": 0.25, …}}, …]}'
        )
    try:
        text = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CalibrationError(f"{path} is no JSON: {error}") from None
    entries = text.get("frames") if isinstance(text, dict) else None
    if not isinstance(entries, list) or not entries:
        raise CalibrationError(f"{path}: field 'frames' must list at least one picture")
    camera = _camera(text["camera"], path) if "camera" in text else None
    return [_frame(entry, number, path, robot, camera) for number, entry in enumerate(entries)]


def _camera(text: Any, path: Path) -> PinholeCamera:
    missing = [key for key in _INTRINSICS if key not in text] if isinstance(text, dict) else []
    if not isinstance(text, dict) or missing:
        raise CalibrationError(
            f"{path}: field 'camera' needs {', '.join(_INTRINSICS)} (pixels) and may have "
            f"distortion [k1, k2, p1, p2, k3]; {', '.join(missing) or 'it'} is missing"
        )
    try:
        numbers = {key: float(text[key]) for key in _INTRINSICS[2:]}
        distortion = tuple(float(value) for value in text.get("distortion", ()))
        return PinholeCamera(
            int(text["width"]), int(text["height"]), **numbers, distortion=distortion
        )
    except (TypeError, ValueError) as error:
        raise CalibrationError(f"{path}: field 'camera': {error}") from None


def _frame(
    entry: Any, number: int, path: Path, robot: Embodiment, camera: PinholeCamera | None
) -> CalibrationFrame:
    where = f"{path}: frames[{number}]"
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        raise CalibrationError(f"{where} needs 'image', a file name relative to the folder")
    joints = entry.get("joints")
    if not isinstance(joints, Mapping) or not joints:
        raise CalibrationError(f"{where} needs 'joints', a mapping of joint names to radians")
    followers = {coupling.follower for coupling in robot.couplings}
    arms = [name for hand in robot.hands.values() for name in (*hand.arm, *hand.fingers)]
    missing = [name for name in arms if name not in joints and name not in followers]
    if missing:
        raise CalibrationError(
            f"{where}.joints lacks {', '.join(missing[:4])}{' …' if len(missing) > 4 else ''}; "
            "without them the hands' places are unknown"
        )
    try:
        q = robot.q_from({name: float(value) for name, value in joints.items()})
    except (TypeError, ValueError) as error:
        raise CalibrationError(f"{where}.joints: {error}") from None
    image_path = path.parent / entry["image"]
    if not image_path.is_file():
        raise CalibrationError(f"{where}: picture {image_path} does not exist")
    image = read_image(image_path)
    height, width = image.shape[:2]
    return CalibrationFrame(
        name=entry["image"],
        image=image,
        camera=camera or _nominal_camera(robot, width, height, where),
        q=q,
    )


def _nominal_camera(robot: Embodiment, width: int, height: int, where: str) -> PinholeCamera:
    if width * robot.camera.height != height * robot.camera.width:
        raise CalibrationError(
            f"{where}: the picture is {width}x{height}, another shape than the nominal camera's "
            f"{robot.camera.width}x{robot.camera.height}; give the intrinsics as field 'camera'"
        )
    return robot.camera.resized(width, height)


def choose_diverse(
    kinematics: HandKinematics, q: NDArray[np.float64], cameras: Sequence[PinholeCamera], count: int
) -> list[int]:
    """Numbers of ``count`` frames (or fewer) whose hands are as far apart as possible, rising.

    Farthest-point sampling on where the hands' joints are in the camera, among frames that show at
    least ``VISIBLE`` of them by the nominal mount, from the one that shows most.

    Args:
        q: (N, nq) rad. cameras: intrinsics of each frame.

    Raises:
        CalibrationError: if no frame shows the hands.
    """
    positions, valid = kinematics.hand_joints_batch(q)
    points = positions[:, valid].astype(np.float64)  # (N, S, 3)
    seen = np.array([c.contains(c.project(p)).sum() for c, p in zip(cameras, points, strict=True)])
    candidates = np.flatnonzero(seen >= min(VISIBLE, valid.sum()))
    if not len(candidates):
        raise CalibrationError(
            f"no frame shows {VISIBLE} joints of the hands by the nominal mount; are the joint "
            "states of these pictures, and is --robot right?"
        )
    chosen = [int(candidates[np.argmax(seen[candidates])])]
    flat = points.reshape(len(points), -1)
    distance = np.linalg.norm(flat[candidates] - flat[chosen[0]], axis=1)
    while len(chosen) < min(count, len(candidates)) and distance.max() > 0:
        chosen.append(int(candidates[np.argmax(distance)]))
        distance = np.minimum(distance, np.linalg.norm(flat[candidates] - flat[chosen[-1]], axis=1))
    return sorted(chosen)
