"""Messages survive the way to arrays and back, and a wrong message says what is wrong with it."""

from __future__ import annotations

import sys

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run script/setup")
pytest.importorskip("ego_world_model.msg", reason="needs the built interfaces: run script/setup")

from geometry_msgs.msg import Pose
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from trajectory_msgs.msg import JointTrajectory

from ego_world_model import msg
from ego_world_model.camera import PinholeCamera
from ego_world_model.hands import EXTRA_SLOTS, SLOT_NAMES, HandJoints, HandTrajectory
from ego_world_model.ros.conversions import (
    MessageError,
    array_from_image,
    camera_from_info,
    depth_from_image,
    hand_joints_from_message,
    hand_joints_to_message,
    hand_trajectory_from_message,
    hand_trajectory_to_message,
    image_from_array,
    info_from_camera,
    joint_trajectory_from_message,
    joint_trajectory_to_message,
    matrix_from_pose,
    nanoseconds,
    pose_from_matrix,
    rgb_from_image,
    stamp_from_nanoseconds,
)
from ego_world_model.ros.raw_image import RawImage

RNG = np.random.default_rng(3)


def over_the_wire(message):
    """What a subscriber gets: the message after serialisation."""
    return deserialize_message(serialize_message(message), type(message))


# ----------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    ("encoding", "dtype", "channels"),
    [
        ("rgb8", np.uint8, 3),
        ("bgr8", np.uint8, 3),
        ("rgba8", np.uint8, 4),
        ("mono8", np.uint8, 1),
        ("16UC1", np.uint16, 1),
        ("32FC1", np.float32, 1),
        ("32FC3", np.float32, 3),
    ],
)
def test_pixels_survive_every_encoding(encoding, dtype, channels):
    shape = (5, 7) if channels == 1 else (5, 7, channels)
    pixels = (RNG.random(shape) * 200).astype(dtype)
    back = array_from_image(over_the_wire(image_from_array(pixels, encoding)))
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, pixels)


def test_row_padding_is_skipped():
    pixels = RNG.integers(0, 255, (4, 5, 3), np.uint8)
    padded = np.zeros((4, 20), np.uint8)
    padded[:, :15] = pixels.reshape(4, 15)
    message = Image(height=4, width=5, encoding="rgb8", step=20, data=padded.tobytes())
    np.testing.assert_array_equal(array_from_image(message), pixels)


def test_last_row_may_lack_its_padding():
    pixels = RNG.integers(0, 255, (4, 5, 3), np.uint8)
    padded = np.zeros((4, 20), np.uint8)
    padded[:, :15] = pixels.reshape(4, 15)
    message = Image(height=4, width=5, encoding="rgb8", step=20, data=padded.tobytes()[:-5])
    np.testing.assert_array_equal(array_from_image(message), pixels)


def test_big_endian_depth_is_swapped():
    depth = np.array([[1, 258], [1000, 65535]], np.uint16)
    message = image_from_array(depth, "16UC1")
    message.is_bigendian = int(sys.byteorder == "little")
    message.data = depth.byteswap().tobytes()
    np.testing.assert_array_equal(array_from_image(message), depth)


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "8UC3"])
def test_every_colour_encoding_becomes_rgb(encoding):
    rgb = RNG.integers(0, 255, (3, 4, 3), np.uint8)
    pixels = rgb if encoding.startswith("rgb") else rgb[..., ::-1]
    if encoding.endswith("a8"):
        alpha = np.full((3, 4, 1), 7, np.uint8)
        pixels = np.concatenate([rgb if encoding == "rgba8" else rgb[..., ::-1], alpha], axis=2)
    np.testing.assert_array_equal(rgb_from_image(image_from_array(pixels, encoding)), rgb)


def test_depth_becomes_metres_with_zero_for_unknown():
    millimetres = image_from_array(np.array([[0, 1500]], np.uint16), "16UC1")
    metres = image_from_array(np.array([[np.nan, 1.5]], np.float32), "32FC1")
    for message in (millimetres, metres):
        np.testing.assert_allclose(depth_from_image(message), [[0.0, 1.5]])


def test_unsupported_encoding_names_topic_and_what_is_supported():
    message = Image(height=2, width=2, encoding="bayer_rggb8", step=2, data=bytes(4))
    with pytest.raises(MessageError, match=r"/cam/image: encoding 'bayer_rggb8'.*rgb8, bgr8"):
        array_from_image(message, topic="/cam/image")


def test_depth_is_not_taken_for_a_colour_image():
    message = image_from_array(np.zeros((2, 2), np.uint16), "16UC1")
    with pytest.raises(MessageError, match="'16UC1' is not a colour image"):
        rgb_from_image(message)


@pytest.mark.parametrize(
    ("change", "field"),
    [({"step": 3}, "step"), ({"data": bytes(10)}, "data"), ({"width": 0}, "width, height")],
)
def test_contradicting_image_sizes_name_the_field(change, field):
    message = image_from_array(np.zeros((4, 5, 3), np.uint8), "rgb8")
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(MessageError) as caught:
        array_from_image(message, topic="/cam")
    assert caught.value.field == field


@pytest.mark.parametrize("frame_id", ["", "c", "camera_color_optical_frame", "caméra"])
def test_raw_image_serves_as_the_message_without_building_it(frame_id):
    pixels = RNG.integers(0, 2**16, (6, 4), np.uint16)
    image = image_from_array(pixels, "16UC1")
    image.header.stamp = stamp_from_nanoseconds(12_345_678_901)
    image.header.frame_id = frame_id
    raw = RawImage.from_serialised(serialize_message(image))
    assert (raw.stamp, raw.frame_id) == (12_345_678_901, frame_id)
    assert (raw.size, raw.encoding) == ((4, 6), "16UC1")
    np.testing.assert_array_equal(array_from_image(raw), pixels)
    assert nanoseconds(raw.header().stamp) == raw.stamp


def test_raw_bytes_that_are_no_image_are_refused():
    with pytest.raises(MessageError, match="not a sensor_msgs/Image"):
        RawImage.from_serialised(b"\x00\x01\x00\x00\x01\x00", topic="/cam")


# ----------------------------------------------------------------------------- camera


def test_camera_info_round_trip_keeps_intrinsics_and_distortion():
    camera = PinholeCamera(640, 480, 610.0, 611.0, 320.5, 240.5, (0.1, -0.2, 0.001, 0.002, 0.05))
    assert camera_from_info(over_the_wire(info_from_camera(camera))) == camera


def test_camera_info_of_a_binned_crop_describes_the_image_that_comes():
    camera = PinholeCamera(640, 480, 600.0, 600.0, 319.5, 239.5)
    info = info_from_camera(camera)
    info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height = 100, 50, 400, 300
    info.binning_x = info.binning_y = 2
    seen = camera_from_info(info)
    assert (seen.width, seen.height) == (200, 150)
    np.testing.assert_allclose(seen.project([0, 0, 1.0]), [(219.5 + 0.5) / 2 - 0.5, 94.5])


def test_uncalibrated_camera_is_refused():
    with pytest.raises(MessageError, match=r"/cam/info: k is all zero.*calibrat"):
        camera_from_info(CameraInfo(width=640, height=480), topic="/cam/info")


@pytest.mark.parametrize(
    ("model", "coefficients"),
    [
        ("rational_polynomial", (0.4, -0.1, 0.001, 0.0, 0.02, 0.5, -0.05, 0.01)),
        ("equidistant", (0.1, -0.01, 0.002, 0.0)),
        ("equidistant", (0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_camera_info_keeps_every_lens_model(model, coefficients):
    """A fisheye without coefficients is a fisheye still."""
    camera = PinholeCamera(640, 480, 400.0, 401.0, 320.5, 240.5, coefficients, model)
    info = info_from_camera(camera)
    assert (info.distortion_model, tuple(info.d)) == (model, coefficients)
    assert camera_from_info(over_the_wire(info)) == camera


@pytest.mark.parametrize(
    ("model", "coefficients", "text"),
    [
        ("double_sphere", [], "distortion_model 'double_sphere' is not supported; .*equidistant"),
        ("plumb_bob", [0.1, 0.0], "plumb_bob distortion has 4 or 5 coefficients, got 2"),
        ("rational_polynomial", [0.1] * 14, "d holds 14 coefficients but .* has 8"),
    ],
)
def test_lens_models_that_are_not_known_are_refused_by_name(model, coefficients, text):
    info = info_from_camera(PinholeCamera(64, 48, 60.0, 60.0, 32.0, 24.0))
    info.distortion_model, info.d = model, coefficients
    with pytest.raises(MessageError, match=text):
        camera_from_info(info)


# ------------------------------------------------------------------------------ hands


def hand_trajectory(slots: int = 42, steps: int = 5) -> HandTrajectory:
    positions = RNG.normal(size=(steps, slots, 3)).astype(np.float32)
    valid = RNG.random((steps, slots)) > 0.3
    poses = np.repeat(np.eye(4)[None], steps, axis=0)
    poses[:, 0, 3] = 0.01 * np.arange(steps)
    return HandTrajectory(0.1 * np.arange(steps), positions, valid, poses)


def test_hand_joints_round_trip():
    hands = HandJoints(RNG.uniform(-0.5, 0.5, (46, 3)) + (0, 0, 1), RNG.random(46) > 0.3)
    names = SLOT_NAMES + EXTRA_SLOTS
    message = hand_joints_to_message(
        hands,
        header=Header(frame_id="optical"),
        embodiment="g1_dex3",
        slot_names=names,
        pixels=RNG.random((46, 2)),
        visibility=np.ones(46),
        image_size=(640, 480),
    )
    message = over_the_wire(message)
    back = hand_joints_from_message(message)
    np.testing.assert_array_equal(back.positions, hands.positions)
    np.testing.assert_array_equal(back.valid, hands.valid)
    expected = np.where(hands.valid, 1 / np.where(hands.valid, hands.positions[:, 2], 1), 0)
    np.testing.assert_allclose(message.disparity, expected, rtol=1e-5)
    assert not np.array(message.u)[~hands.valid].any()


@pytest.mark.parametrize("slots", [42, 46])
def test_hand_trajectory_round_trip(slots):
    trajectory = hand_trajectory(slots)
    message = hand_trajectory_to_message(trajectory, header=Header(), source="test")
    back = hand_trajectory_from_message(over_the_wire(message))
    np.testing.assert_array_equal(back.positions, trajectory.positions)
    np.testing.assert_array_equal(back.valid, trajectory.valid)
    np.testing.assert_allclose(back.times, trajectory.times)
    np.testing.assert_allclose(back.camera_pose, trajectory.camera_pose, atol=1e-9)


def test_still_camera_sends_no_poses():
    trajectory = HandTrajectory([0.0, 0.1], np.ones((2, 42, 3)))
    message = hand_trajectory_to_message(trajectory, header=Header(), source="test")
    assert len(message.camera_poses) == 0
    np.testing.assert_array_equal(
        hand_trajectory_from_message(message).camera_pose, trajectory.camera_pose
    )


def test_slots_in_another_order_are_sorted_by_name():
    trajectory = hand_trajectory()
    message = hand_trajectory_to_message(trajectory, header=Header(), source="test")
    order = RNG.permutation(42)
    message.slot_names = [SLOT_NAMES[i] for i in order]
    message.positions = [message.positions[42 * k + i] for k in range(5) for i in order]
    message.valid = [message.valid[42 * k + i] for k in range(5) for i in order]
    back = hand_trajectory_from_message(message)
    np.testing.assert_array_equal(back.positions, trajectory.positions)


def test_slots_that_are_asked_for_but_not_sent_are_invalid():
    message = hand_trajectory_to_message(hand_trajectory(), header=Header(), source="test")
    back = hand_trajectory_from_message(message, slot_names=SLOT_NAMES + EXTRA_SLOTS)
    assert back.valid.shape == (5, 46)
    assert not back.valid[:, 42:].any()


def _break_trajectory(what: str) -> msg.HandTrajectory:
    message = hand_trajectory_to_message(hand_trajectory(), header=Header(), source="test")
    if what == "unknown slot":
        message.slot_names = ["nose", *message.slot_names[1:]]
    elif what == "missing slot":
        message.slot_names = message.slot_names[:-1]
    elif what == "positions":
        message.positions = message.positions[:-1]
    elif what == "valid":
        message.valid = message.valid[:-2]
    elif what == "poses":
        message.camera_poses = message.camera_poses[:3]
    elif what == "quaternion":
        message.camera_poses[2].orientation.w = 5.0
    elif what == "times":
        message.times = [0.0, 0.1, 0.1, 0.2, 0.3]
    elif what == "nan":
        message.valid = [True] * len(message.valid)
        message.positions[7].x = float("nan")
    elif what == "empty":
        message.times = []
    return message


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("unknown slot", "slot_names holds unknown slots 'nose'"),
        ("missing slot", r"slot_names \(41 names\) lacks right_pinky_tip"),
        ("positions", "positions has 209 entries, 210 expected; send 5 times x 42 slots"),
        ("valid", "valid has 208 entries, 210 expected"),
        ("poses", "camera_poses has 3 poses for 5 times"),
        ("quaternion", r"camera_poses\[2\] has a quaternion of length 5"),
        ("times", "strictly rise"),
        ("nan", "NaN or infinity in valid slots"),
        ("empty", "times is empty"),
    ],
)
def test_broken_hand_trajectory_names_field_shape_and_remedy(what, text):
    with pytest.raises(MessageError, match=text) as caught:
        hand_trajectory_from_message(_break_trajectory(what), topic="/hands/predicted")
    assert str(caught.value).startswith("/hands/predicted: ")


# ------------------------------------------------------------------ joint trajectories

JOINTS = ("shoulder", "elbow", "wrist")


def joint_message(**changes) -> JointTrajectory:
    q = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    message = joint_trajectory_to_message([0.0, 0.5], q, JOINTS)
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def test_joint_trajectory_round_trip_matches_by_name():
    message = over_the_wire(joint_message(joint_names=["wrist", "shoulder", "elbow"]))
    times, q = joint_trajectory_from_message(message, JOINTS)
    np.testing.assert_allclose(times, [0.0, 0.5])
    np.testing.assert_allclose(q, [[0.2, 0.3, 0.1], [0.5, 0.6, 0.4]])


def test_joints_that_are_not_named_hold_their_position():
    message = joint_trajectory_to_message([0.0, 1.0], [[0.1], [0.2]], ["elbow"])
    _, q = joint_trajectory_from_message(message, JOINTS, hold=[1.0, 2.0, 3.0])
    np.testing.assert_allclose(q, [[1.0, 0.1, 3.0], [1.0, 0.2, 3.0]])
    with pytest.raises(MessageError, match="joint_names lacks shoulder, wrist"):
        joint_trajectory_from_message(message, JOINTS)


def _break_joints(what: str) -> JointTrajectory:
    message = joint_message()
    if what == "unknown":
        message.joint_names = ["shoulder", "elbow", "tail"]
    elif what == "twice":
        message.joint_names = ["shoulder", "elbow", "elbow"]
    elif what == "nan":
        message.points[1].positions = [0.0, float("nan"), 0.0]
    elif what == "length":
        message.points[1].positions = [0.0, 0.0]
    elif what == "unsorted":
        message.points = message.points[::-1]
    elif what == "empty":
        message.points = []
    return message


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("unknown", "joint_names holds unknown joints 'tail'; this robot's joints are shoulder"),
        ("twice", "joint_names names a joint twice"),
        ("nan", r"points\[1\].positions is nan for joint 'elbow'"),
        ("length", r"points\[1\].positions has 2 values for 3 joint_names"),
        ("unsorted", r"points\[1\].time_from_start is 0.000 s"),
        ("empty", "points is empty"),
    ],
)
def test_broken_joint_trajectory_names_joint_and_point(what, text):
    with pytest.raises(MessageError, match=text):
        joint_trajectory_from_message(_break_joints(what), JOINTS, hold=np.zeros(3))


# ------------------------------------------------------------------------------ poses


def test_pose_round_trip():
    matrix = np.eye(4)
    matrix[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    matrix[:3, 3] = [1, 2, 3]
    np.testing.assert_allclose(matrix_from_pose(pose_from_matrix(matrix)), matrix, atol=1e-12)


def test_pose_without_rotation_is_refused():
    pose = Pose()
    pose.orientation.w = 0.0
    with pytest.raises(MessageError, match="quaternion of length 0"):
        matrix_from_pose(pose)
