"""Cameras as labs have them, over real DDS: bent by a lens, side by side, compressed, with depth.

hand_kinematics is asked where the joints are in the picture that came; the overlay, which it draws
from the same intake as every other node, shows which pixels it saw.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run script/setup")
pytest.importorskip("ego_world_model.msg", reason="needs the built interfaces: run script/setup")

from imagined_graph import (
    Listener,
    Robot,
    ended,
    random_checkpoint,
    ros_graph,
    send,
    world_model,
)
from lenses import LENSES, Lens, apart, share_on_hands
from PIL import Image as Picture
from rclpy.action import ActionClient
from robot_player import ROBOT, Inbox, Reports, RobotPlayer, playing
from sensor_msgs.msg import Image
from support import NodeProcess, node, wait_until

from ego_world_model.action import Imagine
from ego_world_model.camera import PinholeCamera
from ego_world_model.kinematics import HandKinematics
from ego_world_model.media import encode_jpeg, resize
from ego_world_model.msg import HandJoints
from ego_world_model.ros.conversions import (
    camera_from_info,
    hand_trajectory_from_message,
    hand_trajectory_to_message,
    rgb_from_image,
)
from ego_world_model.visibility import visibility

START = 200.0  # seconds that imports may take on a busy machine
# as in test_hand_kinematics_node.py: patient with a busy machine
SETTINGS = {"silence_timeout": 1.0, "joint_tolerance": 0.5, "joint_wait": 0.5, "depth_wait": 0.5}
LENS = LENSES["plumb_bob"]
JOINTS = HandKinematics(ROBOT).hand_joints(apart(ROBOT), extra_slots=ROBOT.extra_slots)


@pytest.fixture(scope="module")
def seen() -> Any:
    """What lens and ideal pinhole show of both hands."""
    with Lens(ROBOT, LENS) as camera:
        return camera.see(apart(ROBOT))


def bent(player: RobotPlayer | Robot, frame: np.ndarray, lens: PinholeCamera = LENS) -> None:
    player.lens, player.frame = lens, frame
    player.size = (frame.shape[1], frame.shape[0])
    if isinstance(player, RobotPlayer):
        player.positions = apart(ROBOT).tolist()
    else:
        player.pose, player.sway = apart(ROBOT), 0.0


class Answers:
    """What hand_kinematics publishes from now on, and what it reports."""

    def __init__(self, ros_node: Any) -> None:
        inbox = Inbox(ros_node)
        self.hands: list[HandJoints] = inbox.listen(HandJoints, "hands/joints")
        self.overlays: list[Image] = inbox.listen(Image, "hands/overlay/image_raw")
        self.reports = Reports(ros_node, "hand_kinematics")

    def next(self, what: list[Any], *, skip: int = 6, timeout: float = 60.0) -> Any:
        """A message that answers to what is published now, not to what was on its way."""
        count = len(what) + skip
        wait_until(lambda: len(what) > count, timeout=timeout, what="an answer")
        return what[-1]

    def wait_for_hands(self, condition: Any, what: str) -> HandJoints:
        wait_until(lambda: bool(self.hands) and condition(self.hands[-1]), timeout=60.0, what=what)
        return self.hands[-1]


@pytest.fixture
def answers(ros_node: Any) -> Answers:
    return Answers(ros_node)


def columns_and_rows(message: HandJoints) -> np.ndarray:
    """(J, 2)."""
    return np.stack([message.u, message.v], axis=-1)


# ------------------------------------------------------------------ raw images: lens and depth


@pytest.fixture(scope="module")
def process(ros_domain: int) -> Iterator[NodeProcess]:
    with node("hand_kinematics_node", parameters=SETTINGS) as running:
        running.wait_for("waiting for", timeout=START)
        yield running


@pytest.mark.parametrize("model", LENSES)
def test_joints_are_where_the_lens_shows_them(process, ros_node, answers, model):
    """In every model: u, v in the raw image, and the overlay is drawn there."""
    lens = LENSES[model]
    with playing(ros_node) as player:
        bent(player, np.full((240, 320, 3), 90, np.uint8), lens)
        message = answers.next(answers.hands)
        drawn = rgb_from_image(answers.next(answers.overlays))
    pixels, ideal = lens.project(JOINTS.positions), lens.ideal().project(JOINTS.positions)
    valid = JOINTS.valid
    np.testing.assert_allclose(columns_and_rows(message)[valid], pixels[valid], atol=0.02)
    assert np.abs(pixels - ideal)[valid].max() > 8
    inside = [slot for slot in np.flatnonzero(valid) if lens.contains(pixels[slot])]
    rows, columns = np.round(pixels[inside]).astype(int).T[::-1]
    assert (drawn[rows, columns] != 90).any(axis=1).all(), "a dot on every joint in view"


def test_a_lens_model_that_is_not_known_is_refused_by_name(process, ros_node, answers):
    with playing(ros_node) as player:
        bent(player, np.full((240, 320, 3), 90, np.uint8))
        answers.next(answers.hands)
        player.distortion_model = "double_sphere"
        line = process.wait_for("distortion_model 'double_sphere' is not supported")
        assert "/camera/color/camera_info" in line and "equidistant" in line
        wait_until(
            lambda: "double_sphere" in answers.reports.message, timeout=60, what="diagnostics"
        )
        player.distortion_model = ""
        answers.next(answers.hands)


@pytest.mark.parametrize("kind", ["16UC1", "32FC1"])
def test_measured_depth_hides_what_lies_behind_it(process, ros_node, answers, seen, kind):
    """The hands' own surface hides nothing; a board in front of the left half hides that hand;
    unmeasured pixels and depth that ends leave the geometry's visibility."""
    through, _ = seen
    geometric = visibility(JOINTS, LENS)
    pixels = LENS.project(JOINTS.positions)
    left = JOINTS.valid & (pixels[:, 0] < 150) & (geometric > 0.9)
    right = JOINTS.valid & (pixels[:, 0] > 170) & (geometric > 0.9)
    assert left.sum() > 3 and right.sum() > 3

    def encoded(metres: np.ndarray) -> np.ndarray:
        if kind == "32FC1":
            return np.where(metres == 0, np.nan, metres).astype(np.float32)
        return np.round(metres * 1000).astype(np.uint16)

    board = through.depth.copy()
    board[:, :160] = 0.2
    nothing = np.zeros_like(board)
    with playing(ros_node) as player:
        bent(player, through.rgb)
        for metres, hidden in ((through.depth, False), (board, True), (nothing, False)):
            player.depth_image, player.depth = encoded(metres), True
            shown = np.array(answers.next(answers.hands).visibility)
            assert (shown[left] < 0.01).all() if hidden else (shown[left] > 0.85).all()
            assert (shown[right] > 0.85).all()
        player.depth_image = encoded(board)
        answers.next(answers.hands)
        wait_until(
            lambda: "depth in visibility rate" in answers.reports.values,
            what="a report",
            timeout=60,
        )
        player.depth = False
        message = answers.wait_for_hands(
            lambda m: np.array(m.visibility)[left].min() > 0.85, "visibility without depth"
        )
    np.testing.assert_allclose(message.visibility, geometric, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"depth_image": np.full((120, 160), 200, np.uint16)}, "are 160x120 but the colour image"),
        ({"depth_frame": "camera_depth_optical_frame"}, "is 'camera_depth_optical_frame' but"),
    ],
)
def test_depth_that_is_not_aligned_is_refused_aloud(process, ros_node, answers, seen, change, text):
    with playing(ros_node) as player:
        bent(player, seen[0].rgb)
        player.depth_image, player.depth = np.full((240, 320), 200, np.uint16), True
        for name, value in change.items():
            setattr(player, name, value)
        line = process.wait_for(text, timeout=60)
        assert "/camera/aligned_depth_to_color/image_raw" in line and "align_depth" in line
        message = answers.next(answers.hands)
        wait_until(lambda: text in answers.reports.message, timeout=60, what="diagnostics")
    np.testing.assert_allclose(message.visibility, visibility(JOINTS, LENS), atol=1e-3)


# ------------------------------------------------------------------ compressed, two eyes


@pytest.fixture(scope="module")
def right_eye(ros_domain: int) -> Iterator[NodeProcess]:
    parameters = {**SETTINGS, "image_transport": "compressed", "stereo": "right"}
    with node("hand_kinematics_node", parameters=parameters) as running:
        running.wait_for("waiting for /camera/color/image_raw/compressed", timeout=START)
        yield running


def side_by_side(right: np.ndarray) -> np.ndarray:
    return np.hstack([np.zeros_like(right), right])


def jpeg(pixels: np.ndarray) -> bytes:
    return encode_jpeg(pixels, quality=95)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Picture.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("compress", [jpeg, png])
def test_one_eye_of_a_compressed_pair_is_the_camera(right_eye, ros_node, answers, seen, compress):
    """Pixels, size and intrinsics are the right eye's; the left is black and never seen."""
    with playing(ros_node) as player:
        bent(player, side_by_side(seen[0].rgb))
        player.compress = compress
        message = answers.next(answers.hands)
        drawn = rgb_from_image(answers.next(answers.overlays))
    assert (message.image_width, message.image_height) == (320, 240) == drawn.shape[1::-1]
    valid = JOINTS.valid
    expected = LENS.project(JOINTS.positions)
    np.testing.assert_allclose(columns_and_rows(message)[valid], expected[valid], atol=0.02)
    assert np.median(np.abs(drawn.astype(int) - seen[0].rgb)) <= 4


def test_pictures_that_cannot_be_decoded_are_counted_and_survived(
    right_eye, ros_node, answers, seen
):
    """Data that is no picture loses its frames, a damaged picture only what is drawn."""
    with playing(ros_node) as player:
        bent(player, side_by_side(seen[0].rgb))
        player.compress = lambda pixels: b"no picture at all"
        line = right_eye.wait_for("of format 'jpeg' cannot be decoded", timeout=60)
        assert "/camera/color/image_raw/compressed: data" in line
        wait_until(
            lambda: int(answers.reports.values.get("images rejected", 0)) > 3,
            timeout=60,
            what="a count of what was refused",
        )
        player.compress = lambda pixels: jpeg(pixels)[:2000]
        right_eye.wait_for("data cannot be decoded", timeout=60)
        answers.next(answers.hands)
        player.compress = jpeg
        answers.next(answers.overlays)
    assert right_eye.alive


@pytest.mark.parametrize(
    ("frame", "lens", "text"),
    [
        (np.zeros((240, 320, 3), np.uint8), LENS, "two eyes of 160x240 each by the parameter"),
        (np.zeros((240, 641, 3), np.uint8), LENS, "width is 641, odd"),
    ],
)
def test_frames_that_are_not_two_eyes_are_refused_clearly(
    right_eye, ros_node, answers, frame, lens, text
):
    with playing(ros_node) as player:
        bent(player, frame, lens)
        player.compress = jpeg
        line = right_eye.wait_for(text, timeout=60)
        assert "stereo" in line
        count = len(answers.hands)
        time.sleep(0.5)
        assert len(answers.hands) == count
        player.frame = side_by_side(np.zeros((240, 320, 3), np.uint8))
        answers.next(answers.hands)


def test_silence_names_the_topic_of_compressed_images(right_eye, ros_node):
    with playing(ros_node) as player:
        player.images = False
        line = right_eye.wait_for("no compressed camera images (parameter image_transport) on")
        assert "/camera/color/image_raw/compressed" in line


def test_two_eyes_without_the_parameter_are_explained(process, ros_node, answers):
    with playing(ros_node) as player:
        bent(player, np.zeros((240, 640, 3), np.uint8))
        line = process.wait_for("set the parameter stereo to left or right", timeout=60)
        assert "320x240 but /camera/color/image_raw is 640x240" in line


# ------------------------------------------------------------------ what is imagined


def test_the_world_model_starts_from_the_rectified_eye(ros_domain, tmp_path, seen):
    """Compressed, side by side, through a lens: frame 0 is what an ideal pinhole sees, the
    CameraInfo of the rollout has no distortion, and the joints project onto the same hands."""
    through, ideal = seen
    with ros_graph(ros_domain) as ros:
        robot, listener = Robot(ros), Listener(ros)
        try:
            bent(robot, np.hstack([through.rgb, np.zeros_like(through.rgb)]))
            robot.compress = jpeg
            settings = {"image_transport": "compressed", "stereo": "left"}
            with world_model(random_checkpoint(tmp_path), **settings) as process:
                rollout = listener.wait_for_rollout()
                stamp = robot.now()
                goal = Imagine.Goal(
                    candidates=[
                        hand_trajectory_to_message(
                            robot.motion(), header=robot.header(stamp), source="test"
                        )
                    ],
                    image=robot.image(stamp),
                    camera_info=robot.info(stamp),
                )
                client = ActionClient(ros, Imagine, "imagine")
                assert client.wait_for_server(60.0)
                answer = ended(client, send(client, goal)).result
                robot.compress = lambda pixels: jpeg(pixels)[:2000]
                process.wait_for("data cannot be decoded", timeout=60)
                robot.compress = jpeg
                listener.wait_for_rollout()
        finally:
            robot.close()
    assert answer.success, answer.message
    asked = rgb_from_image(answer.rollouts[0].frames[0]).astype(int)
    assert np.abs(asked - resize(ideal.rgb, 128, 96)).mean() < 4, "a goal's frame, too"
    first = rgb_from_image(rollout.frames[0]).astype(int)
    assert np.abs(first - resize(ideal.rgb, 128, 96)).mean() < 4
    assert np.abs(first - resize(through.rgb, 128, 96)).mean() > 8, "the lens bends"
    assert not np.any(rollout.camera_info.d)
    expected = LENS.ideal().resized(128, 96).matrix
    np.testing.assert_allclose(np.reshape(rollout.camera_info.k, (3, 3)), expected, atol=1e-6)
    motion = hand_trajectory_from_message(rollout.trajectory)
    pinhole = camera_from_info(rollout.camera_info).resized(320, 240)
    assert share_on_hands(ideal.masks, pinhole, motion.frame(0)) > 0.9
