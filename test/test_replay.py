"""`ego-world-model replay` over DDS: a bag drives the graph, and drives it the same every time."""

from __future__ import annotations

import signal
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run script/setup")
pytest.importorskip("ego_world_model.msg", reason="needs the built interfaces: run script/setup")

import bags
from bags import IMAGE_TOPIC, camera_messages, joint_messages, stamp, write_bag
from rclpy.qos import ReliabilityPolicy
from recordings import command, picture
from replaying import FRAMES, START, cli, lossless, replay, uneven_bag
from robot_player import Inbox
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from support import node, wait_until

from ego_world_model.data import DatasetReader
from ego_world_model.msg import HandJoints
from ego_world_model.ros.conversions import (
    hand_joints_from_message,
    nanoseconds,
    rgb_from_image,
)
from ego_world_model.ros.qos import subscribe


def keep_all(ros_node: Any, kind: type, topic: str) -> list[Any]:
    """The messages of a topic, none lost on a busy machine."""
    messages: list[Any] = []
    subscribe(ros_node, kind, topic, messages.append, depth=1000, reliable=True)
    return messages


def test_a_bag_driven_graph_gives_the_same_hands_at_any_speed(ros_node, tmp_path):
    """Same stamps, bit-identical positions; and they are what importing the bag gives."""
    bag = uneven_bag(tmp_path / "bag")
    hands = Inbox(ros_node).listen(HandJoints, "hands/joints")
    plays: list[dict[int, bytes]] = []
    settings = {"use_sim_time": True}
    with node(
        "hand_kinematics_node", parameters=settings, parameter_file=lossless(tmp_path)
    ) as process:
        process.wait_for("waiting for", timeout=START)
        offers = lambda: ros_node.get_subscriptions_info_by_topic("/joint_states")  # noqa: E731
        wait_until(lambda: bool(offers()), timeout=60, what="the node subscribes")
        assert offers()[0].qos_profile.reliability == ReliabilityPolicy.RELIABLE
        for rate in (1.0, 0.5, 4.0):
            before = len(hands)
            replay(bag, "--rate", rate)
            wait_until(
                lambda b=before: len(hands) - b >= len(FRAMES),
                timeout=30,
                what=f"every frame is answered at rate {rate}: {process.output}",
            )
            answered = hands[before:]
            assert [nanoseconds(m.header.stamp) for m in answered] == [stamp(t) for t in FRAMES]
            joints = [hand_joints_from_message(m) for m in answered]
            plays.append({k: j.positions.tobytes() for k, j in enumerate(joints)})
        assert process.alive and "rejected" not in process.output
    assert plays[0] == plays[1] == plays[2]
    assert len(set(plays[0].values())) == len(FRAMES), "every frame has joints of its own"
    done = command("import", "bag", bag, "--out", tmp_path / "out", "--fps", 15)
    assert done.exit_code == 0, done.output
    episode = DatasetReader(tmp_path / "out").episode(0)
    positions = np.stack([j.positions for j in joints])
    np.testing.assert_allclose(positions, episode.hand_positions, atol=2e-6)


def test_messages_arrive_unchanged_in_order_after_their_time(ros_node, tmp_path):
    """Pictures to the byte, every joint state; /clock never runs back and ends with the bag."""
    messages = camera_messages(FRAMES) + joint_messages(np.arange(100) / 50)
    bag = write_bag(tmp_path / "bag", messages)
    images, joints, clock = (
        keep_all(ros_node, kind, topic)
        for kind, topic in (
            (Image, "other/image"),
            (JointState, "joint_states"),
            (Clock, "/clock"),
        )
    )
    printed = replay(bag, "--remap", f"{IMAGE_TOPIC}:=/other/image", "--rate", 2)
    assert "played 160 messages of 3 topics" in printed
    wait_until(lambda: len(images) == 30 and len(joints) == 100, timeout=30, what="all arrive")
    assert [nanoseconds(m.header.stamp) for m in images] == [stamp(t) for t in FRAMES]
    np.testing.assert_array_equal(rgb_from_image(images[7]), picture(7))
    times = [nanoseconds(m.clock) for m in clock]
    assert times == sorted(times) and len(times) > 100
    assert times[-1] == max(stamp(t) for t, _, _ in messages)


def test_a_part_of_a_bag_and_chosen_topics(ros_node, tmp_path):
    """--start-offset and --topic; nothing else is published."""
    joints = joint_messages(np.arange(100) / 50)
    bag = write_bag(tmp_path / "bag", camera_messages(FRAMES) + joints)
    inbox = Inbox(ros_node)
    images, states = inbox.listen(Image, IMAGE_TOPIC), inbox.listen(JointState, "joint_states")
    clock = inbox.listen(Clock, "/clock")
    replay(bag, "--start-offset", 1.5, "--topic", "joint_states", "--rate", 5, "--no-clock")
    wait_until(lambda: len(states) == 25, timeout=30, what="the last half second")
    assert nanoseconds(states[0].header.stamp) == stamp(1.5)
    assert not images and not clock


def test_who_only_follows_the_clock_does_not_count_as_listening(ros_node, tmp_path):
    """The bag is played, and that nobody hears it is said."""
    bag = write_bag(tmp_path / "bag", joint_messages(np.arange(10) / 50))
    Inbox(ros_node).listen(Clock, "/clock")
    with cli("replay", bag, "--wait", 2) as process:
        assert process.wait(timeout=START) == 0, process.output
    assert "nobody subscribes to these topics" in process.output
    assert "played 10 messages" in process.output


def test_loop_begins_again_until_ctrl_c(ros_node, tmp_path):
    bag = write_bag(tmp_path / "bag", joint_messages(np.arange(10) / 50))
    clock = Inbox(ros_node).listen(Clock, "/clock")
    with cli("replay", bag, "--loop", "--wait", 60) as process:

        def jumped() -> bool:
            times = [nanoseconds(m.clock) for m in clock]
            return sum(b < a for a, b in zip(times, times[1:], strict=False)) >= 2

        wait_until(jumped, timeout=START, what="/clock goes back twice")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    assert "played" in process.output and "Traceback" not in process.output


def test_topics_without_their_message_package_are_named_and_left_out(ros_node, tmp_path):
    """The rest plays; a bag of nothing else is an error."""
    try:
        import unitree_hg  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("this environment has unitree_hg")
    low = [(0.1, "/lowstate", bags.low_state({}))]
    texts = Inbox(ros_node).listen(String, "instruction")
    mixed = write_bag(tmp_path / "mixed", [*low, (0.2, "/instruction", bags.text("wave"))])
    printed = replay(mixed)
    assert "left out: /lowstate, unitree_hg/msg/LowState is not installed" in printed
    wait_until(lambda: bool(texts), what="the rest is played")
    assert texts[0].data == "wave"
    with cli("replay", write_bag(tmp_path / "low", low)) as process:
        assert process.wait(timeout=START) == 1
    assert "nothing of the bag can be played" in process.output
    assert "unitree_hg" in process.output and "Traceback" not in process.output


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--topic", "/nope"], "no messages on /nope; it has /joint_states"),
        (["--start-offset", 9], "leaves nothing"),
        (["--remap", "a=b"], "is not FROM:=TO"),
    ],
)
def test_wrong_options_are_refused(ros_domain, tmp_path, options, text):
    bag = write_bag(tmp_path / "bag", joint_messages(np.arange(10) / 50))
    done = command("replay", bag, *options)
    assert done.exit_code in (1, 2)
    assert text in " ".join(done.output.replace("│", " ").split())


def test_a_folder_without_a_bag_is_refused(ros_domain, tmp_path):
    done = command("replay", tmp_path)
    assert done.exit_code == 1 and "no rosbag2 recording at" in done.output
