"""Which nodes make up a robot's graph: one table that the launch files and ``up`` both read.

``resolve`` turns the table and the user's arguments into node specifications without conditions or
substitutions; ``ros/launching.py`` hands those to ROS launch, ``up.py`` starts them as processes.
What runs is decided here alone. Nothing in this module needs ROS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "ego_world_model"


class BringupError(ValueError):
    """A launch argument or an installed file is wrong; the text says what would be right."""


@dataclass(frozen=True)
class Argument:
    """A launch argument, ``name:=value``.

    Attributes:
        default: as the user would write it.
        description: one line, shown by ``ros2 launch --show-args`` and ``up --show-args``.
        choices: the values allowed, any if empty; ("true", "false") makes it a boolean.
    """

    name: str
    default: str
    description: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class NodeEntry:
    """One row of the table; ``{argument}`` in strings stands for that argument's value.

    Attributes:
        name: node name.
        executable: program in ``lib/<package>``.
        package: ROS package that has the program.
        parameters: parameter → value; a string "{x}" takes argument x (booleans become bool) and
            is left out where that argument is empty, so that the parameter file decides.
        remaps: topic → topic.
        arguments: words of the command line before ROS's own.
        condition: boolean argument that must be true for the node to start, or "argument=value";
            None means always.
        namespace: below that of all nodes.
        takes_parameters: whether the parameter file and ``use_sim_time`` are for this node.
    """

    name: str
    executable: str
    package: str = PACKAGE
    parameters: Mapping[str, object] = field(default_factory=dict)
    remaps: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    condition: str | None = None
    namespace: str = ""
    takes_parameters: bool = True


@dataclass(frozen=True)
class Bringup:
    """A robot's graph."""

    robot: str
    arguments: tuple[Argument, ...]
    nodes: tuple[NodeEntry, ...]


@dataclass(frozen=True)
class NodeSpec:
    """A node to start, everything decided.

    Attributes:
        parameter_files: absolute paths, read before ``parameters`` override them.
        remaps: (from, to) pairs.
    """

    name: str
    package: str
    executable: str
    namespace: str
    parameter_files: tuple[str, ...]
    parameters: Mapping[str, bool | str]
    remaps: tuple[tuple[str, str], ...]
    arguments: tuple[str, ...]
    log_level: str

    def ros_arguments(self) -> list[str]:
        """The command line after the program, in the words that every ROS 2 node understands."""
        words = [*self.arguments, "--ros-args", "-r", f"__node:={self.name}"]
        if self.namespace:
            words += ["-r", f"__ns:={self.namespace}"]
        for path in self.parameter_files:
            words += ["--params-file", path]
        for name, value in self.parameters.items():
            words += ["-p", f"{name}:={yaml_scalar(value)}"]
        for source, target in self.remaps:
            words += ["-r", f"{source}:={target}"]
        return [*words, "--log-level", self.log_level]


BOOLEAN = ("true", "false")

CAMERAS = ("external", "realsense")

# What the RealSense driver, named and placed as its own launch file does, publishes.
_REALSENSE_TOPICS = "camera/camera"
_REALSENSE_ROOT = "camera_link"

COMMON_ARGUMENTS = (
    Argument(
        "sim", "false", "start the simulated robot instead of waiting for a real one", BOOLEAN
    ),
    Argument(
        "bridge",
        "false",
        "make joint_states from the robot's own topics (lowstate, dex3, inspire); false where a "
        "driver publishes joint_states already",
        BOOLEAN,
    ),
    Argument("params_file", "", "parameters of all nodes (YAML); empty: config/<robot>.yaml"),
    Argument(
        "calibration",
        "",
        "the camera's true mount and delay, as `ego-world-model calibrate` and `calibrate-delay` "
        "write them (YAML); empty: as in params_file",
    ),
    Argument("namespace", "", "namespace of all nodes and of their relative topics"),
    Argument("use_sim_time", "false", "take the time from /clock, as when a bag plays", BOOLEAN),
    Argument(
        "log_level", "info", "what the nodes print", ("debug", "info", "warn", "error", "fatal")
    ),
    Argument(
        "embodiment",
        "",
        "robot: a built-in name or the path of its YAML; empty: as in params_file",
    ),
    Argument("checkpoint", "", "world model: name or folder; empty: as in params_file"),
    Argument(
        "policy",
        "",
        "start the motion policy, which predicts where the hands move next; empty: true, but "
        "false where the simulated robot follows a script, whose plan is known",
        ("", *BOOLEAN),
    ),
    Argument("policy_checkpoint", "", "motion policy: name or folder; empty: as in params_file"),
    Argument(
        "instruction",
        "",
        "what the hands are to do, in words, such as 'grasp the red box with the left hand and "
        "move it'; empty: what the topic `instruction` says (the simulation gives tasks there)",
    ),
    Argument(
        "execute",
        "false",
        "the simulated robot follows the policy through tasks in words, instead of scripted "
        "motion (needs sim:=true)",
        BOOLEAN,
    ),
    Argument(
        "motion_source",
        "",
        "motion to imagine: planned (joint_trajectory/planned) or predicted (hands/predicted); "
        "empty: predicted where the policy runs, else as in params_file",
        ("", "planned", "predicted"),
    ),
    Argument(
        "camera",
        "external",
        "external: a camera driver of yours (or the simulation) publishes; realsense: start the "
        "RealSense driver, with aligned depth (needs realsense2_camera)",
        CAMERAS,
    ),
    Argument(
        "camera_topics",
        "",
        "prefix of the camera's topics; empty: camera, or camera/camera where camera:=realsense",
    ),
    Argument(
        "image_transport",
        "",
        "how the images come: raw, or compressed (…/image_raw/compressed); empty: as in "
        "params_file",
        ("", "raw", "compressed"),
    ),
    Argument(
        "stereo",
        "",
        "none, or the eye to use of frames that hold two side by side: left, right; empty: as in "
        "params_file",
        ("", "none", "left", "right"),
    ),
    Argument(
        "use_depth",
        "",
        "let aligned depth hide joints from view; empty: as in params_file, but false with "
        "sim:=true, where depth doubles the rendering",
        ("", *BOOLEAN),
    ),
    Argument("joint_states", "joint_states", "topic of the robot's joint states"),
    Argument(
        "publish_camera_tf",
        "",
        "publish the camera's place on the robot; false where the camera driver or a robot "
        "description does; empty: as in params_file",
        ("", *BOOLEAN),
    ),
    Argument("viewer", "true", "serve the browser page (costs nothing when nobody looks)", BOOLEAN),
    Argument("rviz", "false", "start RViz with config/<robot>.rviz (needs a full ROS 2)", BOOLEAN),
)

CAMERA_REMAPS = {
    topic: f"{{camera_topics}}{topic.removeprefix('camera')}"
    for topic in (
        "camera/color/image_raw",
        "camera/color/camera_info",
        "camera/aligned_depth_to_color/image_raw",
    )
} | {"joint_states": "{joint_states}"}

_IMAGES = {"image_transport": "{image_transport}", "stereo": "{stereo}"}

COMMON_NODES = (
    NodeEntry(
        "robot_sim",
        "robot_sim",
        parameters={
            "embodiment": "{embodiment}",
            "execute": "{execute}",
            "instruction": "{instruction}",
        },
        remaps=CAMERA_REMAPS,
        condition="sim",
    ),
    NodeEntry(
        "unitree_bridge",
        "unitree_bridge",
        parameters={"embodiment": "{embodiment}"},
        remaps={"joint_states": "{joint_states}"},
        condition="bridge",
    ),
    NodeEntry(
        "camera",
        "realsense2_camera_node",
        package="realsense2_camera",
        parameters={"align_depth.enable": "true"},
        condition="camera=realsense",
        namespace="camera",
    ),
    NodeEntry(
        "hand_kinematics",
        "hand_kinematics",
        parameters={
            **_IMAGES,
            "embodiment": "{embodiment}",
            "publish_camera_tf": "{publish_camera_tf}",
            "camera_tf_child": "{camera_tf_child}",
            "use_depth": "{use_depth}",
        },
        remaps=CAMERA_REMAPS,
    ),
    NodeEntry(
        "motion_policy",
        "motion_policy",
        parameters={
            **_IMAGES,
            "embodiment": "{embodiment}",
            "checkpoint": "{policy_checkpoint}",
            "instruction": "{instruction}",
        },
        remaps=CAMERA_REMAPS,
        condition="policy",
    ),
    NodeEntry(
        "world_model",
        "world_model",
        parameters={
            **_IMAGES,
            "embodiment": "{embodiment}",
            "checkpoint": "{checkpoint}",
            "motion_source": "{motion_source}",
        },
        remaps=CAMERA_REMAPS,
    ),
    NodeEntry("viewer", "viewer", parameters=_IMAGES, remaps=CAMERA_REMAPS, condition="viewer"),
    NodeEntry(
        "rviz",
        "rviz2",
        package="rviz2",
        arguments=("-d", "{share}/config/{robot}.rviz"),
        condition="rviz",
        takes_parameters=False,
    ),
)

BRINGUPS: dict[str, Bringup] = {
    robot: Bringup(robot, COMMON_ARGUMENTS, COMMON_NODES) for robot in ("g1", "h1")
}


def load_bringup(robot: str) -> Bringup:
    """The table of a robot by name; BringupError lists the names there are."""
    if robot not in BRINGUPS:
        raise BringupError(f"no robot {robot!r}; there is {', '.join(BRINGUPS)}")
    return BRINGUPS[robot]


def complete(bringup: Bringup, given: Mapping[str, str]) -> dict[str, str]:
    """All arguments with the user's values in place of the defaults, checked."""
    known = {argument.name: argument for argument in bringup.arguments}
    for name in given:
        if name not in known:
            raise BringupError(f"no argument {name!r}; there are {', '.join(known)}")
    values = {name: argument.default for name, argument in known.items()} | dict(given)
    for name, value in values.items():
        choices = known[name].choices
        if choices == BOOLEAN or choices[1:] == BOOLEAN:
            value = values[name] = _boolean_word(value)
        if choices and value not in choices:
            allowed = ", ".join(choice or "(empty)" for choice in choices)
            hint = "; the prefix of the topics is camera_topics" if name == "camera" else ""
            raise BringupError(f"{name}:={value} is not one of {allowed}{hint}")
    if values["sim"] == values["bridge"] == "true":
        raise BringupError(
            "sim:=true and bridge:=true would both publish joint_states; the bridge is for a real "
            "robot"
        )
    _complete_policy(values)
    if values["sim"] == "true":
        for name, has in (("image_transport", "raw"), ("stereo", "none")):
            if values[name] not in ("", has):
                raise BringupError(
                    f"{name}:={values[name]} is for a real camera; that of sim:=true is {has}"
                )
    if values["camera"] == "realsense":
        if values["sim"] == "true":
            raise BringupError(
                "sim:=true and camera:=realsense would both publish images; the simulation has a "
                "camera of its own (camera:=external)"
            )
        if values["camera_topics"]:
            raise BringupError(
                f"camera:=realsense publishes under {_REALSENSE_TOPICS}; leave camera_topics out, "
                "or start the driver yourself (camera:=external)"
            )
    return values


def _complete_policy(values: dict[str, str]) -> None:
    """Decide whether the policy runs, and whose motion is imagined."""
    execute = values["execute"] == "true"
    if execute and values["sim"] != "true":
        raise BringupError(
            "execute:=true lets the simulated robot follow the policy and needs sim:=true; nothing "
            "here moves a real robot: feed joint_trajectory/predicted to a controller of yours"
        )
    scripted = values["sim"] == "true" and not execute
    values["policy"] = values["policy"] or ("false" if scripted else "true")
    runs = values["policy"] == "true"
    if execute and not runs:
        raise BringupError("execute:=true follows the motion policy; leave policy:=false out")
    if runs and not values["motion_source"]:
        values["motion_source"] = "predicted"
    if values["policy_checkpoint"] and not runs:
        raise BringupError("policy_checkpoint is for the motion policy; add policy:=true")


def resolve(
    bringup: Bringup, given: Mapping[str, str], *, share: Path | None = None
) -> list[NodeSpec]:
    """The nodes to start for the user's arguments (``given``: name → value, defaults left out).

    Raises:
        BringupError: an unknown argument, a value outside its choices, a missing parameter file
            or calibration.
    """
    values = complete(bringup, given)
    share = share_folder() if share is None else share
    parameters_file = Path(values["params_file"] or share / "config" / f"{bringup.robot}.yaml")
    if not parameters_file.is_file():
        raise BringupError(f"params_file {parameters_file} does not exist")
    files = [parameters_file]
    if values["calibration"]:
        files.append(Path(values["calibration"]).expanduser())
        if not files[-1].is_file():
            raise BringupError(
                f"calibration {files[-1]} does not exist; `ego-world-model calibrate` makes one"
            )
    realsense = values["camera"] == "realsense"
    texts = {
        **values,
        "robot": bringup.robot,
        "share": str(share),
        "camera_topics": values["camera_topics"] or (_REALSENSE_TOPICS if realsense else "camera"),
        "camera_tf_child": _REALSENSE_ROOT if realsense else "",
        "use_depth": values["use_depth"] or ("false" if values["sim"] == "true" else ""),
    }
    specs = []
    for entry in bringup.nodes:
        if not _starts(entry, values):
            continue
        namespace = "/".join(
            part for part in (values["namespace"].strip("/"), entry.namespace) if part
        )
        remaps = ((source, target.format(**texts)) for source, target in entry.remaps.items())
        specs.append(
            NodeSpec(
                name=entry.name,
                package=entry.package,
                executable=entry.executable,
                namespace=f"/{namespace}" if namespace else "",
                parameter_files=tuple(
                    str(file.absolute()) for file in files if entry.takes_parameters
                ),
                parameters=_parameters(entry, texts),
                remaps=tuple((source, target) for source, target in remaps if source != target),
                arguments=tuple(word.format(**texts) for word in entry.arguments),
                log_level=values["log_level"],
            )
        )
    return specs


def _starts(entry: NodeEntry, values: Mapping[str, str]) -> bool:
    if entry.condition is None:
        return True
    name, _, wanted = entry.condition.partition("=")
    return values[name] == (wanted or "true")


def _parameters(entry: NodeEntry, texts: Mapping[str, str]) -> dict[str, bool | str]:
    if not entry.takes_parameters:
        return {}
    filled: dict[str, bool | str] = {"use_sim_time": texts["use_sim_time"] == "true"}
    for name, template in entry.parameters.items():
        value = str(template).format(**texts)
        if value:
            filled[name] = value == "true" if value in BOOLEAN else value
    return filled


def _boolean_word(value: str) -> str:
    """ "true" or "false" for the spellings that ROS launch takes; other words as they are."""
    return {"1": "true", "0": "false"}.get(value, value.lower())


def yaml_scalar(value: bool | str) -> str:
    """A parameter value for ``-p name:=value``, which ROS reads as YAML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "'" + value.replace("'", "''") + "'"


def environment(
    bringup: Bringup,
    given: Mapping[str, str],
    user: Mapping[str, str],
    *,
    share: Path | None = None,
) -> dict[str, str]:
    """Variables to add to the nodes' environment; whatever the user set stays as it is.

    Fast DDS gets shared memory that holds images (see config/fastdds_*.xml). The simulation keeps
    to this machine: discovery on the loopback, and with Fast DDS also the sockets.
    """
    values = complete(bringup, given)
    share = share_folder() if share is None else share
    simulated = values["sim"] == "true"
    wanted = {"MUJOCO_GL": "egl"}
    if simulated:
        wanted["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    # unset means the default of Humble, Jazzy and Kilted, which is Fast DDS
    if "fastrtps" in user.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp"):
        profile = share / "config" / ("fastdds_local.xml" if simulated else "fastdds_robot.xml")
        names = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
        if not any(name in user for name in names):  # Jazzy reads the first, Kilted the second
            wanted.update(dict.fromkeys(names, str(profile)))
    return {name: value for name, value in wanted.items() if name not in user}


def share_folder() -> Path:
    """Folder that holds config/ and launch/: of the installation, or of the source checkout."""
    here = Path(__file__)
    for parent in here.parents:
        if (parent / "share" / PACKAGE / "config").is_dir():
            return parent / "share" / PACKAGE
    checkout = here.resolve().parent.parent
    if (checkout / "config").is_dir() and (checkout / "package.xml").is_file():
        return checkout
    raise BringupError(f"config/ of {PACKAGE} is not installed beside {here.parent}; reinstall it")
