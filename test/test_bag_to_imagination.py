"""A bag of a G1, written by rosbags, goes the whole way: bridge, kinematics, import, clip, imagine.

The robot of the bag moves in the simulation; its camera, CameraInfo and Unitree's own states are
recorded as its computers would record them, and nothing of this package writes the bag.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rosbags")
pytest.importorskip("mujoco")

import bags
from bags import IMAGE_TOPIC, INFO_TOPIC, stamp, write_bag
from numpy.typing import NDArray
from recordings import KINEMATICS, ROBOT, check_sound, command

from ego_world_model.hands import EXTRA_SLOTS, HandTrajectory
from ego_world_model.media import read_video, write_png
from ego_world_model.simulation import TableTop
from ego_world_model.trajectory_file import save_trajectory

RATE, SECONDS = 30, 4.5
STATES_HZ = 120


@dataclass(frozen=True)
class Recording:
    """A bag and what was true: joints (T, nq) rad and slots (T, 46, 3) m at each frame's stamp."""

    path: Path
    camera: Any
    stamps: list[int]
    positions: NDArray[np.float32]


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Recording:
    """4.5 s of a simulated G1 at a table: 30 Hz pictures, 120 Hz LowState and hand states."""
    sim = TableTop(ROBOT, seed=5, split="test", width=160, height=120)
    orders, messages, stamps, truth = ROBOT.state_orders, [], [], []
    try:
        for k in range(round(SECONDS * STATES_HZ)):
            t = k / STATES_HZ
            q = dict(zip(ROBOT.joint_names, sim.joint_positions.tolist(), strict=True))
            messages.append((t, "/lowstate", bags.low_state(q)))
            for side in ("left", "right"):
                state = bags.hand_state(q, orders[f"dex3/{side}"])
                messages.append((t, f"/dex3/{side}/state", state))
            if k % (STATES_HZ // RATE) == 0:
                image = bags.raw_image(stamp(t), sim.render().rgb)
                messages.append((t + 0.012, IMAGE_TOPIC, image))
                info = bags.camera_info(stamp(t), sim.camera)
                messages.append((t + 0.012, INFO_TOPIC, info))
                stamps.append(stamp(t))
                truth.append(np.array(sim.joint_positions))
            sim.advance(1 / STATES_HZ)
        camera = sim.camera
    finally:
        sim.close()
    positions, _ = KINEMATICS.hand_joints_batch(np.stack(truth), extra_slots=EXTRA_SLOTS)
    path = write_bag(tmp_path_factory.mktemp("robot") / "pick_it_up", messages)
    return Recording(path, camera, stamps, positions)


def test_a_bag_is_imported_cut_to_a_clip_and_imagined_on(recording, tmp_path):
    """import → data clips → imagine, by the commands that docs/importing.md names."""
    done = command("import", "bag", recording.path, "--out", tmp_path / "set")
    assert done.exit_code == 0, done.output
    episode = check_sound(tmp_path / "set").episode(0)
    assert episode.metadata["source_stamps_ns"] == recording.stamps
    np.testing.assert_allclose(episode.hand_positions, recording.positions, atol=1e-5)
    assert episode.task == "pick it up"

    done = command("data", "clips", tmp_path / "set", "--out", tmp_path / "clips")
    assert done.exit_code == 0, done.output
    clip = np.load(tmp_path / "clips/clip_000000.npz")
    frames, fps = read_video(tmp_path / "clips/clip_000000.mp4")
    assert frames.shape == (121, 120, 160, 3) and fps == 30
    first = int(clip["frame_indices"][0])
    np.testing.assert_allclose(
        clip["joints"], recording.positions[first : first + 121, :42], atol=1e-5
    )

    poses = np.linalg.inv(clip["camera_pose"][0]) @ clip["camera_pose"]
    poses[0] = np.eye(4)
    motion = HandTrajectory(np.arange(121) / fps, clip["joints"], clip["valid"], poses)
    write_png(tmp_path / "frame.png", frames[0])
    save_trajectory(tmp_path / "hands.npz", motion, camera=recording.camera)
    words = ("--image", tmp_path / "frame.png", "--trajectory", tmp_path / "hands.npz")
    done = command("imagine", *words, "--out", tmp_path / "rollout.mp4", "--seed", 0)
    assert done.exit_code == 0, done.output
    imagined, rate = read_video(tmp_path / "rollout.mp4")
    assert imagined.shape == (17, 96, 128, 3) and rate == 10
    reference = imagined[0].astype(int)
    assert np.abs(imagined[-1] - reference).max() > 60, "hands move in what is imagined"
    assert np.abs(imagined[-1] - reference).mean() < 30, "the scene stays"


def test_a_bag_drives_the_bridge_and_the_kinematics(recording, ros_node, tmp_path):
    """Unitree's states over DDS → joint_states → hands/joints, stamped by the bag's clock."""
    from replaying import START, lossless, replay
    from robot_player import Inbox
    from support import node, wait_until
    from unitree_interfaces import build_interfaces

    from ego_world_model.msg import HandJoints
    from ego_world_model.ros.conversions import hand_joints_from_message, nanoseconds

    unitree = build_interfaces(Path(sys.prefix) / "build-unitree_interfaces")
    hands: list[HandJoints] = Inbox(ros_node).listen(HandJoints, "hands/joints")
    simulated = {"use_sim_time": True}
    patient = {**simulated, "joint_tolerance": 0.2}  # with a bridge that a busy machine delays
    with (
        node("unitree_bridge_node", parameters=simulated, environment=unitree) as bridge,
        node("hand_kinematics_node", parameters=patient, parameter_file=lossless(tmp_path)) as fk,
    ):
        bridge.wait_for("waiting for", timeout=START)
        fk.wait_for("waiting for", timeout=START)
        replay(recording.path, "--rate", 0.5, environment=unitree)
        enough = 0.9 * len(recording.stamps)  # the first comes before the hands' states
        wait_until(lambda: len(hands) >= enough, timeout=60, what=f"{bridge.output}\n{fk.output}")
        assert "rejected" not in bridge.output, bridge.output
    stamps = [nanoseconds(message.header.stamp) for message in hands]
    assert stamps == sorted(set(stamps)) and set(stamps) <= set(recording.stamps)
    places = [recording.stamps.index(s) for s in stamps]
    joints = [hand_joints_from_message(message) for message in hands]
    errors = [
        np.abs(j.positions - recording.positions[k])[j.valid].max()
        for j, k in zip(joints, places, strict=True)
    ]
    # LowState has no stamp, so joint states are late by what the bridge is: hands were 6 mm off
    # on a very busy machine. Fingers in a wrong order would be 57 mm off.
    assert np.median(errors) < 0.02, errors
