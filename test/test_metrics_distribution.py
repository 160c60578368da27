"""Fréchet and kernel distances on distributions whose distance is known."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from ego_world_model.evaluation import distribution
from ego_world_model.evaluation.distribution import frechet_distance, kernel_distance


def normal(n: int, mean, cov, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).multivariate_normal(mean, cov, n)


def test_frechet_distance_of_large_samples_is_that_of_their_gaussians():
    """Closed form |m1 - m2|² + Tr(C1 + C2 - 2 (C1 C2)^½) with scipy's matrix square root."""
    m1, m2 = np.array([0.0, 1, -1]), np.array([1.0, 0.5, 0])
    c1 = np.array([[2, 0.5, 0], [0.5, 1, 0.2], [0, 0.2, 1.5]])
    c2 = np.array([[1, -0.3, 0.1], [-0.3, 2, 0], [0.1, 0, 0.5]])
    expected = np.sum((m1 - m2) ** 2) + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    found = frechet_distance(normal(200_000, m1, c1, 0), normal(200_000, m2, c2, 1))
    assert found.value == pytest.approx(expected, rel=0.01)
    assert found.n == 200_000 and found.dimensions == 3 and found.warning == ""


@pytest.mark.parametrize("n", [12, 300])
def test_frechet_distance_equals_the_plain_formula_below_and_above_full_rank(n):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, 24)), rng.normal(size=(n, 24)) @ rng.normal(size=(24, 24)) + 1
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    values = np.linalg.eigvals(a @ b)
    root = np.sqrt(np.maximum(values.real, 0)).sum()
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a) + np.trace(b) - 2 * root
    assert frechet_distance(x, y).value == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_is_unbiased_where_the_frechet_distance_is_not():
    """At n = 50 two samples of one distribution: the kernel distance is 0 on average, the Fréchet
    distance far above it, which is why it is never reported alone."""
    draws = [
        (rng.normal(size=(50, 64)), rng.normal(size=(50, 64)))
        for rng in map(np.random.default_rng, range(200))
    ]
    kernel = np.array([kernel_distance(x, y).value for x, y in draws])
    error = kernel.std() / np.sqrt(len(kernel))
    assert abs(kernel.mean()) < 3 * error
    assert (kernel < 0).mean() > 0.2
    frechet = np.array([frechet_distance(x, y).value for x, y in draws[:20]])
    assert frechet.min() > 20  # the truth is 0, and the variance of a feature 64 in all


def test_kernel_distance_of_paired_rows_is_unbiased_too():
    """Imagined and true frames of one clip depend on each other; their marginals are alike here.
    The estimator of unpaired sets would come out below zero."""
    kernel, unpaired = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        scene = rng.normal(size=(40, 16))
        x, y = scene + rng.normal(size=(40, 16)) * 0.3, scene + rng.normal(size=(40, 16)) * 0.3
        kernel.append(kernel_distance(x, y).value)
        k = lambda a, b: (a @ b.T / 16 + 1) ** 3  # noqa: E731
        off = ~np.eye(40, dtype=bool)
        unpaired.append(k(x, x)[off].mean() + k(y, y)[off].mean() - 2 * k(x, y).mean())
    error = np.std(kernel) / np.sqrt(len(kernel))
    assert abs(np.mean(kernel)) < 3 * error
    assert np.mean(unpaired) < -20 * error


def test_kernel_distance_of_frames_is_unbiased_because_pairs_within_a_clip_are_left_out():
    values, naive = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        x, y = (
            np.repeat(rng.normal(size=(12, 8)), 5, axis=0) + rng.normal(size=(60, 8)) * 0.1
            for _ in range(2)
        )
        clips = np.repeat(np.arange(12), 5)
        found = kernel_distance(x, y, clips)
        assert (found.n, found.groups) == (60, 12)
        values.append(found.value)
        naive.append(kernel_distance(x, y).value)
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error
    assert np.mean(naive) > 5 * error


def test_the_standard_error_of_the_kernel_distance_is_the_spread_over_draws():
    found = [
        kernel_distance(rng.normal(size=(60, 8)), rng.normal(size=(60, 8)) + 0.7)
        for rng in map(np.random.default_rng, range(100))
    ]
    spread = np.std([d.value for d in found])
    assert np.mean([d.error for d in found]) == pytest.approx(spread, rel=0.25)
    assert np.mean([d.value for d in found]) > 5 * spread


def test_kernel_distance_is_the_mean_over_pairs_of_rows_of_different_clips(monkeypatch):
    """Clips of unequal length, in any order, over several blocks of the kernel matrix; and its
    error is the jackknife over clips."""
    rng = np.random.default_rng(0)
    x, y, clips = rng.normal(size=(30, 5)), rng.normal(size=(30, 5)) + 1, rng.integers(0, 4, 30)

    def plain(keep: np.ndarray) -> float:
        def kernel(a, b):
            return (a @ b / 5 + 1) ** 3

        return np.mean(
            [
                kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(x[j], y[i])
                for i in np.flatnonzero(keep)
                for j in np.flatnonzero(keep)
                if clips[i] != clips[j]
            ]
        )

    monkeypatch.setattr(distribution, "ROWS_AT_ONCE", 7)
    found = kernel_distance(x, y, clips)
    assert found.value == pytest.approx(plain(clips >= 0))
    without = np.array([plain(clips != clip) for clip in range(4)])
    expected = np.sqrt(3 / 4 * np.square(without - without.mean()).sum())
    assert found.error == pytest.approx(expected) and (found.n, found.groups) == (30, 4)


def test_a_copy_of_the_truth_has_distance_zero_from_it():
    x = np.random.default_rng(0).normal(size=(30, 100))
    assert frechet_distance(x, x).value == pytest.approx(0, abs=1e-9)
    assert kernel_distance(x, x).value == pytest.approx(0, abs=1e-12)


def test_distances_grow_with_the_shift_and_do_not_depend_on_rotation_order_or_side():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 10)), rng.normal(size=(80, 10)) + 0.5
    rotation = np.linalg.qr(rng.normal(size=(10, 10)))[0]
    order = rng.permutation(80)
    for distance in (frechet_distance, kernel_distance):
        value = distance(x, y).value
        assert distance(x, y + 1).value > value > 0
        assert distance(y, x).value == pytest.approx(value)
        assert distance(x[order], y[order]).value == pytest.approx(value)
        assert distance(x @ rotation, y @ rotation).value == pytest.approx(value)


def test_too_few_rows_for_the_covariances_are_said_in_the_result():
    rng = np.random.default_rng(0)
    found = frechet_distance(rng.normal(size=(20, 64)), rng.normal(size=(20, 64)))
    assert "rank 19" in found.warning and "64 dimensions" in found.warning and found.n == 20
    assert "n = 20 in 20 groups" in str(found)
    one = frechet_distance(rng.normal(size=(20, 4)), rng.normal(size=(20, 4)), np.zeros(20))
    assert np.isnan(one.value) and "2 groups" in one.warning and str(one) == "n/a"


def test_features_that_do_not_fit_are_refused():
    x = np.zeros((5, 4))
    with pytest.raises(ValueError, match="row by row"):
        kernel_distance(x, x[1:])
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(x, x + np.nan)
