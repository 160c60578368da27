"""Motor positions as a robot sends them → named joints in radians, or what is wrong with them.

A wire format lists motors by number; an embodiment's ``state_orders`` name the joint of each.
Sources disagree about some orders, so a ``MotorLayout`` is an explicit choice, and values that no
such robot can have are refused with the configuration that would explain them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ego_world_model.embodiment import Embodiment, builtin_embodiments, load_embodiment
from ego_world_model.embodiment.robot import UNUSED

BODY_HG, BODY_GO, INSPIRE = "unitree_hg/LowState", "unitree_go/LowState", "inspire/state"
DEX3 = {"left": "dex3/left", "right": "dex3/right"}
RIGHT_ORDERS = {"sdk": "dex3/right", "middle_first": "dex3/right_middle_first"}
"""Parameter value → state order of the Dex3 right hand."""

INSPIRE_SLACK = 0.05
"""By how much a measured openness of an Inspire finger may leave 0..1."""


class MotorStateError(ValueError):
    """Motor positions that cannot be this robot's; the text names the likely cause."""


@dataclass(frozen=True, kw_only=True)
class MotorLayout:
    """Which joint each motor of a message is.

    Attributes:
        source: key of the embodiment's ``state_orders``.
        joints: joint names in wire order, ``UNUSED`` where a number has no joint.
        lower, upper: (n,) radians, limits of those joints; infinite for ``UNUSED``.
        normalised: whether values are openness (1 open, 0 closed) instead of radians.
        spare: whether the message has more motors than the robot (``LowState``).
    """

    source: str
    joints: tuple[str, ...]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    normalised: bool = False
    spare: bool = False


def motor_layout(
    robot: Embodiment, source: str, *, inspire_first_hand: str = "right"
) -> MotorLayout:
    """The layout of a wire format for a robot.

    Args:
        source: key of ``robot.state_orders``.
        inspire_first_hand: which hand the first six of Inspire's twelve values are; its driver says
            right, some sources left.

    Raises:
        MotorStateError: the embodiment does not say in which order the format lists its joints.
    """
    if source not in robot.state_orders:
        known = ", ".join(robot.state_orders) or "none"
        raise MotorStateError(
            f"embodiment {robot.name} does not say in which order {source} lists its joints (its "
            f"state_orders: {known}); choose the embodiment of this robot, or add "
            f"state_orders.{source} to its YAML file"
        )
    joints = tuple(robot.state_orders[source])
    if source == INSPIRE and not joints[0].startswith(inspire_first_hand[0].upper()):
        half = len(joints) // 2
        joints = joints[half:] + joints[:half]
    lower, upper = (
        np.array([_limit(robot, name, bounds, missing) for name in joints])
        for bounds, missing in ((robot.lower, -np.inf), (robot.upper, np.inf))
    )
    return MotorLayout(
        source=source,
        joints=joints,
        lower=lower,
        upper=upper,
        normalised=source == INSPIRE,
        spare=source in (BODY_HG, BODY_GO),
    )


def joint_positions(
    layout: MotorLayout, values: ArrayLike, *, margin: float = 0.3
) -> dict[str, float]:
    """Joint → radians of one message.

    Args:
        values: (n,) of the message's motors, in wire order; radians or openness.
        margin: radians by which a measured joint may exceed its limits.

    Raises:
        MotorStateError: a wrong number of motors, values that are not finite, or values that no
            such robot can have; the text names the likely misconfiguration.
    """
    q = np.asarray(values, dtype=np.float64)
    count = len(layout.joints)
    if q.ndim != 1 or (len(q) < count if layout.spare else len(q) != count):
        raise MotorStateError(
            f"{len(q)} motors, but {layout.source} of this robot has {count}: another hand or "
            "robot, or message definitions that are not the firmware's (Unitree changed HandState "
            "in August 2025; build its message package from the version that matches the robot)"
        )
    q = q[:count]
    if not np.isfinite(q).all():
        bad = [layout.joints[i] for i in np.flatnonzero(~np.isfinite(q))]
        raise MotorStateError(
            f"position is NaN or infinite for {', '.join(bad)}: the motors do not answer, or the "
            "message definitions are not the firmware's"
        )
    if layout.normalised:
        q = _radians_of_openness(layout, q)
    elif (worst := _beyond(layout, q)) is not None and worst[1] > margin:
        joint = worst[0]
        raise MotorStateError(
            f"{layout.joints[joint]} is {q[joint]:.3g} rad, its limits are "
            f"{layout.lower[joint]:.3g} to {layout.upper[joint]:.3g}: "
            f"{_explanation(layout, q, margin)}"
        )
    pairs = zip(layout.joints, q.tolist(), strict=True)
    return {name: value for name, value in pairs if name != UNUSED}


def openness_to_radians(openness: float, lower: float, upper: float) -> float:
    """Angle of an Inspire joint, radians: openness 1 is ``lower`` (open), 0 is ``upper``."""
    return upper - min(max(openness, 0.0), 1.0) * (upper - lower)


class ZeroWatch:
    """Tells when a source has sent nothing but zeros for a while.

    A motor that is measured is never at exactly 0.0 in every joint for long; drivers whose hand or
    bus does not answer send that.
    """

    def __init__(self, *, after: float = 2.0) -> None:
        self._after = after
        self._since: float | None = None

    def zeros(self, values: ArrayLike, now: float) -> bool:
        """Whether all values of all messages were 0 for ``after`` seconds; ``now`` in seconds."""
        if np.any(np.asarray(values)):
            self._since = None
            return False
        if self._since is None:
            self._since = now
        return now - self._since >= self._after


def _limit(robot: Embodiment, name: str, bounds: NDArray[np.float64], missing: float) -> float:
    return missing if name == UNUSED else float(bounds[robot.joint_names.index(name)])


def _beyond(layout: MotorLayout, q: NDArray[np.float64]) -> tuple[int, float] | None:
    """The joint furthest beyond its limits and by how many radians; None where all are within."""
    beyond = np.maximum(layout.lower - q, q - layout.upper)
    worst = int(np.argmax(beyond))
    return (worst, float(beyond[worst])) if beyond[worst] > 0 else None


def _fits(layout: MotorLayout, q: NDArray[np.float64], margin: float) -> bool:
    worst = _beyond(layout, q)
    return worst is None or worst[1] <= margin


def _radians_of_openness(layout: MotorLayout, q: NDArray[np.float64]) -> NDArray[np.float64]:
    outside = np.flatnonzero((q < -INSPIRE_SLACK) | (q > 1.0 + INSPIRE_SLACK))
    if len(outside):
        first = int(outside[0])
        if _fits(layout, q, INSPIRE_SLACK):
            cause = (
                "the values fit radians: this driver does not speak inspire/state; publish its "
                "positions as joint_states and start with bridge:=false"
            )
        elif q.min() >= 0.0 and q.max() <= 2000.0:
            cause = (
                "these look like the hand's raw registers (0 to 1000, or 0 to 2000); the driver "
                "must divide by their range"
            )
        else:
            cause = "check which message holds the hands' positions"
        raise MotorStateError(
            f"{layout.joints[first]} is {q[first]:g}, but Inspire hands report 0 (closed) to 1 "
            f"(open): {cause}"
        )
    pairs = zip(q, layout.lower, layout.upper, strict=True)
    return np.array([openness_to_radians(*each) for each in pairs])


def _explanation(layout: MotorLayout, q: NDArray[np.float64], margin: float) -> str:
    """The configuration for which the values would be sound."""
    if layout.source.startswith("dex3/"):
        # left and right bend in opposite directions, joint by joint
        if _fits(layout, -q, margin):
            side = "left" if layout.source == "dex3/left" else "right"
            other = "right" if side == "left" else "left"
            return (
                f"the values fit the {other} hand: the topics dex3/left/state and "
                "dex3/right/state are swapped, remap one to the other"
            )
    elif layout.spare:
        fitting = [
            name for name in builtin_embodiments() if _other_robot_fits(name, layout, q, margin)
        ]
        if fitting:
            return (
                f"the values fit {' and '.join(fitting)}: start with the embodiment of this robot"
            )
    if _fits(layout, np.radians(q), margin):
        return "the values fit degrees: the publisher must send radians"
    return (
        "not a pose of this robot: check the embodiment, and that the message definitions are the "
        "firmware's; a joint whose zero is off by more can be allowed with limit_margin"
    )


def _other_robot_fits(
    name: str, layout: MotorLayout, q: NDArray[np.float64], margin: float
) -> bool:
    robot = load_embodiment(name)
    orders: Mapping[str, Sequence[str]] = robot.state_orders
    if layout.source not in orders or tuple(orders[layout.source]) == layout.joints:
        return False
    other = motor_layout(robot, layout.source)
    shared = min(len(other.joints), len(q))
    padded = np.zeros(len(other.joints))
    padded[:shared] = q[:shared]
    return _fits(other, padded, margin)
