"""Embodiments: the built-in robot, a user's own, and what a wrong file is told."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from ego_world_model.embodiment import builtin_embodiments, load_embodiment
from ego_world_model.kinematics import HandKinematics
from ego_world_model.simulation import TableTop


def test_builtin_robots_are_listed() -> None:
    assert builtin_embodiments() == ("g1_dex3", "h1_2_inspire", "h1_inspire")
    with pytest.raises(FileNotFoundError, match="g1_dex3"):
        load_embodiment("g1_dex4")


def test_wire_orders_name_each_joint_once() -> None:
    robot = load_embodiment("g1_dex3")
    assert len(robot.state_orders["unitree_hg/LowState"]) == 29
    body_and_hands = {
        name
        for key in ("unitree_hg/LowState", "dex3/left", "dex3/right")
        for name in robot.state_orders[key]
    }
    assert body_and_hands == set(robot.joint_names)
    sdk, api = robot.state_orders["dex3/right"], robot.state_orders["dex3/right_middle_first"]
    assert sdk != api and set(sdk) == set(api)


@pytest.fixture
def own_robot(tmp_path: Path) -> Path:
    """A user's robot: one arm with a two-jointed finger, in URDF, the second joint coupled."""
    (tmp_path / "own.urdf").write_text(
        """<robot name="own">
          <link name="base"/><link name="camera"/><link name="palm"/>
          <link name="a"/><link name="b"/>
          <joint name="mount" type="fixed"><parent link="base"/><child link="camera"/>
            <origin xyz="0 0 0.5" rpy="0 1.5707963 0"/></joint>
          <joint name="arm" type="revolute"><parent link="base"/><child link="palm"/>
            <origin xyz="0.1 0 0"/><axis xyz="0 0 1"/>
            <limit lower="-1" upper="1" effort="1" velocity="1"/></joint>
          <joint name="a" type="revolute"><parent link="palm"/><child link="a"/>
            <origin xyz="0.1 0 0"/><axis xyz="0 0 1"/>
            <limit lower="0" upper="1" effort="1" velocity="1"/></joint>
          <joint name="b" type="revolute"><parent link="a"/><child link="b"/>
            <origin xyz="0.05 0 0"/><axis xyz="0 0 1"/><mimic joint="a" multiplier="2"/>
            <limit lower="0" upper="2" effort="1" velocity="1"/></joint>
        </robot>"""
    )
    description = {
        "name": "own",
        "model": "own.urdf",
        "root": "base",
        "camera": {
            "link": "camera", "width": 640, "height": 480,
            "fx": 600, "fy": 600, "cx": 320, "cy": 240,
        },
        "slots": {
            "left_wrist": {"link": "palm"},
            "left_index_mcp": {"link": "a"},
            "left_index_tip": {"link": "b", "offset": [0.04, 0, 0]},
        },
    }  # fmt: skip
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(description))
    return path


def test_a_users_urdf_serves_like_a_builtin_robot(own_robot: Path) -> None:
    robot = load_embodiment(own_robot)
    fk = HandKinematics(robot)
    assert robot.valid_slots.sum() == 3
    # The coupled joint follows its driver unless it is given.
    follows = fk.slot_positions(robot.q_from({"a": 0.3})[None], ["left_index_tip"])[0, 0]
    expected = 0.2 + 0.05 * np.cos(0.3) + 0.04 * np.cos(0.9)
    assert follows[0] == pytest.approx(expected)
    given = fk.slot_positions(robot.q_from({"a": 0.3, "b": 0.0})[None], ["left_index_tip"])[0, 0]
    assert given[0] == pytest.approx(0.2 + 0.09 * np.cos(0.3))
    # The camera looks straight down from half a metre.
    assert fk.hand_joints({}).positions[0, 2] == pytest.approx(0.5, abs=1e-5)


@pytest.fixture
def desk_arm(root: Path, tmp_path: Path) -> Path:
    """The robot of the tutorial, from the page itself."""
    page = (root / "docs" / "embodiments.md").read_text()
    for kind, name in (("xml", "desk_arm.urdf"), ("yaml", "desk_arm.yaml")):
        block, *_ = re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL)
        (tmp_path / name).write_text(block)
    return tmp_path / "desk_arm.yaml"


def test_the_tutorials_robot_works_as_the_page_says(desk_arm: Path) -> None:
    robot = load_embodiment(desk_arm)
    fk = HandKinematics(robot)
    joints = fk.hand_joints(robot.neutral)
    assert joints.valid.sum() == 5 and robot.extra_slots == ("right_elbow",)
    assert robot.camera.contains(robot.camera.project(joints.positions[joints.valid])).all()
    # Both fingers open by the same angle: the tips lie mirrored about the gripper's x axis.
    tips = ["right_thumb_tip", "right_index_tip"]
    thumb, index = fk.slot_positions(robot.q_from({"grip": 0.3})[None], tips)[0]
    expected = (0.45 + 0.06 + 0.05 * np.cos(0.3), 0.02 + 0.05 * np.sin(0.3))
    assert thumb[:2] == pytest.approx((expected[0], -0.1 + expected[1]))
    assert index[:2] == pytest.approx((expected[0], -0.1 - expected[1]))
    # Three joints place the gripper; the fingers of the state come along.
    wanted = fk.hand_state(robot.q_from({"shoulder": 0.5, "elbow": -0.6, "grip": 0.4}))
    solved = fk.solve(wanted, robot.neutral)
    assert np.abs(fk.hand_state(solved).translation - wanted.translation).max() < 1e-3
    grip, follower = (solved[robot.joint_names.index(n)] for n in ("grip", "grip_follower"))
    assert grip == pytest.approx(0.4) and follower == grip
    with pytest.raises(ValueError, match="needs an MJCF model; 'desk_arm' names a URDF"):
        TableTop(robot, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(slot=d.pop("slots")), "field 'slots' is missing"),
        (lambda d: d.update(slot={}), "unknown field 'slot'; known are name, model"),
        (lambda d: d["camera"].update(fov=60), "unknown field 'camera.fov'"),
        (lambda d: d["camera"].update(frame="optic"), "camera.frame is 'optic'; write body"),
        (lambda d: d["camera"].update(fx="wide"), "camera must be finite numbers"),
        (lambda d: d["camera"].update(fx=-1.0), "positive size and focal lengths"),
        (lambda d: d["hands"]["right"].update(wrist="hand"), "hands.right.wrist 'hand' is no link"),
        (
            lambda d: d["hands"]["right"].update(fingers=["grip_follower"]),
            "hands.right names 'grip_follower', which follows 'grip'; name only the joint",
        ),
        (lambda d: d["hands"]["right"].update(open=[]), "one angle per finger joint"),
        (lambda d: d["hands"]["right"].pop("closed"), "field 'hands.right.closed' is missing"),
        (lambda d: d["hands"].update(middle=d["hands"]["right"]), "hands are left and right"),
        (lambda d: d.update(torso=["waist"]), "torso names 'waist', no joint of desk_arm.urdf"),
        (lambda d: d.update(torso="shoulder"), "torso must be a list of joint names"),
        (lambda d: d.update(neutral={"grip": "wide"}), "neutral.grip must be a finite number"),
        (lambda d: d.update(workspace={"origin": [0, 0, 0]}), "'workspace.floor' is missing"),
        (lambda d: d.update(slots={}), "slots is empty"),
    ],
)
def test_a_wrong_description_is_told_what_to_write(desk_arm: Path, change, message: str) -> None:
    description = yaml.safe_load(desk_arm.read_text())
    change(description)
    desk_arm.write_text(yaml.safe_dump(description))
    with pytest.raises(ValueError, match=message) as error:
        load_embodiment(desk_arm)
    assert str(desk_arm) in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('<mimic joint="grip"/>', '<mimic joint="grap"/>', "follows 'grap', which is no movable"),
        ('<mimic joint="grip"/>', '<mimic joint="grip" offset="-2"/>', "no position of 'grip'"),
        ('type="revolute"', 'type="continuous"', "bounded hinges"),
        ("</robot>", "", "no XML"),
    ],
)
def test_a_wrong_model_is_told_why(desk_arm: Path, old: str, new: str, message: str) -> None:
    model = desk_arm.with_suffix(".urdf")
    assert old in model.read_text()
    model.write_text(model.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_embodiment(desk_arm)


def test_couplings_of_mjcf_are_read_as_mujoco_compiles_them(tmp_path: Path) -> None:
    """From an included file, with its offset; a curved one is refused."""
    (tmp_path / "coupling.xml").write_text(
        """<mujocoinclude><equality>
          <joint joint1="b" joint2="a" polycoef="0.1 2 0 0 0"/>
        </equality></mujocoinclude>"""
    )
    (tmp_path / "own.xml").write_text(
        """<mujoco><compiler angle="radian" boundmass="0.01" boundinertia="0.001"/>
          <include file="coupling.xml"/>
          <worldbody><body name="base"><body name="palm">
            <joint name="a" axis="0 0 1" range="0 1"/>
            <body name="tip" pos="0.1 0 0"><joint name="b" axis="0 0 1" range="0 1.1"/></body>
          </body></body></worldbody></mujoco>"""
    )
    description = {
        "name": "own",
        "model": "own.xml",
        "root": "base",
        "camera": {
            "link": "base",
            "width": 64,
            "height": 48,
            "fx": 60,
            "fy": 60,
            "cx": 32,
            "cy": 24,
        },
        "slots": {"left_wrist": {"link": "palm"}},
    }
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(description))
    robot = load_embodiment(path)
    assert robot.q_from({"a": 0.3}) == pytest.approx([0.3, 0.7])
    assert (robot.lower[0], robot.upper[0]) == pytest.approx((0.0, 0.5))  # b ends at 1.1
    text = (tmp_path / "coupling.xml").read_text()
    (tmp_path / "coupling.xml").write_text(text.replace("0.1 2 0 0 0", "0.1 2 1 0 0"))
    with pytest.raises(ValueError, match="coupling of 'b' to 'a' is not linear"):
        load_embodiment(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("slots"), "field 'slots' is missing"),
        (lambda d: d.update(model="none.urdf"), "none.urdf, which does not exist"),
        (lambda d: d["slots"].update(left_knee={"link": "a"}), "left_knee is no hand slot"),
        (lambda d: d["slots"].update(left_wrist={"link": "hand"}), "slots.left_wrist.link"),
        (lambda d: d["slots"].update(left_wrist={"link": "a", "offset": [1]}), "three finite"),
        (lambda d: d["camera"].update(link="eye"), "camera.link 'eye'"),
        (lambda d: d.update(neutral={"elbow": 1.0}), "neutral names 'elbow'"),
        (lambda d: d.update(state_orders={"wire": ["a", "c"]}), "state_orders.wire names 'c'"),
    ],
)
def test_a_wrong_file_is_told_which_field(own_robot: Path, change, message: str) -> None:
    description = yaml.safe_load(own_robot.read_text())
    change(description)
    own_robot.write_text(yaml.safe_dump(description))
    with pytest.raises(ValueError, match=message):
        load_embodiment(own_robot)
