"""A trajectory file survives a round trip, and a wrong one is refused with field and remedy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ego_world_model.camera import PinholeCamera
from ego_world_model.hands import NUM_SLOTS, SLOT_NAMES, HandTrajectory
from ego_world_model.trajectory_file import (
    FIELDS,
    TrajectoryFileError,
    load_trajectory,
    parse_trajectory,
    save_trajectory,
)

STEPS = 17


def good_fields() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    positions = rng.uniform(-0.2, 0.2, (STEPS, NUM_SLOTS, 3)) + (0, 0, 0.5)
    return {"positions": positions, "times": np.arange(STEPS) / 10}


def turning_camera() -> np.ndarray:
    pose = np.repeat(np.eye(4)[None], STEPS, axis=0)
    for k, angle in enumerate(np.linspace(0, 0.3, STEPS)):
        c, s = np.cos(angle), np.sin(angle)
        pose[k, :3, :3] = [[c, 0, s], [0, 1, 0], [-s, 0, c]]
        pose[k, :3, 3] = (0.01 * k, 0, 0)
    return pose


@pytest.mark.parametrize("slots", [42, 44, 46])
def test_round_trip_keeps_everything(tmp_path: Path, slots: int):
    rng = np.random.default_rng(1)
    valid = rng.uniform(size=(STEPS, slots)) < 0.7
    valid[:, 0] = valid[:, -1] = True
    positions = rng.uniform(0.1, 0.6, (STEPS, slots, 3))
    trajectory = HandTrajectory(np.arange(STEPS) / 10, positions, valid, turning_camera())
    camera = PinholeCamera(640, 480, 605.1, 604.9, 320.2, 241.7)
    path = save_trajectory(
        tmp_path / "new" / "hands.npz", trajectory, camera=camera, instruction="lift the cup"
    )
    loaded = load_trajectory(path)
    np.testing.assert_array_equal(loaded.trajectory.positions, trajectory.positions)
    np.testing.assert_array_equal(loaded.trajectory.valid, trajectory.valid)
    np.testing.assert_allclose(loaded.trajectory.times, trajectory.times, atol=1e-12)
    np.testing.assert_allclose(loaded.trajectory.camera_pose, trajectory.camera_pose, atol=1e-12)
    assert loaded.camera == camera
    assert loaded.instruction == "lift the cup"


def test_minimal_file_is_positions_and_a_clock(tmp_path: Path):
    """What a user writes by hand with numpy.savez works, with times or with fps."""
    fields = good_fields()
    np.savez(tmp_path / "times.npz", **fields)
    np.savez(tmp_path / "fps.npz", positions=fields["positions"], fps=10)
    for name in ("times.npz", "fps.npz"):
        loaded = load_trajectory(tmp_path / name)
        np.testing.assert_allclose(loaded.trajectory.times, fields["times"])
        assert loaded.trajectory.valid.all() and loaded.camera is None


def test_slot_names_put_columns_into_slots():
    """A robot that knows five joints names them, in any order; the other slots are invalid."""
    names = ["right_index_tip", "left_wrist", "right_wrist", "left_thumb_tip", "right_elbow"]
    positions = good_fields()["positions"][:, : len(names)]
    loaded = parse_trajectory({"positions": positions, "fps": 10, "slot_names": np.array(names)})
    valid = loaded.trajectory.valid
    assert valid.sum() == STEPS * len(names)
    for column, name in enumerate(names[:4]):
        np.testing.assert_allclose(
            loaded.trajectory.positions[:, SLOT_NAMES.index(name)], positions[:, column], atol=1e-7
        )
    assert loaded.trajectory.num_slots == NUM_SLOTS + 2


def wrong(**changes: object) -> dict[str, object]:
    fields: dict[str, object] = {**good_fields(), **changes}
    return {name: value for name, value in fields.items() if value is not None}


FAR = good_fields()["positions"] * 1000
BEHIND = good_fields()["positions"] * (1, 1, -1)
HOLE = good_fields()["positions"].copy()
HOLE[3, 5] = np.nan
TILTED = turning_camera()
TILTED[2, :3, :3] *= 1.5
CAMERA = {"intrinsics": np.diag([100.0, 100, 1]), "image_size": np.array([128, 96])}


@pytest.mark.parametrize(
    "fields, field, words",
    [
        (wrong(positions=None), "positions", ["(T, 42, 3)", "has only times"]),
        (
            wrong(positions=np.zeros((STEPS, 21, 3))),
            "positions",
            ["(T, 42, 3)", "21 joints", "valid"],
        ),
        (wrong(positions=np.zeros((STEPS, 42, 2))), "positions", ["(17, 42, 2)", "(x, y, z)"]),
        (wrong(positions=np.zeros((42, 3))), "positions", ["(42, 3)", "stack"]),
        (wrong(positions=np.zeros((STEPS, 42, 3), str)), "positions", ["<U1", "numbers"]),
        (wrong(positions=FAR), "positions", ["millimetres", "divide by 1000"]),
        (wrong(positions=BEHIND), "positions", ["behind the camera", "z forward"]),
        (wrong(positions=HOLE), "positions", ["frame 3, joint 5", "False in 'valid'"]),
        (wrong(times=None), "times", ["neither 'times' nor 'fps'", "numpy.arange"]),
        (wrong(times=np.arange(STEPS - 1) / 10), "times", ["(16,)", "17 frames"]),
        (wrong(times=5 + np.arange(STEPS) / 10), "times", ["starting at 0", "subtract times[0]"]),
        (wrong(times=np.zeros(STEPS)), "times", ["strictly rising"]),
        (wrong(fps=30), "fps", ["30", "0.1 s apart", "one of the two"]),
        (wrong(times=None, fps=0), "fps", ["above 0"]),
        (wrong(valid=np.ones((3, 42), bool)), "valid", ["(3, 42)", "(17, 42, 3)"]),
        (wrong(valid=np.full(42, 0.5)), "valid", ["float64", "True or False"]),
        (wrong(valid=np.zeros(42, bool)), "valid", ["no joint is valid"]),
        (wrong(camera_pose=np.eye(4)), "camera_pose", ["(T, 4, 4)", "(4, 4)"]),
        (wrong(camera_pose=TILTED), "camera_pose", ["rotation"]),
        (wrong(slot_names=np.array(["left_wrist"])), "slot_names", ["42 columns"]),
        (
            wrong(slot_names=np.array(["left_wirst", *SLOT_NAMES[1:]])),
            "slot_names",
            ["left_wirst", "did you mean 'left_wrist'"],
        ),
        (
            wrong(slot_names=np.array(["left_thumb_cmc", *SLOT_NAMES[1:]])),
            "slot_names",
            ["left_thumb_cmc", "once"],
        ),
        (wrong(intrinsics=np.ones(4)), "intrinsics", ["(3, 3)", "(4,)", "[fx, 0, cx]"]),
        (wrong(intrinsics=np.eye(3)), "image_size", ["[width, height]"]),
        (wrong(image_size=np.array([128, 96])), "intrinsics", ["'image_size' is given"]),
        (wrong(**{**CAMERA, "intrinsics": np.zeros((3, 3))}), "intrinsics", ["fx, fy > 0"]),
        (wrong(time=np.arange(STEPS)), "time", ["unknown", "rename it to 'times'"]),
        (wrong(bananas=np.arange(STEPS)), "bananas", ["remove it", *FIELDS]),
    ],
)
def test_wrong_file_names_field_expectation_and_remedy(tmp_path: Path, fields, field, words):
    path = tmp_path / "wrong.npz"
    np.savez(path, **fields)
    with pytest.raises(TrajectoryFileError) as error:
        load_trajectory(path)
    message = str(error.value)
    for part in (str(path), f"field '{field}'", "Remedy:", *words):
        assert part in message, message


def test_files_that_are_no_archive(tmp_path: Path):
    np.save(tmp_path / "bare.npy", good_fields()["positions"])
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "objects.npz", positions=np.array([{"a": 1}], dtype=object))
    for name in ("bare.npy", "text.npz", "objects.npz"):
        with pytest.raises(TrajectoryFileError, match="numpy.savez") as error:
            load_trajectory(tmp_path / name)
        assert name in str(error.value)
    with pytest.raises(FileNotFoundError, match="missing.npz"):
        load_trajectory(tmp_path / "missing.npz")


def test_distorted_camera_is_refused(tmp_path: Path):
    """The format describes rectified images; silently dropping distortion would misplace hands."""
    camera = PinholeCamera(640, 480, 600, 600, 320, 240, (0.1, 0.0, 0.0, 0.0))
    trajectory = parse_trajectory(good_fields()).trajectory
    with pytest.raises(ValueError, match="rectify"):
        save_trajectory(tmp_path / "hands.npz", trajectory, camera=camera)


def test_documentation_names_every_field():
    text = (Path(__file__).parent.parent / "docs" / "trajectory_format.md").read_text()
    for name in FIELDS:
        assert f"`{name}`" in text, name
