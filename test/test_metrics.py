"""Image and control metrics against values worked out by hand."""

import numpy as np
import pytest

from ego_world_model.evaluation import metrics


def flat(value: int, frames: int = 2) -> np.ndarray:
    return np.full((frames, 16, 20, 3), value, np.uint8)


def test_l1_and_psnr_of_a_constant_difference():
    truth, frames = flat(100), flat(110)
    assert metrics.l1(frames, truth) == pytest.approx(10)
    assert metrics.psnr(frames, truth) == pytest.approx(10 * np.log10(255**2 / 100))


def test_psnr_pools_the_mse_of_a_clip_before_the_logarithm():
    truth = flat(100)
    frames = truth.copy()
    frames[1] += 20  # one frame perfect, one with MSE 400: pooled MSE 200
    assert metrics.psnr(frames, truth) == pytest.approx(10 * np.log10(255**2 / 200))


def test_identical_frames_reach_the_cap():
    truth = np.random.default_rng(0).integers(0, 256, (2, 16, 20, 3), dtype=np.uint8)
    assert metrics.psnr(truth, truth) == metrics.PSNR_CAP
    assert metrics.ssim(truth, truth) == pytest.approx(1)
    assert metrics.l1(truth, truth) == 0


def test_a_region_counts_its_own_pixels_only():
    truth, frames = flat(50), flat(50)
    frames[:, :4] = 90
    region = np.zeros(truth.shape[:3], bool)
    region[:, :2] = True
    assert metrics.l1(frames, truth, region) == pytest.approx(40)
    assert metrics.psnr(frames, truth, ~region) > metrics.psnr(frames, truth, region)
    assert np.isnan(metrics.psnr(frames, truth, np.zeros_like(region)))


def test_ssim_of_flat_frames_is_the_luminance_term():
    # Variances vanish, so SSIM = (2ab + c1) / (a² + b² + c1).
    a, b, c1 = 100.0, 120.0, 2.55**2
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    assert metrics.ssim(flat(100), flat(120)) == pytest.approx(expected, abs=1e-4)


def test_regions_follow_their_definitions():
    reference = np.zeros((20, 30), np.uint8)
    reference[2:4, 2:4] = 1  # left hand, gone later
    target = np.zeros((1, 20, 30), np.uint8)
    target[0, 10:12, 10:12] = 2
    target[0, 14, 14] = 4
    target[0, 16, 20] = 5
    reference[0, 29] = target[0, 0, 29] = 6  # objects that stand still are background
    reference[10, 29] = 6  # this one does not
    found = metrics.regions(reference, target)
    assert found["hand"].sum() == 4 and found["changed"].sum() == 8
    assert found["arms"].sum() == 1 and found["object"].sum() == 1
    background = found["background"][0]
    margin = metrics.BACKGROUND_MARGIN
    assert (
        background[0, 29]
        and not background[10, 29]
        and not background[2, 2]
        and not background[10, 10]
    )
    assert not background[16, 20 + margin] and background[16, 20 + margin + 1]


def test_iou_pools_frames_and_is_unknown_without_truth():
    truth = np.zeros((2, 4, 4), bool)
    truth[0, 0, :2] = truth[1, 0, :2] = True
    said = np.zeros_like(truth)
    said[0, 0, 1:3] = True  # 1 of 3; the second frame is missed, 0 of 2
    assert metrics.iou(said, truth) == pytest.approx(1 / 5)
    assert np.isnan(metrics.iou(said, np.zeros_like(truth)))


def test_control_error_of_joints_that_move():
    commanded = np.zeros((3, 2, 2))
    commanded[1:, 0] = (10, 0)  # joint 0 moves 10 px, joint 1 stays
    found = commanded[1:] + (3, 4)
    visible = np.array([[True, True], [False, True]])
    assert metrics.control_error(found, commanded, visible).tolist() == [5, 5, 5]
    assert metrics.control_error(found, commanded, visible, moved=8).tolist() == [5]


def test_estimate_ignores_clips_without_a_value():
    result = metrics.estimate([1.0, 3.0, float("nan")])
    assert result.n == 2 and result.mean == 2 and 1 <= result.low <= 2 <= result.high <= 3
    assert metrics.estimate([float("nan")]).n == 0


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="share a shape"):
        metrics.l1(flat(0), flat(0, frames=3))
