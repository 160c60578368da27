"""Training a motion policy on simulated episodes of two robots: windows, losses, resume."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small_policy import CEREBELLUM, DEPTH, TEXT, VISION
from small_runs import entries, losses, start

from ego_world_model.data import DatasetReader
from ego_world_model.data.generate import generate
from ego_world_model.embodiment import load_embodiment
from ego_world_model.kinematics import HandKinematics
from ego_world_model.perception.depth_noise import DepthNoise, noisy_depth
from ego_world_model.policy import MotionPolicy
from ego_world_model.policy.spaces import chunk_from, state_vector
from ego_world_model.training.config import load
from ego_world_model.training.policy import PolicyTraining, fitted_normaliser
from ego_world_model.training.policy_data import PolicyCache, task_ends
from ego_world_model.training.policy_sampling import PolicySampler, other_words

ROBOTS = ("g1_dex3", "h1_2_inspire")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two short episodes of each robot, straying a little, with depth."""
    folder = tmp_path_factory.mktemp("data")
    for robot in ROBOTS:
        generate(
            robot,
            folder / robot,
            episodes=2,
            seconds=4.0,
            width=64,
            height=48,
            tasks=("reach", "grasp"),
            still=True,
            disturbance=0.01,
            workers=1,
        )
    return {robot: folder / robot for robot in ROBOTS}


@pytest.fixture(scope="module")
def cache(datasets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> PolicyCache:
    folder = tmp_path_factory.mktemp("cache")
    return PolicyCache.build([str(path) for path in datasets.values()], folder, size=32)


def test_windows_hold_what_was_commanded(cache: PolicyCache, datasets: dict[str, Path]) -> None:
    """A window's chunk, put back together, is the forward kinematics of the actions that follow,
    in the camera of its first frame; once the task is done, the hands rest; where it was cut off,
    nothing is claimed."""
    normaliser = fitted_normaliser(cache, 16)
    words = lambda texts: (torch.zeros(len(texts), 1).long(), torch.ones(len(texts), 1).bool())  # noqa: E731
    sampler = PolicySampler(cache, normaliser, words, chunk=16)
    number = 0
    for robot, path in datasets.items():
        kinematics, reader = HandKinematics(load_embodiment(robot)), DatasetReader(path)
        for index in range(len(reader)):
            episode = reader.episode(index)
            frame = int(np.flatnonzero(cache.useful[cache.first[number] :])[5 + 3 * index])
            batch = sampler.gather(np.array([cache.first[number] + frame]))
            pose = episode.camera_pose[frame]
            # the mount as the episode has it, not the nominal one
            link = kinematics.link_poses(
                episode.state[frame].astype(float), [kinematics.robot.camera_pose.link]
            )[0]
            mount = np.linalg.inv(link) @ pose
            camera = type(kinematics.robot.camera_pose)(
                kinematics.robot.camera_pose.link, mount[:3, :3], mount[:3, 3]
            )
            state = kinematics.hand_state(episode.state[frame].astype(float), camera)
            vector, mask = state_vector(cache.layout, state)
            values = normaliser.action_back(batch.actions[0].numpy())
            chunk = chunk_from(cache.layout, values, state, (np.arange(16) + 1) / 10)
            row = cache.first[number] + frame
            last, done = int(cache.last[row] - row), bool(cache.done[row])
            assert cache.useful[row] and last < len(episode) - frame
            known = 16 if done else min(16, last + 1)
            for k in range(known):
                # after the last command that belongs to the task, the hands rest
                q = episode.action[frame + min(k, last)].astype(float)
                true = kinematics.hand_state(q, camera)
                np.testing.assert_allclose(chunk.translation[k], true.translation, atol=2e-5)
                np.testing.assert_allclose(chunk.state(k).rotation, true.rotation, atol=2e-4)
                np.testing.assert_allclose(chunk.fingers[k], true.fingers, atol=2e-5)
            np.testing.assert_array_equal(
                batch.mask[0].numpy(), (np.arange(16) < known)[:, None] & mask
            )
            number += 1


def scripted(
    target: np.ndarray, wrist: np.ndarray, carries: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``task_ends`` of one task: target (T, 3) and left wrist (T, 3), the right one far away."""
    steps = len(target)
    poses = np.tile(np.eye(4, dtype=np.float32), (steps, 2, 1, 1))
    poses[:, 0, :3, 3] = wrist
    poses[:, 1, :3, 3] = 5.0
    camera = np.tile(np.eye(4, dtype=np.float32), (steps, 1, 1))
    task = np.zeros(steps, np.int64)
    return task_ends(task, target.astype(np.float32), camera, poses, np.full(steps, carries))


def test_demonstrations_end_where_they_have_done_what_they_were_told() -> None:
    """A reach ends at its nearest point, a grasp when its object rests where it was taken; what
    draws back is no example, and a grasp that took nothing is none either."""
    way = np.concatenate([np.linspace(0.3, 0.05, 10), np.linspace(0.1, 0.3, 6)])
    wrist = np.stack([way, 0 * way, 0 * way], axis=1)
    still = np.zeros((16, 3))
    useful, last, done = scripted(still, wrist, False)
    np.testing.assert_array_equal(useful, np.arange(16) <= 9)
    assert (last == 9).all() and done.all()
    carried = still.copy()
    carried[5:12, 0] = np.linspace(0, 0.2, 7)
    carried[12:, 0] = 0.2
    useful, last, done = scripted(carried, wrist, True)
    np.testing.assert_array_equal(useful, np.arange(16) <= 11)
    assert (last == 11).all() and done.all()
    useful, _, _ = scripted(still, wrist, True)
    assert not useful.any()
    far = still + (0, 0, 1.0)
    useful, _, _ = scripted(far, wrist, False)
    assert not useful.any(), "a reach that never arrives shows nothing"
    unknown = np.full((16, 3), np.nan)
    useful, last, done = scripted(unknown, wrist, False)
    assert useful.all() and (last == 15).all() and not done.any()


def test_the_pointing_head_is_told_where_the_object_is(cache: PolicyCache) -> None:
    """The target's pixel is its projection, in image coordinates from -1 to 1."""
    normaliser = fitted_normaliser(cache, 16)
    words = lambda texts: (torch.zeros(len(texts), 1).long(), torch.ones(len(texts), 1).bool())  # noqa: E731
    batch = PolicySampler(cache, normaliser, words, chunk=16).gather(np.array([0, 40]))
    for row, episode in enumerate((0, 1)):
        x, y, z = batch.target[row].double().numpy()
        matrix = cache.intrinsics[episode]
        u = matrix[0, 0] * x / z + matrix[0, 2]
        v = matrix[1, 1] * y / z + matrix[1, 2]
        expected = (2 * (u + 0.5) / 64 - 1, 2 * (v + 0.5) / 48 - 1)
        np.testing.assert_allclose(batch.pixel[row].numpy(), expected, atol=1e-4)


def test_any_object_of_a_scene_is_named_and_pointed_at(cache: PolicyCache) -> None:
    """Rows that only name an object say its name, point at its own place, and claim no action;
    beside them windows stay as they were recorded."""
    heard: list[str] = []

    def words(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        heard[:] = texts
        return torch.zeros(len(texts), 1).long(), torch.ones(len(texts), 1).bool()

    sampler = PolicySampler(
        cache, fitted_normaliser(cache, 16), words, chunk=16, rng=np.random.default_rng(0)
    )
    batch = sampler.sample(8, 16)
    assert len(batch) == 24
    claimed = batch.mask.flatten(1).any(1).numpy()
    assert claimed.sum() == 8 and claimed[:12].sum() == 4, "evenly mixed"
    places = cache.places.reshape(-1, 3)
    kinds = set()
    for row in np.flatnonzero(~claimed):
        nearest = int(np.nanargmin(np.linalg.norm(places - batch.target[row].numpy(), axis=1)))
        frame, number = divmod(nearest, cache.places.shape[1])
        np.testing.assert_allclose(places[nearest], batch.target[row].numpy(), atol=1e-6)
        episode = np.searchsorted(cache.first, frame, side="right") - 1
        name = cache.names[cache.objects[episode, number]]
        assert name in heard[row]
        kinds.add((episode, number))
    assert len(kinds) > len(cache), "not only the objects of the tasks"


def test_recorded_targets_are_among_the_listed_objects(cache: PolicyCache) -> None:
    """Where a task has an object, its place is that of one of the scene's objects."""
    gaps = np.linalg.norm(cache.places - cache.target[:, None], axis=-1)
    told = np.isfinite(cache.target).all(axis=1)
    assert told.any() and np.nanmin(gaps[told], axis=1).max() < 2e-4


def test_objects_cannot_be_named_that_no_dataset_lists(cache: PolicyCache) -> None:
    """The error says what to do."""
    unlisted = copy.copy(cache)
    unlisted.objects = np.full_like(cache.objects, -1)
    sampler = PolicySampler(unlisted, None, None, chunk=16, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="naming: no episode lists its objects"):
        sampler.sample(4, 4)


def test_instructions_keep_their_meaning_in_other_words() -> None:
    """Colour, object and hand stay; the verb and the rest vary."""
    rng = np.random.default_rng(0)
    said = {other_words("grasp the red box with the left hand and move it", rng) for _ in range(60)}
    assert len(said) > 6
    assert all("the red box" in text and "the left hand" in text for text in said)


@pytest.fixture(scope="module")
def config(datasets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 24 steps on both robots."""
    folders = [str(path) for path in datasets.values()]
    document = {
        "data": {"train": folders, "validation": folders},
        "cerebrum": {
            "image_size": 32,
            "vlm": {"scale_factor": 2, "vision_config": VISION, "text_config": TEXT},
            "depth": DEPTH,
            "pointing": "patches",
        },
        "cerebellum": CEREBELLUM,
        "batch": 8,
        "naming": 4,
        "validation_windows": 16,
        "loss": {"draws": 2, "pointing": 0.5},
        "loop": {
            "max_steps": 24,
            "learning_rate": 3e-3,
            "betas": [0.95, 0.999],
            "warmup_fraction": 0.05,
            "log_steps": 2,
            "save_minutes": 0.002,
            "precision": "fp32",
        },
    }
    path = tmp_path_factory.mktemp("config") / "policy.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def command(config: Path, run: Path, cache: Path) -> list[str]:
    return ["policy", str(config), "--run", str(run), "--cache", str(cache)]


def test_a_run_learns_and_goes_on_after_kill_nine(config: Path, tmp_path: Path) -> None:
    """The loss falls; a run killed in the middle and started again computes the same losses; its
    checkpoint predicts for both robots."""
    program = ["-m", "ego_world_model.cli", "train"]
    cache = tmp_path / "cache"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = start([*program, *command(config, whole, cache)])
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output[-4000:]
    process = start([*program, *command(config, broken, cache)])
    log, deadline = broken / "log.jsonl", time.monotonic() + 200
    state = broken / "state" / "numbers.json"
    while not (log.exists() and len(log.read_text().splitlines()) >= 3 and state.exists()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.005)
    process.kill()
    process.communicate()
    process = start([*program, *command(config, broken, cache)])
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0 and "resumed at step" in output, output[-4000:]
    assert losses(broken) == losses(whole)
    flow = [entry["flow"] for entry in entries(whole, "log")]
    assert np.mean(flow[-3:]) < np.mean(flow[:3]) - 0.1
    policy = MotionPolicy.from_pretrained(broken / "checkpoint")
    assert json.loads(json.dumps(policy.metadata))["steps"] == 24
    for robot in ROBOTS:
        kinematics = HandKinematics(load_embodiment(robot))
        body = kinematics.robot
        chunk = policy.predict(
            np.zeros((48, 64, 3), np.uint8),
            kinematics.hand_state(body.neutral),
            body.camera.resized(64, 48).matrix,
            instruction="grasp the red box",
        )
        assert np.isfinite(chunk.translation).all()


def test_a_config_says_what_it_does_not_understand(config: Path, tmp_path: Path) -> None:
    """Unknown combinations, networks beside init, and no networks at all are refused by name."""
    document = yaml.safe_load(config.read_text())
    for change, message in (
        ({"loss": {"modalities": {"TX": 1.0}}}, "unknown TX; known: TID"),
        ({"init": "tiny"}, "leave them out"),
        ({"cerebrum": None}, "give cerebrum and cerebellum"),
    ):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(document | change))
        with pytest.raises(ValueError, match=message):
            load(PolicyTraining, path, {})


def test_simulated_depth_noise_is_that_of_a_stereo_camera() -> None:
    """The error grows with the square of the distance, values are whole millimetres, edges lose
    half of theirs, and the same generator gives the same picture."""
    noise = DepthNoise(lateral=0.0, lost_anywhere=0.0)
    sigma = {}
    for metres in (0.5, 1.0):
        flat = torch.full((1, 1, 200, 200), metres)
        measured = noisy_depth(flat, generator=torch.Generator().manual_seed(0), noise=noise)
        again = noisy_depth(flat, generator=torch.Generator().manual_seed(0), noise=noise)
        torch.testing.assert_close(measured, again)
        assert (measured * 1000 - (measured * 1000).round()).abs().max() < 1e-3
        sigma[metres] = float((measured - metres).std())
    expected = noise.subpixel / (noise.focal * noise.baseline)
    assert sigma[1.0] == pytest.approx(expected, rel=0.1)
    assert sigma[0.5] == pytest.approx(expected / 4, rel=0.15)
    step = torch.full((1, 1, 200, 200), 0.5)
    step[..., 100:] = 0.8
    measured = noisy_depth(step, generator=torch.Generator().manual_seed(0), noise=noise)
    lost = (measured == 0).float().mean(dim=2)[0, 0]
    assert float(lost[99:101].mean()) == pytest.approx(0.5, abs=0.1)
    assert float(lost[:99].max()) == 0
