"""The held-out benchmark on drawn episodes, with a small world model and estimator that are real.

Weights are random, so nothing here says how good a model is; the tests pin that each number is
measured on the right frames, that truth scores perfectly, and that reports come out whole.
"""

import numpy as np
import pytest
import small_evaluation

from ego_world_model.data import DatasetReader
from ego_world_model.evaluation import metrics
from ego_world_model.evaluation.benchmark import METHODS, Benchmark
from ego_world_model.evaluation.clips import command, evaluation_clips, frozen
from ego_world_model.evaluation.judge import Judge
from ego_world_model.evaluation.moved_object import moved_object
from ego_world_model.evaluation.sharpness import energy_ratio, gradient_energy
from ego_world_model.evaluation.summary import summarize
from ego_world_model.hands import EXTRA_SLOTS
from ego_world_model.world_model import WorldModel


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return small_evaluation.world_model()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> DatasetReader:
    return small_evaluation.write_dataset(tmp_path_factory.mktemp("drawn"))


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
    judge = Judge(clip, small_evaluation.Oracle(clip))
    scores, errors = judge(clip.images[1:])
    assert scores["hand_iou"] == 1
    for metric in ("control_error_px", "control_error_mm", "pa_mpjpe_mm"):
        assert scores[metric] == pytest.approx(0, abs=1e-3)
    assert len(errors["all"]["px"]) >= len(errors["moving"]["px"])
    assert all(len(units["px"]) == len(units["mm"]) for units in errors.values())
    lost, _ = judge(clip.images[1:] // 2)
    assert lost["hand_iou"] == 0 and lost["control_error_px"] > 20


def test_a_displaced_hand_is_wrong_in_millimetres_but_right_in_shape(dataset, model):
    clip = next(evaluation_clips(dataset, model.config, 1))
    scores, _ = Judge(clip, small_evaluation.Oracle(clip, offset=(3, 4)))(clip.images[1:])
    assert scores["control_error_px"] == pytest.approx(5, abs=1e-3)
    assert scores["control_error_mm"] == pytest.approx(5 * small_evaluation.MM_PER_PX, abs=1e-2)
    assert scores["pa_mpjpe_mm"] == pytest.approx(0, abs=1e-2)


def test_gradient_energy_tells_blur_that_psnr_prefers():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 255, (4, 32, 32, 3)).astype(np.uint8)
    half = np.zeros((4, 32, 32), bool)
    half[:, :, 8:24] = True
    moved = np.roll(truth, 1, axis=2)
    blurred = np.full_like(truth, truth.mean().round())
    assert metrics.psnr(blurred, truth) > metrics.psnr(moved, truth)
    energy = {name: gradient_energy(v) for name, v in (("t", truth), ("m", moved), ("b", blurred))}
    for region in (None, half):
        assert energy_ratio(energy["t"], energy["t"], region) == 1
        assert energy_ratio(energy["m"], energy["t"], region) == pytest.approx(1, abs=0.1)
        assert energy_ratio(energy["b"], energy["t"], region) == 0
    assert np.isnan(energy_ratio(energy["t"], energy["b"]))
    assert np.isnan(energy_ratio(energy["t"], energy["t"], ~half & half))
    ramp = np.zeros((1, 9, 9, 3), np.uint8) + np.arange(0, 27, 3, dtype=np.uint8)[:, None]
    # Three levels per pixel, squared, whatever the next frame shows.
    both = np.concatenate([ramp, np.zeros_like(ramp)])
    assert gradient_energy(both)[0, 4, 4] == pytest.approx(9, rel=1e-4)
    assert not gradient_energy(both)[1].any()


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


def test_benchmark_measures_every_method_on_the_right_frames(dataset, model):
    clips = list(evaluation_clips(dataset, model.config, 3))
    results = list(Benchmark(model, small_evaluation.estimator()).run(clips))
    assert len(results) == 3
    for clip, result in zip(clips, results, strict=True):
        copy = np.repeat(clip.images[:1], 9, axis=0)
        hand = metrics.regions(clip.masks[0], clip.masks[1:])["hand"]
        scores = result.scores["copy_first"]
        assert scores["hand_psnr"] == metrics.psnr(copy[1:], clip.images[1:], hand)
        assert scores["background_psnr"] == metrics.PSNR_CAP
        last = metrics.psnr(copy[-1], clip.images[-1], hand[-1])
        assert result.over_time["copy_first"].shape == (8,)
        assert result.over_time["copy_first"][-1] == last
        for metric in ("psnr", "ssim", "l1", "st_ssim", "gmsd_t", "gradient_energy"):
            assert all(f"{region}_{metric}" in scores for region in ("all", "hand", "hand_object"))
        assert set(result.frames) == {"truth", *METHODS}
    gain = summarize(results)["model"]["hand_psnr_above_copy_first"]
    assert gain.n == 3 and gain.low <= gain.mean <= gain.high


def test_two_clips_are_needed_for_shuffled_joints(model, dataset):
    clips = list(evaluation_clips(dataset, model.config, 1))
    with pytest.raises(ValueError, match="at least 2 clips"):
        next(Benchmark(model, small_evaluation.estimator()).run(clips))
