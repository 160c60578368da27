"""Joints of recordings, always by name: spelling, wire orders, units, what is missing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ego_world_model.data.importers.base import RejectedError, Tally
from ego_world_model.embodiment import Embodiment
from ego_world_model.embodiment.motor_states import openness_to_radians
from ego_world_model.hands import EXTRA_SLOTS
from ego_world_model.kinematics import HandKinematics
from ego_world_model.kinematics.joint_buffer import influential_joints

BEYOND_LIMITS = 0.3
"""Radians by which a measured joint may exceed its limits before the frame is nonsense."""

_WORDS = re.compile(r"[A-Z][a-z]*|\d+")
_SUFFIXES = (".q", ".pos", ".qpos")

# Inspire hands report 0 (closed) to 1 (open) instead of radians: angle = max - value * (max - min).
_INSPIRE: dict[str, tuple[str, float, float]] = {
    "pinky": ("pinky_proximal_joint", 0.0, 1.7),
    "ring": ("ring_proximal_joint", 0.0, 1.7),
    "middle": ("middle_proximal_joint", 0.0, 1.7),
    "index": ("index_proximal_joint", 0.0, 1.7),
    "thumb_bend": ("thumb_proximal_pitch_joint", 0.0, 0.5),
    "thumb_rotation": ("thumb_proximal_yaw_joint", -0.1, 1.3),
}
_INSPIRE_RANGES = {
    f"{side}_{joint}": (low, high) for side in ("L", "R") for joint, low, high in _INSPIRE.values()
}


def inspire_names(side: str) -> tuple[str, ...]:
    """The six driven joints of an Inspire hand in the order in which all its formats list them."""
    return tuple(f"{side[0].upper()}_{joint}" for joint, _, _ in _INSPIRE.values())


def _inspire_radians(name: str, value: float) -> float:
    """0 (closed) to 1 (open) → radians of an Inspire joint.

    Raises:
        RejectedError: a value outside 0..1, which is then no such value.
    """
    if not -0.05 <= value <= 1.05:
        raise RejectedError(
            f"{name} is {value:g}, but Inspire hands report 0 (closed) to 1 (open)",
            "check which message or field holds the hands' positions",
        )
    low, high = _INSPIRE_RANGES[name]
    return openness_to_radians(value, low, high)


def joint_name(name: str, robot: Embodiment) -> str | None:
    """The robot's joint that a recording calls ``name``, or None.

    Known spellings: the model's own (with or without ``_joint``), and Unitree's enumerations
    (``kLeftShoulderPitch``, ``kRightHandThumb0``, ``kLeftHandThumbBend``), with ``.q`` or ``.pos``.
    """
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    words = [word.lower() for word in _WORDS.findall(name)] if name.startswith("k") else []
    candidates = [name, f"{name}_joint"]
    if words:
        candidates.append("_".join([*words, "joint"]))
        if words[:2] in (["left", "hand"], ["right", "hand"]):
            role = _INSPIRE.get("_".join(words[2:]))
            if role is not None:
                candidates.append(f"{words[0][0].upper()}_{role[0]}")
        if words == ["waist", "yaw"]:
            candidates.append("torso_joint")  # the one waist joint of the H1 family
    return next((c for c in candidates if c in robot.joint_names), None)


class JointMap:
    """Puts a recording's values, in an order of its own, into the robot's joint vector.

    Args:
        names: the recording's names, one per value.
        required: joints without which hands cannot be placed.
        where: what the names come from, for messages.
        normalised: whether Inspire joints come as 0..1 instead of radians; under Unitree's own
            names (``kLeftHandPinky``) they always do.

    Raises:
        RejectedError: required joints are missing, or two values claim one joint.
    """

    def __init__(
        self,
        robot: Embodiment,
        names: Sequence[str],
        *,
        required: Sequence[str],
        where: str,
        tally: Tally,
        normalised: bool = False,
    ) -> None:
        self.robot, self.names = robot, tuple(names)
        found = [joint_name(name, robot) for name in names]
        self.joints = tuple(joint for joint in found if joint is not None)
        self._normalised = [
            joint
            for name, joint in zip(names, found, strict=True)
            if joint in _INSPIRE_RANGES and (normalised or name.startswith("k"))
        ]
        self._source = np.array([i for i, joint in enumerate(found) if joint is not None], np.intp)
        twice = sorted({joint for joint in self.joints if self.joints.count(joint) > 1})
        if twice:
            raise RejectedError(
                f"{where} names {', '.join(twice)} more than once", "give every joint one name"
            )
        unknown = [name for name, joint in zip(names, found, strict=True) if joint is None]
        if unknown:
            tally.note(f"{where}: not joints of {robot.name}, left out: {', '.join(unknown)}")
        refuse_missing(robot, self.joints, required=required, unknown=unknown, where=where)

    def values(self, values: ArrayLike) -> dict[str, float]:
        """Joint → radians of one frame.

        Raises:
            ValueError: the number of values differs from the number of names.
            RejectedError: an Inspire value outside 0..1.
        """
        values = np.asarray(values, dtype=np.float64)
        if values.shape != (len(self.names),):
            raise ValueError(f"{len(self.names)} joints are named but {values.shape} values given")
        out = dict(zip(self.joints, values[self._source].tolist(), strict=True))
        for joint in self._normalised:
            out[joint] = _inspire_radians(joint, out[joint])
        return out


def required_joints(kinematics: HandKinematics) -> tuple[str, ...]:
    """Joints that move a hand slot in the camera, without those that follow another joint."""
    robot = kinematics.robot
    followers = {coupling.follower for coupling in robot.couplings}
    moving = influential_joints(kinematics, robot.camera_pose, EXTRA_SLOTS)
    return tuple(name for name in moving if name not in followers)


def refuse_missing(
    robot: Embodiment,
    joints: Sequence[str],
    *,
    required: Sequence[str],
    unknown: Sequence[str],
    where: str,
) -> None:
    """Raises ``RejectedError`` with the remedy where required joints are not among ``joints``."""
    missing = [name for name in required if name not in joints]
    if not missing:
        return
    hints = {name: match[0] for name in unknown if (match := get_close_matches(name, missing, n=1))}
    guess = "; ".join(f"{name} may be meant for {joint}" for name, joint in hints.items())
    raise RejectedError(
        f"{where} lacks {len(missing)} joints of {robot.name}: {', '.join(missing)}"
        + (f" (unknown names there: {', '.join(unknown)})" if unknown else ""),
        (f"{guess}; " if guess else "")
        + "rename the joints in the recording, or give the robot's own embodiment with --robot",
    )


def vector(robot: Embodiment, joints: Mapping[str, float]) -> NDArray[np.float64]:
    """(nq,) rad, NaN where ``joints`` says nothing: commanded positions, which may be few."""
    q = np.full(len(robot.joint_names), np.nan)
    q[robot.indices(tuple(joints))] = list(joints.values())
    return q


def note_assumed(robot: Embodiment, joints: Sequence[str], tally: Tally) -> None:
    """Notes joints that the recording does not hold; they count as 0."""
    followers = {coupling.follower for coupling in robot.couplings}
    absent = [name for name in robot.joint_names if name not in joints and name not in followers]
    if absent:
        tally.note(f"not recorded, taken as 0 rad: {', '.join(absent)}")


def outside_limits(robot: Embodiment, q: NDArray[np.float64]) -> str | None:
    """What is wrong with a joint vector that no such robot can have, or None."""
    if not np.isfinite(q).all():
        bad = [robot.joint_names[i] for i in np.flatnonzero(~np.isfinite(q))]
        return f"{', '.join(bad)} not finite"
    beyond = np.maximum(robot.lower - q, q - robot.upper)
    worst = int(np.argmax(beyond))
    if beyond[worst] <= BEYOND_LIMITS:
        return None
    return (
        f"{robot.joint_names[worst]} is {q[worst]:.3g} rad, its limits are "
        f"{robot.lower[worst]:.3g} to {robot.upper[worst]:.3g} (degrees? another joint's value?)"
    )


def wire_order(robot: Embodiment, key: str) -> tuple[str, ...]:
    """A wire format's joint names from the embodiment's ``state_orders``.

    Raises:
        RejectedError: the embodiment does not say.
    """
    orders: Mapping[str, tuple[str, ...]] = robot.state_orders
    if key not in orders:
        known = ", ".join(orders) or "none"
        raise RejectedError(
            f"embodiment {robot.name} does not say in which order {key} lists its joints "
            f"(its state_orders: {known})",
            f"choose the robot of the recording with --robot, or add state_orders.{key} to its "
            "YAML file",
        )
    return orders[key]
