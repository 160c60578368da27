"""A robot whose model comes from the topic robot_description: the same kinematics, clear words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ego_world_model import embodiment as package
from ego_world_model.embodiment import Embodiment, description_topic, load_embodiment
from ego_world_model.kinematics import HandKinematics
from ego_world_model.simulation import TableTop

URDFS = {
    "g1_dex3": "g1_dex3/g1_29dof_with_hand_rev_1_0.urdf",
    "h1_2_inspire": "h1_inspire/h1_2.urdf",
    "h1_inspire": "h1_inspire/h1_with_hand.urdf",
}
ARM = """<?xml version="1.0" encoding="utf-8"?>
<robot name="arm">
  <link name="base"><visual><geometry><mesh filename="package://nowhere/base.stl"/></geometry>
  </visual></link>
  <link name="camera"/><link name="palm"/>
  <joint name="mount" type="fixed"><parent link="base"/><child link="camera"/></joint>
  <joint name="arm" type="revolute"><parent link="base"/><child link="palm"/>
    <origin xyz="0.1 0 0"/><axis xyz="0 0 1"/>
    <limit lower="-1" upper="1" effort="1" velocity="1"/></joint>
</robot>"""


def described(folder: Path, name: str) -> Path:
    """A built-in robot's YAML whose model comes from the topic."""
    original = Path(package.__file__).parent / name / f"{name}.yaml"
    text = yaml.safe_load(original.read_text()) | {"model": {"topic": "robot_description"}}
    path = folder / "described.yaml"
    path.write_text(yaml.safe_dump(text))
    return path


def own(folder: Path, **changes: Any) -> Path:
    """A user's small arm, described by the topic."""
    camera = dict(link="camera", width=64, height=48, fx=60, fy=60, cx=32, cy=24)
    text = {
        "name": "own",
        "model": {"topic": "robot_description"},
        "root": "base",
        "camera": camera,
        "slots": {"left_wrist": {"link": "palm"}},
    }
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(text | changes))
    return path


# ------------------------------------------------------------------------------ without ROS


@pytest.mark.parametrize("name", URDFS)
def test_the_manufacturers_description_gives_the_built_in_kinematics(shared, tmp_path, name):
    """Parity 1e-6 m for every slot, whatever the model's order of joints is."""
    urdf = (shared / "robots" / URDFS[name]).read_text()
    built_in, robot = load_embodiment(name), load_embodiment(described(tmp_path, name), urdf=urdf)
    assert set(robot.joint_names) == set(built_in.joint_names)
    rng = np.random.default_rng(0)
    order = [robot.joint_names.index(joint) for joint in built_in.joint_names]
    for _ in range(20):
        q = built_in.coupled(rng.uniform(built_in.lower, built_in.upper))
        same = np.zeros_like(q)
        same[order] = q
        a = HandKinematics(built_in).hand_joints(q, extra_slots=built_in.extra_slots)
        b = HandKinematics(robot).hand_joints(same, extra_slots=robot.extra_slots)
        np.testing.assert_array_equal(a.valid, b.valid)
        np.testing.assert_allclose(a.positions[a.valid], b.positions[a.valid], atol=1e-6)


def test_a_description_needs_no_meshes_and_no_file(tmp_path):
    path = own(tmp_path)
    assert description_topic(path) == "robot_description"
    robot = load_embodiment(path, urdf=ARM)
    assert robot.joint_names == ("arm",)
    hands = HandKinematics(robot).hand_joints({"arm": 0.5})
    assert hands.valid.sum() == 1


def test_built_in_robots_and_files_ask_for_no_topic(tmp_path):
    assert description_topic("g1_dex3") is None
    path = own(tmp_path, model="arm.urdf")
    (tmp_path / "arm.urdf").write_text(ARM)
    assert description_topic(path) is None
    assert load_embodiment(path, urdf="ignored").joint_names == ("arm",)


CONTINUOUS = ARM.replace('type="revolute"', 'type="continuous"')


@pytest.mark.parametrize(
    ("changes", "urdf", "words"),
    [
        ({}, None, "takes the robot from the topic robot_description, which the nodes of a real"),
        ({}, "hello", "robot_description: no XML"),
        ({}, "<mujoco/>", "robot_description: holds <mujoco>, a URDF is one <robot>"),
        ({}, CONTINUOUS, "write arm as revolute with limits, or as fixed"),
        ({"root": "pelvis"}, ARM, "root 'pelvis' is no link of robot_description"),
        (
            {"slots": {"left_wrist": {"link": "hand"}}},
            ARM,
            "slots.left_wrist.link is 'hand', no link of the model",
        ),
        (
            {"neutral": {"elbow": 0.1}},
            ARM,
            "neutral names 'elbow', no joint of robot_description; its movable joints are arm",
        ),
        (
            {"model": {"topics": "x"}},
            ARM,
            "write the name of a file, or {topic: robot_description}",
        ),
    ],
)
def test_mistakes_name_the_file_the_field_and_the_description(tmp_path, changes, urdf, words):
    path = own(tmp_path, **changes)
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        load_embodiment(path, urdf=urdf)
    assert "own.yaml" in str(error.value) or "robot_description:" in str(error.value)


def test_the_simulation_says_what_it_needs(shared, tmp_path):
    urdf = (shared / "robots" / URDFS["g1_dex3"]).read_text()
    robot: Embodiment = load_embodiment(described(tmp_path, "g1_dex3"), urdf=urdf)
    with pytest.raises(ValueError, match="the simulation needs an MJCF model"):
        TableTop(robot, seed=0)


# ------------------------------------------------------------------------------ over DDS


class Description:
    """Publishes a description, latched as robot_state_publisher does unless told otherwise."""

    def __init__(self, node: Any, *, latched: bool = True) -> None:
        from std_msgs.msg import String

        from ego_world_model.ros.qos import advertise

        self._kind = String
        self._publisher = advertise(node, String, "robot_description", latched=latched)

    def publish(self, text: str) -> None:
        self._publisher.publish(self._kind(data=text))


def test_hand_kinematics_waits_for_the_description_and_computes_with_it(shared, tmp_path, ros_node):
    """It says what is missing, goes on once the description comes, and is exact."""
    from robot_player import ROBOT, Inbox, playing
    from support import node, wait_until

    from ego_world_model.msg import HandJoints
    from ego_world_model.ros.conversions import hand_joints_from_message

    urdf = (shared / "robots" / URDFS["g1_dex3"]).read_text()
    hands = Inbox(ros_node).listen(HandJoints, "hands/joints")
    settings = {
        "embodiment": str(described(tmp_path, "g1_dex3")),
        "silence_timeout": 1.0,
        "joint_tolerance": 0.5,
        "joint_wait": 0.5,
    }
    with node("hand_kinematics_node", parameters=settings) as process:
        line = process.wait_for("no robot description on /robot_description yet", timeout=200)
        assert "0 publishers visible" in line and "ROS_DOMAIN_ID" in line
        Description(ros_node).publish(urdf)
        process.wait_for("waiting for /camera/color/image_raw", timeout=60)
        with playing(ros_node):
            wait_until(lambda: len(hands) >= 5, timeout=60, what="hands flow")
    expected = HandKinematics(ROBOT).hand_joints(ROBOT.neutral, extra_slots=ROBOT.extra_slots)
    received = hand_joints_from_message(hands[-1])
    np.testing.assert_array_equal(received.valid, expected.valid)
    np.testing.assert_allclose(received.positions, expected.positions, atol=1e-6)


def test_world_model_refuses_the_description_of_another_robot(tmp_path, ros_node):
    """The error names the YAML's field and the link that the description lacks."""
    from support import node

    description = Description(ros_node)
    description.publish(ARM)
    settings = {"embodiment": str(described(tmp_path, "g1_dex3")), "autostart": False}
    with node("world_model_node", parameters=settings) as process:
        assert process.wait(timeout=200) == 1
    assert "cannot start: parameter 'embodiment'" in process.output
    assert "root 'pelvis' is no link of robot_description" in process.output
    assert "Traceback" not in process.output


def test_a_description_that_is_not_latched_is_named(tmp_path, ros_node):
    from support import node

    description = Description(ros_node, latched=False)
    description.publish(ARM)
    settings = {"embodiment": str(own(tmp_path)), "silence_timeout": 1.0}
    with node("hand_kinematics_node", parameters=settings) as process:
        process.wait_for("/robot_description is published, but not latched", timeout=200)
        process.send_signal(2)
        assert process.wait(timeout=60) == 0
    assert "Traceback" not in process.output
