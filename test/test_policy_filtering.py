"""Temporal orthogonal filtering: the projection to rotations, and what averaging gains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ego_world_model.policy.chunk import HandChunk
from ego_world_model.policy.filtering import TemporalOrthogonalFilter, project_to_rotation

_STEPS, _DT = 16, 0.1
_NAMES = (("a", "b"), ("c", "d"))


def _random_rotations(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return project_to_rotation(rng.normal(size=(*shape, 3, 3)))


def _angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(...) radians between rotations (..., 3, 3)."""
    return 2 * np.arcsin(np.clip(np.linalg.norm(a - b, axis=(-2, -1)) / np.sqrt(8), 0, 1))


def _rotation(vector: np.ndarray) -> np.ndarray:
    """(..., 3) rotation vectors → (..., 3, 3)."""
    angle = np.linalg.norm(vector, axis=-1)[..., None, None]
    cross = np.cross(vector[..., None, :], np.eye(3)) / -angle  # rows: e_i × axis → skew matrix
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _turns(rng: np.random.Generator, shape: tuple[int, ...], radians: float) -> np.ndarray:
    """Rotations about random axes whose rotation vectors are normal with that deviation."""
    return _rotation(rng.normal(size=(*shape, 3)) * radians)


def _path(times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A smooth motion of both hands: translation (N, 2, 3), rotation, fingers (N, 2, 2)."""
    phase = np.stack([times, times + 1.0], axis=1)
    translation = 0.2 * np.stack([np.sin(phase), np.cos(phase), 0.5 * np.sin(2 * phase)], axis=-1)
    rotation = _rotation(phase[..., None] * np.array([0.0, 0.42, 0.56]) + 1e-9)
    return translation, rotation, np.stack([np.sin(phase), np.cos(phase)], axis=-1)


def _chunk(start: float) -> HandChunk:
    times = _DT * np.arange(1, _STEPS + 1)
    return HandChunk(times, *_path(start + times), np.ones(2, bool), _NAMES)


def test_projection_is_the_closest_rotation() -> None:
    """Any matrix goes to a rotation with determinant +1, and no rotation nearby is closer."""
    rng = np.random.default_rng(0)
    matrices = rng.normal(size=(500, 3, 3))
    matrices[:100] = -_random_rotations(rng, 100)  # reflections
    matrices[100:200, :, 2] = 0.0  # singular
    found = project_to_rotation(matrices)
    assert np.abs(found @ found.transpose(0, 2, 1) - np.eye(3)).max() < 1e-12
    assert np.abs(np.linalg.det(found) - 1).max() < 1e-12
    distance = np.linalg.norm(found - matrices, axis=(1, 2))
    for others in (_random_rotations(rng, 500), found @ _turns(rng, (500,), 0.05)):
        assert (np.linalg.norm(others - matrices, axis=(1, 2)) >= distance - 1e-9).all()


def test_projection_keeps_rotations_and_turns_with_them() -> None:
    """Rotations stay what they are; projection commutes with a change of frame on either side."""
    rng = np.random.default_rng(1)
    rotations, left, right = (_random_rotations(rng, 200) for _ in range(3))
    assert np.abs(project_to_rotation(rotations) - rotations).max() < 1e-12
    mean = 0.5 * (rotations + rotations @ _turns(rng, (200,), 0.5))
    moved = project_to_rotation(left @ mean @ right)
    assert np.abs(moved - left @ project_to_rotation(mean) @ right).max() < 1e-9


def test_projection_refuses_what_is_no_matrix() -> None:
    with pytest.raises(ValueError, match="shape"):
        project_to_rotation(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="NaN"):
        project_to_rotation(np.full((3, 3), np.nan))


def test_a_single_chunk_stays_as_it_is() -> None:
    chunk = _chunk(0.0)
    smooth = TemporalOrthogonalFilter().push(5.0, chunk)
    for name in ("times", "translation", "rotation", "fingers"):
        assert np.abs(getattr(smooth, name) - getattr(chunk, name)).max() < 1e-12
    assert smooth.finger_names == _NAMES


def test_every_overlapping_prediction_counts_the_same() -> None:
    """Step k of the newest of three chunks is the mean of those that reach so far, and no more."""
    chunks = [
        replace(_chunk(0.0), fingers=np.full((_STEPS, 2, 2), value)) for value in (0.0, 3.0, 9.0)
    ]
    smoother = TemporalOrthogonalFilter()
    for i, chunk in enumerate(chunks):
        smooth = smoother.push(0.5 * i, chunk)
    # the first chunk ends 1.6 s, the second 2.1 s, the third 2.6 s; the third's steps begin 1.1 s
    expected = np.where(np.arange(_STEPS) < 6, 4.0, np.where(np.arange(_STEPS) < 11, 6.0, 9.0))
    assert np.abs(smooth.fingers[:, 0, 0] - expected).max() < 1e-12


@pytest.mark.parametrize("count", range(1, 17))
def test_independent_noise_falls_by_the_root_of_the_count(count: int) -> None:
    """Steps that ``count`` chunks have predicted are off by σ / √n, in place and orientation."""
    rng = np.random.default_rng(count)
    metres, radians, trials = 0.02, 0.08, 40
    squared = np.zeros(3)
    for trial in range(trials):
        smoother = TemporalOrthogonalFilter()
        for i in range(count):
            clean = _chunk(trial + _DT * i)
            noisy = replace(
                clean,
                translation=clean.translation + rng.normal(size=(_STEPS, 2, 3)) * metres,
                fingers=clean.fingers + rng.normal(size=(_STEPS, 2, 2)) * metres,
                rotation=clean.rotation @ _turns(rng, (_STEPS, 2), radians),
            )
            smooth = smoother.push(_DT * i, noisy)
        # of the newest chunk, step k has been predicted by min(count, 16 - k) chunks
        covered = slice(0, _STEPS - count + 1)
        squared += (
            np.mean((smooth.translation - clean.translation)[covered] ** 2),
            np.mean((smooth.fingers - clean.fingers)[covered] ** 2),
            np.mean(_angle(smooth.rotation, clean.rotation)[covered] ** 2) / 3,
        )
    rms = np.sqrt(squared / trials)
    expected = np.array([metres, metres, radians]) / np.sqrt(count)
    assert np.abs(rms / expected - 1).max() < 0.15


def test_chunks_from_a_moving_camera_are_averaged_in_one_frame() -> None:
    """The same motion seen from two places: the second view comes out as it is."""
    rng = np.random.default_rng(3)
    smoother = TemporalOrthogonalFilter()
    for i in range(4):
        clean = _chunk(_DT * i)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = _random_rotations(rng), rng.normal(size=3)
        seen = replace(
            clean,
            translation=(clean.translation - pose[:3, 3]) @ pose[:3, :3],
            rotation=pose[:3, :3].T @ clean.rotation,
        )
        smooth = smoother.push(_DT * i, seen, pose)
        assert np.abs(smooth.translation - seen.translation).max() < 1e-9
        assert np.abs(smooth.rotation - seen.rotation).max() < 1e-9


def test_steps_between_those_of_another_chunk_are_interpolated() -> None:
    """Observations do not come on the grid of the steps; the motion is met all the same."""
    smoother = TemporalOrthogonalFilter()
    for time in (0.0, 0.137, 0.25, 0.391):
        clean = _chunk(time)
        smooth = smoother.push(time, clean)
    assert np.abs(smooth.translation - clean.translation).max() < 1e-3  # a chord against an arc
    assert _angle(smooth.rotation, clean.rotation).max() < 1e-3


def test_what_is_past_is_forgotten() -> None:
    smoother = TemporalOrthogonalFilter()
    for i in range(100):
        smoother.push(_DT * i, _chunk(_DT * i))
    assert len(smoother) == _STEPS
    late = _chunk(50.0)
    smooth = smoother.push(50.0, late)
    assert len(smoother) == 1 and np.array_equal(smooth.translation, late.translation)


def test_bad_chunks_are_refused_and_cost_nothing() -> None:
    """Time that goes back, NaN, other hands, no pose: an error, and the stream goes on."""
    smoother = TemporalOrthogonalFilter()
    smoother.push(1.0, _chunk(1.0))
    other = replace(_chunk(1.1), valid=np.array([True, False]))
    bad = replace(_chunk(1.1), translation=np.full((_STEPS, 2, 3), np.nan))
    for time, chunk, pose, said in (
        (1.0, _chunk(1.0), None, "order of their observations"),
        (1.1, other, None, "other hands"),
        (1.1, bad, None, "NaN"),
        (1.1, _chunk(1.1), 2 * np.eye(4), "camera_pose"),
    ):
        with pytest.raises(ValueError, match=said):
            smoother.push(time, chunk, pose)
    assert len(smoother) == 1
    smoother.push(1.1, _chunk(1.1))
    assert len(smoother) == 2
    smoother.reset()
    smoother.push(0.0, _chunk(0.0))
    assert len(smoother) == 1


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_more_chunks_are_averaged_than_wished(most: int) -> None:
    """Chunk k says k everywhere: the mean is that of the last ``most`` of them."""
    smoother = TemporalOrthogonalFilter(most=most)
    for k in range(5):
        chunk = _chunk(0.0)
        level = replace(chunk, translation=np.full_like(chunk.translation, k))
        smooth = smoother.push(_DT * k, level)
        assert len(smoother) == min(k + 1, most)
    expected = np.mean(np.arange(5)[-most:])
    np.testing.assert_allclose(smooth.translation[0], expected)  # further on, older ones have ended
    with pytest.raises(ValueError, match="at least 1"):
        TemporalOrthogonalFilter(most=0)
