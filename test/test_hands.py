"""The hand language: slots, joints and trajectories that refuse what they cannot mean."""

from __future__ import annotations

import numpy as np
import pytest
from transforms3d.axangles import axangle2mat

from ego_world_model.hands import (
    EXTRA_SLOTS,
    NUM_SLOTS,
    SLOT_NAMES,
    HandJoints,
    HandTrajectory,
    bones,
    random_joint_mask,
    slot_index,
)


def test_slots_follow_the_published_order() -> None:
    assert len(SLOT_NAMES) == NUM_SLOTS == 42
    assert SLOT_NAMES[0] == "left_wrist" and SLOT_NAMES[21] == "right_wrist"
    assert SLOT_NAMES[1:5] == tuple(f"left_thumb_{j}" for j in ("cmc", "mcp", "ip", "tip"))
    assert SLOT_NAMES[41] == "right_pinky_tip"
    assert slot_index("right_index_mcp") == 26
    assert slot_index(EXTRA_SLOTS[0]) == 42
    with pytest.raises(KeyError, match="left_wrist"):
        slot_index("left_elbow_joint")


def test_bones_skip_missing_joints() -> None:
    valid = np.zeros(46, bool)
    names = ("left_wrist", "left_index_mcp", "left_index_pip", "left_index_tip", "left_elbow")
    valid[[slot_index(n) for n in names]] = True
    wrist, mcp, pip, tip, elbow = (slot_index(n) for n in names)
    assert set(bones(valid)) == {(wrist, mcp), (mcp, pip), (pip, tip), (elbow, wrist)}


def test_invalid_slots_carry_no_value() -> None:
    positions = np.full((42, 3), np.nan, np.float32)
    positions[0] = (0.1, 0.2, 0.5)
    valid = np.zeros(42, bool)
    valid[0] = True
    joints = HandJoints(positions, valid)
    assert np.isfinite(joints.positions).all() and not joints.positions[1:].any()
    valid[3] = True
    with pytest.raises(ValueError, match=r"slots \[3\]"):
        HandJoints(positions, valid)


def _moving_camera(steps: int = 5) -> HandTrajectory:
    times = np.arange(steps) * 0.1
    pose = np.repeat(np.eye(4)[None], steps, axis=0)
    for k in range(steps):
        pose[k, :3, :3] = axangle2mat([0, 1, 0], 0.1 * k)
        pose[k, :3, 3] = (0.02 * k, 0, 0)
    fixed = np.tile(np.array([0.1, 0.0, 0.5]), (steps, 42, 1))  # still in the reference camera
    moving = np.einsum("tba,tjb->tja", pose[:, :3, :3], fixed - pose[:, None, :3, 3])
    return HandTrajectory(times, moving, camera_pose=pose)


def test_reference_frame_undoes_camera_motion() -> None:
    still = _moving_camera().in_reference()
    assert np.abs(still.positions - (0.1, 0.0, 0.5)).max() < 1e-6
    assert np.array_equal(still.camera_pose, np.repeat(np.eye(4)[None], 5, axis=0))


def test_resampling_is_exact_for_a_point_seen_from_a_turning_camera() -> None:
    """Interpolating camera coordinates directly would bend the path; the reference does not."""
    resampled = _moving_camera().resample(np.array([0.0, 0.13, 0.37, 0.4]))
    assert np.abs(resampled.in_reference().positions - (0.1, 0.0, 0.5)).max() < 1e-6


def test_resampling_never_pads() -> None:
    trajectory = HandTrajectory(np.arange(5) * 0.1, np.zeros((5, 42, 3)))
    with pytest.raises(ValueError, match="covers 0 to 0.400 s"):
        trajectory.resample(np.arange(6) * 0.1)


def test_resampled_joint_needs_both_neighbours() -> None:
    valid = np.ones((3, 42), bool)
    valid[1, 7] = False
    trajectory = HandTrajectory(np.arange(3) * 0.1, np.zeros((3, 42, 3)), valid)
    resampled = trajectory.resample(np.array([0.0, 0.05, 0.1, 0.2]))
    assert resampled.valid[:, 7].tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("times", [0.0, 0.1, 0.1], "strictly rise"),
        ("times", [0.5, 0.6, 0.7], "start at 0"),
        ("positions", np.zeros((3, 41, 3)), "at least 42 slots"),
        ("positions", np.zeros((2, 42, 3)), r"\(3, J, 3\)"),
        ("positions", np.full((3, 42, 3), np.nan), r"frames \[0, 1, 2\]"),
        ("valid", np.ones((3, 40), bool), r"\(3, 42\)"),
        ("camera_pose", np.zeros((3, 4, 4)), "rotation"),
    ],
)
def test_trajectory_names_the_wrong_field(field: str, value: object, message: str) -> None:
    fields = {"times": [0.0, 0.1, 0.2], "positions": np.zeros((3, 42, 3))} | {field: value}
    with pytest.raises(ValueError, match=message):
        HandTrajectory(**fields)


def test_random_mask_hides_the_asked_fraction_in_every_frame() -> None:
    valid = np.zeros((4, 42), bool)
    valid[:, :20] = True
    masked = random_joint_mask(valid, 0.3, np.random.default_rng(0))
    assert (masked.sum(axis=1) == 14).all() and (masked[0] == masked[3]).all()
