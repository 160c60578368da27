"""`record --bag`: depth, instructions and a calibrated mount become part of the episodes."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rosbags")

import bags
from bags import camera_messages, depth_messages, joint_messages, stamp, write_bag
from recordings import ROBOT, check_sound, command, joints_at, number_of, picture, report_of

from ego_world_model.camera import CameraPose
from ego_world_model.hands import EXTRA_SLOTS
from ego_world_model.kinematics import HandKinematics

FRAMES = np.arange(20) / 10 + 0.013  # between joint states
STATES = np.arange(-5, 125) / 50
FAST = ("--fps", 10, "--min-seconds", 0.5)
PLAIN = camera_messages(FRAMES) + joint_messages(STATES)


def record(path, out, *more):
    return command("record", "--bag", path, "--out", out, *FAST, *more)


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
def test_aligned_depth_of_a_bag_is_kept_in_millimetres(tmp_path, encoding):
    """Paired by stamp, a few milliseconds apart; unknown depth stays 0."""
    messages = PLAIN + depth_messages(FRAMES, encoding=encoding, late=0.004)
    done = record(write_bag(tmp_path / "bag", messages), tmp_path / "out")
    assert done.exit_code == 0, done.output
    episode = check_sound(tmp_path / "out").episode(0, depth=True)
    np.testing.assert_array_equal(episode.depth, [bags.distance(k) for k in range(20)])


def test_a_frame_without_its_depth_is_dropped_and_counted(tmp_path):
    messages = PLAIN + depth_messages([t for k, t in enumerate(FRAMES) if k != 9])
    assert record(write_bag(tmp_path / "bag", messages), tmp_path / "out").exit_code == 0
    reader = check_sound(tmp_path / "out")
    kept = [record.metadata["source_frames"] for record in reader.records]
    assert kept == [list(range(9)), list(range(10, 20))]
    tally = report_of(tmp_path / "out")["bag"]["tally"]
    assert tally["dropped"]["no depth image of the frame's stamp"][0] == 1


def test_resized_depth_is_never_a_mean_over_an_edge(tmp_path):
    bag = write_bag(tmp_path / "bag", PLAIN + depth_messages(FRAMES))
    assert record(bag, tmp_path / "out", "--size", "32x24").exit_code == 0
    depth = check_sound(tmp_path / "out").episode(0, depth=True).depth
    assert set(np.unique(depth[3])) == {0, 530}


def test_depth_can_be_left_out_and_a_dataset_keeps_to_its_choice(tmp_path):
    with_depth = write_bag(tmp_path / "a", PLAIN + depth_messages(FRAMES))
    without = write_bag(tmp_path / "b", PLAIN)
    out = tmp_path / "out"
    assert record(with_depth, out, "--no-depth").exit_code == 0
    assert record(with_depth, tmp_path / "deep").exit_code == 0
    assert record(without, out).exit_code == 0
    assert len(check_sound(out)) == 2
    assert record(without, tmp_path / "deep").exit_code == 1
    entry = report_of(tmp_path / "deep")["b"]
    assert "no topic may be the camera's aligned depth" in entry["reason"]
    assert "--no-depth" in entry["remedy"]


def test_depth_that_is_not_aligned_is_refused(tmp_path):
    small = [
        (t, bags.DEPTH_TOPIC, bags.depth_image(stamp(t), np.full((10, 20), 700, np.uint16)))
        for t in FRAMES
    ]
    assert record(write_bag(tmp_path / "bag", PLAIN + small), tmp_path / "out").exit_code == 1
    assert "not aligned" in report_of(tmp_path / "out")["bag"]["reason"]


def test_a_new_instruction_begins_a_new_episode(tmp_path):
    """The topic `instruction` names the task; --task overrides it."""
    texts = [
        (-0.1, "/instruction", bags.text(" pick up\nthe cup ")),
        (1.0, "/instruction", bags.text("pour")),
    ]
    bag = write_bag(tmp_path / "bag", PLAIN + texts)
    assert record(bag, tmp_path / "out").exit_code == 0
    reader = check_sound(tmp_path / "out")
    assert [record.task for record in reader.records] == ["pick up the cup", "pour"]
    assert reader.lengths.tolist() == [10, 10]
    assert number_of(reader.episode(1).images[0]) == 10
    assert record(bag, tmp_path / "other", "--task", "tidy up").exit_code == 0
    assert [record.task for record in check_sound(tmp_path / "other").records] == ["tidy up"]


def test_the_calibrated_mount_places_hands_and_camera(tmp_path):
    """--calibration takes what `calibrate` wrote, as the launch files do."""
    path = tmp_path / "calibration.yaml"
    path.write_text(
        "/**/hand_kinematics:\n  ros__parameters:\n"
        "    camera_correction_xyz: [0.02, -0.01, 0.03]\n"
        "    camera_correction_rpy: [0.0, 0.0, 0.0]\n"
    )
    bag = write_bag(tmp_path / "bag", PLAIN)
    done = record(bag, tmp_path / "out", "--calibration", path)
    assert done.exit_code == 0, done.output
    episode = check_sound(tmp_path / "out").episode(0)
    nominal = ROBOT.camera_pose
    moved = nominal.translation + nominal.rotation @ [0.02, -0.01, 0.03]
    mount = CameraPose(nominal.link, nominal.rotation, moved)
    fk, q = HandKinematics(ROBOT), joints_at(FRAMES[7])
    wanted = fk.hand_joints(q, mount, extra_slots=EXTRA_SLOTS).positions
    np.testing.assert_allclose(episode.hand_positions[7], wanted, atol=2e-6)
    np.testing.assert_allclose(episode.camera_pose[7], fk.camera_pose(q, mount), atol=2e-6)


def test_a_delay_between_joints_and_camera_is_taken_out(tmp_path):
    """Joint states stamped 40 ms early: --joint-time-offset brings the right ones to each frame."""
    early = [(t, "/joint_states", bags.joint_state(stamp(t - 0.04), joints_at(t))) for t in STATES]
    bag = write_bag(tmp_path / "bag", camera_messages(FRAMES) + early)
    assert record(bag, tmp_path / "out", "--joint-time-offset", 0.04).exit_code == 0
    episode = check_sound(tmp_path / "out").episode(0)
    elbow = list(episode.joint_names).index("left_elbow_joint")
    wanted = [joints_at(t)["left_elbow_joint"] for t in FRAMES]
    np.testing.assert_allclose(episode.state[:, elbow], wanted, atol=1e-6)


@pytest.mark.parametrize("eye", ["left", "right"])
def test_one_eye_of_two_side_by_side(tmp_path, eye):
    """Pictures of double width, the CameraInfo of one eye; the other eye is black."""

    def both(when, image):
        eyes = [image, np.zeros_like(image)]
        return bags.raw_image(when, np.hstack(eyes if eye == "left" else eyes[::-1]))

    messages = camera_messages(FRAMES, image=both) + joint_messages(STATES)
    bag = write_bag(tmp_path / "bag", messages)
    assert record(bag, tmp_path / "wrong").exit_code == 1
    assert "--stereo" in report_of(tmp_path / "wrong")["bag"]["remedy"]
    assert record(bag, tmp_path / "out", "--stereo", eye).exit_code == 0
    images = check_sound(tmp_path / "out").episode(0).images
    np.testing.assert_array_equal(images, [picture(k) for k in range(20)])


def test_options_of_the_live_graph_are_refused_for_a_bag(tmp_path):
    done = record(write_bag(tmp_path / "bag", PLAIN), tmp_path / "out", "--seconds", 1)
    assert done.exit_code == 2 and "--seconds" in done.output
    assert not (tmp_path / "out").exists()


def test_bad_joint_states_are_counted_once_in_the_report(tmp_path):
    """A thousand messages that are wrong in a thousand ways make one line."""
    bad = [
        (t + 0.001, "/joint_states", bags.joint_state(stamp(t - 0.03 - k * 1e-4), joints_at(t)))
        for k, t in enumerate(STATES[10:60])
    ]
    assert record(write_bag(tmp_path / "bag", PLAIN + bad), tmp_path / "out").exit_code == 0
    notes = [n for n in report_of(tmp_path / "out")["bag"]["tally"]["notes"] if "left out" in n]
    assert len(notes) == 1 and "/joint_states: 50 joint states left out, the first" in notes[0]
    assert check_sound(tmp_path / "out").episode(0).images[3][0, 0, 0] == picture(3)[0, 0, 0]
