"""Humanoid Everyday and xr_teleoperate episodes: fields, orders and units of each format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from recordings import (
    ROBOT,
    assert_kinematics,
    check_sound,
    command,
    joints_at,
    number_of,
    picture,
    report_of,
)

from ego_world_model.embodiment import builtin_embodiments, load_embodiment

FPS, COUNT = 30, 40
TIMES = np.arange(COUNT) / FPS
FAST = ("--min-seconds", 0.5)
ORDERS = ROBOT.state_orders
ARMS = [*ROBOT.hands["left"].arm, *ROBOT.hands["right"].arm]
EPOCH = 1_750_000_000.0


def pick(names: Any, seconds: float, robot: Any = ROBOT) -> list[float]:
    joints = joints_at(seconds, robot)
    return [joints.get(name, 0.0) for name in names]


def write_picture(path: Path, number: int, *, stereo: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = picture(number)
    if stereo:
        image = np.concatenate([image, np.zeros_like(image)], axis=1)
    Image.fromarray(image).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def humanoid_everyday(
    root: Path,
    *,
    hands: list[str] | None = None,
    times: np.ndarray = TIMES,
    suffix: str = "png",
    actions: bool = True,
) -> Path:
    """``<task>/episode_0`` of the G1 as the data set's description gives it."""
    folder = root / "pick_up-the_cup" / "episode_0"
    hands = hands or [*ORDERS["dex3/left"], *ORDERS["dex3/right_middle_first"]]
    body = ORDERS["unitree_hg/LowState"]
    frames = []
    for number, t in enumerate(times):
        name = f"color/frame_{number:06d}.{suffix}"
        write_picture(folder / name, number)
        solved = {"sol_q": pick(ARMS, t + 0.5), "left_angles": [9.0] * 7, "right_angles": [9.0] * 7}
        frames.append(
            {
                "time": EPOCH + t,
                "robot_type": "g1",
                "states": {
                    "arm_state": pick(ARMS, t),
                    "leg_state": pick(body[:15], t),
                    "hand_state": pick(hands, t),
                    "hand_pressure_state": None,
                    "imu": {"quaternion": [1, 0, 0, 0]},
                    "odometry": {"position": [0, 0, 0]},
                },
                "actions": solved if actions else None,
                "image": name,
                "depth": f"depth/frame_{number:06d}.npy.lzma",
                "lidar": None,
            }
        )
    (folder / "data.json").write_text(json.dumps(frames))
    return folder


def xr_teleoperate(
    root: Path, *, names: bool = False, body: bool = True, stereo: bool = False, **changes: Any
) -> Path:
    """``<task>/episode_0001`` as the recorder writes it; ``names``: info.joint_names is filled."""
    folder = root / "stack_blocks" / "episode_0001"
    groups = {
        "left_arm": ROBOT.hands["left"].arm,
        "right_arm": ROBOT.hands["right"].arm,
        "left_ee": ORDERS["dex3/left"],
        "right_ee": ORDERS["dex3/right"],
    }
    if names:  # any order is right as long as it is named
        groups = {key: tuple(reversed(group)) for key, group in groups.items()}
    listed = {key: list(group) if names else [] for key, group in groups.items()}
    items = []
    for number, t in enumerate(TIMES):
        color = f"colors/{number:06d}_color_0.jpg"
        write_picture(folder / color, number, stereo=stereo)

        def state(seconds: float) -> dict[str, Any]:
            return {
                key: {"qpos": pick(group, seconds), "qvel": [], "torque": []}
                for key, group in groups.items()
            }

        motors = [*pick(ORDERS["unitree_hg/LowState"], t), *[0.0] * 6] if body else []
        items.append(
            {
                "idx": number,
                "colors": {"color_0": color},
                "depths": {},
                "states": state(t) | {"body": {"qpos": motors}},
                "actions": state(t + 0.5) | {"body": {"qpos": [0.1, 0.2, 0.3]}},
                "tactiles": None,
                "audios": None,
                "sim_state": "",
            }
        )
    content = {
        "info": {
            "version": "1.0.0",
            "image": {"width": 64, "height": 48, "fps": FPS},
            "joint_names": listed | {"body": []},
        },
        "text": {"goal": "Stack the blocks.", "desc": "", "steps": ""},
        "data": items,
    }
    (folder / "data.json").write_text(json.dumps(content | changes))
    return folder


def assert_close_pictures(images: np.ndarray, numbers: list[int]) -> None:
    assert [number_of(image) for image in images] == numbers
    assert np.abs(images[0].astype(int) - picture(numbers[0])).mean() < 3


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_humanoid_everyday_episodes_of_the_g1(tmp_path, suffix):
    """Arms, legs with waist, hands middle first; the arms' commanded positions are kept."""
    humanoid_everyday(tmp_path / "he", suffix=suffix)
    out = tmp_path / "out"
    done = command("import", "humanoid-everyday", tmp_path / "he", "--out", out, *FAST)
    assert done.exit_code == 0, done.output
    episode = check_sound(out).episode(0)
    assert_kinematics(episode, TIMES)
    assert episode.task == "pick up the cup"
    assert_close_pictures(episode.images, list(range(COUNT)))
    elbow = episode.joint_names.index("right_elbow_joint")
    wanted = [joints_at(t + 0.5)["right_elbow_joint"] for t in TIMES]
    np.testing.assert_allclose(episode.action[:, elbow], wanted, atol=1e-6)
    finger = episode.joint_names.index("right_hand_index_0_joint")
    np.testing.assert_array_equal(episode.action[:-1, finger], episode.state[1:, finger])


def test_humanoid_everyday_recorded_in_the_sdks_order(tmp_path):
    hands = [*ORDERS["dex3/left"], *ORDERS["dex3/right"]]
    humanoid_everyday(tmp_path / "he", hands=hands, actions=False)
    words = ("import", "humanoid-everyday", tmp_path / "he", "--index-first", *FAST)
    assert command(*words, "--out", tmp_path / "out").exit_code == 0
    assert_kinematics(check_sound(tmp_path / "out").episode(0), TIMES)


def test_a_pause_in_the_recording_splits_the_episode(tmp_path):
    times = np.concatenate([TIMES[:20], TIMES[20:] + 0.4])
    humanoid_everyday(tmp_path / "he", times=times)
    words = ("import", "humanoid-everyday", tmp_path / "he", *FAST)
    assert command(*words, "--out", tmp_path / "out").exit_code == 0
    reader = check_sound(tmp_path / "out")
    assert reader.lengths.tolist() == [20, 20]
    assert_kinematics(reader.episode(1), times[20:])


def test_a_lost_picture_is_counted_and_splits_the_episode(tmp_path):
    folder = humanoid_everyday(tmp_path / "he")
    (folder / "color/frame_000020.png").unlink()
    words = ("import", "humanoid-everyday", tmp_path / "he", *FAST)
    assert command(*words, "--out", tmp_path / "out").exit_code == 0
    assert check_sound(tmp_path / "out").lengths.tolist() == [20, 19]
    (entry,) = report_of(tmp_path / "out").values()
    assert entry["tally"]["dropped"]["picture cannot be read"][0] == 1


def test_inspire_hands_come_as_openness_and_become_angles(tmp_path):
    """H1-2: 0 is closed and 1 open; left hand first; followers follow their driver."""
    if "h1_2_inspire" not in builtin_embodiments():
        pytest.skip("no embodiment with Inspire hands")
    robot = load_embodiment("h1_2_inspire")
    folder = tmp_path / "he/wave/episode_3"
    openness = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4] * 2
    arms = [*robot.hands["left"].arm, *robot.hands["right"].arm]
    frames = []
    for number, t in enumerate(TIMES):
        write_picture(folder / f"color/{number}.png", number)
        states = {"arm_state": pick(arms, t, robot), "leg_state": [0.0] * 13}
        states["hand_state"] = openness
        frames.append({"time": EPOCH + t, "states": states, "image": f"color/{number}.png"})
    (folder / "data.json").write_text(json.dumps(frames))
    words = ("import", "humanoid-everyday", folder, "--robot", "h1_2_inspire", *FAST)
    done = command(*words, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    episode = check_sound(tmp_path / "out").episode(0)
    got = dict(zip(episode.joint_names, episode.state[0].tolist(), strict=True))
    assert got["L_pinky_proximal_joint"] == pytest.approx(1.7 * 0.1)
    assert got["R_index_proximal_joint"] == pytest.approx(1.7 * 0.4)
    assert got["R_index_intermediate_joint"] == pytest.approx(1.7 * 0.4)
    assert got["L_thumb_proximal_pitch_joint"] == pytest.approx(0.5 * 0.5)
    assert got["R_thumb_proximal_yaw_joint"] == pytest.approx(1.3 - 0.4 * 1.4)


def test_the_wrong_robot_is_refused_with_the_remedy(tmp_path):
    folder = humanoid_everyday(tmp_path / "he")
    frames = json.loads((folder / "data.json").read_text())
    for frame in frames:
        frame["states"]["hand_state"] = [0.5] * 12
    (folder / "data.json").write_text(json.dumps(frames))
    words = ("import", "humanoid-everyday", folder, *FAST)
    assert command(*words, "--out", tmp_path / "out").exit_code == 1
    (entry,) = report_of(tmp_path / "out").values()
    assert "inspire/state" in entry["reason"] and "--robot" in entry["remedy"]


@pytest.mark.parametrize("names", [False, True])
def test_xr_teleoperate_episodes(tmp_path, names):
    """Named groups in any order, or the recorder's fixed layout; the body brings the waist."""
    xr_teleoperate(tmp_path / "xr", names=names)
    done = command("import", "xr-teleoperate", tmp_path / "xr", "--out", tmp_path / "out", *FAST)
    assert done.exit_code == 0, done.output
    episode = check_sound(tmp_path / "out").episode(0)
    assert_kinematics(episode, TIMES)
    assert episode.task == "Stack the blocks."
    assert_close_pictures(episode.images, list(range(COUNT)))
    thumb = episode.joint_names.index("left_hand_thumb_1_joint")
    wanted = [joints_at(t + 0.5)["left_hand_thumb_1_joint"] for t in TIMES]
    np.testing.assert_allclose(episode.action[:, thumb], wanted, atol=1e-6)
    waist = episode.joint_names.index("waist_yaw_joint")
    np.testing.assert_array_equal(episode.action[:-1, waist], episode.state[1:, waist])


def test_of_stereo_pictures_the_left_eye_is_taken_and_said_so(tmp_path):
    xr_teleoperate(tmp_path / "xr", stereo=True, body=False)
    done = command("import", "xr-teleoperate", tmp_path / "xr", "--out", tmp_path / "out", *FAST)
    assert done.exit_code == 0, done.output
    episode = check_sound(tmp_path / "out").episode(0)
    assert_close_pictures(episode.images, list(range(COUNT)))
    (entry,) = report_of(tmp_path / "out").values()
    notes = " ".join(entry["tally"]["notes"])
    assert "the left half is used" in notes and "waist_yaw_joint" in notes


def test_a_recording_that_was_cut_off_is_rejected_and_the_others_are_imported(tmp_path):
    xr_teleoperate(tmp_path / "xr/a")
    broken = xr_teleoperate(tmp_path / "xr/b") / "data.json"
    broken.write_text(broken.read_text()[:-40])
    done = command("import", "xr-teleoperate", tmp_path / "xr", "--out", tmp_path / "out", *FAST)
    assert done.exit_code == 0, done.output
    first, second = report_of(tmp_path / "out").values()
    assert (first["status"], second["status"]) == ("imported", "rejected")
    assert "not complete JSON" in second["reason"]


def test_each_command_names_the_other_for_the_others_episodes(tmp_path):
    humanoid_everyday(tmp_path / "he")
    command("import", "xr-teleoperate", tmp_path / "he", "--out", tmp_path / "a", *FAST)
    (entry,) = report_of(tmp_path / "a").values()
    assert "import humanoid-everyday" in entry["remedy"]
    xr_teleoperate(tmp_path / "xr")
    command("import", "humanoid-everyday", tmp_path / "xr", "--out", tmp_path / "b", *FAST)
    (entry,) = report_of(tmp_path / "b").values()
    assert "import xr-teleoperate" in entry["remedy"]
