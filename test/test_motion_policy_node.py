"""The ``motion_policy`` node over real DDS: what it predicts, what it is told, what it survives."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run script/setup")
pytest.importorskip("ego_world_model.msg", reason="needs the built interfaces: run script/setup")

from imagined_graph import call, ros_graph
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.parameter import Parameter
from robot_player import FRAME, ROBOT, Inbox, Reports, RobotPlayer, playing
from small_policy import INSTRUCTIONS, small_policy
from std_msgs.msg import String
from support import NodeProcess, node, wait_until
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import MarkerArray

from ego_world_model.hands import EXTRA_SLOTS, SLOT_NAMES
from ego_world_model.kinematics import HandKinematics
from ego_world_model.msg import HandTrajectory
from ego_world_model.ros.conversions import (
    hand_trajectory_from_message,
    joint_trajectory_from_message,
    nanoseconds,
)
from ego_world_model.ros.prediction_publisher import GHOST
from ego_world_model.ros.qos import advertise

START = 120.0  # seconds that loading may take on a busy machine
FIXED = {"seed": 3, "smoothing": False, "rate": 10.0, "niceness": 0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    small_policy().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ros(ros_domain: int) -> Iterator[Any]:
    with ros_graph(ros_domain) as node:
        yield node


@pytest.fixture(scope="module")
def robot(ros: Any) -> Iterator[RobotPlayer]:
    with playing(ros) as player:
        yield player


@pytest.fixture(scope="module")
def heard(ros: Any) -> Inbox:
    inbox = Inbox(ros)
    inbox.listen(HandTrajectory, "hands/predicted")
    inbox.listen(JointTrajectory, "joint_trajectory/predicted")
    inbox.listen(MarkerArray, "hands/predicted_markers")
    inbox.listen(String, "instruction")
    return inbox


@pytest.fixture(scope="module")
def reports(ros: Any) -> Reports:
    return Reports(ros, "motion_policy")


@pytest.fixture(scope="module")
def running(checkpoint: Path, robot: RobotPlayer, heard: Inbox) -> Iterator[NodeProcess]:
    with node("motion_policy_node", parameters={"checkpoint": str(checkpoint), **FIXED}) as process:
        wait_until(
            lambda: bool(heard["hands/predicted"]) or not process.alive,
            timeout=START,
            what="the first prediction",
        )
        assert process.alive, process.output
        yield process


def next_chunk(heard: Inbox) -> tuple[JointTrajectory, HandTrajectory]:
    """Joint targets and hands of one frame, predicted from now on."""
    since = time.time_ns()

    def newest() -> tuple[JointTrajectory, HandTrajectory] | None:
        hands = {nanoseconds(m.header.stamp): m for m in list(heard["hands/predicted"])[-20:]}
        for message in reversed(list(heard["joint_trajectory/predicted"])[-20:]):
            stamp = nanoseconds(message.header.stamp)
            if stamp > since and stamp in hands:
                return message, hands[stamp]
        return None

    wait_until(lambda: newest() is not None, timeout=60.0, what="a new chunk")
    found = newest()
    assert found is not None
    return found


def motion(heard: Inbox) -> np.ndarray:
    """(N, nq) rad of a new chunk."""
    message, _ = next_chunk(heard)
    return joint_trajectory_from_message(message, ROBOT.joint_names, hold=ROBOT.neutral)[1]


def test_a_chunk_starts_where_the_robot_is_at_the_stamp_of_a_frame(
    running: NodeProcess, robot: RobotPlayer, heard: Inbox
) -> None:
    """17 frames over 1.6 s in the camera's frame, every slot and elbow of the robot, equal to the
    forward kinematics of the joint targets, which keep to the limits."""
    targets, hands = next_chunk(heard)
    assert nanoseconds(hands.header.stamp) in set(robot.stamps)
    assert hands.header.frame_id == FRAME
    assert hands.source == "policy"
    assert tuple(hands.slot_names) == SLOT_NAMES + EXTRA_SLOTS
    trajectory = hand_trajectory_from_message(hands)
    np.testing.assert_allclose(trajectory.times, np.arange(17) / 10, atol=1e-9)

    times, q = joint_trajectory_from_message(targets, ROBOT.joint_names, hold=ROBOT.neutral)
    np.testing.assert_allclose(times, np.arange(17) / 10, atol=1e-6)
    np.testing.assert_allclose(q[0], ROBOT.neutral, atol=1e-6)
    assert (q >= ROBOT.lower - 1e-6).all() and (q <= ROBOT.upper + 1e-6).all()
    assert not any("knee" in name or "hip" in name for name in targets.joint_names)
    expected = HandKinematics(ROBOT).trajectory(
        times, ROBOT.coupled(q), ROBOT.camera_pose, extra_slots=EXTRA_SLOTS
    )
    np.testing.assert_allclose(trajectory.positions, expected.positions, atol=1e-4)
    assert (trajectory.valid == expected.valid).all()


def test_ghosts_are_translucent_and_of_their_own_colour(running: NodeProcess, heard: Inbox) -> None:
    markers = heard["hands/predicted_markers"]
    wait_until(lambda: bool(markers), timeout=30.0, what="ghost markers")
    for marker in markers[-1].markers:
        assert marker.header.frame_id == FRAME
        for colour in [*marker.colors, *([] if marker.colors else [marker.color])]:
            assert 0 < colour.a < 0.7
            np.testing.assert_allclose((colour.r, colour.g, colour.b), GHOST, atol=1e-6)


def test_the_topic_changes_what_is_predicted_and_the_parameter_tells_it(
    ros: Any, running: NodeProcess, heard: Inbox, reports: Reports
) -> None:
    """With fixed noise, one picture and one pose, only the words can make the difference."""
    words = advertise(ros, String, "instruction")
    wait_until(lambda: words.get_subscription_count() > 0, what="motion_policy listens")
    chunks = []
    for text in (INSTRUCTIONS[0], INSTRUCTIONS[1], INSTRUCTIONS[0]):
        words.publish(String(data=f" {text} "))
        wait_until(
            lambda text=text: reports.values.get("instruction") == text,
            timeout=30.0,
            what=f"the report names {text!r}",
        )
        chunks.append(motion(heard))
    first, second, again = chunks
    np.testing.assert_allclose(first, again, atol=1e-9)
    assert np.abs(first - second).max() > 1e-3
    response = call(
        ros,
        GetParameters,
        "motion_policy/get_parameters",
        GetParameters.Request(names=["instruction"]),
    )
    assert response.values[0].string_value == INSTRUCTIONS[0]


def test_a_parameter_that_is_set_is_told_on_the_topic(
    ros: Any, running: NodeProcess, heard: Inbox, reports: Reports
) -> None:
    """So the node that gives the tasks hears that somebody else has the word."""
    parameter = Parameter("instruction", value=INSTRUCTIONS[3]).to_parameter_msg()
    request = SetParameters.Request(parameters=[parameter])
    response = call(ros, SetParameters, "motion_policy/set_parameters", request)
    assert response.results[0].successful
    wait_until(
        lambda: [m.data for m in heard["instruction"]][-1:] == [INSTRUCTIONS[3]],
        timeout=30.0,
        what="the topic says it",
    )
    wait_until(lambda: reports.values.get("instruction") == INSTRUCTIONS[3], what="the report")


@pytest.mark.parametrize(
    ("attribute", "value", "text"),
    [
        ("encoding", "bayer_rggb8", "encoding 'bayer_rggb8' is not supported"),
        ("positions", [float("nan"), *ROBOT.neutral[1:]], "position is NaN or infinite for"),
        ("info_size", (320, 240), "width, height are 320x240"),
    ],
)
def test_bad_input_is_reported_counted_and_survived(
    running: NodeProcess,
    robot: RobotPlayer,
    heard: Inbox,
    reports: Reports,
    attribute: str,
    value: Any,
    text: str,
) -> None:
    good = getattr(robot, attribute)
    setattr(robot, attribute, value)
    try:
        wait_until(lambda: text in reports.message, timeout=60.0, what=f"a report of {text!r}")
    finally:
        setattr(robot, attribute, good)
    next_chunk(heard)
    assert running.alive


def test_depth_is_used_where_it_comes(
    running: NodeProcess, robot: RobotPlayer, heard: Inbox, reports: Reports
) -> None:
    robot.depth = True
    try:
        wait_until(lambda: "depth used rate" in reports.values, timeout=60.0, what="depth is used")
    finally:
        robot.depth = False
    next_chunk(heard)


def test_the_report_tells_latency_and_tracking_error(
    running: NodeProcess, reports: Reports
) -> None:
    keys = [f"chunk {k}" for k in ("median", "p90", "p99")] + ["tracking error p90", "chunk rate"]
    wait_until(lambda: all(key in reports.values for key in keys), timeout=30.0, what=str(keys))
    assert reports.values["chunk p90"].endswith(" ms")
    assert reports.values["tracking error p90"].endswith(" mm")


def test_a_missing_checkpoint_is_refused(ros_domain: int) -> None:
    with node("motion_policy_node", parameters={"checkpoint": "enormous"}) as process:
        assert process.wait(timeout=START) == 1
    assert "cannot start: motion policy checkpoint 'enormous'" in process.output
    assert "config.json is missing" in process.output
    assert "Traceback" not in process.output


def test_a_robot_whose_hands_the_policy_does_not_know_is_refused(
    ros_domain: int, tmp_path: Path
) -> None:
    small_policy("g1_dex3").save_pretrained(tmp_path)
    parameters = {"checkpoint": str(tmp_path), "embodiment": "h1_2_inspire"}
    with node("motion_policy_node", parameters=parameters) as process:
        assert process.wait(timeout=START) == 1
    assert "this policy knows no finger joint" in process.output
