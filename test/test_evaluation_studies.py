"""Hidden joints and denoising steps: what the model is told, and what the tables say of it."""

from types import SimpleNamespace

import numpy as np
import pytest
import small_evaluation

from ego_world_model.evaluation.benchmark import Benchmark, region_scores
from ego_world_model.evaluation.clips import command, evaluation_clips
from ego_world_model.evaluation.studies import (
    ClipStudy,
    denoising_steps,
    denoising_steps_study,
    few_steps_checks,
    masked_joints,
    masked_joints_study,
)


@pytest.fixture(scope="module")
def model():
    return small_evaluation.world_model()


@pytest.fixture(scope="module")
def clips(tmp_path_factory, model):
    dataset = small_evaluation.write_dataset(tmp_path_factory.mktemp("drawn"))
    return list(evaluation_clips(dataset, model.config, 3))


class Witness:
    """Passes on to a model, and remembers what it was asked."""

    def __init__(self, model) -> None:
        self.model, self.config, self.asked = model, model.config, []

    def imagine(self, image, trajectories, intrinsics, **options):
        self.asked.append(SimpleNamespace(trajectories=trajectories, **options))
        return self.model.imagine(image, trajectories, intrinsics, **options)


def test_the_share_of_joints_asked_for_is_hidden_throughout(model, clips):
    witness = Witness(model)
    shares = (0, 0.25, 0.5)
    results = list(masked_joints(witness, small_evaluation.estimator(), clips, shares, seed=3))
    assert len(witness.asked) == len(clips) == len(results)  # one encoded reference per clip
    for clip, asked in zip(clips, witness.asked, strict=True):
        own = command(clip, tuple(model.config.extra_slots))
        present = own.valid.any(axis=0).sum()
        for share, trajectory in zip(shares, asked.trajectories, strict=True):
            known = trajectory.valid.any(axis=0)
            assert known.sum() == present - round(share * present)
            assert (trajectory.valid == (own.valid & known)).all()
    masks = [asked.trajectories[-1].valid.any(axis=0) for asked in witness.asked]
    assert any((a != b).any() for a, b in zip(masks, masks[1:], strict=False))


def test_nothing_hidden_is_the_benchmark_itself(model, clips):
    judge = small_evaluation.estimator()
    study = list(masked_joints(model, judge, clips, (0, 0.5), seed=7))
    plain = list(Benchmark(model, judge, seed=7).run(clips))
    for ours, theirs in zip(study, plain, strict=True):
        difference = ours.frames["0%"].astype(int) - theirs.frames["model"].astype(int)
        assert np.abs(difference).max() <= 1  # computed in another batch
        assert ours.scores["0%"]["hand_psnr"] == pytest.approx(
            theirs.scores["model"]["hand_psnr"], abs=0.01
        )


@pytest.mark.parametrize("shares", [(0.1, 0.5), (0, 1.0), (0, -0.1)])
def test_shares_that_cannot_be_compared_are_refused(model, clips, shares):
    with pytest.raises(ValueError, match="include 0"):
        next(masked_joints(model, small_evaluation.estimator(), clips, shares))


def test_steps_are_those_asked_for_from_the_same_noise(model, clips):
    witness = Witness(model)
    judge = small_evaluation.estimator()
    results = list(denoising_steps(witness, judge, clips[:2], (1, 3), seed=5))
    asked = [(call.steps, call.seed) for call in witness.asked]
    assert asked == [(1, 5), (3, 5), (1, 6), (3, 6)]
    study = denoising_steps_study((1, 3), results)
    assert study.base == "3" and study.mean("1", "seconds").mean > 0
    assert study.difference("3", "hand_psnr").mean == 0
    with pytest.raises(ValueError, match="positive"):
        next(denoising_steps(model, judge, clips, (0,)))


def drawn_study(control_error: float, energy: float):
    """Twelve clips in which 4 steps have so many times the numbers of 20 steps."""
    rng = np.random.default_rng(0)
    made = []
    for episode in range(12):
        many = {"control_error_px": rng.uniform(1, 2), "hand_gradient_energy": rng.uniform(0.6, 1)}
        few = {
            "control_error_px": control_error * many["control_error_px"],
            "hand_gradient_energy": energy * many["hand_gradient_energy"],
        }
        scores = {"4": few, "20": many}
        made.append(ClipStudy(episode=episode, first_frame=0, scores=scores, frames={}))
    return denoising_steps_study((4, 20), made)


@pytest.mark.parametrize(
    ("control_error", "energy", "met"),
    [(1.1, 0.95, [True, True]), (1.2, 1.0, [False, True]), (1.0, 0.8, [True, False])],
)
def test_few_steps_are_held_against_many_by_place_and_by_sharpness(control_error, energy, met):
    checks = few_steps_checks(drawn_study(control_error, energy))
    assert [check.met for check in checks] == met
    for check, ratio in zip(checks, (control_error, energy), strict=True):
        assert check.value == pytest.approx(ratio)
        assert check.low == pytest.approx(ratio) and check.high == pytest.approx(ratio)


def test_no_check_without_both_numbers_of_steps(model, clips):
    results = list(denoising_steps(model, small_evaluation.estimator(), clips[:1], (4,)))
    assert few_steps_checks(denoising_steps_study((4,), results)) == []
    masked = masked_joints_study((0,), [])
    assert few_steps_checks(masked) == []


def test_sharpness_of_a_region_ignores_what_is_outside(clips):
    truth = clips[0].images[1:]
    frames = truth.copy()
    inside = np.zeros(truth.shape[:3], bool)
    inside[:, 20:60, 20:100] = True
    frames[:, :10] = np.random.default_rng(0).integers(0, 255, frames[:, :10].shape)
    scores = region_scores(frames, truth, {"hand": inside, "all": np.ones_like(inside)})
    assert scores["hand_gradient_energy"] == 1 and scores["all_gradient_energy"] > 1
