"""The keypoint estimator learns what it is shown, and its labels mean what they say."""

import json
from dataclasses import replace

import numpy as np
import pytest
import synthetic_scenes
import torch
import yaml

from ego_world_model.data import DatasetWriter
from ego_world_model.perception import (
    CLASS_NAMES,
    EstimatorConfig,
    KeypointEstimator,
    class_labels,
    visible_joints,
)
from ego_world_model.perception.estimator import STRIDE, cell_centres, decode_keypoints
from ego_world_model.perception.frames import LabelledFrames, mirrored
from ego_world_model.training.keypoints import (
    KeypointTrainer,
    KeypointTraining,
    estimator_loss,
    measure,
    train_keypoints,
)

CONFIG = EstimatorConfig(synthetic_scenes.SLOTS, channels=(32, 48, 64))


@pytest.fixture(scope="module")
def frames() -> LabelledFrames:
    return LabelledFrames.from_episodes([synthetic_scenes.episode(0)], CONFIG, stride=4)


def test_overfits_a_few_frames_to_a_pixel(frames, tmp_path):
    """The network, its loss and its decoding agree: learned frames are read back exactly."""
    torch.manual_seed(0)
    estimator = KeypointEstimator(CONFIG)
    images = frames.images.permute(0, 3, 1, 2).float() / 127.5 - 1
    optimizer = torch.optim.AdamW(estimator.network.parameters(), lr=3e-3)
    for _ in range(250):
        losses = estimator_loss(estimator.network.train()(images), frames)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
    report = measure(estimator, frames)
    assert report["keypoint_error_px"] < 1
    assert report["hand_iou"] > 0.85 and report["objects_iou"] > 0.85

    estimator.save(tmp_path)
    again = KeypointEstimator.from_pretrained(tmp_path)
    assert again.config == CONFIG
    first, second = estimator(frames.images.numpy()), again(frames.images.numpy())
    assert np.abs(first.pixels - second.pixels).max() < 0.1  # half precision on disk
    assert (first.classes == second.classes).mean() > 0.999

    # Frames of another size are read in their own pixels.
    double = frames.images.numpy().repeat(2, axis=1).repeat(2, axis=2)
    large = again(double)
    assert large.classes.shape == (len(frames), 192, 256)
    assert np.median(np.abs((large.pixels + 0.5) / 2 - 0.5 - second.pixels)) < 1


def test_decoding_returns_the_encoded_pixel():
    centres = cell_centres(24, 32)
    target = torch.tensor([37.3, 52.8])
    away = (target[:, None, None] - centres) / STRIDE
    heat = -away.square().sum(0) * 4
    pixels, confidence = decode_keypoints(heat[None, None], away[None, None])
    assert torch.allclose(pixels[0, 0], target, atol=1e-3) and confidence > 0.9


def test_visible_joints_need_their_own_hand_in_front():
    camera = synthetic_scenes.CAMERA
    positions = np.zeros((1, 42, 3), np.float32)
    positions[0, [0, 1, 21, 22]] = camera.unproject(
        np.array([(20, 30), (40, 30), (20, 30), (300, 30)]), np.full(4, 0.5)
    )
    valid = np.zeros((1, 42), bool)
    valid[0, [0, 1, 21, 22]] = True
    masks = np.zeros((1, 96, 128), np.uint8)
    masks[0, 25:35, 10:50] = 1
    depth = np.full((1, 96, 128), 480, np.uint16)
    pixels, visible = visible_joints(positions, valid, masks, camera, depth)
    assert np.flatnonzero(visible[0]).tolist() == [0, 1]  # 21 on the other hand, 22 outside
    assert np.allclose(pixels[0, 1], (40, 30), atol=1e-3)
    depth[0, 30, 40] = 300  # something of the same hand passes 20 cm in front of joint 1
    assert visible_joints(positions, valid, masks, camera, depth)[1][0, 1] == np.False_


def test_mirroring_swaps_the_hands(frames):
    mirror = mirrored(frames, CONFIG)
    wrist = CONFIG.slots.index("left_wrist"), CONFIG.slots.index("right_wrist")
    assert torch.equal(mirror.pixels[:, wrist[0], 0], 127 - frames.pixels[:, wrist[1], 0])
    assert ((mirror.classes == 1).sum() == (frames.classes == 2).sum()).item()
    twice = mirrored(mirror, CONFIG)
    assert torch.equal(twice.images, frames.images) and torch.equal(twice.classes, frames.classes)


def test_classes_merge_arms_and_objects():
    assert [CLASS_NAMES[c] for c in class_labels(np.arange(7, dtype=np.uint8))] == [
        "background", "left_hand", "right_hand", "arms", "arms", "objects", "objects",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="value 9"):
        class_labels(np.array([9], np.uint8))


def test_a_missing_or_unfitting_checkpoint_is_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="train keypoints"):
        KeypointEstimator.from_pretrained(tmp_path)
    KeypointEstimator(CONFIG).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["slots"] = config["slots"][:3]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="do not fit"):
        KeypointEstimator.from_pretrained(tmp_path)


def test_without_depth_a_finger_in_front_hides_a_joint():
    """Datasets without depth images judge visibility from the hand's own bones."""
    camera = synthetic_scenes.CAMERA
    pixels = np.array([(60, 80), (60, 50), (60, 20), (60, 35), (90, 35)], np.float64)
    slots = [0, 5, 8, 9, 12]  # wrist; index MCP and tip in a line; middle MCP behind it, tip aside
    positions = np.zeros((1, 42, 3), np.float32)
    positions[0, slots] = camera.unproject(pixels, np.array([0.5, 0.5, 0.5, 0.56, 0.56]))
    valid = np.zeros((1, 42), bool)
    valid[0, slots] = True
    masks = np.ones((1, 96, 128), np.uint8)
    visible = visible_joints(positions, valid, masks, camera)[1]
    assert np.flatnonzero(visible[0]).tolist() == [0, 5, 8, 12]


def test_further_slots_leave_what_is_known_alone(frames):
    """An estimator of one robot becomes the start for another with more fingers."""
    torch.manual_seed(0)
    estimator = KeypointEstimator(CONFIG)
    larger = estimator.with_slots(("left_pinky_tip", "right_pinky_tip", "left_wrist"))
    added = {"left_pinky_tip", "right_pinky_tip"}
    assert set(larger.config.slots) == {*CONFIG.slots, *added}
    assert list(larger.config.slot_numbers) == sorted(larger.config.slot_numbers)
    images = frames.images.numpy()[:4]
    before, after = estimator(images), larger(images)
    columns = [larger.config.slots.index(name) for name in CONFIG.slots]
    assert np.array_equal(after.classes, before.classes)
    assert np.abs(after.pixels[:, columns] - before.pixels).max() < 1e-3
    assert estimator.with_slots(CONFIG.slots[:2]) is estimator


def dataset(folder, embodiment, without=()):
    """Three short drawn episodes of a robot that lacks some of the slots."""
    first = synthetic_scenes.episode(0, frames=8)
    with DatasetWriter(
        folder,
        embodiment=embodiment,
        fps=first.fps,
        camera=first.camera,
        joint_names=first.joint_names,
        slot_names=first.slot_names,
        image_storage="image",
        depth=False,
    ) as writer:
        for seed in range(3):
            episode = synthetic_scenes.episode(seed, frames=8)
            lacks = np.array([any(word in name for word in without) for name in episode.slot_names])
            valid = episode.hand_valid & ~lacks
            writer.write(replace(episode, embodiment=embodiment, hand_valid=valid))
    return str(folder)


def test_a_run_on_two_robots_has_the_slots_of_both_and_measures_each(tmp_path):
    """A slot that one robot lacks is learned from the other; errors are told robot by robot."""
    config = tmp_path / "run.yaml"
    settings = {
        "data": [
            dataset(tmp_path / "three", "three_fingers"),
            dataset(tmp_path / "two", "two_fingers", without=("middle",)),
        ],
        "output": str(tmp_path / "out"),
        "steps": 2,
        "batch_size": 4,
        "validation_episodes": 1,
    }
    config.write_text(yaml.safe_dump(settings))
    trainer = KeypointTrainer(KeypointTraining.from_yaml(config))
    middle = [k for k, name in enumerate(trainer.estimator.config.slots) if "middle" in name]
    assert middle and not trainer.validation["two_fingers"].visible[:, middle].any()
    assert trainer.validation["three_fingers"].visible[:, middle].any()
    report = trainer.train()
    assert set(report) == {"three_fingers", "two_fingers"}
    assert report["two_fingers"] != report["three_fingers"]
    estimator = KeypointEstimator.from_pretrained(tmp_path / "out")
    assert set(estimator.config.slots) == set(synthetic_scenes.SLOTS)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "2 of three_fingers, 2 of two_fingers" in card

    config.write_text(yaml.safe_dump(settings | {"validation_episodes": 3}))
    with pytest.raises(ValueError, match="has 3 episodes, too few"):
        train_keypoints(config)


def test_a_run_is_described_by_a_file_and_leaves_a_checkpoint(tmp_path):
    config = tmp_path / "run.yaml"
    data = dataset(tmp_path / "data", "synthetic")
    settings = {"data": data, "output": str(tmp_path / "out"), "steps": 2}
    config.write_text(yaml.safe_dump({**settings, "batch_size": 4, "validation_episodes": 1}))
    (report,) = train_keypoints(config).values()
    assert set(report) >= {"keypoint_error_px", "hand_iou", "objects_iou"}
    estimator = KeypointEstimator.from_pretrained(tmp_path / "out")
    assert set(estimator.config.slots) == set(synthetic_scenes.SLOTS)
    assert (tmp_path / "out" / "README.md").read_text().startswith("# Keypoint")

    config.write_text(yaml.safe_dump({**settings, "batchsize": 4}))
    with pytest.raises(ValueError, match="batchsize"):
        train_keypoints(config)
