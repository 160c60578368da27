"""Unitree's LeRobot sets, both layouts: joints by name whatever their order, frames in step."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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

from ego_world_model.media import write_video

FPS = 30
LENGTHS = (35, 40)
KEY, WRIST = "observation.images.cam_left_high", "observation.images.cam_left_wrist"
FAST = ("--min-seconds", 0.5)

ARM = ("ShoulderPitch", "ShoulderRoll", "ShoulderYaw", "Elbow", "WristRoll", "WristPitch")
ARM += ("WristYaw",)
LEFT = ("Thumb0", "Thumb1", "Thumb2", "Middle0", "Middle1", "Index0", "Index1")
RIGHT = ("Thumb0", "Thumb1", "Thumb2", "Index0", "Index1", "Middle0", "Middle1")
# The published order of G1_Dex3: left arm, right arm, left hand, right hand.
NAMES = [f"kLeft{j}" for j in ARM] + [f"kRight{j}" for j in ARM]
NAMES += [f"kLeftHand{j}" for j in LEFT] + [f"kRightHand{j}" for j in RIGHT]


def value_of(name: str, seconds: float) -> float:
    """What the moving robot's joint of this Unitree name reads."""
    if name.startswith("kWaist"):
        return joints_at(seconds)[f"waist_{name.removeprefix('kWaist').lower()}_joint"]
    side = "left" if "Left" in name else "right"
    rest = name.removeprefix("kLeft").removeprefix("kRight")
    spelt = "".join(f"_{c.lower()}" if c.isupper() else c for c in rest).lstrip("_")
    if spelt[-1].isdigit():
        spelt = f"{spelt[:-1]}_{spelt[-1]}"
    return joints_at(seconds)[f"{side}_{spelt}_joint"]


def frames_of(episode: int, names: list[str]) -> dict[str, list]:
    times = np.arange(LENGTHS[episode]) / FPS
    states = [[value_of(n, t) for n in names] for t in times]
    return {
        "observation.state": states,
        "action": [[value_of(n, t + 0.5) for n in names] for t in times],
        "timestamp": times.astype(np.float32).tolist(),
        "frame_index": list(range(len(times))),
        "episode_index": [episode] * len(times),
        "index": list(range(len(times))),
        "task_index": [episode] * len(times),
    }


def table(columns: dict[str, list]) -> pa.Table:
    kinds = {"timestamp": pa.float32(), "observation.state": pa.list_(pa.float32())}
    kinds["action"] = pa.list_(pa.float32())
    return pa.table({k: pa.array(v, kinds.get(k)) for k, v in columns.items()})


def info(version: str, names: object, **patterns: object) -> dict:
    vector = {"dtype": "float32", "shape": [28], "names": names}
    video = {"dtype": "video", "shape": [480, 640, 3], "names": ["height", "width", "channels"]}
    return {
        "codebase_version": version,
        "robot_type": "Unitree_G1_Dex3",
        "total_episodes": 2,
        "total_frames": sum(LENGTHS),
        "chunks_size": 1000,
        "fps": FPS,
        "features": {KEY: video, WRIST: video, "observation.state": vector, "action": vector},
        **patterns,
    }


def movie(episode: int) -> list[np.ndarray]:
    return [picture(k + 2 * episode) for k in range(LENGTHS[episode])]


def write_v21(root: Path, names: list[str], listed: object) -> Path:
    """A v2.1 set: one parquet and one video per episode."""
    meta = root / "meta"
    meta.mkdir(parents=True)
    patterns = {
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/"
        "episode_{episode_index:06d}.mp4",
    }
    (meta / "info.json").write_text(json.dumps(info("v2.1", listed, **patterns)))
    lines = []
    for episode, length in enumerate(LENGTHS):
        entry = {"episode_index": episode, "tasks": [f"task {episode}"], "length": length}
        lines.append(json.dumps(entry))
        data = root / f"data/chunk-000/episode_{episode:06d}.parquet"
        data.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(frames_of(episode, names)), data)
        write_video(
            root / f"videos/chunk-000/{KEY}/episode_{episode:06d}.mp4", movie(episode), fps=FPS
        )
    (meta / "episodes.jsonl").write_text("\n".join(lines) + "\n")
    return root


def write_v30(root: Path, names: list[str], listed: object, *, stills: bool = False) -> Path:
    """A v3.0 set: both episodes in one parquet and one video file (or PNG in the parquet)."""
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    patterns = {
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    content = info("v3.0", listed, **patterns)
    both = [frames_of(episode, names) for episode in (0, 1)]
    columns = {key: both[0][key] + both[1][key] for key in both[0]}
    pictures = movie(0) + movie(1)
    if stills:
        content["features"][KEY]["dtype"] = "image"
        columns[KEY] = [{"bytes": png(image), "path": None} for image in pictures]
    else:
        write_video(root / f"videos/{KEY}/chunk-000/file-000.mp4", pictures, fps=FPS)
    (root / "meta/info.json").write_text(json.dumps(content))
    pq.write_table(table(columns), root / "data/chunk-000/file-000.parquet")
    rows = {
        "episode_index": [0, 1],
        "tasks": [["task 0"], ["task 1"]],
        "length": list(LENGTHS),
        "data/chunk_index": [0, 0],
        "data/file_index": [0, 0],
        f"videos/{KEY}/chunk_index": [0, 0],
        f"videos/{KEY}/file_index": [0, 0],
        f"videos/{KEY}/from_timestamp": [0.0, LENGTHS[0] / FPS],
        f"videos/{KEY}/to_timestamp": [LENGTHS[0] / FPS, sum(LENGTHS) / FPS],
    }
    pq.write_table(pa.table(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    return root


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def assert_imported(out: Path) -> None:
    reader = check_sound(out)
    assert reader.lengths.tolist() == list(LENGTHS)
    assert [record.task for record in reader.records] == ["task 0", "task 1"]
    episode = reader.episode(1)
    times = np.arange(LENGTHS[1]) / FPS
    still = {"waist_yaw_joint", "waist_roll_joint", "waist_pitch_joint"}  # not in such sets
    names = list(episode.joint_names)
    for name, row in ((n, names.index(n)) for n in names if n in joints_at(0)):
        wanted = [0.0 if name in still else joints_at(t)[name] for t in times]
        np.testing.assert_allclose(episode.state[:, row], wanted, atol=1e-6, err_msg=name)
        if name not in still:
            commanded = [joints_at(t + 0.5)[name] for t in times]
            np.testing.assert_allclose(episode.action[:, row], commanded, atol=1e-6)
    assert [number_of(image) for image in episode.images] == [k + 2 for k in range(38)] + [0, 1]
    notes = " ".join(report_of(out)["set/episode_000001"]["tally"]["notes"])
    assert "waist_yaw_joint" in notes and "nominal camera" in notes


def test_a_v21_set_with_nested_names(tmp_path):
    root = write_v21(tmp_path / "set", NAMES, [NAMES])
    done = command("import", "lerobot", root, "--out", tmp_path / "out", *FAST)
    assert done.exit_code == 0, done.output
    assert_imported(tmp_path / "out")


@pytest.mark.parametrize("stills", [False, True])
def test_a_v30_set_in_another_order_of_joints(tmp_path, stills):
    """The same joints, shuffled and flat: positions in the vector mean nothing, names all."""
    shuffled = list(np.random.default_rng(0).permutation(NAMES))
    root = write_v30(tmp_path / "set", shuffled, shuffled, stills=stills)
    done = command("import", "lerobot", root, "--out", tmp_path / "out", *FAST)
    assert done.exit_code == 0, done.output
    assert_imported(tmp_path / "out")


def test_kinematics_of_an_imported_set(tmp_path):
    """With the waist named too, hands and camera are exactly the robot's."""
    names = ["kWaistYaw", "kWaistRoll", "kWaistPitch", *NAMES]
    root = write_v30(tmp_path / "set", names, names, stills=True)
    path = root / "meta/info.json"
    path.write_text(path.read_text().replace('"shape": [28]', '"shape": [31]'))
    done = command("import", "lerobot", root, "--out", tmp_path / "out", *FAST)
    assert done.exit_code == 0, done.output
    episode = check_sound(tmp_path / "out").episode(0)
    assert_kinematics(episode, np.arange(LENGTHS[0]) / FPS)
    assert episode.joint_names == ROBOT.joint_names


def test_a_set_without_names_is_refused_not_guessed(tmp_path):
    root = write_v21(tmp_path / "set", NAMES, None)
    done = command("import", "lerobot", root, "--out", tmp_path / "out", *FAST)
    assert done.exit_code != 0
    assert "joints are mapped by name only" in done.output


def test_a_set_of_another_hand_lists_what_is_missing(tmp_path):
    brainco = [n.replace("Thumb0", "ThumbAux") for n in NAMES]
    root = write_v21(tmp_path / "set", NAMES, brainco)
    done = command("import", "lerobot", root, "--out", tmp_path / "out", *FAST)
    assert done.exit_code == 1
    reason = report_of(tmp_path / "out")["set/episode_000000"]["reason"]
    assert "left_hand_thumb_0_joint" in reason and "kLeftHandThumbAux" in reason


def test_a_video_that_ends_early_loses_only_its_last_frames(tmp_path):
    root = write_v21(tmp_path / "set", NAMES, NAMES)
    video = root / f"videos/chunk-000/{KEY}/episode_000000.mp4"
    write_video(video, movie(0)[:30], fps=FPS)
    done = command("import", "lerobot", root, "--out", tmp_path / "out", *FAST)
    assert done.exit_code == 0, done.output
    assert check_sound(tmp_path / "out").lengths.tolist() == [30, 40]
    tally = report_of(tmp_path / "out")["set/episode_000000"]["tally"]
    assert tally["dropped"]["the video ends before the frame"][0] == 5
