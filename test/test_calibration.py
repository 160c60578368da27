"""Calibration finds the camera's mount as well as the annotations allow, and says how well."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mounts import annotated, diverse_poses
from scipy.stats import chi2

from ego_world_model.calibration import (
    AnnotatedFrame,
    CalibrationError,
    CalibrationOptions,
    calibrate,
    corrected_camera,
    corrected_mount,
)
from ego_world_model.calibration.output import cautions
from ego_world_model.embodiment import builtin_embodiments, load_embodiment
from ego_world_model.kinematics import HandKinematics

TURN, SHIFT = np.radians([5.0, -5.0, 5.0]), np.array([0.03, -0.03, 0.03])


@pytest.fixture(scope="module")
def fk() -> HandKinematics:
    return HandKinematics(load_embodiment("g1_dex3"))


@pytest.fixture(scope="module")
def poses(fk):
    return diverse_poses(fk, 12)


def moved(fk, turn=TURN, shift=SHIFT):
    """The robot's camera, off its nominal mount."""
    return corrected_mount(fk.robot.camera_pose, turn, shift)


def off(result, turn=TURN, shift=SHIFT) -> tuple[float, float]:
    """Error of a result: metres of translation, degrees of rotation."""
    difference = result.mount.rotation.T @ corrected_mount(result.nominal, turn, shift).rotation
    angle = np.arccos(np.clip((np.trace(difference) - 1) / 2, -1, 1))
    return float(np.linalg.norm(result.translation - shift)), float(np.degrees(angle))


# ------------------------------------------------------------------------------ accuracy


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (1, -1, -1), (-1, -1, 1)])
def test_perturbed_mount_is_recovered_from_12_exact_frames(fk, poses, signs):
    """3 cm and 5 degrees off on every axis, waist moving: within 1 mm and 0.1 degrees."""
    turn, shift = np.array(signs) * np.radians(5.0), np.roll(signs, 1) * 0.03
    result = calibrate(annotated(fk, poses, moved(fk, turn, shift)), fk)
    metres, degrees = off(result, turn, shift)
    assert metres <= 1e-3 and degrees <= 0.1
    assert metres < 1e-7 and degrees < 1e-5, "exact pixels give the exact mount"
    assert result.nominal_rms > 20 and result.rms < 1e-6
    assert not result.active_bounds and not cautions(result)


@pytest.mark.parametrize("name", builtin_embodiments())
def test_every_robot_can_be_calibrated(name):
    """Also hands with coupled fingers, whose followers are no unknowns of their own."""
    kinematics = HandKinematics(load_embodiment(name))
    robot, mount = kinematics.robot, moved(kinematics)
    frames = annotated(kinematics, diverse_poses(kinematics, 12), mount)
    assert off(calibrate(frames, kinematics))[0] < 1e-6
    for coupling in robot.couplings[:1]:
        offsets = np.zeros(len(robot.joint_names))
        followers = [c for c in robot.couplings if c.driver == coupling.driver]
        offsets[robot.indices((coupling.driver,))] = 0.03
        for c in followers:
            offsets[robot.indices((c.follower,))] = 0.03 * c.multiplier
        poses = diverse_poses(kinematics, 12)
        frames = annotated(kinematics, poses, mount, offsets=offsets)
        # exact annotations weigh as such: a prior would pull the zero towards nominal
        options = CalibrationOptions(refine_joints=(coupling.driver,), pixel_noise=0.01)
        result = calibrate(frames, kinematics, options=options)
        assert result.joint_offsets[coupling.driver] == pytest.approx(0.03, abs=1e-4)
        with pytest.raises(CalibrationError, match="with a zero of its own"):
            calibrate(
                frames, kinematics, options=CalibrationOptions(refine_joints=(coupling.follower,))
            )


def test_errors_under_2_px_noise_are_what_the_covariance_predicts(fk, poses):
    """Mahalanobis distances over 40 sets of annotations follow chi-squared with 6 degrees each."""
    mount, truth, total = moved(fk), np.concatenate([TURN, SHIFT]), 0.0
    for seed in range(40):
        result = calibrate(annotated(fk, poses, mount, noise=2.0, seed=seed), fk)
        assert 1.6 < result.noise < 2.4
        error = result.values - truth
        total += error @ np.linalg.solve(result.covariance, error)
        metres, degrees = off(result)
        assert metres < 5e-3 and degrees < 1.0
    low, high = chi2.ppf([1e-3, 1 - 1e-3], 40 * 6)
    assert low < total < high, f"{total / 240:.2f} of the predicted variance"


def test_lens_distortion_is_part_of_the_projection(fk, poses):
    lens = replace(fk.robot.camera, distortion=(0.12, -0.2, 0.002, -0.001, 0.05))
    frames = annotated(fk, poses, moved(fk), camera=lens)
    metres, degrees = off(calibrate(frames, fk))
    assert metres < 1e-6 and degrees < 1e-4
    ideal = [replace(frame, camera=fk.robot.camera) for frame in frames]
    assert off(calibrate(ideal, fk))[0] > 1e-3, "the test's distortion matters"


def test_frames_may_differ_in_size(fk, poses):
    """Intrinsics belong to the frame, so pictures of two resolutions calibrate one camera."""
    small = fk.robot.camera.resized(320, 240)
    frames = annotated(fk, poses[:6], moved(fk))
    frames += [
        replace(frame, name=f"small {frame.name}")
        for frame in annotated(fk, poses[6:], moved(fk), camera=small)
    ]
    assert off(calibrate(frames, fk))[0] < 1e-6


@pytest.mark.parametrize("loss", ["soft_l1", "huber"])
def test_robust_losses_bear_mislabelled_joints(fk, poses, loss):
    """Index and middle finger swapped in two frames."""
    frames = annotated(fk, poses, moved(fk), noise=1.0)
    for i in (2, 7):
        swapped = {
            slot.replace("index", "MIDDLE").replace("middle", "index").lower(): pixel
            for slot, pixel in frames[i].pixels.items()
        }
        frames[i] = replace(frames[i], pixels=swapped)
    plain = calibrate(frames, fk)
    robust = calibrate(frames, fk, options=CalibrationOptions(loss=loss))
    assert off(robust)[0] < 0.6 * off(plain)[0] and off(robust)[0] < 3e-3
    assert robust.noise < 0.5 * plain.noise, "outliers do not blow up the predicted errors"
    worst = sorted(robust.reprojections, key=lambda item: -item.distance)[:6]
    assert {item.frame for item in worst} <= {"frame 2", "frame 7"}, "the residuals show where"


# ------------------------------------------------------------------------------ more unknowns


def test_intrinsics_are_refined_where_depths_differ(fk):
    """2 % of focal length and 8 px of principal point, from many exact frames."""
    change = (0.02, 0.02, 0.013, -0.013)
    true_camera = corrected_camera(fk.robot.camera, change)
    frames = annotated(fk, diverse_poses(fk, 30), moved(fk), camera=true_camera, noise=0.3)
    frames = [replace(frame, camera=fk.robot.camera) for frame in frames]
    frozen = calibrate(frames, fk)
    result = calibrate(frames, fk, options=CalibrationOptions(refine_intrinsics=True))
    assert off(result)[0] < 0.5 * off(frozen)[0]
    error = (result.values[6:10] - change) / result.standard_deviations[6:10]
    assert np.abs(error).max() < 4
    camera = result.camera(fk.robot.camera)
    assert camera.fx == pytest.approx(true_camera.fx, rel=0.006)


def test_joint_zeros_are_refined_and_no_longer_bend_the_mount(fk, poses):
    """Two arm joints whose encoders are 2 degrees off."""
    names = ("left_elbow_joint", "right_wrist_yaw_joint")
    offsets = np.zeros(len(fk.robot.joint_names))
    offsets[fk.robot.indices(names)] = np.radians([2.0, -2.0])
    frames = annotated(fk, poses, moved(fk), offsets=offsets, noise=0.5)
    frozen = calibrate(frames, fk)
    result = calibrate(frames, fk, options=CalibrationOptions(refine_joints=names))
    assert off(result)[0] < 1.5e-3 < off(frozen)[0]
    for name, degrees in zip(names, (2.0, -2.0), strict=True):
        assert np.degrees(result.joint_offsets[name]) == pytest.approx(degrees, abs=0.25)
    np.testing.assert_allclose(
        result.corrected(frames[0].q, fk.robot) - frames[0].q, offsets, atol=np.radians(0.25)
    )


# ------------------------------------------------------------------------------ judgement


def test_a_mount_beyond_the_bounds_is_held_and_named(fk, poses):
    far = np.array([0.08, 0.0, 0.0])
    result = calibrate(annotated(fk, poses, moved(fk, np.zeros(3), far)), fk)
    assert "translation x" in result.active_bounds
    assert abs(result.translation[0]) <= 0.05
    assert np.isnan(result.standard_deviations[3]), "a held unknown has no variance"
    assert np.isfinite(np.delete(result.standard_deviations, [0, 1, 2, 3])).all()
    assert any("Held by its bound" in text and "translation x" in text for text in cautions(result))
    wide = CalibrationOptions(max_translation=0.1)
    result = calibrate(annotated(fk, poses, moved(fk, np.zeros(3), far)), fk, options=wide)
    assert result.translation[0] == pytest.approx(0.08, abs=1e-6) and not result.active_bounds


def test_frames_that_do_not_constrain_the_camera_are_told(fk, poses):
    """One finger in one frame fits any of many mounts, however small its residuals."""
    frame = annotated(fk, poses[:1], moved(fk))[0]
    finger = {slot: pixel for slot, pixel in frame.pixels.items() if "left_index" in slot}
    thumb = {"left_thumb_tip": frame.pixels["left_thumb_tip"]}
    result = calibrate([replace(frame, pixels=finger | thumb)], fk)
    seen = result.observability
    assert result.rms < 2 and not seen.constrained and seen.weakest_share > 0.1
    assert "annotate" in seen.remedy and seen.weakest
    assert seen.sentence() in cautions(result)
    full = calibrate(annotated(fk, poses, moved(fk)), fk).observability
    assert full.constrained and full.condition < seen.condition and not full.remedy
    assert full.weakest_share < 0.05


def test_one_joint_annotated_again_and_again_leaves_the_camera_unknown(fk, poses):
    frames = [
        replace(f, name=str(i)) for i, f in enumerate(annotated(fk, poses[:1] * 5, moved(fk)))
    ]
    frames = [replace(f, pixels={"left_index_tip": f.pixels["left_index_tip"]}) for f in frames]
    result = calibrate(frames, fk)
    assert "not known at all" in result.observability.sentence()
    assert (result.standard_deviations > 10 * np.repeat([np.radians(10), 0.05], 3)).any()


def test_unobservable_joint_is_named_with_the_remedy(fk, poses):
    """Only right hands are annotated: nothing is learnt about a joint of the left arm."""
    frames = [
        replace(f, pixels={s: p for s, p in f.pixels.items() if s.startswith("right")})
        for f in annotated(fk, poses, moved(fk))
    ]
    options = CalibrationOptions(refine_joints=("left_elbow_joint",))
    result = calibrate(frames, fk, options=options)
    sentence = result.observability.sentence()
    assert "NOT constrain zero of left_elbow_joint" in sentence and "do not refine" in sentence
    assert result.joint_offsets["left_elbow_joint"] == pytest.approx(0, abs=1e-6)
    prior = np.radians(1.5)
    assert result.standard_deviations[6] == pytest.approx(prior, rel=1e-3)


def test_residual_tables_add_up(fk, poses):
    result = calibrate(annotated(fk, poses, moved(fk), noise=2.0), fk)
    for table in (result.rms_by_slot(), result.rms_by_frame()):
        counts = np.array([row[0] for row in table.values()])
        squares = np.array([row[1] ** 2 for row in table.values()])
        assert counts.sum() == len(result.reprojections)
        assert np.sqrt(counts @ squares / counts.sum()) == pytest.approx(result.rms)


# ------------------------------------------------------------------------------ mistakes


def frame_with(fk, **pixels) -> AnnotatedFrame:
    q = fk.robot.neutral
    return AnnotatedFrame(name="0001.png", q=q, camera=fk.robot.camera, pixels=pixels)


@pytest.mark.parametrize(
    "pixels, words",
    [
        ({"left_pinky_tip": (1.0, 2.0)}, "'0001.png': left_pinky_tip is no joint of 'g1_dex3'"),
        ({"left_wrist": (1.0, float("nan"))}, "left_wrist: a pixel is two finite numbers"),
        ({"left_wrist": (700.0, 2.0)}, "lies outside the picture of 640x480"),
        ({"left_wrist": (100.0, 200.0)}, "1 annotated pixels; 6 unknowns need at least 4"),
    ],
)
def test_impossible_annotations_are_named(fk, pixels, words):
    with pytest.raises(CalibrationError, match=words.replace("(", r"\(")):
        calibrate([frame_with(fk, **pixels)], fk)


def test_joint_states_that_put_a_hand_behind_the_camera_are_refused(fk, poses):
    frames = annotated(fk, poses, moved(fk))
    q = frames[3].q.copy()
    q[fk.robot.indices(("left_shoulder_pitch_joint",))] = 2.6  # arm behind the back
    frames[3] = replace(frames[3], q=q)
    with pytest.raises(CalibrationError, match="'frame 3': left_.* behind the nominal camera"):
        calibrate(frames, fk)


@pytest.mark.parametrize(
    "change",
    [{"loss": "l2"}, {"max_translation": 0.0}, {"max_rotation": 3.0}, {"pixel_noise": -1.0}],
)
def test_impossible_options_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        CalibrationOptions(**change)


def test_unknown_joint_to_refine_is_refused(fk, poses):
    options = CalibrationOptions(refine_joints=("elbow",))
    with pytest.raises(CalibrationError, match="'elbow' is no joint of 'g1_dex3'"):
        calibrate(annotated(fk, poses, moved(fk)), fk, options=options)
