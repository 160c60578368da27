"""What a commanded step of the robot's joints may do: position, speed, and hands kept apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ego_world_model.embodiment import Embodiment
from ego_world_model.kinematics import HandKinematics
from ego_world_model.policy.clearance import HandClearance

_HALVINGS = 6  # of a step that would bring the hands too close


@dataclass(frozen=True)
class JointSpeeds:
    """Largest speeds in rad/s. Unitree's models state none that are fit for a manipulation task;
    these are a little above what the scripted tasks use.

    Attributes:
        arm: of the joints between torso and wrist. fingers: of driven finger joints; one that
            follows another is as fast as that makes it. others: of torso and legs.
        joints: exceptions by joint name.
    """

    arm: float = 2.5
    fingers: float = 4.0
    others: float = 0.5
    joints: Mapping[str, float] = field(default_factory=dict)

    def of(self, robot: Embodiment) -> NDArray[np.float64]:
        """(nq,) rad/s in the robot's joint order.

        Raises:
            ValueError: for a joint that the robot lacks or that follows another, or a speed that
                is not above 0.
        """
        speed = np.full(len(robot.joint_names), float(self.others))
        for hand in robot.hands.values():
            speed[robot.indices(hand.arm)] = self.arm
            speed[robot.indices(hand.fingers)] = self.fingers
        followers = {coupling.follower for coupling in robot.couplings}
        for name, value in self.joints.items():
            if name not in robot.joint_names or name in followers:
                raise ValueError(
                    f"speed of {name!r}: embodiment {robot.name!r} has no such joint, or it "
                    "follows another one; see Embodiment.joint_names"
                )
            speed[robot.joint_names.index(name)] = value
        if not (np.isfinite(speed).all() and (speed > 0).all()):
            raise ValueError(f"joint speeds must be finite and above 0 rad/s, got {self}")
        for coupling in robot.couplings:
            driver, follower = map(robot.joint_names.index, (coupling.driver, coupling.follower))
            speed[follower] = abs(coupling.multiplier) * speed[driver]
        return speed


class Admitted(NamedTuple):
    """A step that keeps the limits.

    Attributes:
        q: (nq,) where it leads. share: of the way there, 1 where the hands stay apart.
    """

    q: NDArray[np.float64]
    share: float


class JointLimits:
    """The limits of one robot's commanded motion. Not thread-safe, as its kinematics.

    Args:
        kinematics: of the robot.
        speeds: rad/s.
        margin: metres of free space between the spheres of the hands and arms (``clearance``);
            20 mm spheres at finger joints make it 48 mm between centres, what the scripted tasks
            keep.

    Attributes:
        lower, upper: (nq,) radians. speed: (nq,) rad/s.
    """

    def __init__(
        self,
        kinematics: HandKinematics,
        *,
        speeds: JointSpeeds = JointSpeeds(),
        margin: float = 0.008,
    ) -> None:
        self.kinematics, self.margin = kinematics, margin
        robot = kinematics.robot
        self.lower, self.upper = robot.lower, robot.upper
        self.speed = speeds.of(robot)
        self.clearance = HandClearance(kinematics)

    def clip(self, q: NDArray[np.float64]) -> NDArray[np.float64]:
        """q (..., nq) within the position limits, followers with their drivers."""
        return self.kinematics.robot.coupled(np.clip(q, self.lower, self.upper))

    def bounds(
        self, q: NDArray[np.float64], seconds: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lowest and highest (nq,) radians that can be had ``seconds`` after q (nq,)."""
        reach = self.speed * seconds
        return np.maximum(self.lower, q - reach), np.minimum(self.upper, q + reach)

    def admit(
        self, q: NDArray[np.float64], wanted: NDArray[np.float64], seconds: float
    ) -> Admitted:
        """As far from q (nq,) towards ``wanted`` (nq,) as is allowed within ``seconds``.

        Every joint is held to its own bounds. Where the hands would come closer than the margin on
        the way, all joints stop before; hands that are closer already may only part.
        """
        wanted = self.kinematics.robot.coupled(np.clip(wanted, *self.bounds(q, seconds)))
        if self.clearance.stays_apart(q, wanted, self.margin):
            return Admitted(wanted, 1.0)
        safe, unsafe = 0.0, 1.0
        for _ in range(_HALVINGS):
            share = 0.5 * (safe + unsafe)
            if self.clearance.stays_apart(q, q + share * (wanted - q), self.margin):
                safe = share
            else:
                unsafe = share
        return Admitted(q + safe * (wanted - q), safe)
