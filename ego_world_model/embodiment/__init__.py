"""What a robot is: its kinematic model, which link fills which hand slot, where its camera sits.

An embodiment is a YAML file beside (or naming) an MJCF or URDF model. Built-in ones are loaded by
name; a user's own by the path of its YAML. ``g1_dex3/g1_dex3.yaml`` is a commented example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from ego_world_model.camera import CameraPose, PinholeCamera
from ego_world_model.embodiment.model import Coupling, JointTable, read_joint_table
from ego_world_model.hands import EXTRA_SLOTS, NUM_SLOTS, SLOT_NAMES

__all__ = ["Embodiment", "HandChain", "SlotSource", "builtin_embodiments", "load_embodiment"]

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class SlotSource:
    """The point of the robot that fills a hand slot: an offset (metres) in a link's frame."""

    link: str
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class HandChain:
    """One hand for inverse kinematics and scripted tasks.

    Attributes:
        wrist: the link that is placed; arm: the joints that place it; fingers: its finger joints.
        open, closed: radians of the finger joints of an open and a closed hand.
        grasp_point: metres in the wrist's frame, centre of a grasped object.
        palm_point: metres in the wrist's frame, where it presses an object held by both hands.
    """

    wrist: str
    arm: tuple[str, ...]
    fingers: tuple[str, ...]
    open: tuple[float, ...]
    closed: tuple[float, ...]
    grasp_point: tuple[float, float, float]
    palm_point: tuple[float, float, float]


@dataclass(frozen=True)
class Embodiment:
    """A robot as the rest of the package sees it.

    Attributes:
        root: frame that kinematics are expressed in.
        model_path: MJCF or URDF file.
        camera: nominal intrinsics; ``camera_pose``: nominal mount of the optical frame.
        slots: slot name → point of the robot; slots that are missing are invalid.
        hands: "left"/"right" → chain.
        neutral_pose: joint → radians of a pose with both hands in view; unnamed joints are 0.
        state_orders: wire format → joint names in wire order.
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
    neutral_pose: Mapping[str, float]
    state_orders: Mapping[str, tuple[str, ...]]
    joints: JointTable = field(repr=False)

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Movable joints in model order: the order of every q array."""
        return self.joints.names

    @property
    def lower(self) -> NDArray[np.float64]:
        """(nq,) lower joint limits, radians."""
        return self.joints.lower

    @property
    def upper(self) -> NDArray[np.float64]:
        """(nq,) upper joint limits, radians."""
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

    def indices(self, names: tuple[str, ...]) -> NDArray[np.intp]:
        """Positions of the named joints in q."""
        return np.array([self._index[name] for name in names], dtype=np.intp)


def builtin_embodiments() -> tuple[str, ...]:
    """Names that ``load_embodiment`` knows without a path."""
    return tuple(sorted(p.parent.name for p in _HERE.glob("*/*.yaml") if p.stem == p.parent.name))


def load_embodiment(name_or_path: str | Path) -> Embodiment:
    """Load a built-in embodiment by name, or a user's own from its YAML file.

    Raises:
        FileNotFoundError: if neither a built-in name nor an existing file.
        ValueError: naming the YAML field that is wrong, what was expected and the remedy.
    """
    path = _HERE / str(name_or_path) / f"{name_or_path}.yaml"
    if str(name_or_path) not in builtin_embodiments():
        path = Path(name_or_path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"no embodiment {str(name_or_path)!r}: built-in ones are "
                f"{', '.join(builtin_embodiments())}; for your own robot give the path of its YAML"
            )
    with path.open(encoding="utf-8") as file:
        text = yaml.safe_load(file)
    if not isinstance(text, dict):
        raise ValueError(f"{path}: an embodiment file is a YAML mapping")
    return _build(text, path)


def _require(text: Mapping[str, Any], key: str, path: Path) -> Any:
    if key not in text:
        raise ValueError(f"{path}: field {key!r} is missing (see g1_dex3.yaml for an example)")
    return text[key]


def _build(text: Mapping[str, Any], path: Path) -> Embodiment:
    model_path = path.parent / _require(text, "model", path)
    if not model_path.is_file():
        raise ValueError(f"{path}: field 'model' names {model_path}, which does not exist")
    joints = read_joint_table(model_path)
    slots = _slots(_require(text, "slots", path), joints, path)
    mount = _require(text, "camera", path)
    if _require(mount, "link", path) not in joints.links:
        raise ValueError(f"{path}: camera.link {mount['link']!r} is no link of {model_path.name}")
    camera = PinholeCamera(**{k: mount[k] for k in ("width", "height", "fx", "fy", "cx", "cy")})
    root = _require(text, "root", path)
    if root not in joints.links:
        raise ValueError(f"{path}: root {root!r} is no link of {model_path.name}")
    hands = {side: _hand(side, hand, path) for side, hand in text.get("hands", {}).items()}
    orders = {key: tuple(names) for key, names in text.get("state_orders", {}).items()}
    named = {
        "neutral": text.get("neutral", {}),
        **{f"hands.{side}": (*hand.arm, *hand.fingers) for side, hand in hands.items()},
        **{f"state_orders.{key}": names for key, names in orders.items()},
    }
    for where, names in named.items():
        for name in names:
            if name not in joints.names:
                raise ValueError(f"{path}: {where} names {name!r}, no joint of {model_path.name}")
    return Embodiment(
        name=_require(text, "name", path),
        description=text.get("description", ""),
        root=root,
        model_path=model_path,
        camera=camera,
        camera_pose=CameraPose.from_body(mount["link"], mount.get("offset", (0.0, 0.0, 0.0))),
        slots=slots,
        hands=hands,
        neutral_pose=dict(text.get("neutral", {})),
        state_orders=orders,
        joints=joints,
    )


def _hand(side: str, text: Mapping[str, Any], path: Path) -> HandChain:
    fields = {key: tuple(_require(text, key, path)) for key in ("arm", "fingers", "open", "closed")}
    if not len(fields["fingers"]) == len(fields["open"]) == len(fields["closed"]):
        raise ValueError(f"{path}: hands.{side}: open and closed need one angle per finger joint")
    return HandChain(
        wrist=_require(text, "wrist", path),
        grasp_point=tuple(_require(text, "grasp_point", path)),
        palm_point=tuple(_require(text, "palm_point", path)),
        **fields,
    )


def _slots(text: Mapping[str, Any], joints: JointTable, path: Path) -> dict[str, SlotSource]:
    known = SLOT_NAMES + EXTRA_SLOTS
    slots = {}
    for name, source in text.items():
        if name not in known:
            raise ValueError(
                f"{path}: slots.{name} is no hand slot; the {NUM_SLOTS} slots are named "
                "side_finger_joint, e.g. left_thumb_tip (see ego_world_model.hands.SLOT_NAMES)"
            )
        link = source.get("link") if isinstance(source, dict) else None
        if link not in joints.links:
            raise ValueError(
                f"{path}: slots.{name}.link is {link!r}, no link of the model; write "
                "{link: LINK_NAME, offset: [x, y, z]}"
            )
        offset = tuple(float(v) for v in source.get("offset", (0.0, 0.0, 0.0)))
        if len(offset) != 3 or not np.isfinite(offset).all():
            raise ValueError(f"{path}: slots.{name}.offset must be three finite metres")
        slots[name] = SlotSource(link, offset)
    return slots
