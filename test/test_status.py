"""The status line shows what nodes report, and what does not flow."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run script/setup")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from support import wait_until

from ego_world_model.ros.status import StatusBoard


def report(name: str, level: bytes = DiagnosticStatus.OK, message: str = "working", **values: str):
    pairs = [KeyValue(key=key.replace("_", " "), value=value) for key, value in values.items()]
    return DiagnosticStatus(name=name, level=level, message=message, values=pairs)


@pytest.fixture
def board():
    board = StatusBoard(["/left/hand_kinematics", "/left/world_model", "/left/viewer"])
    yield board
    board.close()


def test_reports_of_this_graph_become_one_line(ros_node, board):
    assert board.line() == "nothing flows yet || waiting for hand_kinematics, world_model"
    publisher = ros_node.create_publisher(DiagnosticArray, "/diagnostics", 10)
    status = [
        report("/left/hand_kinematics", image_rate="15.0 Hz", latency_median="2.10 ms"),
        report("/right/hand_kinematics", image_rate="99.0 Hz"),
        report("/left/world_model", rollouts="12", rollout_median="900.00 ms"),
    ]
    publish = ros_node.create_timer(0.1, lambda: publisher.publish(DiagnosticArray(status=status)))
    wait_until(lambda: "rollouts" in board.line(), what="reports arrive")
    assert board.line() == "camera 15.0 Hz | after 2.10 ms | rollouts 12 | each 900.00 ms"

    status[2] = report("/left/world_model", DiagnosticStatus.WARN, "no camera images on /x yet")
    wait_until(lambda: "no camera" in board.line(), what="the warning arrives")
    assert board.line().endswith(" || world_model: no camera images on /x yet")

    board.node_ended("world_model", "world_model ended with exit code 1")
    assert board.line().endswith(" || world_model ended with exit code 1")

    publish.cancel()
    wait_until(
        lambda: "waiting for hand_kinematics" in board.line(), what="old reports are not shown"
    )
