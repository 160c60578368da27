"""MPJPE and PA-MPJPE against transforms that are known, and pixels lifted to a depth."""

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.transform import Rotation

from ego_world_model.camera import PinholeCamera
from ego_world_model.evaluation import pose


def joints(frames: int = 6, count: int = 21, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(frames, count, 3)) * 0.05 + (0, 0, 0.5)


def test_mpjpe_is_the_mean_distance_in_metres():
    truth = joints()
    found = truth + (0.003, 0.004, 0)
    assert pose.mpjpe(found, truth) == pytest.approx(0.005)


def test_any_similarity_transform_of_a_frame_is_aligned_away_exactly():
    truth = joints(frames=50)
    rng = np.random.default_rng(1)
    turns = Rotation.random(50, random_state=2).as_matrix()
    scales = rng.uniform(0.2, 4, (50, 1, 1))
    found = scales * truth @ np.swapaxes(turns, 1, 2) + rng.normal(size=(50, 1, 3))
    assert pose.mpjpe(found, truth) > 0.1
    assert pose.pa_mpjpe(found, truth) == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(pose.procrustes(found, truth), truth, atol=1e-12)


def test_the_alignment_is_scipys_orthogonal_procrustes_with_a_scale():
    truth = joints(frames=40, seed=3)
    found = truth + np.random.default_rng(4).normal(size=truth.shape) * 0.01
    for a, b, aligned in zip(found, truth, pose.procrustes(found, truth), strict=True):
        x, y = a - a.mean(0), b - b.mean(0)
        rotation, stretch = orthogonal_procrustes(x, y)
        assert np.linalg.det(rotation) > 0  # noise is too small for a mirror image
        np.testing.assert_allclose(aligned, stretch / np.sum(x * x) * x @ rotation + b.mean(0))


def test_no_other_rotation_or_scale_fits_better():
    truth, found = joints(frames=1), joints(frames=1, seed=5)
    best = np.square(pose.procrustes(found, truth) - truth).sum()
    x = found - found.mean(axis=1, keepdims=True)
    for seed in range(200):
        turn = Rotation.random(random_state=seed).as_matrix()
        y = x @ turn.T
        scale = (y * (truth - truth.mean(axis=1))).sum() / np.square(y).sum()
        assert np.square(scale * y + truth.mean(axis=1) - truth).sum() >= best


def test_a_mirror_image_is_not_aligned_away():
    truth = joints()
    assert pose.pa_mpjpe(truth * (-1, 1, 1), truth) > 0.02


def test_joints_that_are_not_valid_do_not_count():
    truth = joints()
    found = truth.copy()
    found[:, 4] += 1
    found[:, 7] = np.nan
    valid = np.ones(truth.shape[:2], bool)
    valid[:, 4] = False
    assert pose.mpjpe(found, truth, valid) == 0
    assert pose.pa_mpjpe(found, truth, valid) == pytest.approx(0, abs=1e-12)
    distances = pose.joint_distances(found, truth, valid)
    assert (
        np.isnan(distances[:, [4, 7]]).all() and np.isfinite(np.delete(distances, [4, 7], 1)).all()
    )


def test_frames_with_too_few_joints_to_align_are_left_out():
    truth = joints(frames=2)
    found = truth + 0.1
    found[1] += np.random.default_rng(0).normal(size=found[1].shape)
    valid = np.ones(truth.shape[:2], bool)
    valid[1, 2:] = False
    assert pose.pa_mpjpe(found, truth, valid) == pytest.approx(0, abs=1e-12)
    assert np.isnan(pose.pa_mpjpe(found, truth, np.zeros_like(valid)))
    assert np.isnan(pose.mpjpe(found, truth, np.zeros_like(valid)))


def test_joints_found_in_one_point_are_scaled_away_instead_of_failing():
    truth = joints(frames=1)
    spread = np.linalg.norm(truth - truth.mean(axis=1, keepdims=True), axis=-1).mean()
    assert pose.pa_mpjpe(np.zeros_like(truth), truth) == pytest.approx(spread)


def test_pixels_lifted_at_the_commanded_depth_give_the_error_across_the_line_of_sight():
    camera = PinholeCamera(128, 96, 100.0, 100.0, 63.5, 47.5)
    commanded = joints()
    pixels = camera.project(commanded)
    lifted = pose.lift(pixels, commanded[..., 2], camera)
    np.testing.assert_allclose(lifted, commanded, atol=1e-12)
    off = pose.lift(pixels + (2, 0), commanded[..., 2], camera)
    expected = (2 / 100 * commanded[..., 2]).mean()  # 2 px at f = 100 px: 2 % of the depth
    assert pose.mpjpe(off, commanded) == pytest.approx(expected)


def test_a_depth_that_is_not_known_gives_no_joint():
    camera = PinholeCamera(128, 96, 100.0, 100.0, 63.5, 47.5)
    lifted = pose.lift(np.zeros((3, 2)), np.array([0.5, 0, np.nan]), camera)
    assert np.isfinite(lifted).all(axis=-1).tolist() == [True, False, False]


def test_shapes_that_do_not_fit_are_refused():
    camera = PinholeCamera(128, 96, 100.0, 100.0, 63.5, 47.5)
    with pytest.raises(ValueError, match="share a shape"):
        pose.mpjpe(joints(), joints(frames=5))
    with pytest.raises(ValueError, match="valid"):
        pose.mpjpe(joints(), joints(), np.ones((6, 20), bool))
    with pytest.raises(ValueError, match="depth"):
        pose.lift(np.zeros((3, 2)), np.zeros(4), camera)
