"""robot_sim with ``execute``: told tasks in words, it follows predicted chunks, if simulated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run script/setup")
pytest.importorskip("ego_world_model.msg", reason="needs the built interfaces: run script/setup")

from imagined_graph import ros_graph
from robot_player import ROBOT, Inbox, Reports, playing
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Header, String
from support import NodeProcess, node, wait_until
from trajectory_msgs.msg import JointTrajectory

from ego_world_model.ros.conversions import (
    joint_trajectory_to_message,
    nanoseconds,
    stamp_from_nanoseconds,
)
from ego_world_model.ros.qos import advertise

QUICK = {"width": 160, "height": 120, "camera_rate": 5.0, "seed": 4}
START = 200.0
STEPS = np.arange(17) / 10


@pytest.fixture(scope="module")
def ros(ros_domain: int) -> Iterator[Any]:
    with ros_graph(ros_domain) as node:
        yield node


@pytest.fixture(scope="module")
def heard(ros: Any) -> Inbox:
    inbox = Inbox(ros)
    inbox.listen(Image, "camera/color/image_raw")
    inbox.listen(JointState, "joint_states")
    inbox.listen(String, "instruction")
    inbox.listen(String, "task/status")
    return inbox


@pytest.fixture(scope="module")
def reports(ros: Any) -> Reports:
    return Reports(ros, "robot_sim")


@pytest.fixture(scope="module")
def process(heard: Inbox) -> Iterator[NodeProcess]:
    parameters = {**QUICK, "execute": True, "task_patience": 600.0}
    with node("robot_sim_node", parameters=parameters) as running:
        running.wait_for("the robot moves", timeout=START)
        yield running


@pytest.fixture(scope="module")
def policy(ros: Any, process: NodeProcess) -> Any:
    publisher = advertise(ros, JointTrajectory, "joint_trajectory/predicted")
    wait_until(lambda: publisher.get_subscription_count() > 0, timeout=60, what="robot_sim listens")
    return publisher


def chunk(q: np.ndarray, stamp: int) -> JointTrajectory:
    """(17, nq) rad from the frame of ``stamp`` ns on."""
    header = Header(stamp=stamp_from_nanoseconds(stamp))
    return joint_trajectory_to_message(STEPS, q, ROBOT.joint_names, header=header)


def positions(heard: Inbox) -> np.ndarray:
    return np.array(heard["joint_states"][-1].position)


def test_the_robot_follows_chunks_smoothly(heard: Inbox, policy: Any, reports: Reports) -> None:
    """Chunks of every new frame lead a wrist away; joints arrive and never jump, though each
    chunk comes late and begins where the robot was at its frame."""
    wait_until(lambda: len(heard["joint_states"]) > 50, timeout=60, what="joint states")
    joint = ROBOT.joint_names.index("left_wrist_roll_joint")
    start = positions(heard)
    goal = start.copy()
    goal[joint] += 0.5 if start[joint] < 0.5 else -0.5
    first = len(heard["joint_states"])
    seen = 0

    def arrived() -> bool:
        nonlocal seen
        images = heard["camera/color/image_raw"]
        if len(images) > seen:
            seen = len(images)
            now = positions(heard)
            reach = np.minimum(STEPS / 1.6, 1.0)[:, None]
            stamp = nanoseconds(images[-1].header.stamp)
            policy.publish(chunk(now + reach * (goal - now), stamp))
        return bool(np.abs(positions(heard) - goal).max() < 0.02)

    wait_until(arrived, timeout=60, what="the wrist arrives")
    joints = list(heard["joint_states"])[first:]
    q = np.array([j.position for j in joints])
    stamps = np.array([nanoseconds(j.header.stamp) for j in joints]) * 1e-9
    speed = np.abs(np.diff(q, axis=0)).max(axis=1) / np.maximum(np.diff(stamps), 1e-3)
    assert speed.max() < 2.6, "no joint is faster than arms may be"
    wait_until(lambda: int(reports.values.get("chunks followed", 0)) > 1, what="they are counted")


def test_what_no_robot_may_follow_is_refused_aloud(
    heard: Inbox, policy: Any, reports: Reports
) -> None:
    q = np.repeat(positions(heard)[None], 17, axis=0)
    q[-1, 3] = 50.0
    policy.publish(chunk(q, nanoseconds(heard["camera/color/image_raw"][-1].header.stamp)))
    text = f"points[16].positions is 50.000 rad for joint {ROBOT.joint_names[3]!r}; its limits are"
    wait_until(lambda: text in reports.message, timeout=60, what=text)
    before = positions(heard)
    assert np.abs(before - q[0]).max() < 0.1


def test_tasks_are_told_and_own_words_go_before_them(
    ros: Any, heard: Inbox, policy: Any, process: NodeProcess
) -> None:
    wait_until(lambda: bool(heard["instruction"]), timeout=60, what="an instruction")
    given = heard["instruction"][-1].data
    assert any(hand in given for hand in ("left hand", "right hand", "both hands"))
    wait_until(
        lambda: any(given in m.data for m in heard["task/status"]), timeout=60, what="its status"
    )
    words = advertise(ros, String, "instruction")
    wait_until(lambda: words.get_subscription_count() > 1, timeout=30, what="robot_sim listens")
    words.publish(String(data="wave to the audience"))
    wait_until(
        lambda: heard["task/status"][-1].data.startswith("not judged: wave to the audience"),
        timeout=60,
        what="own words are taken",
    )
    words.publish(String(data=""))
    wait_until(
        lambda: heard["task/status"][-1].data.startswith("under way: "),
        timeout=120,
        what="the tasks go on",
    )
    assert heard["instruction"][-1].data in heard["task/status"][-1].data


def test_execute_refuses_a_graph_with_a_robot(ros_domain: int) -> None:
    """Another publisher of joint states may be a real robot that listens to the policy."""
    with ros_graph(ros_domain) as ros, playing(ros):
        with node("robot_sim_node", parameters={**QUICK, "execute": True}) as running:
            assert running.wait(timeout=START) == 1
        assert "execute:=true moves the simulated robot only, but" in running.output
        assert "Traceback" not in running.output


def test_a_task_that_nobody_can_judge_is_refused(ros_domain: int) -> None:
    with node("robot_sim_node", parameters={**QUICK, "execute": True, "task": "cross"}) as running:
        assert running.wait(timeout=START) == 1
    assert "task 'cross' cannot be judged" in running.output
