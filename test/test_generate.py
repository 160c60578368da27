"""Simulated datasets: reproducible, resumable, and true to the simulation."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("mujoco")

from ego_world_model.data import DatasetReader
from ego_world_model.data.check import check_dataset
from ego_world_model.data.generate import episode_seed
from ego_world_model.hands import slot_index

SHORT = ["--seconds", "0.4", "--size", "64x48", "--workers", "2"]


def command(root, episodes: int, *more: str) -> list[str]:
    """The command line of ``ego-world-model simulate`` for short episodes."""
    arguments = ["simulate", "--out", str(root), "--episodes", str(episodes), *SHORT, *more]
    return [sys.executable, "-m", "ego_world_model.cli", *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def simulate(root, episodes: int, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(root, episodes, *more),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Three short episodes."""
    root = tmp_path_factory.mktemp("simulated") / "set"
    done = simulate(root, 3)
    assert done.returncode == 0, done.stderr
    assert "3 episodes, 12 frames" in done.stdout
    return root


def test_a_simulated_dataset_is_sound_and_says_where_it_came_from(dataset):
    assert check_dataset(dataset) == []
    reader = DatasetReader(dataset)
    assert reader.spec.embodiment == "g1_dex3" and reader.spec.joint_limits is not None
    for index, record in enumerate(reader.records):
        assert record.metadata["split"] == "train"
        assert record.metadata["seed"] == episode_seed("train", 0, index)
        assert record.task


def test_joints_lie_where_the_pictures_show_the_hands(dataset):
    inside = total = 0
    for episode in DatasetReader(dataset):
        for frame in range(len(episode)):
            for side, number in (("left", 1), ("right", 2)):
                slot = slot_index(f"{side}_middle_mcp")
                u, v = np.rint(episode.camera.project(episode.hand_positions[frame, slot]))
                if 1 <= u < 63 and 1 <= v < 47:
                    near = episode.masks[frame, int(v) - 1 : int(v) + 2, int(u) - 1 : int(u) + 2]
                    total, inside = total + 1, inside + bool((near == number).any())
    assert total >= 6 and inside >= 0.8 * total, (inside, total)


def test_depth_agrees_with_the_joints(dataset):
    episode = DatasetReader(dataset).episode(0, depth=True)
    hand = episode.depth[np.isin(episode.masks, (1, 2))]
    wrist = episode.hand_positions[:, slot_index("left_wrist"), 2]
    assert abs(np.median(hand) / 1000 - np.median(wrist)) < 0.25


def test_actions_are_the_next_frames_state(dataset):
    episode = DatasetReader(dataset).episode(1)
    np.testing.assert_allclose(episode.action[:-1], episode.state[1:], atol=1e-4)


def test_more_episodes_are_added_without_touching_the_first(dataset, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(dataset, root)
    before = [episode.state for episode in DatasetReader(root)]
    done = simulate(root, 4)
    assert done.returncode == 0, done.stderr
    assert "3 of 4 episodes are there" in done.stdout
    after = [episode.state for episode in DatasetReader(root)]
    assert len(after) == 4
    for old, new in zip(before, after[:3], strict=True):
        np.testing.assert_array_equal(old, new)
    done = simulate(root, 4, "--split", "test")
    assert done.returncode == 1 and "holds the split 'train'" in done.stderr


def test_a_killed_run_ends_its_workers_and_is_gone_on_with(tmp_path):
    root = tmp_path / "set"
    process = subprocess.Popen(command(root, 200), env=environment(), start_new_session=True)
    deadline = time.monotonic() + 200
    while not list((root / "parts").glob("episode-*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while _group_alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _group_alive(process.pid), "simulation processes outlive the run"
    kept = len(DatasetReader(root))
    done = simulate(root, kept + 1)
    assert done.returncode == 0, done.stderr
    assert len(DatasetReader(root)) >= kept + 1 and check_dataset(root) == []


def _group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_no_two_splits_runs_or_episodes_share_a_seed():
    seeds = [
        episode_seed(split, seed, index, attempt=attempt)
        for split, seed, index, attempt in itertools.product(
            ("train", "validation", "test"), (0, 1, 999), (0, 1, 99_999), (0, 1, 2)
        )
    ]
    assert len(set(seeds)) == len(seeds)
    with pytest.raises(ValueError, match="split must be one of train, validation, test"):
        episode_seed("holdout", 0, 0)
