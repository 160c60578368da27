"""Clips are centred where hands are best seen, and everything in them is of the same frames."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from recordings import HEIGHT, WIDTH, command, number_of, picture

from ego_world_model.camera import PinholeCamera
from ego_world_model.data import DatasetReader, DatasetWriter, Episode
from ego_world_model.data.clip_extraction import (
    choose_window,
    moving_average,
    visible_keypoints,
)
from ego_world_model.hands import EXTRA_SLOTS, NUM_SLOTS, SLOT_NAMES
from ego_world_model.media import read_video

CAMERA = PinholeCamera(WIDTH, HEIGHT, 60.0, 60.0, 31.5, 23.5)
SLOTS = SLOT_NAMES + EXTRA_SLOTS
JOINTS = ("left_elbow_joint", "right_elbow_joint")


def make_episode(visible: np.ndarray, *, fps: float = 30.0) -> Episode:
    """An episode in which ``visible[k]`` of the 42 keypoints lie in the image at frame k."""
    steps = len(visible)
    positions = np.zeros((steps, len(SLOTS), 3), np.float32)
    positions[..., 2] = 0.5
    positions[..., 0] = 5.0  # far outside to the right
    for k, count in enumerate(visible):
        positions[k, :count, 0] = np.linspace(-0.1, 0.1, count) if count else 0
        positions[k, :, 1] = 0.001 * k  # tells frames apart
    positions[:, NUM_SLOTS:, 0] = 0.0  # extra slots are in view and must not count
    return Episode(
        fps=fps,
        images=np.stack([picture(k % 40) for k in range(steps)]),
        state=np.zeros((steps, 2)),
        action=np.zeros((steps, 2)),
        hand_positions=positions,
        hand_valid=np.ones(len(SLOTS), bool),
        slot_names=SLOTS,
        camera_pose=np.repeat(np.eye(4)[None], steps, axis=0),
        camera=CAMERA,
        task="wave",
        embodiment="g1_dex3",
        joint_names=JOINTS,
        metadata={"source": "runs/a"},
    )


def write(root, episodes, *, fps: float = 30.0, storage: str = "image"):
    with DatasetWriter(
        root,
        embodiment="g1_dex3",
        fps=fps,
        camera=CAMERA,
        joint_names=JOINTS,
        slot_names=SLOTS,
        masks=False,
        depth=False,
        image_storage=storage,
    ) as out:
        for episode in episodes:
            out.write(episode)
    return DatasetReader(root)


def test_keypoints_count_where_annotated_and_inside_the_image():
    episode = make_episode(np.array([0, 7, 42]))
    assert visible_keypoints(episode).tolist() == [0, 7, 42]
    positions = episode.hand_positions.copy()
    positions[2, 0, 2] = -0.5  # behind the camera
    valid = episode.hand_valid.copy()
    valid[2, 1:4] = False  # not annotated
    changed = replace(episode, hand_positions=positions, hand_valid=valid)
    assert visible_keypoints(changed).tolist() == [0, 7, 38]


def test_the_average_runs_over_five_frames():
    scores = [0, 0, 10, 0, 0, 0, 5]
    assert moving_average(scores)[2:5].tolist() == [2.0, 2.0, 3.0]
    assert moving_average(scores)[0] == pytest.approx(10 / 3)  # three frames exist there


def test_the_centre_has_the_largest_average_and_a_whole_window():
    scores = np.full(200, 9)
    scores[5] = 42  # best frame, but no 60 frames before it
    scores[100:105] = 20
    scores[150] = 40  # a single bright frame: its average stays below
    window = choose_window(scores)
    assert (window.center, window.start, window.stop) == (102, 42, 163)
    assert (window.threshold, window.visible) == (8, 20)


def test_the_raw_score_at_the_centre_must_reach_the_threshold():
    """A flickering frame may have the best average, yet only 7 keypoints itself."""
    scores = np.full(200, 8)
    scores[98:103] = [20, 20, 7, 20, 20]
    window = choose_window(scores)
    assert window.center != 100 and window.visible >= 8


@pytest.mark.parametrize(("best", "threshold"), [(8, 8), (7, 4), (3, 2), (1, 0), (0, 0)])
def test_thresholds_relax_only_when_no_frame_reaches_them(best, threshold):
    scores = np.zeros(140, int)
    scores[70] = best
    window = choose_window(scores)
    assert (window.threshold, window.stop - window.start) == (threshold, 121)


def test_exactly_121_frames_are_enough_and_120_are_not():
    assert choose_window(np.full(121, 9)).center == 60
    assert choose_window(np.full(120, 9)) is None


def test_extracted_clips_keep_pictures_joints_and_frame_indices_together(tmp_path):
    seen = np.full(150, 8)
    seen[80:86] = 30
    root, out = tmp_path / "set", tmp_path / "clips"
    episodes = [make_episode(seen), make_episode(np.full(100, 30)), make_episode(seen // 8)]
    write(root, episodes)
    done = command("data", "clips", root, "--out", out)
    assert done.exit_code == 0, done.output
    assert "1 clips with at least 8 keypoints" in done.output
    assert "episode 1 has no clip: 100 frames; a window needs 121" in done.output
    index = json.loads((out / "clips.json").read_text())
    assert [clip["episode"] for clip in index["clips"]] == [0, 2]
    assert [clip["threshold"] for clip in index["clips"]] == [8, 2]
    clip = index["clips"][0]
    assert clip["source"] == "runs/a" and clip["center"] in range(80, 86)
    frames, fps = read_video(out / clip["video"])
    assert (len(frames), fps) == (121, 30.0)
    with np.load(out / clip["annotations"]) as notes:
        indices = notes["frame_indices"]
        assert indices.tolist() == list(range(clip["start"], clip["stop"]))
        assert [number_of(frame) for frame in frames] == [k % 40 for k in indices]
        np.testing.assert_allclose(notes["joints"][:, 0, 1], 0.001 * indices, atol=1e-6)
        assert notes["joints"].shape == (121, 42, 3) and notes["valid"].shape == (121, 42)
        assert notes["handedness"].tolist() == [0] * 21 + [1] * 21
        np.testing.assert_allclose(notes["intrinsics"], CAMERA.matrix)


def test_an_interrupted_extraction_makes_the_missing_clips_only(tmp_path):
    root, out = tmp_path / "set", tmp_path / "clips"
    write(root, [make_episode(np.full(125, 9))] * 2)
    assert command("data", "clips", root, "--out", out).exit_code == 0
    first, second = sorted(out.glob("*.npz"))
    kept = first.stat().st_mtime_ns
    second.unlink()
    assert command("data", "clips", root, "--out", out).exit_code == 0
    assert second.exists() and first.stat().st_mtime_ns == kept


def test_another_frame_rate_is_refused(tmp_path):
    root = tmp_path / "set"
    write(root, [make_episode(np.full(125, 9), fps=10.0)], fps=10.0)
    done = command("data", "clips", root, "--out", tmp_path / "clips")
    assert done.exit_code != 0 and "has 10 frames per second" in done.output
