"""From a chunk of hand motion to joint positions that a robot may be given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ego_world_model.camera import CameraPose
from ego_world_model.embodiment import Embodiment, HandChain
from ego_world_model.hands import HandTrajectory
from ego_world_model.kinematics import ArmSolver, HandKinematics
from ego_world_model.policy.chunk import HandChunk
from ego_world_model.policy.clearance import HandsApart
from ego_world_model.policy.filtering import project_to_rotation
from ego_world_model.policy.limits import JointLimits

_SIDES = ("left", "right")
_MISSED = (2e-3, 0.02)  # metres, radians; a wrist farther off is said to be limited by its bounds
_HOMING = 0.02  # of the way to the neutral pose, which joints that the wrists leave free go a step
_CALM = 6e-3  # pull towards the step before: damps joints that hardly move the wrist
_AT = 1e-6  # radians; a joint this close to a bound is at it


@dataclass(frozen=True)
class Limited:
    """What kept a step from its target; only where the target was missed.

    Attributes:
        position: (N, nq) bool, joints at a position limit.
        speed: (N, nq) bool, joints as fast as they may be.
        collision: (N,) bool, steps that were cut short to keep the hands apart, or bent around
            the other hand's margin.
    """

    position: NDArray[np.bool_]
    speed: NDArray[np.bool_]
    collision: NDArray[np.bool_]


@dataclass(frozen=True)
class JointTargets:
    """Joint positions over a chunk, within limits, and how far they are from what was asked.

    Attributes:
        times: (N,) seconds from the observation, those of the chunk.
        q: (N, nq) radians in ``Embodiment.joint_names`` order.
        start: (nq,) radians at time 0.
        position_error, rotation_error: (N, 2) metres and radians between the wrist that was asked
            for and the one that is reached; NaN for a hand that the chunk or the robot lacks.
        limited: why they differ.
    """

    times: NDArray[np.float64]
    q: NDArray[np.float64]
    start: NDArray[np.float64]
    position_error: NDArray[np.float64]
    rotation_error: NDArray[np.float64]
    limited: Limited

    def trajectory(
        self,
        kinematics: HandKinematics,
        camera: CameraPose | None = None,
        *,
        extra_slots: Sequence[str] = (),
    ) -> HandTrajectory:
        """The hands' motion from the start on, N + 1 frames; the camera moves with the torso."""
        times = np.concatenate([[0.0], self.times])
        q = np.vstack([self.start, self.q])
        return kinematics.trajectory(times, q, camera, extra_slots=extra_slots)

    def explain(self, robot: Embodiment) -> str:
        """One line on what was missed and why, for a log or a status; "" where nothing was."""
        parts = []
        for row, side in enumerate(_SIDES):
            metres, radians = self.position_error[:, row], self.rotation_error[:, row]
            missed = (metres > _MISSED[0]) | (radians > _MISSED[1])
            if missed.any():
                parts.append(
                    f"{side} wrist off by up to {1e3 * np.nanmax(metres):.0f} mm and "
                    f"{np.nanmax(radians):.2f} rad in {missed.sum()} of {len(missed)} steps"
                )
        for what, which in (("limit", self.limited.position), ("top speed", self.limited.speed)):
            names = [robot.joint_names[i] for i in np.flatnonzero(which.any(axis=0))]
            if names:
                parts.append(f"at their {what}: {', '.join(names)}")
        if self.limited.collision.any():
            parts.append(f"hands kept apart in {self.limited.collision.sum()} steps")
        return "; ".join(parts)


def joint_targets(
    chunk: HandChunk,
    kinematics: HandKinematics,
    q0: ArrayLike | Mapping[str, float],
    camera: CameraPose | None = None,
    *,
    limits: JointLimits | None = None,
) -> JointTargets:
    """Joint positions that follow a chunk as closely as the limits allow.

    Every step is solved from the one before. The torso keeps its configuration; arms place the
    wrists, fingers take their angles. A target that cannot be reached, in time or at all, is
    approached as closely as possible; an arm with fewer than six joints only leans towards the
    orientation. Between two steps positions are meant to be interpolated linearly: speeds and the
    margin between the hands hold on that way.

    Args:
        chunk: in the camera of the observation.
        kinematics: of the robot.
        q0: (nq,) radians at the observation, or a mapping; what lies beyond limits is clipped.
        camera: the camera's mount; None is the nominal one.
        limits: of the same robot; None takes the defaults. Hand the same object to every call.

    Raises:
        ValueError: if the chunk holds NaN or fingers that the robot lacks, or q0 does not fit.
    """
    robot = kinematics.robot
    limits = limits or JointLimits(kinematics)
    start = limits.clip(kinematics.q_from(q0))
    numbers = (chunk.translation[:, chunk.valid], chunk.rotation[:, chunk.valid], chunk.fingers)
    if not all(np.isfinite(array).all() for array in numbers):
        raise ValueError("the chunk holds NaN or infinity; leave such a chunk out")
    rows = [r for r, side in enumerate(_SIDES) if chunk.valid[r] and side in robot.hands]
    hands = {r: robot.hands[_SIDES[r]] for r in rows}
    fingers = {r: _finger_indices(robot, hand, chunk, r) for r, hand in hands.items()}
    poses = _in_root(chunk, kinematics.camera_pose(start, camera))  # (N, 2, 4, 4)

    step = _Stepper(limits, {_SIDES[r]: indices for r, indices in fingers.items()})
    q = np.empty((len(chunk), len(start)))
    errors = np.full((2, len(chunk), 2), np.nan)
    limited = Limited(
        np.zeros_like(q, dtype=bool), np.zeros_like(q, dtype=bool), np.zeros(len(q), bool)
    )
    previous, before = start, 0.0
    for k, time in enumerate(chunk.times):
        wanted = previous.copy()
        for r, indices in fingers.items():
            wanted[indices] = chunk.fingers[k, r, : len(indices)]
        targets = {_SIDES[r]: poses[k, r] for r in rows}
        q[k], cut = step(previous, wanted, targets, time - before)
        at_limit = (q[k] <= robot.lower + _AT) | (q[k] >= robot.upper - _AT)
        at_speed = np.abs(q[k] - previous) >= limits.speed * (time - before) - _AT
        for r, hand in hands.items():
            found = kinematics.link_poses(q[k], [hand.wrist])[0]
            errors[:, k, r] = _pose_error(found, poses[k, r])
            missed = errors[:, k, r] > _MISSED
            missed = bool(missed.any() if hand.turns_freely else missed[0])
            short = fingers[r][np.abs(q[k] - wanted)[fingers[r]] > _AT]
            joints = np.concatenate([robot.indices(hand.arm), short]) if missed else short
            limited.position[k, joints] = at_limit[joints]
            limited.speed[k, joints] = at_speed[joints]
            limited.collision[k] |= missed and step.is_bent(q[k])
        limited.collision[k] |= cut
        previous, before = q[k], time
    return JointTargets(chunk.times, q, start, errors[0], errors[1], limited)


class _Stepper:
    """One step of a motion after the other, from where the last one ended.

    Args:
        fingers: "left"/"right" → positions in q of the finger joints that move; a hand that is not
            in it rests, its arm too.
    """

    def __init__(self, limits: JointLimits, fingers: Mapping[str, NDArray[np.intp]]) -> None:
        self._limits = limits
        self._robot = limits.kinematics.robot
        self._solver = ArmSolver(self._robot, limits.kinematics.model, posture_cost=_CALM)
        self._apart = HandsApart(limits.clearance, limits.margin)
        self._yielding = HandsApart(limits.clearance, limits.margin, yielding=True)
        resting = [hand.arm for side, hand in self._robot.hands.items() if side not in fingers]
        self._resting = self._robot.indices(tuple(joint for arm in resting for joint in arm))

    def __call__(
        self,
        q: NDArray[np.float64],
        wanted: NDArray[np.float64],
        targets: Mapping[str, NDArray[np.float64]],
        seconds: float,
    ) -> tuple[NDArray[np.float64], bool]:
        """From q (nq,) to fingers at ``wanted`` (nq,) and wrists at ``targets`` (4, 4): the step
        (nq,), and whether it was cut short lest the hands come too close."""
        best, longest = q, 0.0
        # Where a whole step would be cut short, a small one keeps the linearised margin.
        for scale, iterations in ((1.0, 8), (0.2, 1), (0.04, 1)):
            lower, upper = self._limits.bounds(q, scale * seconds)
            lower[self._resting] = upper[self._resting] = q[self._resting]
            reached = self._solver.follow(
                targets,
                self._robot.coupled(np.clip(wanted, lower, upper)),
                lower,
                upper,
                rest=q + _HOMING * (self._robot.neutral - q),
                limits=[self._apart],
                last_resort=[self._yielding],
                iterations=iterations,
            )
            admitted = self._limits.admit(q, reached, seconds)
            if admitted.share * scale > longest:
                best, longest = admitted.q, admitted.share * scale
            if admitted.share == 1.0:
                break
        return best, longest < 1.0

    def is_bent(self, q: NDArray[np.float64]) -> bool:
        """Whether the hands are so close at q (nq,) that the margin bends their way."""
        return self._limits.clearance.gap(q) < self._apart.active_below


def _finger_indices(
    robot: Embodiment, hand: HandChain, chunk: HandChunk, row: int
) -> NDArray[np.intp]:
    """(F,) positions in q of the joints that the chunk's finger columns move."""
    names = chunk.finger_names[row]
    unknown = [name for name in names if name not in hand.fingers]
    if unknown:
        raise ValueError(
            f"the chunk moves {_SIDES[row]} fingers {', '.join(unknown)}, which embodiment "
            f"{robot.name!r} does not drive; use a policy that was trained for this robot"
        )
    return robot.indices(names)


def _in_root(chunk: HandChunk, camera: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 2, 4, 4) wrist poses in the root frame, of a camera with pose (4, 4) there."""
    poses = np.tile(np.eye(4), (len(chunk), 2, 1, 1))
    for row in np.flatnonzero(chunk.valid):
        rotation = project_to_rotation(chunk.rotation[:, row])
        poses[:, row, :3, :3] = camera[:3, :3] @ rotation
        poses[:, row, :3, 3] = chunk.translation[:, row] @ camera[:3, :3].T + camera[:3, 3]
    return poses


def _pose_error(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> tuple[float, float]:
    """Metres and radians between two poses (4, 4)."""
    chord = np.linalg.norm(found[:3, :3] - wanted[:3, :3]) / np.sqrt(8.0)
    return (
        float(np.linalg.norm(found[:3, 3] - wanted[:3, 3])),
        float(2.0 * np.arcsin(min(1.0, chord))),
    )
