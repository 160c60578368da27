"""Intervals draw whole episodes, differences are paired by clip, subsets part clips for good."""

import numpy as np
import pytest

from ego_world_model.evaluation.benchmark import ClipResult
from ego_world_model.evaluation.metrics import estimate
from ego_world_model.evaluation.subsets import HEAVY
from ego_world_model.evaluation.summary import difference, over_time, subset, summarize


def result(episode: int, psnr: float, *, occlusion: float = 0.0, copied: float = 10.0):
    """A clip with a hand PSNR of the model and of a copied frame."""
    scores = {method: {"hand_psnr": copied} for method in ("copy_first", "shuffled", "frozen")}
    return ClipResult(
        episode=episode,
        first_frame=0,
        task="wave",
        kind="free",
        occlusion=occlusion,
        scores={"model": {"hand_psnr": psnr}, **scores},
        over_time={"model": np.array([psnr + 1, np.nan])},
        frames={},
        timings={"denoise": 1.0},
        errors={},
    )


def test_repeating_clips_of_an_episode_does_not_narrow_an_interval():
    values = np.random.default_rng(0).normal(20, 3, 12)
    once = estimate(values)
    repeated = np.repeat(values, 10)
    apart = estimate(repeated)
    together = estimate(repeated, groups=np.repeat(np.arange(12), 10))
    assert together.mean == pytest.approx(once.mean) and together.n == 120
    assert (together.low, together.high) == pytest.approx((once.low, once.high))
    assert apart.high - apart.low < 0.5 * (once.high - once.low)


def test_unknown_clips_are_left_out_of_mean_and_interval():
    some = estimate([1.0, np.nan, 3.0], groups=[0, 0, 1])
    assert (some.mean, some.n) == (2.0, 2)
    assert estimate([np.nan], groups=[0]).n == 0


def test_a_paired_difference_is_sharper_than_the_means():
    spread = np.random.default_rng(1).normal(0, 5, 30)
    ours = [result(k, 20.5 + s) for k, s in enumerate(spread)]
    theirs = [result(k, 20.0 + s) for k, s in enumerate(spread)]
    gain = difference(ours, theirs, "hand_psnr")
    assert gain.mean == pytest.approx(0.5) and 0.4 < gain.low <= gain.high < 0.6
    alone = summarize(ours)["model"]["hand_psnr"]
    assert alone.high - alone.low > 2
    above = summarize(ours)["model"]["hand_psnr_above_copy_first"]
    assert above.mean == pytest.approx(alone.mean - 10)


def test_models_on_different_clips_are_not_compared():
    with pytest.raises(ValueError, match="same clips"):
        difference([result(0, 20)], [result(1, 20)], "hand_psnr")


def test_subsets_part_the_clips_at_a_fixed_share():
    clips = [result(0, 20, occlusion=HEAVY), result(1, 21, occlusion=HEAVY - 0.01)]
    assert [c.episode for c in subset(clips, "occlusion-heavy")] == [0]
    assert [c.episode for c in subset(clips, "plain")] == [1]
    assert subset(clips, "all") == clips
    assert summarize(subset(clips[:1], "plain")) == {}


def test_quality_over_time_counts_the_clips_that_show_a_hand():
    first, second = over_time([result(0, 20), result(1, 22)])
    assert (first.mean, first.n) == (22.0, 2)
    assert second.n == 0
