"""robot_sim in a process of its own: a robot in real time, whose parts agree with each other."""

from __future__ import annotations

import signal

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run script/setup")
pytest.importorskip("ego_world_model.msg", reason="needs the built interfaces: run script/setup")

from robot_player import ROBOT, Inbox, Reports
from sensor_msgs.msg import CameraInfo, Image, JointState
from support import node, wait_until
from trajectory_msgs.msg import JointTrajectory

from ego_world_model.kinematics import HandKinematics
from ego_world_model.ros.conversions import (
    camera_from_info,
    depth_from_image,
    joint_trajectory_from_message,
    joint_trajectory_to_message,
    nanoseconds,
    rgb_from_image,
)
from ego_world_model.ros.qos import advertise

# Small and slow pictures: the tests are about the robot, not about the renderer's speed.
QUICK = {"width": 160, "height": 120, "camera_rate": 5.0, "seed": 4}
START = 200.0  # seconds that building and planning the first task may take on a busy machine


class Robot:
    """What the simulated robot publishes."""

    def __init__(self, ros_node) -> None:
        inbox = Inbox(ros_node)
        self.images: list[Image] = inbox.listen(Image, "camera/color/image_raw")
        self.infos: list[CameraInfo] = inbox.listen(CameraInfo, "camera/color/camera_info")
        self.depths: list[Image] = inbox.listen(Image, "camera/aligned_depth_to_color/image_raw")
        self.joints: list[JointState] = inbox.listen(JointState, "joint_states")
        self.plans: list[JointTrajectory] = inbox.listen(
            JointTrajectory, "joint_trajectory/planned"
        )

    def q_at(self, stamp: int) -> np.ndarray:
        """(nq,) rad between the received joint states, at ``stamp`` nanoseconds."""
        joints = list(self.joints)
        stamps = np.array([nanoseconds(j.header.stamp) for j in joints]) * 1e-9
        q = np.array([j.position for j in joints])
        return np.array([np.interp(stamp * 1e-9, stamps, column) for column in q.T])


@pytest.fixture(scope="module")
def process(ros_domain):
    with node("robot_sim_node", parameters={**QUICK, "resume_after": 1.0}) as running:
        running.wait_for("the robot moves", timeout=START)
        yield running


@pytest.fixture
def robot(process, ros_node) -> Robot:
    robot = Robot(ros_node)
    wait_until(
        lambda: len(robot.depths) > 3 and len(robot.plans) > 3 and len(robot.joints) > 50,
        timeout=120,
        what="the simulated robot publishes",
    )
    return robot


def test_camera_publishes_pictures_with_their_intrinsics(robot):
    image, info, depth = robot.images[-1], robot.infos[-1], robot.depths[-1]
    rgb = rgb_from_image(image)
    assert rgb.shape == (120, 160, 3)
    assert rgb.std() > 5, "the picture shows something"
    assert image.header.frame_id == "camera_color_optical_frame"
    camera = camera_from_info(info)
    np.testing.assert_allclose(camera.matrix, ROBOT.camera.resized(160, 120).matrix)
    assert depth.encoding == "16UC1"
    metres = depth_from_image(depth)
    assert 0.2 < np.median(metres) < 2.0, "a table at arm's length"


def test_joint_states_come_faster_than_100_hz_for_all_joints(robot):
    # Other work on the machine may steal moments, so the best stretch of 20 counts.
    wait_until(lambda: len(robot.joints) > 300, timeout=60, what="300 joint states")
    stamps = np.array([nanoseconds(j.header.stamp) for j in robot.joints]) * 1e-9
    assert 19 / (stamps[19:] - stamps[:-19]).min() > 100
    assert tuple(robot.joints[-1].name) == ROBOT.joint_names
    assert (np.diff(stamps) > 0).all()
    q = np.array([j.position for j in robot.joints])
    assert (q >= ROBOT.lower - 1e-6).all() and (q <= ROBOT.upper + 1e-6).all()


def test_picture_shows_the_hands_where_the_joint_states_put_them(robot):
    """Depth at a fingertip in front of everything is about the fingertip's own depth."""
    wait_until(
        lambda: (
            nanoseconds(robot.joints[-1].header.stamp) > nanoseconds(robot.depths[-2].header.stamp)
        ),
        what="joint states behind the picture",
    )
    fk = HandKinematics(ROBOT)
    camera = ROBOT.camera.resized(160, 120)
    errors = []
    start = nanoseconds(robot.joints[0].header.stamp)
    for message in [d for d in robot.depths[:-1] if nanoseconds(d.header.stamp) > start]:
        hands = fk.hand_joints(robot.q_at(nanoseconds(message.header.stamp)))
        pixels = camera.project(hands.positions)
        inside = hands.valid & camera.contains(pixels)
        column, row = np.round(pixels[inside]).astype(int).T
        measured = depth_from_image(message)[row, column]
        errors.append(hands.positions[inside, 2] - measured)
    error = np.concatenate(errors)
    # The surface lies in front of the joint by the finger's radius; hidden joints lie deeper.
    assert len(error) > 20
    assert np.median(error) == pytest.approx(0.015, abs=0.02)
    assert (error > -0.02).mean() > 0.9, "a joint is never in front of what the camera sees"


def test_plan_reaches_ahead_and_the_robot_keeps_to_it(robot):
    plan = robot.plans[-1]
    times, q = joint_trajectory_from_message(plan, ROBOT.joint_names)
    assert times[0] == 0 and times[-1] > 1.6 + 0.5
    stamp = nanoseconds(plan.header.stamp)
    wait_until(
        lambda: nanoseconds(robot.joints[-1].header.stamp) > stamp + 900_000_000,
        what="joint states a second later",
    )
    for ahead in (0.0, 0.4, 0.8):
        planned = np.array([np.interp(ahead, times, column) for column in q.T])
        actual = robot.q_at(stamp + round(ahead * 1e9))
        np.testing.assert_allclose(actual, planned, atol=0.02)


def test_robot_follows_a_joint_trajectory_and_goes_back_to_its_tasks(robot, process, ros_node):
    reports = Reports(ros_node, "robot_sim")
    commands = advertise(ros_node, JointTrajectory, "joint_trajectory")
    wait_until(lambda: commands.get_subscription_count() > 0, what="robot_sim listens", timeout=60)
    goal = ROBOT.neutral.copy()
    wrist = ROBOT.joint_names.index("left_wrist_roll_joint")
    goal[wrist] += 0.4
    commands.publish(joint_trajectory_to_message([2.0, 2.5], [goal, goal], ROBOT.joint_names))
    wait_until(
        lambda: np.abs(np.array(robot.joints[-1].position) - goal).max() < 0.01,
        timeout=60,
        what="the robot reaches the trajectory's end",
    )
    wait_until(lambda: reports.values.get("trajectories followed") == "1", what="it is counted")
    wait_until(
        lambda: np.abs(np.array(robot.joints[-1].position) - goal).max() > 0.05,
        timeout=120,
        what="the scripted tasks go on",
    )
    q = np.array([j.position for j in robot.joints])
    stamps = np.array([nanoseconds(j.header.stamp) for j in robot.joints]) * 1e-9
    jump = np.abs(np.diff(q, axis=0)) - 10.0 * np.diff(stamps)[:, None]  # rad beyond 10 rad/s
    assert jump.max() < 0.05, "no joint jumps on the way in or out"


def _bad_command(what: str) -> JointTrajectory:
    q = np.array([ROBOT.neutral, ROBOT.neutral])
    message = joint_trajectory_to_message([2.0, 3.0], q, ROBOT.joint_names)
    if what == "unknown":
        message.joint_names = ["tail_joint", *ROBOT.joint_names[1:]]
    elif what == "nan":
        message.points[1].positions[3] = float("nan")
    elif what == "limits":
        message.points[1].positions[3] = 50.0
    elif what == "speed":
        message = joint_trajectory_to_message(
            [0.05, 0.08], [ROBOT.upper, ROBOT.lower], ROBOT.joint_names
        )
    elif what == "past":
        message.header.stamp.sec = 1000
    return message


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("unknown", "joint_names holds unknown joints 'tail_joint'"),
        ("nan", f"points[1].positions is nan for joint '{ROBOT.joint_names[3]}'"),
        ("limits", f"is 50.000 rad for joint '{ROBOT.joint_names[3]}'; its limits are"),
        ("speed", "rad/s of joint"),
        ("past", "in the past, and all 2 points with it"),
    ],
)
def test_wrong_joint_trajectory_is_refused_aloud(robot, process, ros_node, what, text):
    reports = Reports(ros_node, "robot_sim")
    commands = advertise(ros_node, JointTrajectory, "joint_trajectory")
    wait_until(lambda: commands.get_subscription_count() > 0, what="robot_sim listens", timeout=60)
    commands.publish(_bad_command(what))
    wait_until(lambda: text in reports.message, what=f"diagnostics say {text!r}", timeout=60)
    count = len(robot.joints)
    wait_until(lambda: len(robot.joints) > count + 20, what="the robot moves on", timeout=60)
    assert process.alive


def test_real_time_factor_is_reported(robot, ros_node):
    reports = Reports(ros_node, "robot_sim")
    wait_until(lambda: "real-time factor" in reports.values, what="real-time factor", timeout=20)
    assert 0.0 < float(reports.values["real-time factor"]) <= 1.0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_node_and_simulation_quietly(ros_node, number):
    with node("robot_sim_node", parameters={**QUICK, "task": "idle"}) as process:
        process.wait_for("the robot moves", timeout=START)
        process.send_signal(number)
        assert process.wait(timeout=60) == 0
    assert "Traceback" not in process.output


def test_wrong_parameters_are_refused_at_start():
    with node("robot_sim_node", parameters={"task": "juggle"}) as process:
        assert process.wait(timeout=START) == 1
    assert "parameter 'task' is 'juggle'; it must be" in process.output


def test_a_simulation_that_cannot_start_ends_the_node():
    parameters = {"embodiment": "g1_dex3", "width": 160, "height": 120}
    broken = {"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "nonsense"}
    with node("robot_sim_node", parameters=parameters, environment=broken) as process:
        assert process.wait(timeout=START) == 1
    assert "the simulation failed" in process.output
