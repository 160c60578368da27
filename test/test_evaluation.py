"""The held-out benchmark on drawn episodes, with a small world model and estimator that are real.

Weights are random, so nothing here says how good a model is; the tests pin that each number is
measured on the right frames, that truth scores perfectly, and that reports come out whole.
"""

import json

import numpy as np
import pytest
import synthetic_scenes
import torch

from ego_world_model.data import DatasetReader, DatasetWriter
from ego_world_model.evaluation import metrics
from ego_world_model.evaluation.benchmark import METHODS, Benchmark, Judge, summarize
from ego_world_model.evaluation.clips import command, evaluation_clips, frozen
from ego_world_model.evaluation.moved_object import moved_object
from ego_world_model.evaluation.report import Evaluation, write_report
from ego_world_model.hands import EXTRA_SLOTS
from ego_world_model.perception import EstimatorConfig, FramePrediction, KeypointEstimator
from ego_world_model.perception.labels import class_labels, visible_joints
from ego_world_model.world_model import WorldModel
from ego_world_model.world_model.checkpoint import PartSpec, WorldModelConfig


@pytest.fixture(scope="module")
def model() -> WorldModel:
    torch.manual_seed(0)
    config = WorldModelConfig(
        fps=10,
        num_frames=9,
        height=96,
        width=128,
        extra_slots=EXTRA_SLOTS,
        autoencoder=PartSpec(name="frame", kwargs={"latent_channels": 4, "channels": [8, 16, 16]}),
        backbone=PartSpec(
            name="wan",
            kwargs={
                "latent_channels": 4,
                "channels": 32,
                "transformer": {"num_layers": 1, "num_attention_heads": 2, "ffn_dim": 64},
            },
        ),
    )
    return WorldModel(config).eval()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> DatasetReader:
    root = tmp_path_factory.mktemp("drawn")
    first = synthetic_scenes.episode(0)
    with DatasetWriter(
        root,
        embodiment=first.embodiment,
        fps=first.fps,
        camera=first.camera,
        joint_names=first.joint_names,
        slot_names=first.slot_names,
        image_storage="image",
        depth=False,
        split="test",
    ) as writer:
        for seed in range(3):
            writer.write(synthetic_scenes.episode(seed))
    return DatasetReader(root)


class Oracle(KeypointEstimator):
    """Reads the truth of one clip off its true frames, and nothing off any other frame."""

    def __init__(self, clip) -> None:
        super().__init__(EstimatorConfig(synthetic_scenes.SLOTS, channels=(16, 16)))
        slots = list(self.config.slot_numbers)
        pixels, _ = visible_joints(clip.hand_positions, clip.hand_valid, clip.masks, clip.camera)
        self.clip, self.pixels = clip, pixels[:, slots]

    def __call__(self, frames, *, batch_size: int = 32) -> FramePrediction:
        same = np.array([(frames[k] == self.clip.images[1 + k]).all() for k in range(len(frames))])
        pixels = np.where(same[:, None, None], self.pixels[1:], np.float32(0))
        classes = class_labels(self.clip.masks[1:]) * same[:, None, None].astype(np.uint8)
        return FramePrediction(pixels, np.ones(pixels.shape[:2], np.float32), classes)


def test_clips_are_spread_and_repeatable(dataset, model):
    few = list(evaluation_clips(dataset, model.config, 2))
    assert [c.metadata["episode"] for c in few] == [0, 1]
    assert all(len(c) == 9 and c.metadata["first_frame"] == 4 for c in few)
    many = list(evaluation_clips(dataset, model.config, 6))
    starts = {(c.metadata["episode"], c.metadata["first_frame"]) for c in many}
    assert len(starts) == 6
    first = dataset.episode(0)
    assert np.array_equal(few[0].images, first.images[4:13])
    assert np.array_equal(few[0].masks, first.masks[4:13])


def test_clips_at_another_rate_and_size(dataset, model):
    class Form:
        fps, num_frames, height, width, extra_slots = 5.0, 5, 48, 64, ()

    clip = next(evaluation_clips(dataset, Form, 1))
    assert clip.images.shape == (5, 48, 64, 3) and clip.camera.width == 64 and clip.fps == 5
    start, whole = clip.metadata["first_frame"], dataset.episode(0)
    assert np.array_equal(clip.hand_positions, whole.hand_positions[start : start + 9 : 2])
    assert set(np.unique(clip.masks)) <= set(np.unique(whole.masks))
    Form.fps = 7.0
    with pytest.raises(ValueError, match="no multiple"):
        next(evaluation_clips(dataset, Form, 1))
    Form.fps, Form.num_frames = 10.0, 40
    with pytest.raises(ValueError, match="takes 40"):
        next(evaluation_clips(dataset, Form, 1))


def test_truth_is_perfect_and_a_lost_hand_is_not(dataset, model):
    clip = next(evaluation_clips(dataset, model.config, 1))
    judge = Judge(clip, Oracle(clip))
    scores, errors = judge(clip.images[1:])
    assert scores["hand_iou"] == 1 and scores["control_error_px"] == pytest.approx(0, abs=1e-4)
    assert len(errors["all"]) >= len(errors["moving"])
    lost, _ = judge(clip.images[1:] // 2)
    assert lost["hand_iou"] == 0 and lost["control_error_px"] > 20


def test_only_a_moved_object_is_judged():
    masks = np.zeros((9, 96, 128), np.uint8)
    masks[:, 20:30, 100:110] = 5  # put down earlier
    for k in range(9):  # touched in frame 3 and carried along, one finger in front of it
        masks[k, 70:80, 10 + 3 * k : 20 + 3 * k] = 5 if k >= 3 else 6
        masks[k, 75:77, 10 + 3 * k : 20 + 3 * k] = 2
    moved = moved_object(masks)
    assert moved is not None and not moved[:, :40].any()
    for k in (0, 8):
        expected = np.isin(masks[k], (5, 6))
        expected[:40] = False
        assert np.array_equal(moved[k], expected)

    still = masks.copy()
    still[:] = masks[5]
    assert moved_object(still) is None
    switched = np.concatenate([masks[3:4].repeat(4, 0), masks[8:9].repeat(5, 0)])
    assert moved_object(switched) is None  # the mask jumped to another object; nothing moved


def test_commands_carry_the_slots_a_model_reads(dataset, model):
    clip = next(evaluation_clips(dataset, model.config, 1))
    plain, extra = command(clip), command(clip, EXTRA_SLOTS)
    assert plain.num_slots == 42 and extra.num_slots == 46 and not extra.valid[:, 42:].any()
    assert np.array_equal(extra.positions[:, :42], plain.positions)
    held = frozen(plain)
    assert (held.positions == plain.positions[0]).all() and held.duration == plain.duration


def test_benchmark_and_report_come_out_whole(dataset, model, tmp_path):
    clips = list(evaluation_clips(dataset, model.config, 3))
    estimator = KeypointEstimator(EstimatorConfig(synthetic_scenes.SLOTS, channels=(16, 16)))
    results = list(Benchmark(model, estimator).run(clips))
    assert len(results) == 3
    for clip, result in zip(clips, results, strict=True):
        copy = np.repeat(clip.images[:1], 9, axis=0)
        hand = metrics.regions(clip.masks[0], clip.masks[1:])["hand"]
        expected = metrics.psnr(copy[1:], clip.images[1:], hand)
        assert result.scores["copy_first"]["hand_psnr"] == expected
        assert result.scores["copy_first"]["background_psnr"] == metrics.PSNR_CAP
        assert set(result.frames) == {"truth", *METHODS}
    gain = summarize(results)["model"]["hand_psnr_above_copy_first"]
    assert gain.n == 3 and gain.low <= gain.mean <= gain.high
    evaluation = Evaluation({"model": "small"}, results)
    write_report(evaluation, tmp_path, strips=1)
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["methods"]["truth"]["hand_iou"]["n"] == 3
    assert {c["name"] for c in document["floor"]} == {c.name for c in evaluation.floor()}
    text = (tmp_path / "report.md").read_text()
    assert "hand PSNR" in text and "strips/worst_0.png" in text
    assert (tmp_path / "strips" / "best_0.png").stat().st_size > 1000


def test_two_clips_are_needed_for_shuffled_joints(model, dataset):
    clips = list(evaluation_clips(dataset, model.config, 1))
    estimator = KeypointEstimator(EstimatorConfig(synthetic_scenes.SLOTS, channels=(16, 16)))
    with pytest.raises(ValueError, match="at least 2 clips"):
        next(Benchmark(model, estimator).run(clips))
