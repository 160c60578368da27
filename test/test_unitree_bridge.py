"""unitree_bridge in its own process: Unitree's messages over DDS become joint_states."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run script/setup")
pytest.importorskip("ego_world_model.msg", reason="needs the built interfaces: run script/setup")

import yaml
from rcl_interfaces.srv import ListParameters
from robot_player import Inbox, Reports
from sensor_msgs.msg import JointState
from support import NodeProcess, node, wait_until
from unitree_interfaces import build_interfaces

from ego_world_model.embodiment import load_embodiment
from ego_world_model.embodiment.motor_states import BODY_HG
from ego_world_model.ros.unitree_bridge_node import network_advice

START = 200.0  # seconds that imports may take on a busy machine
G1 = load_embodiment("g1_dex3")

# A robot that sends what its command line says, in a process of its own: this one may have imported
# ROS without the message packages.
ROBOT = """
import sys, time, json, rclpy
from rclpy.qos import qos_profile_sensor_data
from unitree_hg.msg import HandState, LowState, MotorState
from unitree_go.msg import MotorStates, MotorState as GoMotor

rclpy.init()
node = rclpy.create_node("unitree_robot")
kinds = {"lowstate": LowState, "inspire/state": MotorStates}
publishers = {}
topics = json.loads(sys.argv[1])
for topic in topics:
    kind = kinds.get(topic, HandState)
    publishers[topic] = node.create_publisher(kind, topic, qos_profile_sensor_data)
print("robot sends", flush=True)
while True:
    for topic, values in topics.items():
        message = kinds.get(topic, HandState)()
        if topic == "lowstate":
            for motor, q in zip(message.motor_state, values):
                motor.q = q
        elif topic == "inspire/state":
            message.states = [GoMotor(q=q) for q in values]
        else:
            message.motor_state = [MotorState(q=q) for q in values]
        publishers[topic].publish(message)
    time.sleep(0.01)
"""
SETTINGS = {"hand_max_age": 5.0, "silence_timeout": 1.0}  # patient with a busy machine


@pytest.fixture(scope="module")
def unitree(ros_domain) -> dict[str, str]:
    """Variables with which Unitree's packages can be imported; built once per environment."""
    return build_interfaces(Path(sys.prefix) / "build-unitree_interfaces")


def robot(topics: dict[str, list[float]], environment: dict[str, str]) -> NodeProcess:
    command = [sys.executable, "-c", ROBOT, json.dumps(topics)]
    process = NodeProcess(command, environment=environment)
    process.wait_for("robot sends", timeout=START)
    return process


def body(embodiment, **joints: float) -> list[float]:
    pose = {**embodiment.neutral_pose, **joints}
    return [pose.get(name, 0.0) for name in embodiment.state_orders[BODY_HG]]


LEFT = [0.1, 0.3, 0.4, -0.5, -0.6, -0.7, -0.8]
RIGHT = [0.1, -0.3, -0.4, 0.5, 0.6, 0.7, 0.8]


def test_body_and_dex3_hands_become_one_joint_state(unitree, ros_node):
    """All joints by name, at lowstate's rate, stamped at arrival; then a hand falls silent."""
    states = Inbox(ros_node).listen(JointState, "joint_states")
    reports = Reports(ros_node, "unitree_bridge")
    hands = {"dex3/left/state": LEFT, "dex3/right/state": RIGHT}
    settings = {**SETTINGS, "right_hand_order": "middle_first"}
    with node("unitree_bridge_node", parameters=settings, environment=unitree) as bridge:
        with robot({"lowstate": body(G1), **hands}, unitree):
            complete = lambda: states and len(states[-1].name) == 43  # noqa: E731
            wait_until(complete, timeout=START, what="joint_states hold body and hands")
            before, started = len(states), time.monotonic()
            wait_until(lambda: len(states) >= before + 100, timeout=60, what="joint_states flow")
            rate = 100 / (time.monotonic() - started)
            message = states[-1]
        q = dict(zip(message.name, message.position, strict=True))
        assert set(q) == set(G1.joint_names)
        assert q["left_elbow_joint"] == pytest.approx(0.25)
        assert q["left_hand_index_1_joint"] == pytest.approx(-0.8)
        assert q["right_hand_middle_0_joint"] == pytest.approx(0.5)
        assert q["right_hand_index_1_joint"] == pytest.approx(0.8)
        stamp = message.header.stamp.sec + message.header.stamp.nanosec * 1e-9
        assert abs(time.time() - stamp) < 30.0
        assert 20.0 < rate < 250.0  # of 100 Hz, on a busy machine and in bursts
        line = bridge.wait_for(
            "no unitree_hg/LowState motor states on /lowstate any more", timeout=60
        )
        assert "RMW_IMPLEMENTATION" in line and "ROS_DOMAIN_ID" in line and "CYCLONEDDS_URI" in line
        assert os.environ["ROS_DOMAIN_ID"] in line
        with robot({"lowstate": body(G1), "dex3/left/state": RIGHT}, unitree):
            bridge.wait_for("the values fit the right hand", timeout=60)
            bridge.wait_for("/dex3/right/state is", timeout=60)
            wait_until(lambda: len(states[-1].name) == 29, timeout=60, what="hands are left out")
        rejected = lambda: "dex3/left/state rejected" in reports.values  # noqa: E731
        wait_until(rejected, timeout=60, what="the refused hand is counted")
        with robot({"lowstate": [0.0] * 35}, unitree):
            bridge.wait_for("/lowstate holds nothing but zeros: the motors are not", timeout=60)
        assert bridge.alive


def test_inspire_hands_of_the_h1_2(unitree, ros_node):
    """Openness becomes radians, by the side convention of the parameter."""
    h1 = load_embodiment("h1_2_inspire")
    states = Inbox(ros_node).listen(JointState, "joint_states")
    openness = [1.0] * 6 + [0.0] * 6
    settings = {**SETTINGS, "embodiment": "h1_2_inspire", "hands": "inspire"}
    settings["inspire_first_hand"] = "left"
    with node("unitree_bridge_node", parameters=settings, environment=unitree):
        with robot({"lowstate": body(h1), "inspire/state": openness}, unitree):
            complete = lambda: states and len(states[-1].name) == 39  # noqa: E731
            wait_until(complete, timeout=START, what="joint_states hold body and hands")
        q = dict(zip(states[-1].name, states[-1].position, strict=True))
    assert q["L_index_proximal_joint"] == 0.0
    assert q["R_index_proximal_joint"] == pytest.approx(1.7)
    assert q["left_elbow_joint"] == pytest.approx(0.55)


def test_another_publisher_of_joint_states_is_told(unitree, ros_node):
    publisher = ros_node.create_publisher(JointState, "joint_states", 1)
    with node("unitree_bridge_node", parameters=SETTINGS, environment=unitree) as bridge:
        line = bridge.wait_for("1 other publisher on /joint_states", timeout=START)
        assert "bridge:=false" in line
    ros_node.destroy_publisher(publisher)


def test_parameters_of_the_configuration_exist(unitree, ros_node, root):
    """A misspelt one would silently do nothing."""
    for robot_name in ("g1", "h1"):
        path = root / "config" / f"{robot_name}.yaml"
        section = yaml.safe_load(path.read_text())["/**/unitree_bridge"]["ros__parameters"]
        client = ros_node.create_client(ListParameters, "/unitree_bridge/list_parameters")
        with node("unitree_bridge_node", parameter_file=path, environment=unitree) as process:
            process.wait_for("waiting for", timeout=START)
            wait_until(client.service_is_ready, timeout=60, what="the node is discovered")
            future = client.call_async(ListParameters.Request())
            wait_until(future.done, timeout=60, what="the parameter list arrives")
        assert set(section) <= set(future.result().result.names)


def test_without_unitrees_packages_the_node_says_what_to_build(ros_domain):
    try:
        import unitree_hg  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("this environment has unitree_hg")
    with node("unitree_bridge_node") as process:
        assert process.wait(timeout=START) == 1
        assert "cannot start: unitree_hg/LowState needs the message package unitree_hg" in (
            process.output
        )


def test_silence_advice_names_middleware_and_interfaces(monkeypatch):
    monkeypatch.setenv("RMW_IMPLEMENTATION", "rmw_cyclonedds_cpp")
    monkeypatch.setenv("CYCLONEDDS_URI", "file:///robot.xml")
    text = network_advice(lambda: [(1, "lo"), (2, "enp3s0")])
    assert "RMW_IMPLEMENTATION is rmw_cyclonedds_cpp" in text
    assert "CYCLONEDDS_URI is file:///robot.xml" in text
    assert "lo, enp3s0" in text
