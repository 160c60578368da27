"""The calibration problem: annotated pixels, unknowns with physical bounds, and what they predict.

The camera's true mount is the nominal one times a correction in the nominal optical frame,
``T_link_optical = T_nominal @ [exp(w), t]``: a rotation vector w (rad) and a translation t (m), six
numbers that are small for a sound robot and that are bounded by how far a camera can sit off its
place. Optional unknowns are the intrinsics and the zero angles of joints; as pixels of hands alone
say little about them, each has a prior beside its bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from ego_world_model.camera import CameraPose, PinholeCamera
from ego_world_model.embodiment import Embodiment
from ego_world_model.kinematics import HandKinematics

Loss = Literal["linear", "soft_l1", "huber"]
LOSSES: tuple[Loss, ...] = ("linear", "soft_l1", "huber")

INTRINSICS_BOUND, INTRINSICS_PRIOR = 0.05, 0.01
"""Focal lengths: relative change. Principal point: shift over focal length."""

JOINT_BOUND, JOINT_PRIOR = math.radians(5.0), math.radians(1.5)
"""Radians that a joint's zero can be off, and its standard deviation before any annotation."""

ROTATION = ("rotation x", "rotation y", "rotation z")
TRANSLATION = ("translation x", "translation y", "translation z")
INTRINSICS = ("focal length x", "focal length y", "principal point x", "principal point y")
_JOINT = "zero of "


class CalibrationError(ValueError):
    """Annotations that no camera can be calibrated from; the text says which and the remedy."""


@dataclass(frozen=True, kw_only=True)
class AnnotatedFrame:
    """Pixels of named joints in one picture, and the robot's joints when it was taken.

    Attributes:
        name: of the frame, for messages and tables.
        q: (nq,) rad, measured, in ``Embodiment.joint_names`` order.
        camera: intrinsics of the picture, distortion included.
        pixels: hand slot (extra slots too) → (u, v), pixel centres at integers.
    """

    name: str
    q: NDArray[np.float64]
    camera: PinholeCamera
    pixels: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """What is solved for and within which bounds.

    Attributes:
        max_translation: m that the camera can sit off its nominal place, along each optical axis.
        max_rotation: rad, each component of the rotation vector.
        pixel_noise: px, standard deviation of an annotation per coordinate. It weighs annotations
            against priors, is where a robust loss sets in, and is what the verdict on whether the
            frames constrain the camera assumes. The covariance uses the residuals' own variance.
        loss: ``linear`` (least squares), or ``soft_l1`` or ``huber``, which bear a few mislabelled
            joints.
        refine_intrinsics: solve for focal lengths and principal point too.
        refine_joints: joints whose zero angle is solved for too.
    """

    max_translation: float = 0.05
    max_rotation: float = math.radians(10.0)
    pixel_noise: float = 2.0
    loss: Loss = "linear"
    refine_intrinsics: bool = False
    refine_joints: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_translation", "max_rotation", "pixel_noise"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value}")
        if self.max_rotation >= math.pi / 2:
            raise ValueError(f"max_rotation must be below pi/2 rad, got {self.max_rotation}")
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        if len(set(self.refine_joints)) != len(self.refine_joints):
            raise ValueError(f"refine_joints names a joint twice: {', '.join(self.refine_joints)}")


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One unknown, 0 at its nominal value.

    Attributes:
        bound: largest absolute value; also the scale that unknowns are compared on.
        prior: standard deviation before any annotation, or None.
        unit: "rad", "m" or "" (a ratio).
    """

    name: str
    unit: str
    bound: float
    prior: float | None = None

    @property
    def joint(self) -> str | None:
        """The joint whose zero this is, if it is one."""
        return self.name[len(_JOINT) :] if self.name.startswith(_JOINT) else None

    @property
    def readable(self) -> tuple[float, str]:
        """Factor and unit in which people read it: degrees, millimetres, per cent."""
        return {"rad": (math.degrees(1.0), "°"), "m": (1e3, "mm"), "": (100.0, "%")}[self.unit]


class ReprojectionProblem:
    """Where annotated joints land in the pictures, as a function of the unknowns.

    Args:
        frames: frames without annotations are left out.
        kinematics: of the robot that the frames show.
        mount: nominal mount; the robot's by default.
        options: unknowns and bounds.

    Attributes:
        names: (N,) pairs (frame, slot) of each annotation.
        annotated: (N, 2) pixels.
        parameters: the P unknowns: rotation, translation, then intrinsics and joints if asked for.

    Raises:
        CalibrationError: for annotations that cannot be used: unknown joints, no number, outside
            the picture, behind the nominal camera, or too few for the unknowns.
    """

    def __init__(
        self,
        frames: Sequence[AnnotatedFrame],
        kinematics: HandKinematics,
        *,
        mount: CameraPose | None = None,
        options: CalibrationOptions,
    ) -> None:
        self.kinematics = kinematics
        self.mount = mount or kinematics.robot.camera_pose
        self.options = options
        robot = kinematics.robot
        self.parameters = _parameters(options, robot)
        frames = [frame for frame in frames if frame.pixels]
        check_annotations(frames, robot)
        self.names = [(frame.name, slot) for frame in frames for slot in frame.pixels]
        needed = max(4, len(self.parameters) // 2 + 1)
        if len(self.names) < needed:
            raise CalibrationError(
                f"{len(self.names)} annotated pixels; {len(self.parameters)} unknowns need at "
                f"least {needed}, and an accurate result some ten in each of a dozen poses"
            )
        self.annotated = np.array([p for frame in frames for p in frame.pixels.values()], float)
        self._slots = sorted({slot for _, slot in self.names})
        self._frame_of = np.repeat(np.arange(len(frames)), [len(f.pixels) for f in frames])
        self._slot_of = np.array([self._slots.index(slot) for _, slot in self.names])
        self._q = np.stack([kinematics.q_from(frame.q) for frame in frames])
        cameras = [frames[i].camera for i in self._frame_of]
        self._cameras = {
            camera: np.array([c == camera for c in cameras]) for camera in dict.fromkeys(cameras)
        }
        self._offsets = offset_matrix(options.refine_joints, robot)  # (K, nq)
        self._nominal_points = self._points_at(np.zeros((1, self._q.shape[1])))[0]
        lost = np.flatnonzero(~np.isfinite(self.project(np.zeros(len(self.parameters)))).all(1))
        if len(lost):
            frame, slot = self.names[lost[0]]
            raise CalibrationError(
                f"frame {frame!r}: {slot} is annotated but lies behind the nominal camera by the "
                "joint states; are they of this frame, and of this robot?"
            )

    @property
    def bounds(self) -> NDArray[np.float64]:
        """(P,) largest absolute value of each unknown."""
        return np.array([parameter.bound for parameter in self.parameters])

    def project(self, x: ArrayLike) -> NDArray[np.float64]:
        """(P,) unknowns → (N, 2) pixels where the annotated joints would be seen."""
        x = np.asarray(x, dtype=np.float64)
        return self._project(x, self._link_points(x[None])[0])

    def residuals(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """(2N + priors,) in standard deviations: reprojection errors u, v, u, v, … then priors."""
        return self._residuals(x, self._link_points(x[None])[0])

    def jacobian(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """(2N + priors, P) of ``residuals`` by central differences."""
        step = 1e-5 * self.bounds
        shifted = np.concatenate([x + np.diag(step), x - np.diag(step)])  # (2P, P)
        points = self._link_points(shifted)  # at once: kinematics are quickest in batches
        rows = np.stack([self._residuals(y, p) for y, p in zip(shifted, points, strict=True)])
        return ((rows[: len(x)] - rows[len(x) :]) / (2 * step[:, None])).T

    def _project(self, x: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, 2) pixels of points (N, 3) in the link that carries the camera."""
        mount = corrected_mount(self.mount, x[:3], x[3:6])
        points = (points - mount.translation) @ mount.rotation  # in the optical frame
        pixels = np.empty((len(points), 2))
        for camera, rows in self._cameras.items():
            if self.options.refine_intrinsics:
                camera = corrected_camera(camera, x[6:10])
            pixels[rows] = camera.project(points[rows])
        return pixels

    def _residuals(
        self, x: NDArray[np.float64], points: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        errors = (self._project(x, points) - self.annotated).ravel() / self.options.pixel_noise
        priors = [v / p.prior for v, p in zip(x, self.parameters, strict=True) if p.prior]
        return np.concatenate([errors, priors])

    def _link_points(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """(B, N, 3) annotated joints in the camera's link, for unknowns (B, P)."""
        joints = len(self.options.refine_joints)
        if not joints:
            return np.broadcast_to(self._nominal_points, (len(x), *self._nominal_points.shape))
        offsets = x[:, -joints:] @ self._offsets  # (B, nq)
        return self._points_at(offsets)

    def _points_at(self, offsets: NDArray[np.float64]) -> NDArray[np.float64]:
        """(B, N, 3) annotated joints in the camera's link, for joints that are off (B, nq)."""
        q = (self._q + offsets[:, None]).reshape(-1, self._q.shape[1])  # (B F, nq)
        points = self.kinematics.slot_positions(q, self._slots)  # (B F, S, 3) in the root
        link = np.stack([self.kinematics.link_poses(row, [self.mount.link])[0] for row in q])
        points = (points - link[:, None, :3, 3]) @ link[:, :3, :3]
        points = points.reshape(len(offsets), len(self._q), len(self._slots), 3)
        return points[:, self._frame_of, self._slot_of]


def corrected_mount(
    nominal: CameraPose, rotation_vector: ArrayLike, translation: ArrayLike
) -> CameraPose:
    """The nominal mount moved by a correction in its own optical frame (rad and m, 3 each)."""
    correction = np.eye(4)
    correction[:3, :3] = Rotation.from_rotvec(rotation_vector).as_matrix()
    correction[:3, 3] = translation
    mount = nominal.matrix @ correction
    return CameraPose(nominal.link, mount[:3, :3], mount[:3, 3])


def corrected_camera(camera: PinholeCamera, change: ArrayLike) -> PinholeCamera:
    """Intrinsics after a change (4,): of fx and fy relative, of cx and cy over focal length."""
    fx, fy, cx, cy = np.asarray(change, dtype=np.float64)
    return replace(
        camera,
        fx=float(camera.fx * (1 + fx)),
        fy=float(camera.fy * (1 + fy)),
        cx=float(camera.cx + camera.fx * cx),
        cy=float(camera.cy + camera.fy * cy),
    )


def check_annotations(frames: Sequence[AnnotatedFrame], robot: Embodiment) -> None:
    """Refuse annotations that cannot be right.

    Raises:
        CalibrationError: naming the frame, the joint and what is wrong with it.
    """
    for frame in frames:
        for slot, pixel in frame.pixels.items():
            where = f"frame {frame.name!r}: {slot}"
            if slot not in robot.slots:
                raise CalibrationError(
                    f"{where} is no joint of {robot.name!r}; it has {', '.join(robot.slots)}"
                )
            if np.shape(pixel) != (2,) or not np.isfinite(pixel).all():
                raise CalibrationError(f"{where}: a pixel is two finite numbers, got {pixel}")
            if not frame.camera.contains(pixel):
                raise CalibrationError(
                    f"{where}: pixel {tuple(map(float, pixel))} lies outside the picture of "
                    f"{frame.camera.width}x{frame.camera.height}"
                )


def _parameters(options: CalibrationOptions, robot: Embodiment) -> tuple[Parameter, ...]:
    followers = {coupling.follower for coupling in robot.couplings}
    for joint in options.refine_joints:
        if joint not in robot.joint_names or joint in followers:
            raise CalibrationError(
                f"refine_joints: {joint!r} is no joint of {robot.name!r} with a zero of its own; "
                f"its joints are {', '.join(n for n in robot.joint_names if n not in followers)}"
            )
    unknowns = [Parameter(name=n, unit="rad", bound=options.max_rotation) for n in ROTATION]
    unknowns += [Parameter(name=n, unit="m", bound=options.max_translation) for n in TRANSLATION]
    if options.refine_intrinsics:
        unknowns += [
            Parameter(name=n, unit="", bound=INTRINSICS_BOUND, prior=INTRINSICS_PRIOR)
            for n in INTRINSICS
        ]
    unknowns += [
        Parameter(name=_JOINT + joint, unit="rad", bound=JOINT_BOUND, prior=JOINT_PRIOR)
        for joint in options.refine_joints
    ]
    return tuple(unknowns)


def offset_matrix(joints: Sequence[str], robot: Embodiment) -> NDArray[np.float64]:
    """(K, nq) how q changes with each joint's zero; coupled joints follow their driver."""
    matrix = np.zeros((len(joints), len(robot.joint_names)))
    for row, joint in enumerate(joints):
        matrix[row, robot.joint_names.index(joint)] = 1.0
        for coupling in robot.couplings:
            if coupling.driver == joint:
                matrix[row, robot.joint_names.index(coupling.follower)] = coupling.multiplier
    return matrix
