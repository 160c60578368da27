"""What every node leans on: the latest-frame worker, diagnostics, and declared parameters."""

from __future__ import annotations

import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run script/setup")

from diagnostic_msgs.msg import DiagnosticStatus
from robot_player import Reports
from std_msgs.msg import Header
from support import wait_until

from ego_world_model.camera import CameraPose
from ego_world_model.embodiment import load_embodiment
from ego_world_model.kinematics import HandKinematics
from ego_world_model.ros.camera_tf import CameraTransform
from ego_world_model.ros.conversions import matrix_from_transform
from ego_world_model.ros.diagnostics import Diagnostics
from ego_world_model.ros.parameters import ParameterError, declare
from ego_world_model.ros.worker import LatestWorker


class Gate:
    """Work that waits until it is let through, and remembers what it worked on."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.started = threading.Event()
        self.seen: list[int] = []

    def __call__(self, item: int) -> None:
        self.started.set()
        assert self.open.wait(5.0)
        self.seen.append(item)


def test_worker_skips_to_the_newest_item_and_counts_the_rest():
    gate = Gate()
    with LatestWorker(gate, name="test", on_error=pytest.fail) as worker:
        worker.submit(0)
        assert gate.started.wait(5.0)
        assert worker.submit(1)
        assert not worker.submit(2), "item 1 is replaced before its turn"
        assert not worker.submit(3)
        gate.open.set()
        assert worker.wait_idle(5.0)
    assert gate.seen == [0, 3]
    assert (worker.done, worker.dropped, worker.failed) == (2, 2, 0)


def test_worker_survives_an_exception_and_reports_it():
    errors: list[Exception] = []
    done: list[int] = []

    def work(item: int) -> None:
        if item == 0:
            raise ValueError("bad frame")
        done.append(item)

    with LatestWorker(work, name="test", on_error=errors.append) as worker:
        worker.submit(0)
        assert worker.wait_idle(5.0)
        worker.submit(1)
        assert worker.wait_idle(5.0)
    assert [str(error) for error in errors] == ["bad frame"]
    assert (done, worker.failed) == ([1], 1)


def test_closed_worker_drops_what_waits_and_takes_no_more():
    gate = Gate()
    worker = LatestWorker(gate, name="test", on_error=pytest.fail)
    worker.submit(0)
    assert gate.started.wait(5.0)
    worker.submit(1)
    gate.open.set()
    assert worker.close()
    worker.submit(2)
    assert 2 not in gate.seen


@pytest.fixture
def diagnostics(ros_node) -> Diagnostics:
    return Diagnostics(ros_node, period=0.2, window=1.0)


def test_diagnostics_publish_rates_latencies_and_counters(ros_node, diagnostics):
    reports = Reports(ros_node, ros_node.get_name())
    for k in range(10):
        diagnostics.tick("image")
        diagnostics.latency("latency", 0.001 * k)
    diagnostics.count("dropped", 3)
    wait_until(lambda: "latency median" in reports.values, what="a report")
    assert reports.values["dropped"] == "3"
    assert reports.values["latency median"] == "4.50 ms"
    assert reports.values["latency max"] == "9.00 ms"
    assert reports.values["image rate"].endswith(" Hz")
    assert reports.latest.level == DiagnosticStatus.OK
    assert reports.latest.name == ros_node.get_fully_qualified_name()


def test_problem_fades_and_its_counter_stays(diagnostics):
    diagnostics.problem("frames rejected", "frame 7 is broken")
    status = diagnostics.status()
    assert (status.level, status.message) == (DiagnosticStatus.WARN, "frame 7 is broken")
    time.sleep(1.1)
    status = diagnostics.status()
    assert (status.level, status.message) == (DiagnosticStatus.OK, "working")
    assert diagnostics.counter("frames rejected") == 1


def test_worst_finding_decides_the_level(diagnostics):
    diagnostics.problem("a", "a warning")
    diagnostics.add_check(lambda: (DiagnosticStatus.ERROR, "an error"))
    status = diagnostics.status()
    assert status.level == DiagnosticStatus.ERROR
    assert status.message == "an error; a warning"


def test_parameter_is_described_ranged_and_read_only(ros_node):
    declare(ros_node, "rate", 15.0, "images per second", minimum=1.0, maximum=60.0, read_only=True)
    descriptor = ros_node.describe_parameter("rate")
    assert descriptor.description == "images per second"
    assert descriptor.read_only
    assert descriptor.floating_point_range[0].to_value == 60.0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"default": 90.0, "maximum": 60.0}, "must be float and between"),
        ({"default": "green", "choices": ("red", "blue")}, "one of red, blue"),
        ({"default": [1.0], "length": 3}, "3 numbers"),
    ],
)
def test_parameter_out_of_range_says_what_is_allowed(ros_node, options, text):
    with pytest.raises(ParameterError, match=text):
        declare(ros_node, "rate", description="", **options)


@pytest.mark.parametrize(
    ("robot", "parent", "child"),
    [
        ("g1_dex3", "pelvis", ""),
        ("g1_dex3", "torso_link", "camera_link"),
        ("h1_2_inspire", "pelvis", "camera_link"),
        ("h1_inspire", "torso_link", "camera_link"),
    ],
)
def test_camera_tf_places_the_camera_where_kinematics_does(monkeypatch, robot, parent, child):
    """The calibrated camera's optical frame, also through the tree of a driver that begins at its
    left imager, and with a turned waist. tf2 is not among the wheels: its broadcaster is replaced
    by a list, the rest is real."""
    sent: list = []
    broadcaster = SimpleNamespace(sendTransform=sent.append)
    module = SimpleNamespace(TransformBroadcaster=lambda node: broadcaster)
    monkeypatch.setitem(sys.modules, "tf2_ros", module)
    robot = load_embodiment(robot)
    fk = HandKinematics(robot)
    nominal = robot.camera_pose
    mount = CameraPose(nominal.link, nominal.rotation, nominal.translation + (0.01, -0.02, 0.03))
    q = robot.neutral.copy()
    q[robot.indices(robot.torso)] = 0.3
    transform = CameraTransform(None, fk, mount, parent, child)
    transform.publish(Header(frame_id="optical"), q)
    (message,) = sent
    assert message.header.frame_id == parent
    assert message.child_frame_id == (child or "optical")
    placed = fk.link_poses(q, [parent])[0] @ matrix_from_transform(message.transform)
    if child:  # what the driver says of its colour camera: 15 mm to the left, z forward
        optical = np.eye(4)
        optical[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
        optical[1, 3] = 0.015
        placed = placed @ optical
    np.testing.assert_allclose(placed, fk.camera_pose(q, mount), atol=1e-6)
