"""Motor positions as robots send them: named joints, and words for what cannot be."""

from __future__ import annotations

import numpy as np
import pytest

from ego_world_model.embodiment import load_embodiment
from ego_world_model.embodiment.motor_states import (
    BODY_GO,
    BODY_HG,
    INSPIRE,
    MotorStateError,
    ZeroWatch,
    joint_positions,
    motor_layout,
)

G1, H1_2, H1 = map(load_embodiment, ("g1_dex3", "h1_2_inspire", "h1_inspire"))


def test_the_body_takes_its_motors_by_number_and_leaves_spare_ones():
    """Unitree's numbers: 15 is the G1's left shoulder pitch, 29 to 34 have no joint."""
    q = np.zeros(35)
    q[15], q[28], q[34] = -0.4, 0.7, 3.0
    joints = joint_positions(motor_layout(G1, BODY_HG), q)
    assert len(joints) == 29
    assert joints["left_shoulder_pitch_joint"] == -0.4
    assert joints["right_wrist_yaw_joint"] == 0.7


def test_the_first_h1_has_a_motor_number_without_a_joint():
    """unitree_go numbers: 9 does not exist, right arm from 12, left arm from 16."""
    q = np.zeros(20)
    q[6], q[9], q[12], q[19] = 0.2, 99.0, -0.3, 0.8
    joints = joint_positions(motor_layout(H1, BODY_GO), q)
    assert len(joints) == 19
    assert joints["torso_joint"] == 0.2
    assert joints["right_shoulder_pitch_joint"] == -0.3
    assert joints["left_elbow_joint"] == 0.8


def test_both_orders_of_the_dex3_right_hand():
    q = [0.0, 0.0, 0.0, 0.3, 0.4, 0.8, 0.9]
    sdk = joint_positions(motor_layout(G1, "dex3/right"), q)
    named = joint_positions(motor_layout(G1, "dex3/right_middle_first"), q)
    assert (sdk["right_hand_index_0_joint"], sdk["right_hand_middle_1_joint"]) == (0.3, 0.9)
    assert (named["right_hand_middle_0_joint"], named["right_hand_index_1_joint"]) == (0.3, 0.9)


@pytest.mark.parametrize(("first", "second"), [("right", "left"), ("left", "right")])
def test_both_side_conventions_of_inspire_and_its_openness(first, second):
    """1 is open (lower limit), 0 closed (upper limit); the first six are one hand."""
    q = [1.0] * 6 + [0.0, 0.5, 1.0, 1.0, 0.0, 0.0]
    joints = joint_positions(motor_layout(H1_2, INSPIRE, inspire_first_hand=first), q)
    a, b = first[0].upper(), second[0].upper()
    assert joints[f"{a}_pinky_proximal_joint"] == 0.0
    assert joints[f"{a}_thumb_proximal_yaw_joint"] == pytest.approx(-0.1)
    assert joints[f"{b}_pinky_proximal_joint"] == pytest.approx(1.7)
    assert joints[f"{b}_ring_proximal_joint"] == pytest.approx(0.85)
    assert joints[f"{b}_thumb_proximal_pitch_joint"] == pytest.approx(0.5)


def body(robot, **joints):
    """LowState positions of a robot in its neutral pose."""
    pose = {**robot.neutral_pose, **joints}
    q = [pose.get(name, 0.0) for name in robot.state_orders[BODY_HG]]
    return np.array([*q, *[0.0] * (35 - len(q))])


BENT = [0.2, 0.3, 0.9, -0.8, -0.9, -0.8, -0.9]  # a closed left Dex3 hand


@pytest.mark.parametrize(
    ("robot", "source", "values", "message"),
    [
        (G1, BODY_HG, [0.0] * 20, "20 motors, but unitree_hg/LowState of this robot has 29"),
        (G1, "dex3/left", [0.0] * 9, "9 motors, .*Unitree changed HandState in August 2025"),
        (G1, "dex3/left", [np.nan] + [0.0] * 6, "NaN or infinite for left_hand_thumb_0_joint"),
        (G1, "dex3/right", BENT, "the values fit the left hand: the topics .* are swapped"),
        (G1, "dex3/left", np.negative(BENT), "the values fit the right hand: the topics"),
        (G1, BODY_HG, np.degrees(body(G1)), "the values fit degrees"),
        (
            G1,
            BODY_HG,
            body(H1_2, left_elbow_joint=2.5, right_elbow_joint=3.0, left_shoulder_roll_joint=2.8),
            "the values fit h1_2_inspire: start with the embodiment of this robot",
        ),
        (G1, BODY_HG, np.full(35, 1e9), "not a pose of this robot: check the embodiment"),
        (H1_2, INSPIRE, [0.4, 1.6, 1.2, 0.5, 0.3, 1.2] * 2, "the values fit radians"),
        (H1_2, INSPIRE, [1000, 400, 0, 1000, 1000, 200] * 2, "raw registers"),
        (H1_2, INSPIRE, [-7.0] * 12, "check which message holds the hands' positions"),
    ],
)
def test_the_likely_misconfiguration_is_named(robot, source, values, message):
    with pytest.raises(MotorStateError, match=message):
        joint_positions(motor_layout(robot, source), values)


def test_a_joint_a_little_beyond_its_limit_is_measured_all_the_same():
    q = body(G1, left_elbow_joint=G1.upper[G1.joint_names.index("left_elbow_joint")] + 0.2)
    layout = motor_layout(G1, BODY_HG)
    assert joint_positions(layout, q)["left_elbow_joint"] == pytest.approx(2.2944, abs=1e-3)
    with pytest.raises(MotorStateError, match="left_elbow_joint is 2.29 rad, its limits are"):
        joint_positions(layout, q, margin=0.1)


def test_a_robot_without_the_format_is_refused_with_what_it_has():
    with pytest.raises(MotorStateError, match="h1_inspire does not say .*unitree_go/LowState"):
        motor_layout(H1, BODY_HG)


def test_zeros_are_told_only_when_they_last():
    watch = ZeroWatch(after=2.0)
    assert not watch.zeros(np.zeros(7), 10.0)
    assert not watch.zeros(np.zeros(7), 11.9)
    assert watch.zeros(np.zeros(7), 12.0)
    assert not watch.zeros([0.0, 1e-4], 12.1)
    assert not watch.zeros(np.zeros(7), 13.0)
