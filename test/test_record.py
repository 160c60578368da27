"""`ego-world-model record` on a live graph: what it keeps is what importing the bag gives."""

from __future__ import annotations

import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run script/setup")
pytest.importorskip("ego_world_model.msg", reason="needs the built interfaces: run script/setup")

import bags
from bags import IMAGE_TOPIC, camera_messages, depth_messages, joint_messages, write_bag
from recordings import check_sound, command, report_of
from replaying import START, cli, uneven_joints
from support import NodeProcess

from ego_world_model.data import DatasetReader, Episode

LIVE = np.arange(120) / 15 + 0.013
"""Eight seconds of frames: the recorder finds the topics in the first, then records."""
SETTINGS = ("--fps", 15, "--min-seconds", 0.2)


def recorder(out: Path, *options: object) -> NodeProcess:
    process = cli("record", "--out", out, *SETTINGS, *options)
    process.wait_for("waiting for", timeout=START)
    return process


def frames_of(root: Path) -> dict[int, tuple[Episode, int]]:
    """Stamp → the episode and the number of every frame of a dataset that is sound."""
    reader, found = check_sound(root), {}
    for number, record in enumerate(reader.records):
        episode = reader.episode(number, depth=True)
        for k, stamp in enumerate(record.metadata["source_stamps_ns"]):
            found[stamp] = (episode, k)
    return found


def assert_as_imported(live: Path, bag: Path, folder: Path, *, missing: int) -> None:
    """Every frame from the first recorded one on is there, just as the import has it."""
    done = command("record", "--bag", bag, "--out", folder, *SETTINGS)
    assert done.exit_code == 0, done.output
    wanted, got = frames_of(folder), frames_of(live)
    stamps = sorted(wanted)
    assert sorted(got) == stamps[stamps.index(min(got)) :], "no frame is lost"
    assert len(got) >= len(wanted) - missing
    for stamp, (episode, k) in got.items():
        other, j = wanted[stamp]
        np.testing.assert_array_equal(episode.images[k], other.images[j])
        np.testing.assert_array_equal(episode.state[k], other.state[j])
        np.testing.assert_array_equal(episode.hand_positions[k], other.hand_positions[j])
        np.testing.assert_array_equal(episode.camera_pose[k], other.camera_pose[j])
        if other.depth is not None:
            np.testing.assert_array_equal(episode.depth[k], other.depth[j])


def test_recording_a_played_bag_gives_what_importing_it_gives(ros_domain, tmp_path):
    """Compressed images, depth, an instruction; ctrl-C ends it and keeps what came until then."""
    messages = uneven_joints(np.arange(-5, 820) / 100) + depth_messages(LIVE, delay=0.005)
    messages += camera_messages(
        LIVE,
        image=partial(bags.compressed_image, kind="PNG"),
        topic=f"{IMAGE_TOPIC}/compressed",
        delay=0.005,
    )
    messages.append((0.0, "/instruction", bags.text("pick up the cup")))
    bag, out = write_bag(tmp_path / "bag", messages), tmp_path / "live"
    with recorder(out) as process:
        with cli("replay", bag, "--wait", 60) as player:
            assert player.wait(timeout=START) == 0, player.output
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 0, process.output
    assert "recording; ctrl-C ends it" in process.output and "Traceback" not in process.output
    assert_as_imported(out, bag, tmp_path / "imported", missing=60)
    assert {record.task for record in DatasetReader(out).records} == {"pick up the cup"}
    (entry,) = report_of(out).values()
    assert entry["kind"] == "live graph" and entry["status"] == "imported"


def test_seconds_and_episodes_end_a_recording_and_a_second_one_is_appended(ros_domain, tmp_path):
    """One recording ends by time, the next by its number of episodes; the folder names the task."""
    bag = write_bag(tmp_path / "bag", camera_messages(LIVE) + joint_messages(np.arange(405) / 50))
    out = tmp_path / "wave_the-hand"
    for option, total in ((("--seconds", 1), 1), (("--episodes", 2), 3)):
        with recorder(out, *option, "--max-seconds", 1) as process, cli("replay", bag):
            assert process.wait(timeout=START) == 0, process.output
        reader = check_sound(out)
        assert reader.lengths.tolist() == [15] * total
    assert {record.task for record in reader.records} == {"wave the hand"}
    entries = list(report_of(out).values())
    assert [entry["tally"]["episodes"] for entry in entries] == [1, 2]
    assert any("not recorded, taken as 0 rad" in note for note in entries[1]["tally"]["notes"])


def test_what_is_missing_is_said_after_five_seconds_and_ctrl_c_ends_it(ros_domain, tmp_path):
    with recorder(tmp_path / "out") as process:
        line = process.wait_for("no camera images on /camera/color/image_raw yet", timeout=60)
        assert "no joint states on /joint_states yet" in line and "ROS_DOMAIN_ID" in line
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 1
    assert "nothing was recorded: no /camera/color/camera_info" in process.output
    assert "Traceback" not in process.output
