"""The launch file and `ego-world-model up` start the same nodes in the same way."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from ego_world_model.bringup import (
    BRINGUPS,
    BringupError,
    environment,
    load_bringup,
    resolve,
    yaml_scalar,
)
from ego_world_model.up import command_line, parse_arguments

CASES = [
    [],
    ["sim:=true"],
    ["sim:=1", "namespace:=/robot/left", "use_sim_time:=True", "log_level:=debug"],
    ["viewer:=false", "rviz:=true", "checkpoint:=it's here", "motion_source:=predicted"],
    ["sim:=true", "execute:=true", "instruction:=reach for the red box with the left hand"],
    ["policy:=true", "policy_checkpoint:=/models/policy"],
    ["sim:=true", "embodiment:=/home/me/my robot.yaml"],
    ["bridge:=true", "joint_states:=/g1/joint_states"],
    ["camera_topics:=/head", "joint_states:=/g1/joint_states", "publish_camera_tf:=false"],
    ["camera_topics:=/head", "image_transport:=compressed", "stereo:=left"],
    ["camera:=realsense", "namespace:=robot", "bridge:=true"],
]


@dataclass
class FakeLaunch:
    """The few launch classes that are used, with the semantics that launch_ros documents."""

    given: dict[str, str]
    declared: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    commands: dict[str, list[str]] = field(default_factory=dict)

    def modules(self) -> SimpleNamespace:
        return SimpleNamespace(
            LaunchDescription=lambda entities: entities,
            DeclareLaunchArgument=self._declare,
            OpaqueFunction=lambda function: function,
            SetEnvironmentVariable=self.variables.__setitem__,
            LaunchConfiguration=lambda name: SimpleNamespace(perform=lambda _: self._value(name)),
            Node=self._node,
            ParameterValue=lambda value, value_type: value_type(value),
        )

    def execute(self, entities: list[Any]) -> None:
        for entity in entities:
            if callable(entity):
                entity(None)

    def _declare(
        self, name: str, *, default_value: str, description: str, choices: Any = None
    ) -> None:
        assert description
        assert choices is None or self.given.get(name, default_value) in choices
        self.declared[name] = default_value

    def _value(self, name: str) -> str:
        return self.given.get(name, self.declared[name])

    def _node(
        self, *, package, executable, name, namespace, parameters, remappings, arguments, **_
    ):
        """The command line that launch_ros makes of a Node action."""
        split = arguments.index("--ros-args")
        words = [package, executable, *arguments[:split], "--ros-args", "-r", f"__node:={name}"]
        words += ["-r", f"__ns:={namespace}"] if namespace else []
        for entry in parameters:
            if isinstance(entry, dict):
                for key, value in entry.items():
                    words += ["-p", f"{key}:={yaml_scalar(value)}"]
            else:
                words += ["--params-file", entry]
        for source, target in remappings:
            words += ["-r", f"{source}:={target}"]
        self.commands[name] = words + arguments[split + 1 :]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: Any) -> None:
    """RViz and the RealSense driver where a full ROS 2 would have them."""
    for package, program in (("rviz2", "rviz2"), ("realsense2_camera", "realsense2_camera_node")):
        path = tmp_path / "lib" / package / program
        path.parent.mkdir(parents=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path), prepend=os.pathsep)


def launch_file(root: Path, robot: str, launch: FakeLaunch, monkeypatch: Any) -> None:
    """Run launch/<robot>.launch.py as `ros2 launch` would."""
    pytest.importorskip("ego_world_model.ros", reason="needs the ROS layer")
    from ego_world_model.ros import launching

    monkeypatch.setattr(launching, "launch_modules", launch.modules)
    path = root / "launch" / f"{robot}.launch.py"
    module_spec = importlib.util.spec_from_file_location("launch_file", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    launch.execute(module.generate_launch_description())


@pytest.mark.parametrize("robot", BRINGUPS)
@pytest.mark.parametrize("words", CASES, ids=" ".join)
def test_launch_file_and_up_start_the_same_commands(root, robot, words, installed, monkeypatch):
    given = parse_arguments(words)
    launch = FakeLaunch(given)
    launch_file(root, robot, launch, monkeypatch)
    bringup = load_bringup(robot)
    specs = resolve(bringup, given)
    assert launch.commands == {
        spec.name: [spec.package, spec.executable, *spec.ros_arguments()] for spec in specs
    }
    assert list(launch.commands) == [spec.name for spec in specs]
    assert launch.variables == environment(bringup, given, os.environ)
    assert set(launch.declared) == {argument.name for argument in bringup.arguments}


def test_the_table_starts_the_graph_of_the_architecture():
    names = [spec.name for spec in resolve(load_bringup("g1"), {"sim": "true"})]
    assert names == ["robot_sim", "hand_kinematics", "world_model", "viewer"]
    names = [spec.name for spec in resolve(load_bringup("g1"), {"viewer": "false"})]
    assert names == ["hand_kinematics", "motion_policy", "world_model"]  # the default: a real robot
    given = {"sim": "true", "policy": "true"}
    names = [spec.name for spec in resolve(load_bringup("g1"), given)]
    assert names == ["robot_sim", "hand_kinematics", "motion_policy", "world_model", "viewer"]
    given = {"bridge": "true", "policy": "false"}
    names = [spec.name for spec in resolve(load_bringup("g1"), given)]
    assert names == ["unitree_bridge", "hand_kinematics", "world_model", "viewer"]


def test_with_execute_the_simulated_robot_follows_the_policy_and_its_prediction_is_imagined():
    given = {"sim": "true", "execute": "true", "instruction": "reach for it", "policy": ""}
    specs = {spec.name: spec for spec in resolve(load_bringup("g1"), given)}
    assert specs["robot_sim"].parameters["execute"] is True
    assert specs["world_model"].parameters["motion_source"] == "predicted"
    for name in ("robot_sim", "motion_policy"):
        assert specs[name].parameters["instruction"] == "reach for it"
    given["motion_source"] = "planned"
    specs = {spec.name: spec for spec in resolve(load_bringup("g1"), given)}
    assert specs["world_model"].parameters["motion_source"] == "planned"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"execute": "true"}, "needs sim:=true"),
        ({"execute": "true", "bridge": "true"}, "needs sim:=true"),
        ({"execute": "true", "sim": "true", "policy": "false"}, "leave policy:=false out"),
        ({"policy": "false", "policy_checkpoint": "mine"}, "add policy:=true"),
    ],
)
def test_execution_is_for_the_simulation_and_the_policy_only(given, text):
    with pytest.raises(BringupError, match=text):
        resolve(load_bringup("g1"), given)


def test_the_realsense_driver_is_where_the_other_nodes_look_for_it():
    """camera:=realsense: aligned depth, topics as the driver names them, its tree on the robot."""
    given = {"camera": "realsense", "namespace": "robot"}
    specs = {spec.name: spec for spec in resolve(load_bringup("g1"), given)}
    driver = specs["camera"]
    assert (driver.package, driver.executable) == ("realsense2_camera", "realsense2_camera_node")
    assert driver.parameters["align_depth.enable"] is True
    published = (
        f"{driver.namespace}/{driver.name}/color/image_raw"  # the driver's ~/color/image_raw
    )
    for name in ("hand_kinematics", "world_model", "viewer"):
        heard = dict(specs[name].remaps)["camera/color/image_raw"]
        assert f"{specs[name].namespace}/{heard}" == published
    assert specs["hand_kinematics"].parameters["camera_tf_child"] == "camera_link"
    external = {spec.name: spec for spec in resolve(load_bringup("g1"), {})}
    assert "camera" not in external
    assert "camera_tf_child" not in external["hand_kinematics"].parameters


def test_a_driver_that_is_not_installed_is_named_with_its_package(root, monkeypatch):
    """By `up` and by the launch file alike, before anything starts."""
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    given = {"camera": "realsense"}
    said = "realsense2_camera is not installed; .*apt install ros-jazzy-realsense2-camera"
    (driver,) = (spec for spec in resolve(load_bringup("g1"), given) if spec.name == "camera")
    with pytest.raises(BringupError, match=said):
        command_line(driver)
    launch = FakeLaunch(given)
    with pytest.raises(BringupError, match=said):
        launch_file(root, "g1", launch, monkeypatch)
    assert not launch.commands


def test_the_simulation_renders_depth_only_for_those_who_ask():
    def use_depth(**given: str) -> object:
        specs = {spec.name: spec for spec in resolve(load_bringup("g1"), given)}
        return specs["hand_kinematics"].parameters.get("use_depth")

    assert use_depth() is None, "the parameter file decides"
    assert use_depth(sim="true") is False
    assert use_depth(sim="true", use_depth="true") is True


def test_image_settings_reach_every_node_that_looks_at_the_camera():
    given = {"image_transport": "compressed", "stereo": "right"}
    for spec in resolve(load_bringup("g1"), given):
        assert {key: spec.parameters[key] for key in given} == given


@pytest.mark.parametrize(("robot", "embodiment"), [("g1", "g1_dex3"), ("h1", "h1_2_inspire")])
def test_every_node_has_the_same_robot(root, robot, embodiment):
    content = yaml.safe_load((root / "config" / f"{robot}.yaml").read_text())
    named = {
        key: section["ros__parameters"]["embodiment"]
        for key, section in content.items()
        if "embodiment" in section["ros__parameters"]
    }
    assert set(named.values()) == {embodiment}
    specs = [
        spec
        for source in ("sim", "bridge")
        for spec in resolve(
            load_bringup(robot), {source: "true", "policy": "true", "embodiment": "own.yaml"}
        )
    ]
    replaced = {f"/**/{s.name}" for s in specs if s.parameters.get("embodiment") == "own.yaml"}
    assert replaced == set(named)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "up g1 sim:=true execute:=true"),
        (["viewer:=false"], "up g1 sim:=true execute:=true viewer:=false"),
        (["h1"], "up h1 sim:=true execute:=true"),
        (["h1", "viewer:=false"], "up h1 sim:=true execute:=true viewer:=false"),
        (["execute:=false"], "up g1 sim:=true execute:=true execute:=false"),  # the last word holds
        (["--show-args"], "up g1 sim:=true execute:=true --show-args"),
    ],
)
def test_script_run_starts_the_robot_that_it_is_told(root, tmp_path, words, expected):
    (tmp_path / "script").mkdir()
    (tmp_path / "bin").mkdir()
    shutil.copy(root / "script" / "run", tmp_path / "script" / "run")
    for name, line in (("script/setup", "exit 0"), ("bin/ego-world-model", 'echo "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    command = [str(tmp_path / "script" / "run"), *words]
    variables = {**os.environ, "EGO_VENV": str(tmp_path)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def test_real_launch_makes_the_description():
    pytest.importorskip("launch_ros", reason="needs a full ROS 2")
    from launch import LaunchContext

    from ego_world_model.ros.launching import launch_description

    description = launch_description("g1")
    context = LaunchContext()
    nodes = []
    for entity in description.entities:
        result = entity.visit(context) or []
        nodes += [action for action in result if type(action).__name__ == "Node"]
    expected = [spec.executable for spec in resolve(load_bringup("g1"), {})]
    assert [action.node_executable for action in nodes] == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"simulation": "true"}, "no argument 'simulation'; there are sim, "),
        ({"sim": "true", "bridge": "true"}, "would both publish joint_states"),
        ({"camera": "/camera/camera"}, "is not one of .*the prefix of the topics is camera_topics"),
        ({"camera": "realsense", "sim": "true"}, "would both publish images"),
        ({"sim": "true", "stereo": "left"}, "stereo:=left is for a real camera"),
        ({"sim": "true", "image_transport": "compressed"}, "is for a real camera"),
        ({"camera": "realsense", "camera_topics": "head"}, "leave camera_topics out"),
        ({"sim": "maybe"}, "sim:=maybe is not one of true, false"),
        ({"motion_source": "guess"}, "motion_source:=guess is not one of"),
        ({"params_file": "/nowhere.yaml"}, "params_file /nowhere.yaml does not exist"),
    ],
)
def test_wrong_arguments_are_named(given, message):
    with pytest.raises(BringupError, match=message):
        resolve(load_bringup("g1"), given)


def test_the_simulation_stays_on_this_machine_and_the_robot_profile_does_not():
    bringup = load_bringup("g1")
    simulated = environment(bringup, {"sim": "true"}, {})
    assert simulated["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    assert simulated["FASTRTPS_DEFAULT_PROFILES_FILE"].endswith("fastdds_local.xml")
    assert "127.0.0.1" in Path(simulated["FASTDDS_DEFAULT_PROFILES_FILE"]).read_text()
    real = environment(bringup, {}, {})
    assert "ROS_AUTOMATIC_DISCOVERY_RANGE" not in real
    profile = Path(real["FASTRTPS_DEFAULT_PROFILES_FILE"]).read_text()
    assert "<address>" not in profile and "16777216" in profile


@pytest.mark.parametrize(
    "user",
    [
        {"FASTRTPS_DEFAULT_PROFILES_FILE": "/mine.xml"},
        {"FASTDDS_DEFAULT_PROFILES_FILE": "/mine.xml"},
        {"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"},
    ],
)
def test_the_users_middleware_and_profile_are_left_alone(user):
    added = environment(load_bringup("g1"), {"sim": "true"}, user)
    assert not any("PROFILES_FILE" in name or name == "RMW_IMPLEMENTATION" for name in added)


@pytest.mark.parametrize("robot", BRINGUPS)
def test_parameter_file_speaks_of_the_nodes_in_the_table(root, robot):
    content = yaml.safe_load((root / "config" / f"{robot}.yaml").read_text())
    names = {node.name for node in BRINGUPS[robot].nodes if node.takes_parameters}
    assert {key.rsplit("/", 1)[-1] for key in content} == names
    assert all(set(section) == {"ros__parameters"} for section in content.values())
