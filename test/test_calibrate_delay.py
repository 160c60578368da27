"""The camera-joint delay of a simulated recording is found, or refused where it does not show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import bags
import numpy as np
import pytest
import yaml
from scipy.ndimage import gaussian_filter
from simulated_motion import Motion, simulate
from typer.testing import CliRunner, Result

from ego_world_model import cli
from ego_world_model.bringup import load_bringup, resolve
from ego_world_model.calibration import CalibrationError, read_mount
from ego_world_model.calibration.delay import DelayError, estimate_delay
from ego_world_model.calibration.output import read_time_offset
from ego_world_model.data.importers.bag import BagSource
from ego_world_model.data.importers.bag_topics import TopicOptions
from ego_world_model.data.importers.base import Tally
from ego_world_model.embodiment import load_embodiment
from ego_world_model.kinematics import HandKinematics

ROBOTS = ("g1_dex3", "h1_2_inspire")


@pytest.fixture(scope="module")
def motions() -> dict[str, Motion]:
    return {robot: simulate(robot, 12.0) for robot in ROBOTS}


def run(*words: object) -> Result:
    return CliRunner().invoke(cli.app, ["calibrate-delay", *map(str, words)])


def write_bag(path: Path, motion: Motion, delay: float, *, seconds: float = 12.0) -> Path:
    """Images, their CameraInfo and joint states at full rate, as a robot's recorder writes them."""
    messages: list[bags.Message] = []
    info = bags.camera_info(0, motion.camera)
    for time, image in zip(motion.times, motion.images, strict=True):
        if time < seconds:
            at = bags.stamp(time + delay)
            messages.append((time + 0.1, bags.IMAGE_TOPIC, bags.raw_image(at, image)))
    messages.append((0.05, bags.INFO_TOPIC, info))
    for time, q in zip(motion.joint_times, motion.q, strict=True):
        if time < seconds:
            joints = dict(zip(motion.robot.joint_names, q.tolist(), strict=True))
            state = bags.joint_state(bags.stamp(time), joints)
            messages.append((time + 0.01, "/joint_states", state))
    return bags.write_bag(path, messages)


# ------------------------------------------------------------------------------ the estimate


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize(
    ("delay", "per_frame"),
    [(0.04, False), (-0.04, False), (0.0, True)],
    ids=["late", "early", "none, joints of frames"],
)
def test_an_injected_delay_is_recovered_within_5_ms(motions, robot, delay, per_frame):
    """Also where only the joints of the frames are known, and within the stated uncertainty."""
    estimate = estimate_delay([motions[robot].take(delay, per_frame=per_frame)])
    error = abs(estimate.delay - delay)
    assert error < 0.005
    assert error < 4 * estimate.deviation + 0.001
    assert 0 < estimate.deviation < 0.005


def test_recordings_of_one_delay_add_up(motions):
    """Two halves are less certain than both together."""
    take = motions["g1_dex3"].take(0.04)
    half = len(take.times) // 2
    parts = [
        replace(take, times=take.times[part], images=take.images[part])
        for part in (slice(None, half), slice(half, None))
    ]
    alone = [estimate_delay([part], max_deviation=1.0) for part in parts]
    both = estimate_delay(parts)
    assert abs(both.delay - 0.04) < 0.005
    assert both.deviation < max(part.deviation for part in alone)


# ------------------------------------------------------------------------------ refusals


def test_hands_at_rest_are_refused(motions):
    take = motions["g1_dex3"].take(0.0)
    still = replace(take, points=np.repeat(take.points[:1], len(take.points), axis=0))
    with pytest.raises(DelayError, match="the hands move in view for 0.0 s only; record at least"):
        estimate_delay([still])


def test_hands_out_of_view_are_refused(motions):
    take = motions["g1_dex3"].take(0.0)
    behind = replace(take, points=take.points * (1.0, 1.0, -1.0))
    with pytest.raises(DelayError, match="no two frames in a row show hands by the joint states"):
        estimate_delay([behind])


def test_pictures_of_another_recording_are_refused(motions):
    """Joint states that have nothing to do with the pictures give no delay, not a wrong one."""
    take = motions["g1_dex3"].take(0.0)
    backwards = replace(take, points=take.points[::-1])
    with pytest.raises(DelayError, match="leaves the delay open|lies at the edge of the search"):
        estimate_delay([backwards])


def test_motion_that_repeats_is_refused_where_it_fits_several_delays():
    """A steady turn shows no more than its direction: any delay explains it."""
    rng = np.random.default_rng(0)
    motion = simulate("g1_dex3", 2.0)
    take = motion.take(0.0)
    texture = rng.integers(0, 255, (240, 640), dtype=np.uint8).astype(float)
    wide = gaussian_filter(texture, 2.0)
    wide = (wide - wide.min()) / np.ptp(wide) * 255
    count = 240
    images = np.stack([np.rint(wide[:120, k : k + 160]) for k in range(count)]).astype(np.uint8)
    times = np.arange(count) / 30.0
    camera = take.camera
    pixels = 140.0 - np.arange(count)  # one pixel a frame to the left, for ever
    points = np.zeros((count, 1, 3))
    points[:, 0, 0] = (pixels - camera.cx) / camera.fx
    points[:, 0, 2] = 1.0
    steady = replace(take, times=times, images=images, joint_times=times, points=points)
    with pytest.raises(DelayError, match="leaves the delay open|lies at the edge of the search"):
        estimate_delay([steady])


def test_a_delay_beyond_the_search_is_refused_with_the_remedy(motions):
    take = motions["g1_dex3"].take(0.2)
    with pytest.raises(DelayError, match="edge of the search; raise --max-delay"):
        estimate_delay([take], max_delay=0.1)


# ------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def bag(motions, tmp_path_factory) -> Path:
    """A G1's recording whose images are stamped 40 ms late."""
    return write_bag(tmp_path_factory.mktemp("bags") / "late", motions["g1_dex3"], 0.04)


def test_a_bag_gives_the_file_that_the_launch_files_take(bag, tmp_path):
    """At native rates, and every node that pairs frames reads the result."""
    out = tmp_path / "calibration.yaml"
    result = run(bag, "--out", out)
    assert result.exit_code == 0, result.output
    assert "Images are stamped" in result.output and "later than the joint states" in result.output
    assert abs(read_time_offset(out) - 0.04) < 0.005
    given = {"calibration": str(out), "policy": "true"}
    specs = {s.name: s for s in resolve(load_bringup("g1"), given)}
    written = yaml.safe_load(out.read_text())
    for name in ("hand_kinematics", "motion_policy", "world_model"):
        assert str(out) in specs[name].parameter_files
        value = written[f"/**/{name}"]["ros__parameters"]["joint_time_offset"]
        assert abs(value - 0.04) < 0.005


def test_an_imported_bag_tells_the_same_delay(bag, tmp_path):
    """The dataset has only the joints at its frames' stamps."""
    words = ["import", "bag", str(bag), "--out", str(tmp_path / "set")]
    imported = CliRunner().invoke(cli.app, words)
    assert imported.exit_code == 0, imported.output
    result = run(tmp_path / "set", "--out", tmp_path / "c.yaml")
    assert result.exit_code == 0, result.output
    assert abs(read_time_offset(tmp_path / "c.yaml") - 0.04) < 0.005


def test_an_import_with_the_offset_leaves_no_delay(bag, tmp_path):
    words = [
        "import",
        "bag",
        str(bag),
        "--out",
        str(tmp_path / "set"),
        "--joint-time-offset",
        "0.04",
    ]
    imported = CliRunner().invoke(cli.app, words)
    assert imported.exit_code == 0, imported.output
    result = run(tmp_path / "set", "--out", tmp_path / "c.yaml")
    assert result.exit_code == 0, result.output
    assert abs(read_time_offset(tmp_path / "c.yaml")) < 0.005


def test_mount_and_delay_share_a_file(bag, tmp_path):
    """Each command keeps what the other wrote, notes included; the mount places the hands."""
    out = tmp_path / "calibration.yaml"
    out.write_text(
        "# Camera mount of g1_dex3, written by `ego-world-model calibrate`.\n"
        "# 120 pixels: RMS 2.8 px.\n"
        "# For the robot's launch file, or `ego-world-model up`: calibration:=/path/of/this/file\n"
        + "".join(
            f"\n/**/{name}:\n  ros__parameters:\n"
            "    camera_correction_xyz: [0.001, 0.0, 0.002]   # m, in the nominal optical frame\n"
            "    camera_correction_rpy: [0.001, 0.0, 0.0]   # rad, roll, pitch, yaw\n"
            for name in ("hand_kinematics", "world_model")
        )
    )
    robot = load_embodiment("g1_dex3")
    before = read_mount(out, robot)
    assert run(bag, "--out", out).exit_code == 0
    after = read_mount(out, robot)
    np.testing.assert_array_equal(before.matrix, after.matrix)
    assert abs(read_time_offset(out) - 0.04) < 0.005
    text = out.read_text()
    assert text.count("calibration:=") == 1 and "RMS 2.8 px" in text
    assert "Camera-joint delay of g1_dex3" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- 1\n", "holds no ROS parameters; give another --out"),
        (
            "# Camera mount of h1_2_inspire, written by `ego-world-model calibrate`.\n",
            "is a calibration of h1_2_inspire, not of g1_dex3",
        ),
    ],
)
def test_a_file_that_is_not_this_robots_calibration_is_left_alone(bag, tmp_path, content, words):
    out = tmp_path / "calibration.yaml"
    out.write_text(content)
    result = run(bag, "--out", out)
    assert result.exit_code == 1
    assert words in " ".join(result.output.split())
    assert out.read_text() == content


def test_too_short_a_bag_is_refused_and_nothing_written(motions, tmp_path):
    short = write_bag(tmp_path / "short", motions["g1_dex3"], 0.0, seconds=2.0)
    result = run(short, "--out", tmp_path / "c.yaml")
    assert result.exit_code == 1 and "record at least 3 s" in " ".join(result.output.split())
    assert not (tmp_path / "c.yaml").exists()


def test_another_robots_dataset_and_unknown_episodes_are_named(bag, tmp_path):
    imported = CliRunner().invoke(
        cli.app, ["import", "bag", str(bag), "--out", str(tmp_path / "set")]
    )
    assert imported.exit_code == 0, imported.output
    result = run(tmp_path / "set", "--robot", "h1_2_inspire")
    assert result.exit_code == 1 and "is of 'g1_dex3'; give --robot g1_dex3" in result.output
    result = run(tmp_path / "set", "--episode", 7)
    assert result.exit_code == 1 and "1 episodes, numbered from 0" in result.output
    result = run(bag, "--episode", 0)
    assert result.exit_code == 1 and "--episode is for datasets" in result.output


def test_files_without_a_delay_say_so(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("/**/hand_kinematics:\n  ros__parameters: {}\n")
    assert read_time_offset(path) == 0.0
    path.write_text("nothing: here\n")
    with pytest.raises(CalibrationError, match="is no calibration: joint_time_offset"):
        read_time_offset(path)


def test_joints_of_several_topics_are_put_together_at_the_rate_of_the_fastest(tmp_path):
    """A Unitree robot's body at 100 Hz, its hands at 50 Hz from and until other times."""
    robot = load_embodiment("g1_dex3")
    messages: list[bags.Message] = []
    for number in range(100):
        time, joints = 0.01 * number, bags.joints_at(0.01 * number)
        messages.append((time, "/lowstate", bags.low_state(joints)))
        if number % 2 == 1 and number < 90:
            for side in ("left", "right"):
                state = bags.hand_state(joints, robot.state_orders[f"dex3/{side}"])
                messages.append((time, f"/dex3/{side}/state", state))
    messages += bags.camera_messages([0.5])
    path = bags.write_bag(tmp_path / "unitree", messages)
    source = BagSource(
        path, root=path, kinematics=HandKinematics(robot), options=TopicOptions(tolerance=0.05)
    )
    stamps, q = source.joints(Tally())
    seconds = (stamps - bags.START) * 1e-9
    np.testing.assert_allclose(seconds, np.arange(1, 90) * 0.01, atol=1e-6)
    expected = np.stack([robot.q_from(bags.joints_at(time)) for time in seconds])
    np.testing.assert_allclose(q, expected, atol=1e-6)
