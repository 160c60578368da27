"""Embodiments: the built-in robot, a user's own, and what a wrong file is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from ego_world_model.embodiment import builtin_embodiments, load_embodiment
from ego_world_model.kinematics import HandKinematics


def test_builtin_robots_are_listed() -> None:
    assert "g1_dex3" in builtin_embodiments()
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
