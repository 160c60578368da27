"""Every wrong input of the ``world_model`` node is named in the log and in /diagnostics (or in the
action's result), and the node goes on: after the repair, rollouts come again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run script/setup")
pytest.importorskip("ego_world_model.msg", reason="needs the built interfaces: run script/setup")

from action_msgs.msg import GoalStatus
from imagined_graph import (
    TOPICS,
    Listener,
    Robot,
    ended,
    random_checkpoint,
    ros_graph,
    send,
    world_model,
)
from rclpy.action import ActionClient
from support import NodeProcess, wait_until

from ego_world_model.action import Imagine
from ego_world_model.ros.conversions import hand_trajectory_to_message

SILENCE = 2.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def ros(ros_domain: int) -> Iterator[Any]:
    with ros_graph(ros_domain) as ros_node:
        yield ros_node


@pytest.fixture(scope="module")
def robot(ros: Any) -> Iterator[Robot]:
    robot = Robot(ros)
    robot.publishes = set()
    yield robot
    robot.close()


@pytest.fixture(scope="module")
def listener(ros: Any) -> Listener:
    return Listener(ros)


@pytest.fixture(scope="module")
def planned(checkpoint: Path, robot: Robot, listener: Listener) -> Iterator[NodeProcess]:
    """The node on planned joint trajectories; nothing is published yet when it starts."""
    robot.publishes = set()
    with world_model(checkpoint, silence_timeout=SILENCE) as process:
        yield process


def healthy(robot: Robot, listener: Listener, *publishes: str) -> None:
    """Publish sound inputs and see that the node imagines again."""
    robot.publishes = set(publishes or ("image", "info", "joints", "plan"))
    listener.wait_for_rollout(timeout=60.0)


def said(process: NodeProcess, listener: Listener, text: str) -> None:
    """``text`` is in the log and in the node's status on /diagnostics."""
    process.wait_for(text, timeout=60.0)
    listener.wait_for_status(text)


# ------------------------------------------------------------------ predicted hands

# First in this file: later tests share one node, which would be heard beside this test's own.


def test_predicted_hands(checkpoint: Path, robot: Robot, listener: Listener) -> None:
    """With motion_source=predicted: sound trajectories give rollouts without joint states; wrong
    frame, slots, horizon and length are each named, and the node carries on."""
    robot.publishes = {"image", "info", "hands"}
    wrong = [
        ({"header": "pelvis"}, "/hands/predicted: header.frame_id is 'pelvis'"),
        ({"slot_names": ["tail_tip"]}, "/hands/predicted: slot_names holds unknown slots"),
        ({"times": np.arange(9) / 10}, "/hands/predicted: times end 0.80 s"),
        ({"valid": [True]}, "/hands/predicted: valid has 1 entries, 782 expected"),
    ]
    with world_model(checkpoint, silence_timeout=SILENCE, motion_source="predicted") as process:
        rollout = listener.wait_for_rollout(timeout=60.0)
        assert rollout.trajectory.source == "test"
        for changes, text in wrong:
            robot.hand_changes = changes
            said(process, listener, text)
            robot.hand_changes = {}
            listener.wait_for_rollout(timeout=60.0)
        robot.publishes.discard("hands")
        said(process, listener, "no hand trajectory on /hands/predicted any more")
    robot.publishes = set()


# ------------------------------------------------------------------ missing inputs


def test_nothing_arrives(planned: NodeProcess, robot: Robot, listener: Listener) -> None:
    """The first start on a machine without a robot: all four inputs are named with their topics."""
    line = planned.wait_for("no camera images", timeout=60.0)
    for what, key in [
        ("camera images", "image"),
        ("camera calibration", "info"),
        ("joint states", "joints"),
        ("planned joint trajectory", "plan"),
    ]:
        assert f"no {what} on /{TOPICS[key]} yet" in line
    assert "sim:=true" in line
    listener.wait_for_status("no camera images")
    healthy(robot, listener)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("image", "no camera images on /camera/color/image_raw any more"),
        ("info", "no camera calibration on /camera/color/camera_info any more"),
        ("joints", "no joint states on /joint_states any more"),
        ("plan", "no planned joint trajectory on /joint_trajectory/planned any more"),
    ],
)
def test_one_input_falls_silent(
    planned: NodeProcess, robot: Robot, listener: Listener, key: str, text: str
) -> None:
    healthy(robot, listener)
    robot.publishes.discard(key)
    said(planned, listener, text)
    healthy(robot, listener)


# ------------------------------------------------------------------ wrong inputs


def joints_with_nan(robot: Robot) -> None:
    message = robot.joints(robot.now())
    message.position[3] = float("nan")
    robot.publishers["joints"].publish(message)


def joints_of_another_robot(robot: Robot) -> None:
    message = robot.joints(robot.now())
    message.name = [f"other_{name}" for name in message.name]
    robot.publishers["joints"].publish(message)


def joints_with_a_stranger(robot: Robot) -> None:
    message = robot.joints(robot.now())
    message.name = [*message.name, "tail_joint"]
    message.position = [*message.position, 0.0]
    robot.publishers["joints"].publish(message)


def plan_with(change: Callable[[Any], None]) -> Callable[[Robot], None]:
    def publish(robot: Robot) -> None:
        message = robot.plan(robot.now())
        change(message)
        robot.publishers["plan"].publish(message)

    return publish


def _unknown_joint(message: Any) -> None:
    message.joint_names[0] = "left_antenna_joint"


def _nan(message: Any) -> None:
    message.points[2].positions[5] = float("nan")


def _too_few_positions(message: Any) -> None:
    message.points[4].positions = message.points[4].positions[:-1]


def _no_points(message: Any) -> None:
    message.points = []


def _times_fall(message: Any) -> None:
    message.points[1].time_from_start = message.points[0].time_from_start


@pytest.mark.parametrize(
    ("publish", "text"),
    [
        (joints_with_nan, "/joint_states: position is NaN or infinite for "),
        (joints_of_another_robot, "/joint_states: name lacks "),
        (joints_with_a_stranger, "not have, ignored: tail_joint; set the parameter 'embodiment'"),
        (
            plan_with(_unknown_joint),
            "/joint_trajectory/planned: joint_names holds unknown joints 'left_antenna_joint'",
        ),
        (plan_with(_nan), "/joint_trajectory/planned: points[2].positions is nan for joint"),
        (
            plan_with(_too_few_positions),
            "/joint_trajectory/planned: points[4].positions has 42 values for 43 joint_names",
        ),
        (plan_with(_no_points), "/joint_trajectory/planned: points is empty"),
        (plan_with(_times_fall), "/joint_trajectory/planned: points[1].time_from_start"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_broken_message_is_named_and_left_out(
    planned: NodeProcess,
    robot: Robot,
    listener: Listener,
    publish: Callable[[Robot], None],
    text: str,
) -> None:
    """Broken messages among sound ones: named; the sound ones keep the rollouts coming."""
    healthy(robot, listener)
    last = 0.0

    def seen() -> bool:
        nonlocal last
        if time.monotonic() - last > 0.5:  # the log takes one message of a kind every 10 s
            publish(robot)
            last = time.monotonic()
        return text in planned.output and text in listener.status.message

    wait_until(seen, timeout=60.0, what=f"{text!r} in the log and /diagnostics")
    listener.wait_for_rollout()


def test_plan_shorter_than_the_horizon(
    planned: NodeProcess, robot: Robot, listener: Listener
) -> None:
    healthy(robot, listener)
    robot.reach = 0.8
    said(planned, listener, "but the model imagines 1.60 s; plan at least 1.60 s ahead")
    robot.reach = 4.0
    healthy(robot, listener)


def test_joint_states_of_another_clock(
    planned: NodeProcess, robot: Robot, listener: Listener
) -> None:
    """Joint states too sparse to be the robot's state at any frame are never paired with one."""
    healthy(robot, listener)
    robot.joint_period = 0.3
    said(planned, listener, "/joint_states: header.stamp does not match the camera's")
    robot.joint_period = 0.01
    healthy(robot, listener)


def test_unsupported_encoding(planned: NodeProcess, robot: Robot, listener: Listener) -> None:
    healthy(robot, listener)
    robot.encoding = "bayer_rggb8"
    said(planned, listener, "/camera/color/image_raw: encoding 'bayer_rggb8' is not supported")
    robot.encoding = "rgb8"
    healthy(robot, listener)


def test_resolution_changes_while_running(
    planned: NodeProcess, robot: Robot, listener: Listener
) -> None:
    """The intrinsics change with the images; images whose CameraInfo lags are refused until both
    agree. What is imagined keeps its size and its intrinsics, for the camera's view is the same."""
    healthy(robot, listener)
    before = listener.wait_for_rollout().camera_info
    robot.info_size, robot.size = robot.size, (320, 240)
    said(
        planned,
        listener,
        "/camera/color/camera_info: width, height are 160x120 but /camera/color/image_raw is "
        "320x240",
    )
    robot.info_size = None
    after = listener.wait_for_rollout(timeout=60.0).camera_info
    assert (after.width, after.height) == (before.width, before.height)
    np.testing.assert_allclose(after.k, before.k, atol=1e-6)
    robot.size = (160, 120)
    healthy(robot, listener)


def test_uncalibrated_camera(planned: NodeProcess, robot: Robot, listener: Listener) -> None:
    healthy(robot, listener)
    robot.calibrated = False
    said(planned, listener, "/camera/color/camera_info: k is all zero")
    robot.calibrated = True
    healthy(robot, listener)


# ------------------------------------------------------------------ goals


def _goal(robot: Robot, **changes: Any) -> Imagine.Goal:
    """A sound goal with its own image, whose one candidate is then changed."""
    stamp = robot.now()
    candidate = hand_trajectory_to_message(
        robot.motion(), header=robot.header(stamp), source="candidate"
    )
    for field, value in changes.items():
        setattr(candidate, field, value(candidate))
    return Imagine.Goal(
        candidates=[candidate], image=robot.image(stamp), camera_info=robot.info(stamp)
    )


def _in_pelvis(message: Any) -> Any:
    message.header.frame_id = "pelvis"
    return message.header


def _late(message: Any) -> Any:
    message.header.stamp.sec += 1
    return message.header


GOALS: dict[str, tuple[Callable[[Robot], Imagine.Goal], str]] = {
    "frame": (
        lambda robot: _goal(robot, header=_in_pelvis),
        "imagine: candidates[0]: header.frame_id is 'pelvis' but the camera's optical frame is",
    ),
    "start": (
        lambda robot: _goal(robot, header=_late),
        "imagine: candidates[0]: header.stamp is 1.000 s after the reference frame",
    ),
    "slots": (
        lambda robot: _goal(robot, slot_names=lambda m: ["tail_tip", *m.slot_names[1:]]),
        "imagine: candidates[0]: slot_names holds unknown slots 'tail_tip'",
    ),
    "too few slots": (
        lambda robot: _goal(robot, slot_names=lambda m: m.slot_names[:21]),
        "imagine: candidates[0]: slot_names (21 names) lacks right_wrist",
    ),
    "horizon": (
        lambda robot: _goal(
            robot,
            times=lambda m: m.times[:9],
            positions=lambda m: m.positions[: 9 * 46],
            valid=lambda m: m.valid[: 9 * 46],
        ),
        "imagine: candidates[0]: times end 0.80 s after the reference frame but the model imagines "
        "1.60 s",
    ),
    "length": (
        lambda robot: _goal(robot, positions=lambda m: m.positions[:-1]),
        "imagine: candidates[0]: positions has 781 entries, 782 expected",
    ),
    "no candidates": (lambda robot: _no_candidates(robot), "imagine: candidates holds 0"),
    "no intrinsics": (lambda robot: _no_intrinsics(robot), "imagine: camera_info: k is all zero"),
}


def _no_candidates(robot: Robot) -> Imagine.Goal:
    goal = _goal(robot)
    goal.candidates = []
    return goal


def _no_intrinsics(robot: Robot) -> Imagine.Goal:
    goal = _goal(robot)
    goal.camera_info = type(goal.camera_info)()
    return goal


@pytest.fixture(scope="module")
def client(ros: Any, planned: NodeProcess) -> ActionClient:
    client = ActionClient(ros, Imagine, "imagine")
    assert client.wait_for_server(60.0)
    return client


@pytest.mark.parametrize("case", GOALS)
def test_goal_that_cannot_be_met_says_why(
    client: ActionClient, planned: NodeProcess, robot: Robot, listener: Listener, case: str
) -> None:
    """Accepted and aborted, with the field, what is wrong with it and the remedy in the result."""
    build, text = GOALS[case]
    handle = send(client, build(robot))
    outcome = ended(client, handle)
    assert outcome.status == GoalStatus.STATUS_ABORTED
    assert not outcome.result.success
    assert text in outcome.result.message
    planned.wait_for(text)
    sound = ended(client, send(client, _goal(robot)))
    assert sound.result.success, sound.result.message
    healthy(robot, listener)


def test_broken_input_leaves_a_count(listener: Listener, planned: NodeProcess) -> None:
    """What went wrong stays countable by cause after it was repaired."""
    wait_until(
        lambda: any("rejected" in pair.key for pair in listener.status.values),
        what="counters of rejected inputs",
    )
