"""Camera extrinsics from annotated pixels: bounded Trust Region Reflective least squares.

The procedure of *Controllable Egocentric Video Generation via Occlusion-Aware Sparse 3D Hand
Joints* (arXiv 2603.11755, section 4.2, equation 12): minimise the reprojection error between
annotated pixels and projected joints of the forward kinematics over a rotation vector and a
translation, within physical bounds around the nominal mount.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from ego_world_model.calibration.observability import Observability, observability
from ego_world_model.calibration.problem import (
    AnnotatedFrame,
    CalibrationError,
    CalibrationOptions,
    Loss,
    Parameter,
    ReprojectionProblem,
    corrected_camera,
    corrected_mount,
    offset_matrix,
)
from ego_world_model.camera import CameraPose, PinholeCamera
from ego_world_model.embodiment import Embodiment
from ego_world_model.kinematics import HandKinematics

AT_BOUND = 1e-3
"""Share of the bound within which an unknown counts as held by it (TRF stays in the interior)."""


@dataclass(frozen=True, kw_only=True)
class Reprojection:
    """One annotation and where the calibrated camera sees the joint, (u, v) pixels each."""

    frame: str
    slot: str
    annotated: tuple[float, float]
    projected: tuple[float, float]

    @property
    def error(self) -> tuple[float, float]:
        """Projected minus annotated, pixels."""
        return (self.projected[0] - self.annotated[0], self.projected[1] - self.annotated[1])

    @property
    def distance(self) -> float:
        """Length of ``error``, pixels."""
        return float(np.hypot(*self.error))


@dataclass(frozen=True, kw_only=True)
class CalibrationResult:
    """A calibrated camera and how far it can be trusted.

    Attributes:
        mount: the calibrated mount; ``nominal``: what it started from.
        parameters: the P unknowns; values: (P,) in their units.
        covariance: (P, P) from the Jacobian and the residuals' variance; NaN in rows and columns of
            unknowns that are held by a bound.
        noise: px per coordinate, standard deviation of annotations by the residuals.
        rms: px, root mean square length of the reprojection errors; ``nominal_rms``: of the
            nominal mount.
        reprojections: every annotation.
        active_bounds: names of unknowns that are held by a bound: the true value may lie outside.
        observability: whether the frames determine the camera.
        options: what was asked for.
    """

    mount: CameraPose
    nominal: CameraPose
    parameters: tuple[Parameter, ...]
    values: NDArray[np.float64]
    covariance: NDArray[np.float64]
    noise: float
    rms: float
    nominal_rms: float
    reprojections: tuple[Reprojection, ...]
    active_bounds: tuple[str, ...]
    observability: Observability
    options: CalibrationOptions

    @property
    def rotation_vector(self) -> NDArray[np.float64]:
        """(3,) rad, correction in the nominal optical frame."""
        return self.values[:3]

    @property
    def translation(self) -> NDArray[np.float64]:
        """(3,) m, correction in the nominal optical frame."""
        return self.values[3:6]

    @property
    def standard_deviations(self) -> NDArray[np.float64]:
        """(P,) of the unknowns, in their units; NaN where a bound holds one."""
        return np.sqrt(np.diag(self.covariance))

    @property
    def joint_offsets(self) -> Mapping[str, float]:
        """Joint → rad to add to its measured angle; empty where not asked for."""
        pairs = zip(self.parameters, self.values, strict=True)
        return {p.joint: float(value) for p, value in pairs if p.joint}

    def corrected(self, q: NDArray[np.float64], robot: Embodiment) -> NDArray[np.float64]:
        """(nq,) rad, measured joints with their refined zeros."""
        joints = self.options.refine_joints
        offsets = self.values[len(self.values) - len(joints) :]
        return q + offsets @ offset_matrix(joints, robot)

    def camera(self, nominal: PinholeCamera) -> PinholeCamera:
        """The intrinsics with their refinement, if one was asked for."""
        if not self.options.refine_intrinsics:
            return nominal
        return corrected_camera(nominal, self.values[6:10])

    def rms_by_slot(self) -> dict[str, tuple[int, float, float, float]]:
        """Slot → number of annotations, RMS px, mean error in u, mean error in v."""
        return _grouped(self.reprojections, lambda item: item.slot)

    def rms_by_frame(self) -> dict[str, tuple[int, float, float, float]]:
        """Frame → number of annotations, RMS px, mean error in u, mean error in v."""
        return _grouped(self.reprojections, lambda item: item.frame)


def calibrate(
    frames: Sequence[AnnotatedFrame],
    kinematics: HandKinematics,
    *,
    mount: CameraPose | None = None,
    options: CalibrationOptions | None = None,
) -> CalibrationResult:
    """Where the camera sits, from pixels of joints.

    Args:
        frames: annotated frames in diverse poses; those without annotations are left out.
        kinematics: of the robot; its forward kinematics give the joints' places.
        mount: nominal mount; the robot's by default.
        options: unknowns, bounds and loss.

    Raises:
        CalibrationError: for annotations that cannot be used, and where the solver fails.
    """
    options = options or CalibrationOptions()
    problem = ReprojectionProblem(frames, kinematics, mount=mount, options=options)
    bounds, start = problem.bounds, np.zeros(len(problem.parameters))
    pixels = 2 * len(problem.names)
    loss = _robust(options.loss, pixels)
    solution = least_squares(
        problem.residuals,
        start,
        jac=problem.jacobian,
        bounds=(-bounds, bounds),
        method="trf",
        x_scale=bounds,
        loss=loss,
        ftol=1e-10,
        xtol=1e-10,
        gtol=1e-10,
        max_nfev=500,
    )
    if not solution.success:
        raise CalibrationError(f"the solver did not converge: {solution.message}")
    x = solution.x
    jacobian, residuals = problem.jacobian(x), problem.residuals(x)
    held = np.abs(x) > (1 - AT_BOUND) * bounds
    spread, slope = _moments(residuals[:pixels], loss, int((~held).sum()))
    projected = problem.project(x)
    return CalibrationResult(
        mount=corrected_mount(problem.mount, x[:3], x[3:6]),
        nominal=problem.mount,
        parameters=problem.parameters,
        values=x,
        covariance=_covariance(jacobian, pixels, spread, slope, held, bounds),
        noise=float(np.sqrt(spread)) / slope * options.pixel_noise,
        rms=_rms(projected - problem.annotated),
        nominal_rms=_rms(problem.project(start) - problem.annotated),
        reprojections=tuple(
            Reprojection(frame=frame, slot=slot, annotated=tuple(a), projected=tuple(p))
            for (frame, slot), a, p in zip(
                problem.names, problem.annotated.tolist(), projected.tolist(), strict=True
            )
        ),
        active_bounds=tuple(p.name for p, at in zip(problem.parameters, held, strict=True) if at),
        observability=observability(jacobian, problem.parameters),
        options=options,
    )


def _rms(errors: NDArray[np.float64]) -> float:
    """Root mean square length of (N, 2) pixel errors."""
    return float(np.sqrt(np.mean(np.sum(errors**2, axis=1))))


def _robust(loss: Loss, pixels: int) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """rho, rho', rho'' of squared residuals (M,) → (3, M), as scipy defines a loss.

    Only the first ``pixels`` residuals are made robust: a prior is not an outlier.
    """

    def rho(z: NDArray[np.float64]) -> NDArray[np.float64]:
        out = np.stack([z, np.ones_like(z), np.zeros_like(z)])
        robust = np.arange(len(z)) < pixels
        if loss == "soft_l1":
            t = 1 + z[robust]
            out[:, robust] = 2 * (np.sqrt(t) - 1), t**-0.5, -0.5 * t**-1.5
        elif loss == "huber":
            far = robust & (z > 1)
            t = z[far]
            out[:, far] = 2 * np.sqrt(t) - 1, t**-0.5, -0.5 * t**-1.5
        return out

    return rho


def _moments(
    residuals: NDArray[np.float64],
    loss: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    unknowns: int,
) -> tuple[float, float]:
    """Spread and slope of an M-estimate (Huber, Robust Statistics, section 7.6).

    With psi = rho'(r^2) r: sum(psi^2) / (M - P) and mean(psi'). For least squares they are the
    residuals' variance sum(r^2) / (M - P), and 1.
    """
    z = residuals**2
    _, first, second = loss(z)
    freedom = max(1, len(residuals) - unknowns)
    return float(np.sum(first**2 * z)) / freedom, float(np.mean(first + 2 * z * second))


def _covariance(
    jacobian: NDArray[np.float64],
    pixels: int,
    spread: float,
    slope: float,
    held: NDArray[np.bool_],
    bounds: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(P, P) as H^-1 M H^-1 with H = slope J'J + priors and M = spread J'J + priors.

    Without priors that is spread / slope^2 (J'J)^-1. The form also holds where annotations turn out
    more or less exact than the noise that weighed them against the priors.
    """
    free = ~held
    scaled = (jacobian * bounds)[:, free]
    # A prior of next to nothing: a direction that no pixel determines gets a huge variance.
    nothing = 1e-7 * np.linalg.norm(scaled) * np.eye(scaled.shape[1])
    pixel_rows, prior_rows = scaled[:pixels], np.concatenate([scaled[pixels:], nothing])
    stacked = np.concatenate([np.sqrt(slope) * pixel_rows, prior_rows])
    _, singular, directions = np.linalg.svd(stacked, full_matrices=False)
    inverse = directions.T / singular**2 @ directions
    meat = spread * pixel_rows.T @ pixel_rows + prior_rows.T @ prior_rows
    covariance = np.full((len(bounds), len(bounds)), np.nan)
    scale = np.outer(bounds[free], bounds[free])
    covariance[np.ix_(free, free)] = inverse @ meat @ inverse * scale
    return covariance


def _grouped(
    items: Sequence[Reprojection], key: Callable[[Reprojection], str]
) -> dict[str, tuple[int, float, float, float]]:
    groups: dict[str, list[tuple[float, float]]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item.error)
    out = {}
    for name, errors in groups.items():
        array = np.array(errors)
        u, v = array.mean(axis=0)
        out[name] = (len(array), _rms(array), float(u), float(v))
    return out
