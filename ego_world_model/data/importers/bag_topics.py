"""Which topics of a bag hold the head camera and the joints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ego_world_model.data.importers.bag_messages import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    HAND_STATE,
    IMAGE,
    JOINT_STATE,
    LOW_STATE,
    MOTOR_STATES,
    STRING,
)
from ego_world_model.data.importers.base import RejectedError

_NOT_COLOUR = ("depth", "infra", "ir", "fisheye", "wrist", "mask", "imagined", "overlay")


@dataclass(frozen=True, kw_only=True)
class TopicOptions:
    """Topics that the user named; None: found by type and name.

    Attributes:
        read_camera_info: False where the user gave a calibration in place of the recorded one.
        use_received: order all messages by the time they were recorded, for clocks that differ.
        tolerance: seconds; joint states further apart are never interpolated.
        time_offset: seconds added to the stamps of joint states (``joint_time_offset``).
        middle_first: whether the right Dex3 hand lists its middle finger before the index finger.
        depth: depth topic, aligned to the image.
        read_depth: whether to read depth at all; None: where the recording has an aligned topic.
        instruction: topic of the instruction in words.
        eye: which half of a side-by-side stereo picture is the camera's (``stereo.EYES``).
    """

    image: str | None = None
    camera_info: str | None = None
    joints: tuple[str, ...] = ()
    read_camera_info: bool = True
    use_received: bool = False
    tolerance: float = 0.05
    time_offset: float = 0.0
    middle_first: bool = False
    depth: str | None = None
    read_depth: bool | None = False
    instruction: str | None = None
    eye: str = "none"


@dataclass(frozen=True, kw_only=True)
class Topics:
    """The topics to read; None: none recorded."""

    image: str
    camera_info: str | None
    joints: tuple[str, ...]
    depth: str | None = None
    instruction: str | None = None

    @property
    def all(self) -> set[str]:
        """Every topic that is read."""
        named = {self.image, self.camera_info, self.depth, self.instruction, *self.joints}
        return {topic for topic in named if topic is not None}


def choose_topics(types: Mapping[str, str], options: TopicOptions) -> Topics:
    """The camera's and joints' topics of a bag.

    Args:
        types: topic → message type, of topics that hold messages.

    Raises:
        RejectedError: a topic is missing, or several fit; lists them and names the option.
    """
    image = _image(types, options.image)
    info = _camera_info(types, image, options.camera_info) if options.read_camera_info else None
    return Topics(
        image=image,
        camera_info=info,
        joints=_joints(types, options.joints),
        depth=_depth(types, image, options) if options.read_depth is not False else None,
        instruction=_instruction(types, options.instruction),
    )


def _image(types: Mapping[str, str], asked: str | None) -> str:
    images = [topic for topic, kind in types.items() if kind in (IMAGE, COMPRESSED_IMAGE)]
    if asked is not None:
        return _named(types, asked, (IMAGE, COMPRESSED_IMAGE), "--image-topic")
    colour = [topic for topic in images if not set(_words(topic)) & set(_NOT_COLOUR)]
    # Raw and compressed topics of one camera: the raw one is exact.
    colour = [topic for topic in colour if topic.removesuffix("/compressed") == topic] or colour
    if len(colour) == 1:
        return colour[0]
    found = ", ".join(colour or images) or "none"
    raise RejectedError(
        f"{'several topics' if colour else 'no topic'} may be the head camera: {found}",
        "name it with --image-topic" if images else "record the head camera's colour topic",
    )


def _camera_info(types: Mapping[str, str], image: str, asked: str | None) -> str | None:
    if asked is not None:
        return _named(types, asked, (CAMERA_INFO,), "--camera-info-topic")
    infos = [topic for topic, kind in types.items() if kind == CAMERA_INFO]
    base = image.removesuffix("/compressed").rpartition("/")[0]
    return f"{base}/camera_info" if f"{base}/camera_info" in infos else None


def _depth(types: Mapping[str, str], image: str, options: TopicOptions) -> str | None:
    """Depth whose pixels are those of the image."""
    if options.depth is not None:
        return _named(types, options.depth, (IMAGE,), "--depth-topic")
    depths = [t for t, k in types.items() if k == IMAGE and {"aligned", "depth"} <= set(_words(t))]
    # Of several cameras, that of the image: camera/color/… and camera/aligned_depth_to_color/….
    camera = image.removesuffix("/compressed").rsplit("/", 2)[0]
    depths = [t for t in depths if t.startswith(f"{camera}/")] or depths
    if len(depths) == 1:
        return depths[0]
    if depths or options.read_depth:
        raise RejectedError(
            f"{'several topics' if depths else 'no topic'} may be the camera's aligned depth: "
            f"{', '.join(depths) or 'none'}",
            "name it with --depth-topic, or leave depth out with --no-depth",
        )
    return None


def _instruction(types: Mapping[str, str], asked: str | None) -> str | None:
    if asked is not None:
        return _named(types, asked, (STRING,), "--instruction-topic")
    found = [t for t, k in types.items() if k == STRING and t.rpartition("/")[2] == "instruction"]
    return found[0] if len(found) == 1 else None


def _joints(types: Mapping[str, str], asked: Sequence[str]) -> tuple[str, ...]:
    if asked:
        kinds = (JOINT_STATE, LOW_STATE, HAND_STATE, MOTOR_STATES)
        return tuple(_named(types, topic, kinds, "--joint-topic") for topic in asked)
    states = [t for t, kind in types.items() if kind == JOINT_STATE]
    states = [t for t in states if t.rpartition("/")[2] == "joint_states"] or states
    if len(states) == 1:
        return tuple(states)
    if states:
        raise RejectedError(
            f"several topics hold joint states: {', '.join(states)}",
            "name those to use with --joint-topic (repeat it where hands have one of their own)",
        )
    # The robot's own topics; `lf/` is the same at a low rate.
    unitree = [t for t, kind in types.items() if kind in (LOW_STATE, HAND_STATE, MOTOR_STATES)]
    unitree = [t for t in unitree if not {"cmd", "command"} & set(_words(t))]
    slow = [t for t in unitree if "lf" in _words(t)]
    rest = [t for t in unitree if t not in slow]
    chosen = rest + [t for t in slow if t.replace("/lf/", "/", 1) not in rest]
    if not any(types[t] == LOW_STATE for t in chosen):
        raise RejectedError(
            "no joint states: the bag has neither sensor_msgs/JointState nor unitree_hg/LowState "
            f"(it has {', '.join(sorted(set(types.values()))) or 'no messages'})",
            "record joint_states, or lowstate with the hands' state topics",
        )
    return tuple(chosen)


def hand_side(topic: str) -> str:
    """``left`` or ``right``, from a hand's topic.

    Raises:
        RejectedError: the topic does not say.
    """
    sides = {"left", "right"} & set(_words(topic))
    if len(sides) != 1:
        raise RejectedError(
            f"topic {topic} does not say which hand it is",
            "record it as …/left/state and …/right/state",
        )
    return sides.pop()


def _named(types: Mapping[str, str], topic: str, kinds: Sequence[str], option: str) -> str:
    found = topic if topic in types else f"/{topic.lstrip('/')}"
    if found not in types:
        raise RejectedError(
            f"no messages on {topic}", f"{option} must be one of {', '.join(sorted(types))}"
        )
    if types[found] not in kinds:
        raise RejectedError(
            f"{topic} holds {types[found]}", f"{option} must be of type {' or '.join(kinds)}"
        )
    return found


def _words(topic: str) -> list[str]:
    return [word for part in topic.lower().split("/") for word in part.split("_")]
