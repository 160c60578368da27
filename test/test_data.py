"""Datasets: what is written is read back, nothing is lost to a crash, mistakes are named."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_clips import NAMES, synthetic_episode

from ego_world_model.camera import PinholeCamera
from ego_world_model.data import DatasetReader, DatasetWriter, Episode
from ego_world_model.data.check import check_dataset
from ego_world_model.data.layout import DatasetSpec
from ego_world_model.data.parts import part_path, write_part
from ego_world_model.hands import EXTRA_SLOTS, SLOT_NAMES

SLOTS = SLOT_NAMES + EXTRA_SLOTS
JOINTS = ("waist_yaw_joint", "left_elbow_joint", "right_elbow_joint")
CAMERA = PinholeCamera(64, 48, 60.6, 60.6, 32.7, 24.9)


def make_episode(seed: int, steps: int = 12, **changes) -> Episode:
    """An episode with something different in every field and frame."""
    rng = np.random.default_rng(seed)
    poses = np.repeat(np.eye(4)[None], steps, axis=0)
    angle = np.linspace(0, 0.3, steps)
    poses[:, 0, 0], poses[:, 0, 1] = np.cos(angle), -np.sin(angle)
    poses[:, 1, 0], poses[:, 1, 1] = np.sin(angle), np.cos(angle)
    poses[:, :3, 3] = rng.normal(size=(steps, 3))
    values = {
        "fps": 10.0,
        "images": rng.integers(0, 256, (steps, 48, 64, 3), dtype=np.uint8),
        "state": rng.normal(size=(steps, len(JOINTS))),
        "action": rng.normal(size=(steps, len(JOINTS))),
        "hand_positions": rng.normal(size=(steps, len(SLOTS), 3)),
        "hand_valid": rng.random((steps, len(SLOTS))) > 0.3,
        "slot_names": SLOTS,
        "camera_pose": poses,
        "camera": PinholeCamera(64, 48, 60.6 + seed, 60.6, 32.7, 24.9),
        "task": ("reach", "grasp and move")[seed % 2],
        "embodiment": "g1_dex3",
        "joint_names": JOINTS,
        "masks": rng.integers(0, 7, (steps, 48, 64), dtype=np.uint8),
        "depth": rng.integers(0, 65536, (steps, 48, 64), dtype=np.uint16),
        "metadata": {"seed": seed, "split": "train"},
    }
    return Episode(**values | changes)


def writer(root: Path, **changes) -> DatasetWriter:
    values = {
        "embodiment": "g1_dex3",
        "fps": 10.0,
        "camera": CAMERA,
        "joint_names": JOINTS,
        "slot_names": SLOTS,
        "image_storage": "image",
    }
    return DatasetWriter(root, **values | changes)


def write(root: Path, count: int, **changes) -> list[Episode]:
    episodes = [make_episode(seed, steps=10 + seed) for seed in range(count)]
    with writer(root, **changes) as out:
        for episode in episodes:
            out.write(episode)
    return episodes


def assert_same(found: Episode, wanted: Episode, *, images: bool = True) -> None:
    names = ["state", "action", "hand_positions", "hand_valid", "camera_pose", "masks", "depth"]
    for name in [*names, "images"] if images else names:
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)
    for name in ("fps", "slot_names", "task", "embodiment", "joint_names", "metadata"):
        assert getattr(found, name) == getattr(wanted, name), name
    assert found.camera.project([0.1, 0.2, 1.0]) == pytest.approx(
        wanted.camera.project([0.1, 0.2, 1.0]), abs=1e-9
    )


def test_episodes_come_back_exactly_as_written_with_image_storage(tmp_path):
    episodes = write(tmp_path, 4)
    reader = DatasetReader(tmp_path)
    assert reader.lengths.tolist() == [10, 11, 12, 13]
    for index, episode in enumerate(episodes):
        assert_same(reader.episode(index, depth=True), episode)


def test_video_storage_keeps_masks_and_depth_exactly_and_frames_closely(tmp_path):
    smooth = np.broadcast_to(
        np.linspace(30, 220, 64)[None, None, :, None] + 3 * np.arange(12)[:, None, None, None] / 2,
        (12, 48, 64, 3),
    ).astype(np.uint8)
    episodes = [make_episode(seed, images=smooth) for seed in range(2)]
    with writer(tmp_path, image_storage="video") as out:
        for episode in episodes:
            out.write(episode)
    reader = DatasetReader(tmp_path)
    for index, episode in enumerate(episodes):
        found = reader.episode(index, depth=True)
        assert_same(found, episode, images=False)
        assert np.abs(found.images.astype(int) - episode.images).mean() < 3
    whole = reader.episode(1).images
    np.testing.assert_array_equal(reader.episode(1, start=5, stop=9).images, whole[5:9])


def test_a_robot_of_one_joint_can_be_written(tmp_path):
    """LeRobot keeps a vector of one number as a scalar column."""
    episode = synthetic_episode(0, frames=6)
    with DatasetWriter(
        tmp_path,
        embodiment=episode.embodiment,
        fps=episode.fps,
        camera=episode.camera,
        joint_names=episode.joint_names,
        slot_names=NAMES,
        depth=False,
    ) as writer:
        writer.write(episode)
    np.testing.assert_array_equal(DatasetReader(tmp_path).episode(0).state, episode.state)
    assert check_dataset(tmp_path) == []


def test_clips_and_parts_of_an_episode_are_read_alone(tmp_path):
    episode = write(tmp_path, 3)[2]
    reader = pickle.loads(pickle.dumps(DatasetReader(tmp_path)))  # as a loader's workers get it
    clip = reader.episode(2, start=3, stop=8, depth=True)
    assert_same(clip, episode.clip(3, 8))
    bare = reader.episode(2, images=False, masks=False)
    assert bare.masks is None and bare.depth is None and not bare.images.any()
    with pytest.raises(IndexError, match=r"episode 2 has frames 0 to 11; 5\.\.20 was asked"):
        reader.episode(2, start=5, stop=20)
    with pytest.raises(IndexError, match="has 3 episodes; episode 7"):
        reader.episode(7)


def test_a_clips_trajectory_has_its_first_frame_as_reference_camera():
    episode = make_episode(0)
    trajectory = episode.trajectory(4, 9)
    assert len(trajectory) == 5 and trajectory.times[1] == pytest.approx(0.1)
    root = np.linalg.inv(episode.camera_pose[4]) @ episode.camera_pose[7]
    np.testing.assert_allclose(trajectory.camera_pose[3], root, atol=1e-12)


def test_appending_continues_numbering_tasks_and_files(tmp_path):
    write(tmp_path, 2)
    with writer(tmp_path) as out:
        assert len(out) == 2
        assert out.write(make_episode(7, task="wave")) == 2
    reader = DatasetReader(tmp_path)
    assert [record.task for record in reader.records] == ["reach", "grasp and move", "wave"]
    table = pq.read_table(tmp_path / "data/chunk-000/file-001.parquet")
    assert table["index"].to_pylist() == list(range(21, 33))
    assert set(table["task_index"].to_pylist()) == {2}
    assert check_dataset(tmp_path) == []


def test_metadata_follow_the_lerobot_v3_layout(tmp_path):
    episodes = write(tmp_path, 3, file_mb=0.0001, image_storage="video")
    info = json.loads((tmp_path / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["robot_type"] == "g1_dex3"
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 33, 2)
    assert info["fps"] == 10 and isinstance(info["fps"], int)
    assert info["splits"] == {"train": "0:3"} and info["chunks_size"] == 1000
    features = info["features"]
    assert features["observation.state"]["names"] == list(JOINTS)
    assert features["observation.images.head"]["dtype"] == "video"
    assert features["observation.hands.positions"]["shape"] == [46, 3]
    assert not any("/" in name for name in features)
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        assert features[name]["shape"] == [1]
    rows = []
    for number in range(3):
        path = f"chunk-000/file-{number:03d}"
        rows += pq.read_table(tmp_path / f"meta/episodes/{path}.parquet").to_pylist()
        data = pq.read_table(tmp_path / f"data/{path}.parquet")
        assert "observation.images.head" not in data.column_names
        assert data["timestamp"].type == pa.float32()
        assert (tmp_path / f"videos/observation.images.head/{path}.mp4").exists()
    assert [row["data/file_index"] for row in rows] == [0, 1, 2]
    assert [row["dataset_from_index"] for row in rows] == [0, 10, 21]
    assert [row["dataset_to_index"] for row in rows] == [10, 21, 33]
    assert rows[1]["tasks"] == ["grasp and move"]
    key = "videos/observation.images.head"
    assert (rows[2][f"{key}/file_index"], rows[2][f"{key}/from_timestamp"]) == (2, 0.0)
    assert rows[2][f"{key}/to_timestamp"] == pytest.approx(1.2)
    assert rows[2]["stats/action/mean"] == pytest.approx(episodes[2].action.mean(axis=0), abs=1e-6)
    tasks = pq.read_table(tmp_path / "meta/tasks.parquet")
    labels = json.loads(tasks.schema.metadata[b"pandas"])["index_columns"]
    assert tasks[labels[0]].to_pylist() == ["reach", "grasp and move"]


def test_pooled_statistics_are_those_of_all_frames(tmp_path):
    episodes = write(tmp_path, 3)
    stats = json.loads((tmp_path / "meta/stats.json").read_text())
    state = np.concatenate([episode.state for episode in episodes]).astype(np.float64)
    found = stats["observation.state"]
    assert found["count"] == [33]
    for name, value in (
        ("min", state.min(axis=0)),
        ("max", state.max(axis=0)),
        ("mean", state.mean(axis=0)),
        ("std", state.std(axis=0)),
    ):
        np.testing.assert_allclose(found[name], value, atol=1e-6)
    assert np.shape(stats["observation.images.head"]["mean"]) == (3, 1, 1)
    assert 0.4 < stats["observation.images.head"]["mean"][0][0][0] < 0.6


_ENDLESS = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
from test_data import make_episode, writer
with writer(Path({root!r}), file_mb=0.3, image_storage={storage!r}) as out:
    for seed in range(10_000):
        out.write(make_episode(seed, steps=10 + seed % 5))
        print(seed, flush=True)
"""


@pytest.mark.parametrize("storage", ["image", "video"])
@pytest.mark.parametrize("extra_seconds", [0.0, 0.02])
def test_a_killed_writer_loses_at_most_the_episode_in_hand(tmp_path, storage, extra_seconds):
    root = tmp_path / "set"
    code = _ENDLESS.format(tests=str(Path(__file__).parent), root=str(root), storage=storage)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )
    done = 0
    for line in process.stdout:
        done = int(line) + 1
        if done == 12:
            break
    time.sleep(extra_seconds)
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().split()
    process.wait()
    done = int(rest[-1]) + 1 if rest else done

    reader = DatasetReader(root)  # readable as it was left
    assert len(reader) >= done
    count = len(reader)
    assert_same(
        reader.episode(count - 1, depth=True),
        make_episode(count - 1, steps=10 + (count - 1) % 5),
        images=storage == "image",
    )
    with writer(root, image_storage=storage) as out:  # and can be gone on with
        assert len(out) == count
        out.write(make_episode(count, steps=10 + count % 5))
    assert check_dataset(root) == []
    assert not (root / "parts").exists()
    for seed, episode in enumerate(DatasetReader(root)):
        assert_same_state(episode, make_episode(seed, steps=10 + seed % 5))


def assert_same_state(found: Episode, wanted: Episode) -> None:
    np.testing.assert_array_equal(found.state, wanted.state)
    np.testing.assert_array_equal(found.masks, wanted.masks)


def test_parts_may_come_in_any_order_and_wait_for_the_missing_one(tmp_path):
    out = writer(tmp_path)
    for index in (3, 0, 2):
        write_part(tmp_path, out.spec, index, make_episode(index))
    assert (len(out), out.missing) == (1, [1])
    assert out.has(3) and not out.has(1)
    out.close()
    assert len(DatasetReader(tmp_path)) == 1
    with writer(tmp_path) as out:
        write_part(tmp_path, out.spec, 1, make_episode(1))
    reader = DatasetReader(tmp_path)
    assert [record.metadata["seed"] for record in reader.records] == [0, 1, 2, 3]


def test_a_reader_follows_a_dataset_that_is_being_written(tmp_path):
    with writer(tmp_path) as out:
        out.write(make_episode(0))
        reader = DatasetReader(tmp_path)
        assert len(reader) == 1
        out.write(make_episode(1))
        out.gather()  # moves the part that the reader knows
        assert_same(reader.episode(0, depth=True), make_episode(0))
        reader.refresh()
        assert len(reader) == 2


def test_two_writers_cannot_write_to_one_folder(tmp_path):
    with writer(tmp_path), pytest.raises(RuntimeError, match="being written by another process"):
        writer(tmp_path)
    writer(tmp_path).close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps": 15.0}, "dataset whose fps is 10.0, but 15.0 was asked for"),
        ({"joint_names": JOINTS[:2]}, "dataset whose joint_names is"),
        ({"image_storage": "video"}, "dataset whose image_storage is image, but video"),
        ({"split": "test"}, "holds the split 'train'; write 'test' to a folder of its own"),
    ],
)
def test_a_dataset_of_another_kind_is_not_written_to(tmp_path, changes, message):
    write(tmp_path, 1)
    with pytest.raises(ValueError, match=message):
        writer(tmp_path, **changes)
    assert check_dataset(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((3, 48, 64), np.uint8)}, r"images must be uint8 RGB.*\(3, 48, 64\)"),
        ({"state": np.zeros((12, 4))}, r"state must have shape \(12, 3\), got \(12, 4\)"),
        ({"action": np.full((12, 3), np.nan)}, r"action holds NaN or infinity in frames \[0, 1"),
        ({"hand_valid": np.ones((12, 5))}, r"hand_valid must have shape \(12, 46\)"),
        ({"slot_names": SLOTS[::-1]}, "slot_names must begin with the 42 names"),
        ({"camera_pose": np.zeros((12, 4, 4))}, "must be rotation matrices"),
        ({"camera": CAMERA.resized(32, 24)}, "camera is 32x24 but images are 64x48"),
        ({"masks": np.full((12, 48, 64), 9, np.uint8)}, "masks hold class 9; classes are 0 to 6"),
        ({"depth": np.zeros((12, 48, 64), np.float32)}, "depth must be uint16"),
        ({"joint_names": ("a", "b", "a")}, r"joint_names must be unique, \['a'\]"),
        ({"task": ""}, "task must be a non-empty string"),
        ({"fps": 0.0}, "fps must be a positive"),
    ],
)
def test_a_wrong_episode_is_refused_by_field(changes, message):
    with pytest.raises(ValueError, match=message):
        make_episode(0, **changes)


def test_an_episode_of_another_robot_or_without_masks_is_refused(tmp_path):
    with writer(tmp_path) as out:
        with pytest.raises(ValueError, match="embodiment is g1_dex3, the episode's is h1_2"):
            out.write(make_episode(0, embodiment="h1_2"))
        with pytest.raises(ValueError, match="open the dataset with masks=False"):
            out.write(make_episode(0, masks=None))
        assert len(out) == 0
    with writer(tmp_path / "bare", masks=False, depth=False) as out:
        out.write(make_episode(0, masks=None, depth=None))
    assert DatasetReader(tmp_path / "bare").episode(0, depth=True).depth is None
    assert check_dataset(tmp_path / "bare") == []


def rewrite(path: Path, column: str, values: list) -> None:
    """Replace one column of a parquet file, keeping its row groups as they are found."""
    table = pq.read_table(path)
    number = table.column_names.index(column)
    field = pa.field(column, table.schema.field(column).type)
    table = table.set_column(number, field, pa.array(values, field.type))
    pq.write_table(table, path)


def break_info(root: Path) -> None:
    path = root / "meta/info.json"
    path.write_text(path.read_text().replace('"total_frames": 21', '"total_frames": 22'))


def break_feature(root: Path) -> None:
    path = root / "meta/info.json"
    content = json.loads(path.read_text())
    content["features"]["observation.hands.positions"]["shape"] = [42, 3]
    path.write_text(json.dumps(content))


def break_time(root: Path) -> None:
    path = root / "data/chunk-000/file-000.parquet"
    times = pq.read_table(path)["timestamp"].to_pylist()
    rewrite(path, "timestamp", times[:15] + [9.0] + times[16:])


def break_pose(root: Path) -> None:
    path = root / "data/chunk-000/file-000.parquet"
    poses = pq.read_table(path)["observation.camera.pose"].to_pylist()
    poses[12][0][0] = 2.0
    rewrite(path, "observation.camera.pose", poses)


def break_picture(root: Path) -> None:
    path = root / "data/chunk-000/file-000.parquet"
    pictures = pq.read_table(path)["observation.masks.head"].to_pylist()
    pictures[3]["bytes"] = b"no picture"
    rewrite(path, "observation.masks.head", pictures)


def drop_column(root: Path) -> None:
    path = root / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["observation.hands.valid"]), path)


def drop_file(root: Path) -> None:
    (root / "data/chunk-000/file-000.parquet").unlink()


def shift_episode(root: Path) -> None:
    rewrite(root / "meta/episodes/chunk-000/file-000.parquet", "dataset_from_index", [0, 11])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_info, "meta/info.json: total_frames is 22. It must be: 21"),
        (
            break_feature,
            "features, observation.hands.positions: shape is [42, 3]. It must be: [46, 3]",
        ),
        (
            break_time,
            "file-000.parquet, episode 1, column timestamp: 9.0 at frame 5 (1 frames differ). "
            "It must be: frame_index / fps",
        ),
        (break_pose, "file-000.parquet, episode 1: camera_pose[:, :3, :3] must be rotation"),
        (break_picture, "file-000.parquet, episode 0: cannot identify image"),
        (
            drop_column,
            "column observation.hands.valid: missing. It must be: fixed_size_list<",
        ),
        (drop_file, "data/chunk-000/file-000.parquet: the file is missing. It must be: 21 frames"),
        (shift_episode, "episode 1: dataset_from_index is 11. It must be: 10"),
    ],
)
def test_the_validator_names_file_column_and_episode(tmp_path, damage, message):
    write(tmp_path, 2)
    assert check_dataset(tmp_path) == []
    damage(tmp_path)
    findings = [str(finding) for finding in check_dataset(tmp_path)]
    assert any(message in finding for finding in findings), findings


def test_the_validator_finds_missing_and_short_videos(tmp_path):
    write(tmp_path, 2, image_storage="video")
    assert check_dataset(tmp_path) == []
    videos = tmp_path / "videos/observation.images.head/chunk-000"
    (videos / "file-000.mp4").replace(videos / "file-001.mp4")  # 10 frames in place of 11
    findings = [str(finding) for finding in check_dataset(tmp_path)]
    assert any("file-000.mp4: the video is missing" in finding for finding in findings)
    assert any("episode 1" in finding and "holds 10 frames" in finding for finding in findings)


def test_a_folder_that_is_no_dataset_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="meta/info.json is missing"):
        DatasetReader(tmp_path)
    assert "meta/info.json: the file is missing" in str(check_dataset(tmp_path)[0])
    write(tmp_path, 1)
    path = tmp_path / "meta/info.json"
    path.write_text(path.read_text().replace('"v3.0"', '"v2.1"'))
    with pytest.raises(ValueError, match="codebase_version is 'v2.1'.*converter"):
        DatasetReader(tmp_path)


def test_modality_describes_every_vector(tmp_path):
    write(tmp_path, 1, joint_limits=((-1.0, -2.0, -2.0), (1.0, 2.0, 2.0)))
    modality = json.loads((tmp_path / "meta/modality.json").read_text())
    joints = modality["state"]["joints"]
    assert joints["names"] == list(JOINTS) and joints["unit"] == "rad"
    assert joints["range"][0] == [-1.0, -2.0, -2.0]
    assert modality["hands"]["positions"]["names"] == list(SLOTS)
    assert modality["camera"]["pose"]["rotation"] == "matrix"
    assert modality["masks"]["head"]["classes"][1] == "left_hand"
    spec = DatasetSpec.from_folder(tmp_path)
    assert spec.camera == CAMERA and spec.joint_limits[1] == (1.0, 2.0, 2.0)


def test_every_written_part_is_removed_once_gathered(tmp_path):
    with writer(tmp_path, file_mb=0.05) as out:
        out.write(make_episode(0))
        assert not part_path(tmp_path, 0).exists()  # larger than a file may be: gathered at once
    assert not (tmp_path / "parts").exists()
