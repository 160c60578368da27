"""Bags of robots become sound datasets: right pictures, right joints, nothing paired wrongly."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

pytest.importorskip("rosbags")

import bags
from bags import IMAGE_TOPIC, camera_messages, joint_messages, stamp, write_bag
from recordings import (
    HEIGHT,
    KINEMATICS,
    ROBOT,
    WIDTH,
    assert_kinematics,
    check_sound,
    command,
    joints_at,
    number_of,
    picture,
    report_of,
)
from rosbags.rosbag2 import StoragePlugin

from ego_world_model.data import DatasetReader
from ego_world_model.data.importers.bag_messages import OLD_HAND_STATE, typestore
from ego_world_model.embodiment import load_embodiment

FRAMES = np.arange(20) / 10 + 0.013  # between joint states
STATES = np.arange(-5, 125) / 50
FAST = ("--fps", 10, "--min-seconds", 0.5)


def run(path, out, *more):
    return command("import", "bag", path, "--out", out, *FAST, *more)


@pytest.mark.parametrize("plugin", [StoragePlugin.SQLITE3, StoragePlugin.MCAP])
def test_a_bag_becomes_an_episode_with_joints_interpolated_to_image_stamps(tmp_path, plugin):
    """sqlite3 and MCAP: exact pictures, joints at the header stamp, slots by kinematics."""
    messages = camera_messages(FRAMES) + joint_messages(STATES)
    bag = write_bag(tmp_path / "pick_up_the-cup", messages, plugin=plugin)
    done = run(bag, tmp_path / "out")
    assert done.exit_code == 0, done.output
    reader = check_sound(tmp_path / "out")
    assert reader.lengths.tolist() == [20]
    episode = reader.episode(0)
    np.testing.assert_array_equal(episode.images, [picture(k) for k in range(20)])
    assert_kinematics(episode, FRAMES)
    np.testing.assert_array_equal(episode.action[:-1], episode.state[1:])
    assert (episode.task, episode.embodiment) == ("pick up the cup", "g1_dex3")
    assert episode.metadata["source"] == "pick_up_the-cup"
    assert episode.metadata["source_stamps_ns"] == [stamp(t) for t in FRAMES]
    assert episode.camera == bags.CAMERA and "lens" not in episode.metadata


@pytest.mark.parametrize(
    ("name", "image", "exact"),
    [
        ("bgr8", partial(bags.raw_image, encoding="bgr8", pad=5), True),
        ("mono8", partial(bags.raw_image, encoding="mono8"), False),
        ("png", partial(bags.compressed_image, kind="PNG"), True),
        ("jpeg", partial(bags.compressed_image, kind="JPEG"), False),
    ],
)
def test_every_common_encoding_keeps_its_colours(tmp_path, name, image, exact):
    topic = IMAGE_TOPIC if name in ("bgr8", "mono8") else f"{IMAGE_TOPIC}/compressed"
    messages = camera_messages(FRAMES[:6], image=image, topic=topic) + joint_messages(STATES)
    assert run(write_bag(tmp_path / "bag", messages), tmp_path / "out").exit_code == 0
    images = DatasetReader(tmp_path / "out").episode(0).images
    wanted = np.stack([picture(k) for k in range(6)])
    if name == "mono8":
        wanted = np.repeat(wanted[..., :1], 3, axis=-1)
    np.testing.assert_allclose(images.astype(int), wanted.astype(int), atol=0 if exact else 4)


def test_frames_without_joint_states_near_enough_are_dropped_and_end_the_episode(tmp_path):
    """A hole in the joint states and frames beyond their ends: counted, never paired."""
    states = [t for t in STATES if t < 0.8 or t >= 1.0]
    late = np.arange(30) / 10 + 0.013  # the last frames come after the last joint state
    bag = write_bag(tmp_path / "bag", camera_messages(late) + joint_messages(states))
    assert run(bag, tmp_path / "out", "--min-seconds", 0.5).exit_code == 0
    reader = check_sound(tmp_path / "out")
    kept = [record.metadata["source_frames"] for record in reader.records]
    assert kept == [list(range(8)), list(range(10, 25))]
    assert_kinematics(reader.episode(1), late[10:25])
    tally = report_of(tmp_path / "out")["bag"]["tally"]
    reasons = {reason: count for reason, (count, _) in tally["dropped"].items()}
    assert reasons == {
        "joint states around the frame are too far apart": 2,
        "joint states end before the frame": 5,
    }
    assert (tally["read"], tally["written"]) == (30, 23)


def test_a_faster_camera_is_thinned_and_gaps_split_episodes(tmp_path):
    times = np.concatenate([np.arange(28) / 30, 1.6 + np.arange(22) / 30])
    bag = write_bag(tmp_path / "bag", camera_messages(times) + joint_messages(STATES))
    assert run(bag, tmp_path / "out").exit_code == 0
    reader = check_sound(tmp_path / "out")
    kept = [record.metadata["source_frames"] for record in reader.records]
    assert kept == [list(range(0, 28, 3)), list(range(28, 50, 3))]
    assert report_of(tmp_path / "out")["bag"]["tally"]["thinned"] == 50 - 18


def test_a_camera_slightly_off_its_nominal_rate_gives_one_unbroken_episode(tmp_path):
    """29.97 Hz for 40 s slips by more than a frame; no frame is doubled, none is lost."""
    from ego_world_model.data.importers.base import SourceFrame, Tally
    from ego_world_model.data.importers.timing import on_grid

    rng = np.random.default_rng(0)
    stamps = np.arange(1200) / 29.97 + rng.normal(0, 0.003, 1200)
    frames = (
        SourceFrame(stamp=round(t * 1e9), load=lambda: picture(0), q=np.zeros(1), number=k)
        for k, t in enumerate(stamps)
    )
    tally = Tally()
    kept = list(on_grid(frames, fps=30.0, tally=tally))
    assert [first for first, _ in kept] == [True] + [False] * 1199
    assert tally.thinned == 0 and tally.dropped == {}


def unitree_messages(*, middle_first: bool = False, store=bags.STORE):
    orders = ROBOT.state_orders
    right = orders["dex3/right_middle_first" if middle_first else "dex3/right"]
    out = []
    for t in STATES:
        q = joints_at(t)
        left = bags.hand_state(q, orders["dex3/left"], store=store)
        out += [
            (t, "/lowstate", bags.low_state(q)),
            (t, "/lf/lowstate", bags.low_state(joints_at(t + 5))),  # the slow copy is not used
            (t, "/dex3/left/state", left),
            (t + 0.001, "/dex3/right/state", bags.hand_state(q, right, store=store)),
        ]
    return out


@pytest.mark.parametrize("middle_first", [False, True])
def test_unitree_topics_are_mapped_by_the_embodiments_wire_orders(tmp_path, middle_first):
    """LowState has no stamp (receive time counts); both orders of the right Dex3 hand."""
    messages = camera_messages(FRAMES) + unitree_messages(middle_first=middle_first)
    bag = write_bag(tmp_path / "bag", messages)
    option = ["--middle-first"] if middle_first else []
    done = run(bag, tmp_path / "out", *option)
    assert done.exit_code == 0, done.output
    episode = check_sound(tmp_path / "out").episode(0)
    names = list(episode.joint_names)
    left = names.index("left_hand_index_1_joint")
    wanted = [joints_at(t)["left_hand_index_1_joint"] for t in FRAMES]
    np.testing.assert_allclose(episode.state[:, left], wanted, atol=1e-6)
    for name in ("right_hand_index_0_joint", "right_hand_middle_0_joint"):
        wanted = [joints_at(t - 0.001)[name] for t in FRAMES]
        np.testing.assert_allclose(episode.state[:, names.index(name)], wanted, atol=1e-6)


def test_hand_states_of_before_august_2025_are_read(tmp_path, monkeypatch):
    """sqlite3 bags without definitions: the old field order is recognised."""
    store = typestore(OLD_HAND_STATE)
    messages = [(t, topic, m) for t, topic, m in unitree_messages(store=store)]
    messages += camera_messages(FRAMES)
    old = {"/dex3/left/state", "/dex3/right/state"}
    path = tmp_path / "bag"
    bags.write_mixed(path, messages, stores=lambda topic: store if topic in old else bags.STORE)
    done = run(path, tmp_path / "out")
    assert done.exit_code == 0, done.output
    episode = check_sound(tmp_path / "out").episode(0)
    thumb = list(episode.joint_names).index("right_hand_thumb_2_joint")
    wanted = [joints_at(t - 0.001)["right_hand_thumb_2_joint"] for t in FRAMES]
    np.testing.assert_allclose(episode.state[:, thumb], wanted, atol=1e-6)


def test_inspire_hands_of_an_h1_2_come_as_openness_right_hand_first(tmp_path):
    """unitree_go/MotorStates: 1 open, 0 closed; body by the robot's own LowState order."""
    robot = load_embodiment("h1_2_inspire")
    openness = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4] + [1.0] * 6
    messages = camera_messages(FRAMES)
    for t in STATES:
        messages.append((t, "/lowstate", bags.low_state(joints_at(t, robot), robot)))
        messages.append((t, "/inspire/state", bags.motor_states(openness)))
    bag = write_bag(tmp_path / "bag", messages)
    done = run(bag, tmp_path / "out", "--robot", "h1_2_inspire")
    assert done.exit_code == 0, done.output
    episode = check_sound(tmp_path / "out").episode(0)
    got = dict(zip(episode.joint_names, episode.state[3].tolist(), strict=True))
    assert got["R_pinky_proximal_joint"] == pytest.approx(1.7 * 0.1)
    assert got["R_thumb_proximal_yaw_joint"] == pytest.approx(1.3 - 0.4 * 1.4)
    assert got["L_index_proximal_joint"] == pytest.approx(0.0)
    elbow = joints_at(FRAMES[3], robot)["left_elbow_joint"]
    assert got["left_elbow_joint"] == pytest.approx(elbow, abs=1e-6)


def misnamed(t: float) -> dict[str, float]:
    return {n.replace("left_elbow_joint", "left_elbow_jiont"): v for n, v in joints_at(t).items()}


def test_a_misspelt_joint_rejects_the_bag_with_the_likely_name(tmp_path):
    states = [(t, "/joint_states", bags.joint_state(stamp(t), misnamed(t))) for t in STATES]
    bag = write_bag(tmp_path / "bag", camera_messages(FRAMES) + states)
    done = run(bag, tmp_path / "out")
    assert done.exit_code == 1
    entry = report_of(tmp_path / "out")["bag"]
    assert entry["status"] == "rejected"
    assert "/joint_states lacks 1 joints of g1_dex3: left_elbow_joint" in entry["reason"]
    assert "left_elbow_jiont may be meant for left_elbow_joint" in entry["remedy"]
    assert "left_elbow_jiont may be meant for" in done.output


def test_positions_in_degrees_are_refused_by_joint(tmp_path):
    degrees = [
        (t, "/joint_states", bags.joint_state(stamp(t), {n: v * 57.3 for n, v in q.items()}))
        for t, q in ((t, joints_at(t)) for t in STATES)
    ]
    bag = write_bag(tmp_path / "bag", camera_messages(FRAMES) + degrees)
    assert run(bag, tmp_path / "out").exit_code == 1
    reason = report_of(tmp_path / "out")["bag"]["reason"]
    assert "joint positions are impossible" in reason and "degrees?" in reason


def test_joints_that_are_not_recorded_are_noted_as_assumed(tmp_path):
    """Arms and hands suffice to place the hands; waist and legs then count as 0."""
    arms = [
        (
            t,
            "/joint_states",
            bags.joint_state(stamp(t), {n: v for n, v in q.items() if n[0] != "w"}),
        )
        for t, q in ((t, joints_at(t)) for t in STATES)
    ]
    bag = write_bag(tmp_path / "bag", camera_messages(FRAMES) + arms)
    assert run(bag, tmp_path / "out").exit_code == 0
    notes = " ".join(report_of(tmp_path / "out")["bag"]["tally"]["notes"])
    assert "taken as 0 rad" in notes and "waist_yaw_joint" in notes
    assert "left_elbow_joint" not in notes


def test_an_import_goes_on_where_it_stopped_and_tries_rejected_bags_again(tmp_path):
    good = camera_messages(FRAMES) + joint_messages(STATES)
    write_bag(tmp_path / "runs/a", good)
    write_bag(tmp_path / "runs/b", camera_messages(FRAMES))  # no joints
    write_bag(tmp_path / "runs/c", good)
    out = tmp_path / "out"
    assert run(tmp_path / "runs", out).exit_code == 0
    report = report_of(out)
    assert [report[f"runs/{n}"]["status"] for n in "abc"] == ["imported", "rejected", "imported"]
    before = (out / "data/chunk-000/file-000.parquet").read_bytes()
    # As after a kill: episodes are on disk, but the report does not know of the last one.
    (out / "import_report.json").unlink()
    write_bag(tmp_path / "runs/d", good)
    assert run(tmp_path / "runs", out).exit_code == 0
    reader = check_sound(out)
    assert [r.metadata["source"] for r in reader.records] == ["runs/a", "runs/c", "runs/d"]
    assert (out / "data/chunk-000/file-000.parquet").read_bytes() == before
    refused = run(tmp_path / "runs", out, "--max-seconds", 5)
    assert refused.exit_code != 0 and "max_seconds" in refused.output


def test_an_import_interrupted_inside_a_recording_does_not_repeat_its_episodes(tmp_path):
    """After Ctrl-C the finished parts stay, and the next run writes the others only."""
    from ego_world_model.data.importers.bag import BagSource
    from ego_world_model.data.importers.bag_topics import TopicOptions
    from ego_world_model.data.importers.run import ImportOptions, run_import

    bag = write_bag(tmp_path / "bag", camera_messages(FRAMES) + joint_messages(STATES))
    options = ImportOptions(fps=10, min_seconds=0.5, max_seconds=0.6)

    class Interrupted(BagSource):
        def frames(self, tally):
            for frame in super().frames(tally):
                if frame.number == 14:
                    raise KeyboardInterrupt
                yield frame

    def source(kind):
        return kind(bag, root=bag, kinematics=KINEMATICS, options=TopicOptions())

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_import([source(Interrupted)], KINEMATICS, out, options)
    assert DatasetReader(out).lengths.tolist() == [6, 6]
    first = DatasetReader(out).episode(0)
    run_import([source(BagSource)], KINEMATICS, out, options)
    reader = check_sound(out)
    assert reader.lengths.tolist() == [6, 6, 6]  # the last two frames are too short a run
    assert [r.metadata["source_frames"][0] for r in reader.records] == [0, 6, 12]
    np.testing.assert_array_equal(reader.episode(0).images, first.images)
    assert report_of(out)["bag"]["tally"]["dropped"]["run without a gap is too short"][0] == 2


def test_a_camera_slower_than_the_dataset_is_told_with_its_rate(tmp_path):
    bag = write_bag(tmp_path / "bag", camera_messages(FRAMES) + joint_messages(STATES))
    assert run(bag, tmp_path / "out", "--fps", 30).exit_code == 1
    entry = report_of(tmp_path / "out")["bag"]
    assert "10.0 usable frames a second, the dataset has 30" in entry["reason"]
    assert "--fps 10" in entry["remedy"]


def test_size_and_long_runs(tmp_path):
    """Resized pictures get resized intrinsics; long runs become several episodes."""
    bag = write_bag(tmp_path / "bag", camera_messages(FRAMES) + joint_messages(STATES))
    out = tmp_path / "out"
    assert run(bag, out, "--size", "32x24", "--max-seconds", 1).exit_code == 0
    reader = check_sound(out)
    assert reader.lengths.tolist() == [10, 10]
    camera = reader.episode(0).camera
    assert (camera.width, camera.height) == (WIDTH // 2, HEIGHT // 2)
    assert camera.fx == pytest.approx(60.5 / 2)
    assert [number_of(image) for image in reader.episode(1).images] == list(range(10, 20))


def test_an_uncalibrated_camera_is_refused_unless_a_calibration_is_given(tmp_path):
    """Drivers without calibration publish a CameraInfo whose K is zero."""
    messages = [
        (t, topic, replace(message, k=np.zeros(9)) if topic == bags.INFO_TOPIC else message)
        for t, topic, message in camera_messages(FRAMES) + joint_messages(STATES)
    ]
    bag, out = write_bag(tmp_path / "bag", messages), tmp_path / "out"
    assert run(bag, out).exit_code == 1
    entry = report_of(out)["bag"]
    assert "not calibrated" in entry["reason"] and "--camera-info" in entry["remedy"]
    calibration = tmp_path / "camera.yaml"
    calibration.write_text(
        "image_width: 64\nimage_height: 48\n"
        "camera_matrix: {rows: 3, cols: 3, data: [61, 0, 31, 0, 62, 24, 0, 0, 1]}\n"
    )
    assert run(bag, out, "--camera-info", calibration).exit_code == 0
    assert check_sound(out).episode(0).camera.fx == 61.0


def test_several_cameras_without_a_choice_name_the_option(tmp_path):
    second = camera_messages(FRAMES, topic="/front/color/image_raw", info=False)
    bag = write_bag(tmp_path / "bag", camera_messages(FRAMES) + second + joint_messages(STATES))
    assert run(bag, tmp_path / "out").exit_code == 1
    entry = report_of(tmp_path / "out")["bag"]
    assert "/front/color/image_raw" in entry["reason"] and "--image-topic" in entry["remedy"]
    assert run(bag, tmp_path / "out", "--image-topic", IMAGE_TOPIC).exit_code == 0


def test_pictures_of_another_shape_need_a_calibration_file(tmp_path):
    """Without CameraInfo the nominal intrinsics serve only pictures of the nominal shape."""

    def wide(number_stamp, image):
        return bags.raw_image(number_stamp, np.repeat(image, 2, axis=1))

    messages = camera_messages(FRAMES, image=wide, info=False) + joint_messages(STATES)
    bag, out = write_bag(tmp_path / "bag", messages), tmp_path / "out"
    assert run(bag, out).exit_code == 1
    assert "--camera-info" in report_of(out)["bag"]["remedy"]
    calibration = tmp_path / "camera.yaml"
    calibration.write_text(
        "image_width: 128\nimage_height: 48\ndistortion_model: plumb_bob\n"
        "camera_matrix: {rows: 3, cols: 3, data: [99, 0, 63, 0, 98, 24, 0, 0, 1]}\n"
        "distortion_coefficients: {rows: 1, cols: 5, data: [0.1, 0, 0, 0, 0]}\n"
    )
    assert run(bag, out, "--camera-info", calibration).exit_code == 0
    episode = check_sound(out).episode(0)
    assert (episode.camera.fx, episode.metadata["lens"]["distortion"][0]) == (99.0, 0.1)
