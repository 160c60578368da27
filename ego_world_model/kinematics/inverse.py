"""The one inverse kinematics: wrists to poses with the arm joints, by pin-pink's QP steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pinocchio as pin
import qpsolvers
from numpy.typing import NDArray
from pink import Configuration, build_ik, solve_ik
from pink.limits import ConfigurationLimit, Limit
from pink.tasks import FrameTask, PostureTask

from ego_world_model.embodiment import Embodiment

_SOLVER = "daqp"
_LEANING_COST = (
    0.02  # of one radian against one metre, for an arm that cannot turn its wrist freely
)
_FOLLOWING_COST = 0.05  # of one radian against one metre, where the wrist cannot have both
_FAR_DAMPING = 0.3  # about what the curvature of an arm's reach takes from a step, far away
_HALVINGS = 6  # of a step that leads away from its target
_SETTLED = 2e-3  # radians; a Newton step as small leaves next to nothing to the next one


class UnreachableError(ValueError):
    """No configuration within the joint limits reaches the wrist target closely enough."""


class ArmSolver:
    """Places the wrists of one robot; everything but the arms keeps its configuration.

    Args:
        robot: the embodiment. model: its pinocchio model.
        posture_cost: pull towards the start configuration, relative to 1 per metre of wrist error;
            it settles the elbow, which the wrist pose leaves free.
    """

    def __init__(self, robot: Embodiment, model: pin.Model, *, posture_cost: float = 2e-3) -> None:
        self._robot, self._full = robot, model
        self._posture_cost = posture_cost
        arms = [name for hand in robot.hands.values() for name in hand.arm]
        self._locked = [model.getJointId(n) for n in robot.joint_names if n not in arms]
        self._arm_in_full = robot.indices(tuple(n for n in robot.joint_names if n in arms))
        self._reduced: tuple[bytes, pin.Model] | None = None

    def reach(
        self,
        targets: Mapping[str, NDArray[np.float64]],
        q0: NDArray[np.float64],
        *,
        orientation_cost: float = 0.3,
        position_tolerance: float = 0.005,
        rotation_tolerance: float = 0.05,
        iterations: int = 60,
    ) -> NDArray[np.float64]:
        """Configuration (nq,) within limits whose wrists are at ``targets``.

        An arm with fewer than six joints places its wrist and only leans towards the orientation.

        Args:
            targets: "left"/"right" → (4, 4) pose of the wrist link in the root frame.
            q0: (nq,) start; its torso and fingers are kept.
            orientation_cost: weight of one radian against one metre.

        Raises:
            UnreachableError: if a wrist ends farther from its target than the tolerances.
        """
        robot = self._robot
        model = self._model_at(q0)
        start = np.clip(q0[self._arm_in_full], model.lowerPositionLimit, model.upperPositionLimit)
        configuration = Configuration(model, model.createData(), start)
        posture = PostureTask(cost=self._posture_cost)
        posture.set_target(start)
        tasks = {}
        for side, pose in targets.items():
            task = FrameTask(
                robot.hands[side].wrist,
                position_cost=1.0,
                orientation_cost=(
                    orientation_cost if robot.hands[side].turns_freely else _LEANING_COST
                ),
                lm_damping=1e-4,
            )
            task.set_target(pin.SE3(pose[:3, :3], pose[:3, 3]))
            tasks[side] = task
        limits = [ConfigurationLimit(model)]
        for step in range(iterations):
            if step == iterations // 2:
                for side in targets:
                    if not robot.hands[side].turns_freely:
                        tasks[side].set_orientation_cost(0.0)
            # Far away the posture pull picks an elbow; near the end it would only bias the wrist.
            active = [*tasks.values(), posture] if step < iterations // 2 else [*tasks.values()]
            velocity = solve_ik(
                configuration, active, 1.0, solver=_SOLVER, damping=1e-6, limits=limits
            )
            largest = np.abs(velocity).max()
            if largest > 0.5:  # a full Newton step over half a radian is outside its model
                velocity *= 0.5 / largest
            configuration.integrate_inplace(velocity, 1.0)
            if largest < 1e-5 and step >= iterations // 2:
                break
            if step < iterations // 2 and self._arrived(configuration, tasks, 1e-4, 1e-3):
                break
        for side, task in tasks.items():
            error = task.compute_error(configuration)
            position, rotation = np.linalg.norm(error[:3]), np.linalg.norm(error[3:])
            turned = rotation <= rotation_tolerance or not robot.hands[side].turns_freely
            if position > position_tolerance or not turned:
                raise UnreachableError(
                    f"{side} wrist target is out of reach: {1e3 * position:.1f} mm and "
                    f"{np.degrees(rotation):.1f} degrees remain; move the target or the start pose"
                )
        q = q0.copy()
        q[self._arm_in_full] = np.clip(
            configuration.q, model.lowerPositionLimit, model.upperPositionLimit
        )
        return q

    def follow(
        self,
        targets: Mapping[str, NDArray[np.float64]],
        q0: NDArray[np.float64],
        lower: NDArray[np.float64],
        upper: NDArray[np.float64],
        *,
        rest: NDArray[np.float64],
        limits: Sequence[Limit] = (),
        last_resort: Sequence[Limit] = (),
        iterations: int = 8,
    ) -> NDArray[np.float64]:
        """Configuration (nq,) between bounds whose wrists are as close to ``targets`` as can be.

        For the steps of a motion: a few Newton steps from the configuration before; it never
        raises for a target that is out of reach.

        Args:
            targets: "left"/"right" → (4, 4) pose of the wrist link in the root frame.
            q0: (nq,) start, within the bounds; its torso and fingers are kept.
            lower, upper: (nq,) bounds of the arm joints, within the robot's limits.
            rest: (nq,) towards which the joints drift that the wrists leave free.
            limits: further inequalities of pin-pink that every Newton step keeps.
            last_resort: those to keep instead where all of ``limits`` cannot be kept.
        """
        arm = self._arm_in_full
        model = self._model_at(q0)
        configuration = Configuration(model, model.createData(), q0[arm], copy_data=False)
        posture = PostureTask(cost=self._posture_cost)
        posture.set_target(rest[arm])
        tasks = [posture]
        for side, pose in targets.items():
            free = self._robot.hands[side].turns_freely
            task = FrameTask(
                self._robot.hands[side].wrist,
                position_cost=1.0,
                orientation_cost=_FOLLOWING_COST if free else _LEANING_COST,
                lm_damping=_FAR_DAMPING,
            )
            task.set_target(pin.SE3(pose[:3, :3], pose[:3, 3]))
            tasks.append(task)
        bounds = _Bounds(lower[arm], upper[arm])
        cost = self._cost(configuration, tasks)
        for _ in range(iterations):
            full, forced = self._step(
                configuration, tasks, [bounds, *limits], [bounds, *last_resort]
            )
            before, previous, step = configuration.q, cost, full
            for _ in range(1 if forced else _HALVINGS):  # far from its target a full one may fail
                configuration.update(before + step)
                cost = self._cost(configuration, tasks)
                if forced or cost <= previous:
                    break
                step = 0.5 * step
            else:
                configuration.update(before)
                break
            if np.abs(step).max() < _SETTLED:
                break
        q = q0.copy()
        q[arm] = np.clip(configuration.q, lower[arm], upper[arm])
        return q

    @staticmethod
    def _step(
        configuration: Configuration,
        tasks: Sequence[FrameTask | PostureTask],
        limits: Sequence[Limit],
        last_resort: Sequence[Limit],
    ) -> tuple[NDArray[np.float64], bool]:
        """Newton step (nv,) within limits, none where even the last resort cannot be kept; and
        whether the limits demand to move, whatever the tasks want."""
        for asked in (limits, last_resort):
            problem = build_ik(configuration, tasks, 1.0, damping=1e-6, limits=asked)
            solution = qpsolvers.solve_problem(problem, solver=_SOLVER)
            if solution.found:
                return solution.x, bool((problem.h < 0.0).any())
        return np.zeros(configuration.model.nv), False

    @staticmethod
    def _cost(configuration: Configuration, tasks: Sequence[FrameTask | PostureTask]) -> float:
        return sum(float(np.sum((t.cost * t.compute_error(configuration)) ** 2)) for t in tasks)

    @staticmethod
    def _arrived(
        configuration: Configuration,
        tasks: Mapping[str, FrameTask],
        metres: float,
        radians: float,
    ) -> bool:
        errors = [task.compute_error(configuration) for task in tasks.values()]
        return all(
            np.linalg.norm(e[:3]) < metres and np.linalg.norm(e[3:]) < radians for e in errors
        )

    def _model_at(self, q0: NDArray[np.float64]) -> pin.Model:
        """Model with everything but the arms frozen at ``q0`` (rebuilt only when those change)."""
        frozen = np.delete(q0, self._arm_in_full)
        key = frozen.tobytes()
        if self._reduced is None or self._reduced[0] != key:
            model = pin.buildReducedModel(self._full, self._locked, q0)
            self._reduced = (key, model)
        return self._reduced[1]


class _Bounds(Limit):
    """Bounds of the configuration, kept exactly by every step."""

    def __init__(self, lower: NDArray[np.float64], upper: NDArray[np.float64]) -> None:
        self._lower, self._upper = lower, upper
        self._sides = np.vstack([np.eye(len(lower)), -np.eye(len(lower))])

    def compute_qp_inequalities(
        self, configuration: Configuration, dt: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        q = configuration.q
        room = np.concatenate([self._upper - q, q - self._lower])
        return self._sides, np.maximum(room, 0.0)  # rounding does not make it infeasible
