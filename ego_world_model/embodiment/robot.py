"""A robot as the package sees it: joints, hands, slots, camera, and where it has its table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ego_world_model.camera import CameraPose, PinholeCamera
from ego_world_model.embodiment.model import Coupling, JointTable
from ego_world_model.hands import EXTRA_SLOTS, SLOT_NAMES

UNUSED = "unused"
"""Stands in a state order for a motor number behind which there is no joint."""


@dataclass(frozen=True)
class SlotSource:
    """The point of the robot that fills a hand slot: an offset (metres) in a link's frame."""

    link: str
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class HandChain:
    """One hand for inverse kinematics and scripted tasks.

    Attributes:
        wrist: the link that is placed; arm: the joints that place it.
        fingers: its finger joints without those that follow another.
        open, closed: radians of the finger joints of an open and a closed hand.
        grasp_point: metres in the wrist's frame, centre of a grasped object.
        palm_point: metres in the wrist's frame, where it presses an object held by both hands.
        finger_reach: metres from the wrist's origin to the tips of the straight fingers.
        thumb_reach: metres that the thumb and the bent fingers stand out from the wrist's axis
            on the side of the palm.
        axes: (3, 3) orientation of the hand in the wrist link's frame: x along the straight
            fingers, z up while the palm faces the other hand, y to the left.
    """

    wrist: str
    arm: tuple[str, ...]
    fingers: tuple[str, ...]
    open: tuple[float, ...]
    closed: tuple[float, ...]
    grasp_point: tuple[float, float, float]
    palm_point: tuple[float, float, float]
    finger_reach: float
    thumb_reach: float
    axes: NDArray[np.float64] = field(default_factory=lambda: np.eye(3))

    @property
    def turns_freely(self) -> bool:
        """Whether the arm can give the wrist any orientation; with fewer than six joints it can
        only place it."""
        return len(self.arm) >= 6


@dataclass(frozen=True)
class Workspace:
    """Where the simulated table stands.

    Attributes:
        origin: metres in the root frame, a point of the table top from which the scene is laid
            out: hands work 0.17 to 0.29 m and objects stand 0.28 to 0.4 m ahead of it (x).
        floor: metres, height of the floor in the root frame.
    """

    origin: tuple[float, float, float]
    floor: float


@dataclass(frozen=True)
class Embodiment:
    """A robot as the rest of the package sees it.

    Attributes:
        root: frame that kinematics are expressed in.
        model_path: MJCF or URDF file; where ``urdf`` holds the text of a URDF that came on a topic,
            the name of that topic.
        camera: nominal intrinsics; ``camera_pose``: nominal mount of the optical frame.
        slots: slot name → point of the robot; slots that are missing are invalid.
        hands: "left"/"right" → chain.
        torso: joints between the root and both arms that move the camera too.
        neutral_pose: joint → radians of a pose with both hands in view; unnamed joints are 0.
        state_orders: wire format → joint names in wire order (``UNUSED``: a number without joint).
        workspace: the simulated table, or None where nobody said where it stands.
        joints: movable joints of the model in its order, with limits.
    """

    name: str
    description: str
    root: str
    model_path: Path
    camera: PinholeCamera
    camera_pose: CameraPose
    slots: Mapping[str, SlotSource]
    hands: Mapping[str, HandChain]
    torso: tuple[str, ...]
    neutral_pose: Mapping[str, float]
    state_orders: Mapping[str, tuple[str, ...]]
    workspace: Workspace | None
    joints: JointTable = field(repr=False)
    urdf: str | None = field(default=None, repr=False)

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Movable joints in model order: the order of every q array."""
        return self.joints.names

    @property
    def lower(self) -> NDArray[np.float64]:
        """(nq,) lower joint limits, radians; a driver's keep its followers within theirs."""
        return self.joints.lower

    @property
    def upper(self) -> NDArray[np.float64]:
        """(nq,) upper joint limits, radians; a driver's keep its followers within theirs."""
        return self.joints.upper

    @property
    def couplings(self) -> tuple[Coupling, ...]:
        """Joints that follow another one."""
        return self.joints.couplings

    @cached_property
    def neutral(self) -> NDArray[np.float64]:
        """(nq,) radians of the neutral pose."""
        return self.q_from(self.neutral_pose)

    @cached_property
    def valid_slots(self) -> NDArray[np.bool_]:
        """(42,) which hand slots this robot fills."""
        return np.array([name in self.slots for name in SLOT_NAMES])

    @property
    def extra_slots(self) -> tuple[str, ...]:
        """Extra slots (elbows, forearms) that this robot can fill."""
        return tuple(name for name in EXTRA_SLOTS if name in self.slots)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.joint_names)}

    def q_from(self, positions: Mapping[str, float]) -> NDArray[np.float64]:
        """(nq,) radians from named joints; unnamed joints are 0, coupled ones follow their driver.

        Raises:
            ValueError: for a joint that the robot does not have, or a value that is not finite.
        """
        q = np.zeros(len(self.joint_names))
        index = self._index
        for name, value in positions.items():
            if name not in index:
                raise ValueError(
                    f"embodiment {self.name!r} has no joint {name!r}; its joints are "
                    f"{', '.join(self.joint_names[:3])}, … ({len(self.joint_names)} in all, see "
                    "Embodiment.joint_names)"
                )
            if not np.isfinite(value):
                raise ValueError(f"position of joint {name!r} is {value}, not a finite number")
            q[index[name]] = value
        for coupling in self.couplings:
            if coupling.follower not in positions:
                driver = q[index[coupling.driver]]
                q[index[coupling.follower]] = coupling.multiplier * driver + coupling.offset
        return q

    def coupled(self, q: ArrayLike) -> NDArray[np.float64]:
        """A copy of q (..., nq) in which every coupled joint follows its driver."""
        q = np.array(q, dtype=np.float64)
        for coupling in self.couplings:
            driver, follower = self._index[coupling.driver], self._index[coupling.follower]
            q[..., follower] = coupling.multiplier * q[..., driver] + coupling.offset
        return q

    def indices(self, names: tuple[str, ...]) -> NDArray[np.intp]:
        """Positions of the named joints in q."""
        return np.array([self._index[name] for name in names], dtype=np.intp)
