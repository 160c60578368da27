"""From an embodiment's YAML to an ``Embodiment``; every wrong field is named with its remedy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from transforms3d.euler import euler2mat

from ego_world_model.camera import CameraPose, PinholeCamera
from ego_world_model.embodiment.model import JointTable, read_joint_table
from ego_world_model.embodiment.robot import (
    UNUSED,
    Embodiment,
    HandChain,
    SlotSource,
    Workspace,
)
from ego_world_model.hands import EXTRA_SLOTS, NUM_SLOTS, SLOT_NAMES

_REQUIRED = ("name", "model", "root", "camera", "slots")
_OPTIONAL = ("description", "hands", "torso", "neutral", "state_orders", "workspace")
_INTRINSICS = ("width", "height", "fx", "fy", "cx", "cy")
_CAMERA = ("link", *_INTRINSICS)
_CAMERA_OPTIONAL = ("offset", "frame", "distortion", "distortion_model")
_CAMERA_FRAMES = ("body", "optical")
_SIDES = ("left", "right")
_POINTS = ("grasp_point", "palm_point")
_REACHES = ("finger_reach", "thumb_reach")
_HAND = ("wrist", "arm", "fingers", "open", "closed", *_POINTS, *_REACHES)


def read_embodiment(path: Path, *, urdf: str | None = None) -> Embodiment:
    """The embodiment that a YAML file describes.

    Args:
        urdf: what came on the topic that ``model_topic`` names, where the file asks for one.

    Raises:
        ValueError: naming the file and the field that is wrong, what was expected and the remedy.
    """
    return _Reader(path, _mapping(path), urdf).embodiment()


def model_topic(path: Path) -> str | None:
    """The topic from which a YAML file takes its model (``model: {topic: …}``), or None.

    Raises:
        ValueError: as ``read_embodiment``.
    """
    model = _mapping(path).get("model")
    if not isinstance(model, dict):
        return None
    topic = model.get("topic")
    if set(model) != {"topic"} or not isinstance(topic, str) or not topic:
        raise ValueError(
            f"{path}: field 'model' is {model!r}; write the name of a file, or "
            "{topic: robot_description}"
        )
    return topic


def _mapping(path: Path) -> dict[str, Any]:
    try:
        text = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    if not isinstance(text, dict):
        raise ValueError(f"{path}: an embodiment file is a YAML mapping")
    return text


class _Reader:
    """One file being read; holds what every check needs to say where it failed."""

    def __init__(self, path: Path, text: Mapping[str, Any], urdf: str | None) -> None:
        self.path, self.text = path, text
        self.check_fields("", text, _REQUIRED, _OPTIONAL)
        topic = model_topic(path)
        self.urdf = urdf if topic else None
        self.model_path = Path(topic) if topic else path.parent / str(text["model"])
        if topic and urdf is None:
            raise ValueError(
                f"{path}: field 'model' takes the robot from the topic {topic}, which the nodes of "
                "a real robot's graph read; for commands and the simulation save it to a file and "
                "name that (`ros2 param get --hide-type /robot_state_publisher robot_description`)"
            )
        if not topic and not self.model_path.is_file():
            raise ValueError(
                f"{path}: field 'model' names {self.model_path}, which does not exist; give an "
                "MJCF or URDF file relative to the YAML file"
            )
        self.joints: JointTable = read_joint_table(self.model_path, self.urdf)

    def embodiment(self) -> Embodiment:
        text = self.text
        root = text["root"]
        if root not in self.joints.links:
            raise ValueError(f"{self.path}: root {root!r} is no link of {self.model_path.name}")
        camera, pose = self.camera()
        hands = {side: self.hand(side, hand) for side, hand in self.mapping("hands").items()}
        neutral = {
            name: float(self.numbers(f"neutral.{name}", [value], 1)[0])
            for name, value in self.mapping("neutral").items()
        }
        self.check_joints("neutral", neutral, drivers_only=True)
        orders = {}
        for key, names in self.mapping("state_orders").items():
            orders[key] = self.names(f"state_orders.{key}", names)
            joints = [name for name in orders[key] if name != UNUSED]
            self.check_joints(f"state_orders.{key}", joints)
        torso = self.names("torso", text.get("torso", ()))
        self.check_joints("torso", torso)
        return Embodiment(
            name=str(text["name"]),
            description=str(text.get("description", "")),
            root=root,
            model_path=self.model_path,
            urdf=self.urdf,
            camera=camera,
            camera_pose=pose,
            slots=self.slots(),
            hands=hands,
            torso=torso,
            neutral_pose=neutral,
            state_orders=orders,
            workspace=self.workspace(),
            joints=self.joints,
        )

    # ---------------------------------------------------------------- parts

    def camera(self) -> tuple[PinholeCamera, CameraPose]:
        mount = self.mapping("camera")
        self.check_fields("camera", mount, _CAMERA, _CAMERA_OPTIONAL)
        link = mount["link"]
        if link not in self.joints.links:
            raise ValueError(
                f"{self.path}: camera.link {link!r} is no link of {self.model_path.name}"
            )
        frame = mount.get("frame", "body")
        if frame not in _CAMERA_FRAMES:
            raise ValueError(
                f"{self.path}: camera.frame is {frame!r}; write body where the link's x axis "
                "looks forward, optical where its z axis does"
            )
        intrinsics = self.numbers("camera", [mount[key] for key in _INTRINSICS], len(_INTRINSICS))
        distortion = mount.get("distortion", ())
        try:
            camera = PinholeCamera(
                *map(int, intrinsics[:2]),
                *map(float, intrinsics[2:]),
                tuple(map(float, distortion)),
                mount.get("distortion_model", "plumb_bob"),
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.path}: camera: {error}") from error
        offset = self.numbers("camera.offset", mount.get("offset", (0.0, 0.0, 0.0)), 3)
        if frame == "optical":
            return camera, CameraPose(link, np.eye(3), offset)
        return camera, CameraPose.from_body(link, offset)

    def slots(self) -> dict[str, SlotSource]:
        slots = {}
        for name, source in self.mapping("slots").items():
            if name not in SLOT_NAMES + EXTRA_SLOTS:
                raise ValueError(
                    f"{self.path}: slots.{name} is no hand slot; the {NUM_SLOTS} slots are named "
                    "side_finger_joint, e.g. left_thumb_tip (see ego_world_model.hands.SLOT_NAMES)"
                )
            link = source.get("link") if isinstance(source, dict) else None
            if link not in self.joints.links:
                raise ValueError(
                    f"{self.path}: slots.{name}.link is {link!r}, no link of the model; write "
                    "{link: LINK_NAME, offset: [x, y, z]}"
                )
            offset = self.numbers(f"slots.{name}.offset", source.get("offset", (0.0, 0.0, 0.0)), 3)
            slots[name] = SlotSource(link, tuple(offset.tolist()))
        if not slots:
            raise ValueError(f"{self.path}: slots is empty; name the link of each hand slot")
        return slots

    def hand(self, side: str, text: Any) -> HandChain:
        where = f"hands.{side}"
        if side not in _SIDES:
            raise ValueError(f"{self.path}: {where}: hands are {' and '.join(_SIDES)}")
        self.check_fields(where, text, _HAND, ("axes",))
        wrist = text["wrist"]
        if wrist not in self.joints.links:
            raise ValueError(
                f"{self.path}: {where}.wrist {wrist!r} is no link of {self.model_path.name}"
            )
        arm = self.names(f"{where}.arm", text["arm"])
        fingers = self.names(f"{where}.fingers", text["fingers"])
        if not arm:
            raise ValueError(f"{self.path}: {where}.arm is empty; name the joints of the arm")
        self.check_joints(where, (*arm, *fingers), drivers_only=True)
        angles = {}
        for key in ("open", "closed"):
            if len(text[key]) != len(fingers):
                raise ValueError(
                    f"{self.path}: {where}: open and closed need one angle per finger joint "
                    f"({len(fingers)}), {key} has {len(text[key])}"
                )
            angles[key] = tuple(self.numbers(f"{where}.{key}", text[key], len(fingers)).tolist())
        points = {key: tuple(self.numbers(f"{where}.{key}", text[key], 3)) for key in _POINTS}
        reaches = {key: self.numbers(f"{where}.{key}", [text[key]], 1)[0] for key in _REACHES}
        roll, pitch, yaw = self.numbers(f"{where}.axes", text.get("axes", (0.0, 0.0, 0.0)), 3)
        return HandChain(
            wrist=wrist,
            arm=arm,
            fingers=fingers,
            axes=euler2mat(roll, pitch, yaw, "sxyz"),
            **angles,
            **points,
            **reaches,
        )

    def workspace(self) -> Workspace | None:
        if "workspace" not in self.text:
            return None
        text = self.mapping("workspace")
        self.check_fields("workspace", text, ("origin", "floor"), ())
        origin = self.numbers("workspace.origin", text["origin"], 3)
        floor = self.numbers("workspace.floor", [text["floor"]], 1)[0]
        return Workspace(tuple(origin.tolist()), float(floor))

    # ---------------------------------------------------------------- checks

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.text.get(key, {})
        if not isinstance(value, dict):
            raise ValueError(f"{self.path}: {key} must be a mapping, got {value!r}")
        return value

    def check_fields(
        self, where: str, text: Any, required: Sequence[str], optional: Sequence[str]
    ) -> None:
        """Refuse fields that are missing, or that nobody reads (most often a misspelt one)."""
        if not isinstance(text, dict):
            raise ValueError(f"{self.path}: {where} must be a mapping, got {text!r}")
        prefix = f"{where}." if where else ""
        for key in required:
            if key not in text:
                raise ValueError(
                    f"{self.path}: field '{prefix}{key}' is missing (docs/embodiments.md and "
                    "g1_dex3.yaml show what it holds)"
                )
        for key in text:
            if key not in required and key not in optional:
                known = ", ".join((*required, *optional))
                raise ValueError(f"{self.path}: unknown field '{prefix}{key}'; known are {known}")

    def check_joints(self, where: str, names: Iterable[str], *, drivers_only: bool = False) -> None:
        drivers = {c.follower: c.driver for c in self.joints.couplings}
        for name in names:
            if name not in self.joints.names:
                raise ValueError(
                    f"{self.path}: {where} names {name!r}, no joint of {self.model_path.name}; "
                    f"its movable joints are {', '.join(self.joints.names)}"
                )
            if drivers_only and name in drivers:
                raise ValueError(
                    f"{self.path}: {where} names {name!r}, which follows {drivers[name]!r}; "
                    "name only the joint that is followed"
                )

    def names(self, where: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            raise ValueError(f"{self.path}: {where} must be a list of joint names, got {value!r}")
        if len(set(value)) != len(value):
            raise ValueError(f"{self.path}: {where} names a joint twice")
        return tuple(value)

    def numbers(self, where: str, value: Any, count: int) -> NDArray[np.float64]:
        """(count,) finite numbers."""
        try:
            out = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            out = np.array(np.nan)
        if out.shape != (count,) or not np.isfinite(out).all():
            shown = {1: "a finite number", 3: "three finite numbers"}.get(count, "finite numbers")
            raise ValueError(f"{self.path}: {where} must be {shown}, got {value!r}")
        return out
