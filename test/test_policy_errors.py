"""Errors of hand chunks against cases worked out by hand, windows of recordings, and baselines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from transforms3d.axangles import axangle2mat

from ego_world_model.data import Episode
from ego_world_model.embodiment import load_embodiment
from ego_world_model.evaluation.policy import chunk_errors
from ego_world_model.evaluation.policy.chunks import chunk_from_joints, chunk_slots
from ego_world_model.evaluation.policy.errors import ERRORS, rotation_angles
from ego_world_model.evaluation.policy.predictors import (
    ConstantPosition,
    ConstantVelocity,
    MeanMotion,
    PolicyPredictor,
    mean_motion,
)
from ego_world_model.evaluation.policy.windows import windows
from ego_world_model.hands import EXTRA_SLOTS, SLOT_NAMES
from ego_world_model.kinematics import HandKinematics
from ego_world_model.policy.chunk import HandChunk

TIMES = np.arange(1, 5) / 10
FINGERS = 7  # of a Dex3 hand


@pytest.fixture(scope="module")
def fk() -> HandKinematics:
    return HandKinematics(load_embodiment("g1_dex3"))


@pytest.fixture(scope="module")
def truth(fk: HandKinematics) -> HandChunk:
    """Hands whose left wrist moves 3 cm a step along x while the right one rests."""
    q = np.repeat(fk.robot.neutral[None], len(TIMES), axis=0)
    chunk = chunk_from_joints(fk, TIMES, q, fk.camera_pose(fk.robot.neutral))
    moved = chunk.translation.copy()
    moved[:, 0, 0] += 0.03 * np.arange(len(TIMES))
    return replace(chunk, translation=moved)


def test_a_perfect_chunk_has_no_error(fk: HandKinematics, truth: HandChunk) -> None:
    """Every error of the truth itself is zero."""
    errors = chunk_errors(truth, truth, fk)
    for name in ERRORS:
        assert errors.mean(name) == pytest.approx(0, abs=1e-7), name


def test_a_shifted_hand_is_off_by_its_shift(fk: HandKinematics, truth: HandChunk) -> None:
    """Left hand off by (3, 4, 0) cm: 5 cm at its wrist and joints, 2.5 cm over both hands; no
    error of shape, none of rotation."""
    shift = np.array([[0.03, 0.04, 0.0], [0, 0, 0]])
    errors = chunk_errors(replace(truth, translation=truth.translation + shift), truth, fk)
    assert errors.of["mwte"][:, 0] == pytest.approx(np.full(4, 0.05))
    assert errors.mean("mwte") == pytest.approx(0.025)
    assert errors.mean("mpjpe") == pytest.approx(0.025)
    assert errors.mean("mpjpe", moving=True) == pytest.approx(0.05)
    for name in ("pa_mpjpe", "pa_mpjpe_path", "mre", "wrist_rotation"):
        assert errors.mean(name) == pytest.approx(0, abs=1e-7), name


def test_a_turned_wrist_counts_once_among_its_joints(fk: HandKinematics, truth: HandChunk) -> None:
    """A wrist 0.4 rad off: that is its rotation error, and an eighth of it the hand's MRE."""
    turn = np.stack([axangle2mat([0.6, 0, 0.8], 0.4), np.eye(3)])
    errors = chunk_errors(replace(truth, rotation=turn @ truth.rotation), truth, fk)
    assert errors.of["wrist_rotation"] == pytest.approx(np.tile([0.4, 0.0], (4, 1)))
    assert errors.of["mre"][:, 0] == pytest.approx(np.full(4, 0.4 / (1 + FINGERS)))
    assert errors.mean("mwte") == pytest.approx(0)
    assert errors.mean("pa_mpjpe") == pytest.approx(0, abs=1e-7)
    assert errors.mean("mpjpe", moving=True) > 0.005  # fingers swing around the wrist


def test_a_bent_finger_is_an_error_of_shape(fk: HandKinematics, truth: HandChunk) -> None:
    """One finger joint 0.2 rad off: MRE 0.2 / 8, wrist right, and alignment does not undo it."""
    bent = truth.fingers.copy()
    bent[:, 0, 3] += 0.2
    errors = chunk_errors(replace(truth, fingers=bent), truth, fk)
    assert errors.of["mre"][:, 0] == pytest.approx(np.full(4, 0.2 / (1 + FINGERS)))
    assert errors.mean("wrist_rotation") == pytest.approx(0)
    assert errors.mean("pa_mpjpe", moving=True) > 1e-3


def test_one_alignment_for_the_path_sees_wrong_motion(fk: HandKinematics, truth: HandChunk) -> None:
    """A hand of the right shape that stays instead of moving: aligned step by step it is right,
    aligned once for the chunk it is not."""
    stays = np.repeat(truth.translation[:1], len(TIMES), axis=0)
    errors = chunk_errors(replace(truth, translation=stays), truth, fk)
    assert errors.mean("pa_mpjpe") == pytest.approx(0, abs=1e-7)
    assert errors.mean("pa_mpjpe_path", moving=True) > 0.01
    assert errors.by_step("mwte") == pytest.approx(0.015 * np.arange(4))


def test_unknown_steps_do_not_count(fk: HandKinematics, truth: HandChunk) -> None:
    """An error in a step whose truth is unknown is no error; its own number is NaN."""
    wrong = truth.translation.copy()
    wrong[3] += 1.0
    known = np.array([True, True, True, False])
    errors = chunk_errors(replace(truth, translation=wrong), truth, fk, known)
    assert errors.mean("mpjpe") == pytest.approx(0, abs=1e-7)
    assert np.isnan(errors.by_step("mpjpe")).tolist() == [False, False, False, True]
    assert errors.moving.tolist() == [True, False]


def test_chunks_of_other_times_are_refused(fk: HandKinematics, truth: HandChunk) -> None:
    """Steps are compared with what happens at the same time or not at all."""
    with pytest.raises(ValueError, match="different times"):
        chunk_errors(replace(truth, times=2 * truth.times), truth, fk)


def test_angles_between_rotations_hold_at_both_ends() -> None:
    """A ten-millionth of a radian and half a turn, where the arc cosine of the trace fails."""
    angles = np.array([0.0, 1e-7, 0.5, np.pi - 1e-6, np.pi])
    turned = np.stack([axangle2mat([0, 0.6, 0.8], angle) for angle in angles])
    assert rotation_angles(np.eye(3), turned) == pytest.approx(angles, abs=1e-12)


def test_slots_of_a_chunk_are_those_of_the_robot(fk: HandKinematics) -> None:
    """A chunk from joints places the same slots as the joints, in the camera of the observation."""
    robot = fk.robot
    q = robot.coupled(
        np.random.default_rng(0).uniform(robot.lower, robot.upper, (2, len(robot.lower)))
    )
    q[:, robot.indices(robot.torso)] = 0
    chunk = chunk_from_joints(fk, [0.1, 0.2], q, fk.camera_pose(q[0]))
    points, valid = chunk_slots(chunk, fk)
    whole, whole_valid = fk.hand_joints_batch(q)
    np.testing.assert_allclose(points, whole, atol=1e-6)
    assert (valid == whole_valid).all()


# -------------------------------------------------------------------- windows and baselines


def episode(fk: HandKinematics, speed: float, frames: int = 12, change: int = 8) -> Episode:
    """Fingers and left arm turning at ``speed`` rad/s; the instruction changes at a frame."""
    robot = fk.robot
    moved = robot.indices((*robot.hands["left"].fingers, robot.hands["left"].arm[-1]))
    q = np.repeat(robot.neutral[None], frames + 1, axis=0)
    q[:, moved] += speed * np.arange(frames + 1)[:, None] / 10
    return Episode(
        fps=10.0,
        images=np.zeros((frames, 12, 16, 3), np.uint8),
        state=q[:-1],
        action=q[1:],
        hand_positions=np.zeros((frames, 46, 3)),
        hand_valid=np.zeros(46, bool),
        slot_names=SLOT_NAMES + EXTRA_SLOTS,
        camera_pose=np.repeat(fk.camera_pose(robot.neutral)[None], frames, axis=0),
        camera=robot.camera.resized(16, 12),
        task="first",
        embodiment=robot.name,
        joint_names=robot.joint_names,
        metadata={"tasks": [[0, "reach", "first"], [change, "grasp", "second"]]},
    )


def test_a_window_ends_where_its_instruction_does(fk: HandKinematics) -> None:
    """Steps of the next task, and those after the last command, are unknown."""
    found = {w.frame: w for w in windows(episode(fk, 0.1), fk, TIMES, every=1)}
    assert found[4].known.tolist() == [True] * 4  # frames 5 to 8; the command for 8 is the first's
    assert found[6].known.tolist() == [True, True, False, False]
    assert (found[6].kind, found[6].moment.instruction) == ("reach", "first")
    assert (found[8].kind, found[8].moment.instruction) == ("grasp", "second")
    assert found[10].known.tolist() == [True, True, False, False]  # 11 and the last command


def test_the_future_is_what_was_commanded(fk: HandKinematics) -> None:
    """Step k of a window is the action of frame + k - 1."""
    recorded = episode(fk, 0.3)
    window = next(windows(recorded, fk, TIMES, every=5))
    left = fk.robot.indices(fk.robot.hands["left"].fingers)
    assert window.future.fingers[:, 0] == pytest.approx(recorded.action[:4][:, left], abs=1e-6)
    between = next(windows(recorded, fk, [0.05, 0.1], every=5))
    assert between.future.fingers[0, 0] == pytest.approx(
        (recorded.state[0] + recorded.action[0])[left] / 2, abs=1e-6
    )


def test_baselines_are_right_about_the_motion_they_assume(fk: HandKinematics) -> None:
    """Hands at rest for constant position, steady turning for constant velocity, and for the mean
    motion the one motion that it was taken from."""
    rest = list(windows(episode(fk, 0.0), fk, TIMES, every=3))
    steady = list(windows(episode(fk, 0.4), fk, TIMES, every=3))
    mean = mean_motion([(w.moment.state, w.future, w.known) for w in steady])
    mean = MeanMotion.from_document(mean.document())
    for predictor, known, unknown in (
        (ConstantPosition(TIMES), rest, steady),
        (ConstantVelocity(TIMES), steady, None),
        (mean, steady, rest),
    ):
        for window in known[1:]:  # the first one has no frame before it
            errors = chunk_errors(predictor.predict(window.moment), window.future, fk, window.known)
            assert errors.mean("mre") == pytest.approx(0, abs=1e-5)
        if unknown is not None:
            wrong = chunk_errors(predictor.predict(unknown[1].moment), unknown[1].future, fk)
            assert wrong.mean("mre") > 0.02


def test_a_modality_withholds_what_it_does_not_name(fk: HandKinematics) -> None:
    """T gives words without pictures, I pictures without words, and depth where D says so."""
    moment = next(windows(episode(fk, 0.1), fk, TIMES)).moment
    moment = replace(moment, depth=np.ones((12, 16), np.float32))
    given = {}

    class Spy:
        def predict(self, image, state, intrinsics, *, instruction, depth, seed):
            inputs = (("T", instruction), ("I", image), ("D", depth))
            given[modality] = "".join(n for n, value in inputs if value is not None)
            return ConstantPosition(TIMES).predict(moment)

    for modality in ("T", "I", "ID", "TI", "TID"):
        PolicyPredictor(Spy(), modality).predict(moment)
    assert given == {"T": "T", "I": "I", "ID": "ID", "TI": "TI", "TID": "TID"}
    with pytest.raises(ValueError, match="needs depth"):
        PolicyPredictor(Spy(), "ID").predict(replace(moment, depth=None))
