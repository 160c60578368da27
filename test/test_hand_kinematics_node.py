"""hand_kinematics in its own process: right hands for every frame, clear words for the rest."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run script/setup")
pytest.importorskip("ego_world_model.msg", reason="needs the built interfaces: run script/setup")

from robot_player import FRAME, ROBOT, Inbox, Reports, RobotPlayer, playing
from sensor_msgs.msg import Image, PointCloud2
from support import node, wait_until
from visualization_msgs.msg import Marker, MarkerArray

from ego_world_model.kinematics import HandKinematics
from ego_world_model.msg import HandJoints
from ego_world_model.ros.conversions import (
    hand_joints_from_message,
    nanoseconds,
    rgb_from_image,
)

START = 200.0  # seconds that imports may take on a busy machine
# Patient with this process, whose joint states a busy machine may delay; the strict defaults are
# tested without processes in test_joint_buffer.py.
SETTINGS = {"silence_timeout": 1.0, "joint_tolerance": 0.5, "joint_wait": 0.5}


@pytest.fixture(scope="module")
def process(ros_domain):
    with node("hand_kinematics_node", parameters=SETTINGS) as running:
        running.wait_for("waiting for", timeout=START)
        yield running


@pytest.fixture
def hands(ros_node) -> list[HandJoints]:
    return Inbox(ros_node).listen(HandJoints, "hands/joints")


@pytest.fixture
def reports(ros_node) -> Reports:
    return Reports(ros_node, "hand_kinematics")


def flows(hands: list[HandJoints], count: int = 5) -> None:
    """Waits for ``count`` new messages."""
    before = len(hands)
    wait_until(lambda: len(hands) >= before + count, timeout=60, what="hands/joints flows")


def test_hands_of_a_frame_are_those_of_kinematics_at_its_stamp(process, ros_node, hands):
    with playing(ros_node) as player:
        flows(hands, 10)
        camera = player.camera()
        stamps = set(player.stamps)
    message = hands[-1]
    assert nanoseconds(message.header.stamp) in stamps
    assert message.header.frame_id == FRAME
    assert (message.image_width, message.image_height) == (160, 120)
    assert message.embodiment == "g1_dex3"
    received = hand_joints_from_message(message)
    expected = HandKinematics(ROBOT).hand_joints(ROBOT.neutral, extra_slots=ROBOT.extra_slots)
    np.testing.assert_array_equal(received.valid, expected.valid)
    np.testing.assert_allclose(received.positions, expected.positions, atol=1e-6)
    pixels = camera.project(expected.positions)[expected.valid]
    np.testing.assert_allclose(np.array(message.u)[expected.valid], pixels[:, 0], atol=1e-2)
    np.testing.assert_allclose(np.array(message.v)[expected.valid], pixels[:, 1], atol=1e-2)
    depth = expected.positions[expected.valid, 2]
    np.testing.assert_allclose(np.array(message.disparity)[expected.valid], 1 / depth, rtol=1e-4)
    seen = np.array(message.visibility)
    assert seen[~expected.valid].max() == 0
    assert seen.min() >= 0 and 0.9 < seen.max() <= 1


def test_every_frame_is_answered_once_or_counted_as_dropped(process, ros_node, hands, reports):
    def dropped() -> int:
        return sum(int(n) for key, n in reports.values.items() if key.startswith("frames dropped"))

    with playing(ros_node) as player:
        flows(hands, 5)
        wait_until(lambda: bool(reports.values), what="a report", timeout=60)
        before = dropped()
        begin = nanoseconds(hands[-1].header.stamp)
        flows(hands, 40)
    time.sleep(2.5)  # the last frames, and a report that knows of them
    answered = [stamp for m in hands if (stamp := nanoseconds(m.header.stamp)) >= begin]
    assert answered == sorted(set(answered)), "in order, and once"
    lost = {stamp for stamp in player.stamps if stamp >= begin} - set(answered)
    assert len(lost) <= dropped() - before, reports.values


def test_markers_overlay_and_points_follow_their_subscribers(process, ros_node, hands, reports):
    with playing(ros_node) as player:
        player.depth = True
        flows(hands)
        wait_until(lambda: bool(reports.values), what="a report")
        assert "overlay rate" not in reports.values, "nobody looks, so nothing is drawn"
        inbox = Inbox(ros_node)
        markers = inbox.listen(MarkerArray, "hands/markers")
        overlays = inbox.listen(Image, "hands/overlay/image_raw")
        clouds = inbox.listen(PointCloud2, "hands/points")
        wait_until(lambda: markers and overlays and clouds, timeout=60, what="markers, pictures")
    spheres, lines = markers[-1].markers
    assert (spheres.type, lines.type) == (Marker.SPHERE_LIST, Marker.LINE_LIST)
    assert len(spheres.points) == sum(hands[-1].valid) == len(spheres.colors)
    drawn = rgb_from_image(overlays[-1])
    assert drawn.shape == (120, 160, 3)
    assert (drawn != 90).any(), "joints are drawn into the image"
    cloud = clouds[-1]
    points = np.frombuffer(cloud.data, np.float32).reshape(-1, 4)
    assert len(points) == 60 * 40 == cloud.width, "the right half has depth; every second pixel"
    np.testing.assert_allclose(points[:, 2], 1.5)
    leftmost = player.camera().unproject([80, 0], 1.5)
    np.testing.assert_allclose(points[:, 0].min(), leftmost[0], atol=1e-5)
    np.testing.assert_array_equal(points[:, 3].view(np.uint32), 90 << 16 | 90 << 8 | 90)
    assert cloud.header.frame_id == FRAME


@pytest.mark.parametrize(
    ("silent", "text"),
    [
        ("images", "no camera images on /camera/color/image_raw"),
        ("infos", "no camera intrinsics on /camera/color/camera_info"),
        ("joints", "no joint states on /joint_states"),
    ],
)
def test_missing_input_is_named_and_the_node_recovers(
    process, ros_node, hands, reports, silent, text
):
    with playing(ros_node) as player:
        setattr(player, silent, False)
        line = process.wait_for(text)
        assert "sim:=true" in line and "ROS_DOMAIN_ID" in line
        wait_until(lambda: text in reports.message, what=f"diagnostics say {text!r}", timeout=60)
        assert process.alive
        # Intrinsics that were received once stay true; frames need the other two.
        assert silent == "infos" or not hands
        setattr(player, silent, True)
        flows(hands)


def _break_joints(player: RobotPlayer, what: str) -> None:
    if what == "nan":
        player.positions = [float("nan"), *ROBOT.neutral[1:]]
    elif what == "missing":
        kept = [i for i, name in enumerate(ROBOT.joint_names) if name != "left_elbow_joint"]
        player.names = [ROBOT.joint_names[i] for i in kept]
        player.positions = ROBOT.neutral[kept].tolist()
    elif what == "length":
        player.positions = ROBOT.neutral[:-1].tolist()


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("nan", f"position is NaN or infinite for {ROBOT.joint_names[0]}"),
        ("missing", "lacks 1 joints of this robot: left_elbow_joint"),
        ("length", "entries but position has"),
    ],
)
def test_unusable_joint_states_are_refused_aloud(process, ros_node, hands, reports, what, text):
    with playing(ros_node) as player:
        flows(hands)
        good = player.names, player.positions
        _break_joints(player, what)
        process.wait_for(text)
        wait_until(lambda: text in reports.message, what=f"diagnostics say {text!r}", timeout=60)
        time.sleep(0.3)
        count = len(hands)
        time.sleep(0.5)
        assert len(hands) == count, "no frame is paired with joint states that are refused"
        player.names, player.positions = good
        flows(hands)
        assert process.alive


def test_unknown_joints_are_ignored_aloud(process, ros_node, hands, reports):
    with playing(ros_node) as player:
        player.names = [*ROBOT.joint_names, "tail_joint"]
        player.positions = [*ROBOT.neutral, 0.3]
        process.wait_for("joints unknown to g1_dex3, ignored: tail_joint")
        flows(hands)


def test_unsupported_encoding_stops_only_the_pictures(process, ros_node, hands, reports):
    with playing(ros_node) as player:
        player.encoding = "bayer_rggb8"
        overlays = Inbox(ros_node).listen(Image, "hands/overlay/image_raw")
        line = process.wait_for("encoding 'bayer_rggb8' is not supported")
        assert "/camera/color/image_raw" in line and "rgb8" in line
        wait_until(lambda: "bayer_rggb8" in reports.message, what="diagnostics name the encoding")
        flows(hands)
        assert not overlays
        player.encoding = "rgb8"
        wait_until(lambda: bool(overlays), what="overlay after the encoding is right")


def test_changed_resolution_is_followed_once_camera_info_says_so(process, ros_node, hands):
    with playing(ros_node) as player:
        flows(hands)
        player.size, player.info_size = (320, 240), (160, 120)
        process.wait_for("width, height are 160x120 but /camera/color/image_raw is 320x240")
        time.sleep(0.3)
        count = len(hands)
        time.sleep(0.3)
        assert len(hands) == count, "no pixels are published that no camera describes"
        player.info_size = None
        flows(hands)
    assert hands[-1].image_width == 320
    u_small, u_large = np.array(hands[0].u), np.array(hands[-1].u)
    valid = np.array(hands[-1].valid)
    np.testing.assert_allclose((u_small + 0.5)[valid] * 2, (u_large + 0.5)[valid], atol=0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_node_quietly(ros_node, number):
    with node("hand_kinematics_node", remaps={"hands/joints": "other/joints"}) as process:
        others = Inbox(ros_node).listen(HandJoints, "other/joints")
        process.wait_for("waiting for", timeout=START)
        with playing(ros_node):
            flows(others)
        process.send_signal(number)
        assert process.wait(timeout=60) == 0
    assert "Traceback" not in process.output


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"embodiment": "g2_dex9"}, "g2_dex9"),
        ({"joint_tolerance": -1.0}, "'joint_tolerance' must be float and between 0.001 and 1"),
        ({"camera_tf_parent": "tail"}, "camera_tf_parent"),
    ],
)
def test_wrong_parameters_are_refused_at_start(parameters, text):
    with node("hand_kinematics_node", parameters=parameters) as process:
        assert process.wait(timeout=START) == 1
    assert "cannot start" in process.output and text in process.output
    assert "Traceback" not in process.output


def test_niceness_reaches_every_thread(ros_domain):
    with node("hand_kinematics_node", parameters={"nice": 3}) as process:
        process.wait_for("waiting for", timeout=START)
        tasks = os.listdir(f"/proc/{process.pid}/task")
        assert len(tasks) > 3
        assert {os.getpriority(os.PRIO_PROCESS, int(task)) for task in tasks} == {3}
