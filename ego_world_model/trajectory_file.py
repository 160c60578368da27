"""Hand trajectories as .npz files: the input of ``ego-world-model imagine``.

The format is described for users in docs/trajectory_format.md. Reading is strict: a field that is
missing, misspelt, of the wrong shape or in the wrong unit is named together with what was expected
and what to do, because a trajectory read wrongly would still give a plausible-looking video.
"""

from __future__ import annotations

import difflib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ego_world_model.camera import PinholeCamera
from ego_world_model.hands import EXTRA_SLOTS, NUM_SLOTS, SLOT_NAMES, HandTrajectory

ALL_SLOTS: tuple[str, ...] = SLOT_NAMES + EXTRA_SLOTS

FIELDS: dict[str, str] = {
    "positions": f"(T, {NUM_SLOTS}, 3) or (T, {len(ALL_SLOTS)}, 3) metres, camera optical frame",
    "times": "(T,) seconds from the reference image, starting at 0 and strictly rising",
    "fps": "one number, frames per second (instead of times)",
    "valid": "(J,) or (T, J) bool, which joints are known",
    "camera_pose": "(T, 4, 4), camera k in the reference camera",
    "intrinsics": "(3, 3) camera matrix in pixels",
    "image_size": "(2,) width and height in pixels that intrinsics refer to",
    "slot_names": "(J,) strings, the slot of each column of positions",
    "instruction": "one string, the task in words",
}
"""Every field a file may hold and what it must be; ``positions`` and a clock are required."""


class TrajectoryFileError(ValueError):
    """A trajectory file that cannot be used; the message names the field and the remedy."""


@dataclass(frozen=True)
class TrajectoryFile:
    """What a trajectory file holds.

    Attributes:
        trajectory: the motion, in slot order (J = 42, or 46 with elbows and forearms).
        camera: intrinsics that the file brings, or None.
        instruction: the task in words; empty where the file says nothing.
    """

    trajectory: HandTrajectory
    camera: PinholeCamera | None = None
    instruction: str = ""


def save_trajectory(
    path: str | Path,
    trajectory: HandTrajectory,
    *,
    camera: PinholeCamera | None = None,
    instruction: str = "",
) -> Path:
    """Write a trajectory, and the intrinsics and task that belong to it, where given.

    Raises:
        ValueError: if the camera has distortion; the format describes rectified images.
    """
    path = Path(path)
    if camera is not None and camera.distortion:
        raise ValueError(
            "a trajectory file holds the intrinsics of a rectified image, but the camera has "
            f"distortion {camera.distortion}; rectify the image and give its own intrinsics"
        )
    fields: dict[str, Any] = {
        "times": trajectory.times,
        "positions": trajectory.positions,
        "valid": trajectory.valid,
        "camera_pose": trajectory.camera_pose,
        "slot_names": np.array(ALL_SLOTS[: trajectory.num_slots]),
    }
    if camera is not None:
        fields["intrinsics"] = camera.matrix
        fields["image_size"] = np.array([camera.width, camera.height])
    if instruction:
        fields["instruction"] = np.array(instruction)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # np.savez(path) would append .npz to another suffix
        np.savez_compressed(file, **fields)
    return path


def load_trajectory(path: str | Path) -> TrajectoryFile:
    """Read and check a trajectory file.

    Raises:
        FileNotFoundError: if there is no such file.
        TrajectoryFileError: naming the field, what was expected, what was found and the remedy.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"trajectory file {path} does not exist; `ego-world-model example` writes some"
        )
    try:
        # A zip archive is asked for explicitly: np.load would also take a bare .npy array.
        if not zipfile.is_zipfile(path):
            raise ValueError("not a zip archive")
        with np.load(path, allow_pickle=False) as archive:
            fields = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise TrajectoryFileError(
            f"{path}: not a readable .npz archive of plain arrays ({error}). Remedy: write it with "
            "numpy.savez(path, positions=..., times=...) from arrays of numbers, without objects."
        ) from error
    try:
        return parse_trajectory(fields)
    except TrajectoryFileError as error:
        raise TrajectoryFileError(f"{path}: {error}") from None


def parse_trajectory(fields: Mapping[str, ArrayLike]) -> TrajectoryFile:
    """Check the fields of a trajectory (see ``FIELDS``) and put them in slot order."""
    arrays = {name: np.asarray(value) for name, value in fields.items()}
    for name in arrays:
        if name not in FIELDS:
            close = difflib.get_close_matches(name, FIELDS, n=1)
            hint = f"rename it to '{close[0]}'" if close else "remove it"
            raise TrajectoryFileError(
                f"unknown field '{name}'. Remedy: {hint}; the fields are {', '.join(FIELDS)}."
            )
    positions = _positions(arrays)
    steps, columns = positions.shape[:2]
    times = _times(arrays, steps)
    valid = _valid(arrays, steps, columns)
    _check_numbers(positions, valid)
    pose = None
    if "camera_pose" in arrays:
        pose = _numbers(arrays, "camera_pose", [(steps, 4, 4)], "give one 4x4 matrix per frame")
    positions, valid = _into_slots(arrays, positions, valid)
    try:
        trajectory = HandTrajectory(times, positions, valid, pose)
    except ValueError as error:
        raise _error(
            str(error).split()[0].split("[")[0], f"{error}", "correct the values"
        ) from None
    instruction = str(arrays["instruction"]) if "instruction" in arrays else ""
    return TrajectoryFile(trajectory, _camera(arrays), instruction)


def _error(field: str, problem: str, remedy: str) -> TrajectoryFileError:
    expected = f"expected {FIELDS[field]}; " if field in FIELDS else ""
    return TrajectoryFileError(f"field '{field}': {expected}{problem}. Remedy: {remedy}.")


def _numbers(
    arrays: Mapping[str, NDArray[Any]], field: str, shapes: Sequence[tuple[int, ...]], remedy: str
) -> NDArray[np.float64]:
    """The field as finite-or-not float64, after its type and shape are checked."""
    array = arrays[field]
    if array.dtype.kind not in "fiu":
        raise _error(field, f"got values of type {array.dtype}", "store plain numbers")
    if array.shape not in shapes:
        raise _error(field, f"got shape {array.shape}", remedy)
    return array.astype(np.float64)


def _positions(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    if "positions" not in arrays:
        raise _error(
            "positions",
            f"the file has only {', '.join(arrays) or 'nothing'}",
            "store the joints of every frame under this name",
        )
    shape = arrays["positions"].shape
    named = "slot_names" in arrays
    if len(shape) != 3 or shape[2] != 3 or shape[0] < 2:
        raise _error(
            "positions",
            f"got shape {shape}",
            "stack T >= 2 frames of joints, each (x, y, z), along the first axis",
        )
    if not named and shape[1] not in (NUM_SLOTS, len(ALL_SLOTS)):
        raise _error(
            "positions",
            f"got {shape[1]} joints",
            f"give all {NUM_SLOTS} slots (left hand 0-20, right hand 21-41) and mark missing ones "
            "in 'valid', or name the columns in 'slot_names'",
        )
    return _numbers(arrays, "positions", [shape], "")


def _times(arrays: Mapping[str, NDArray[Any]], steps: int) -> NDArray[np.float64]:
    """(T,) seconds, from 'times' or 'fps'."""
    if "times" not in arrays and "fps" not in arrays:
        raise _error(
            "times", "neither 'times' nor 'fps' is there", "add times = numpy.arange(T) / rate"
        )
    regular = None
    if "fps" in arrays:
        fps = float(_numbers(arrays, "fps", [(), (1,)], "store a single number").reshape(()))
        if not np.isfinite(fps) or fps <= 0:
            raise _error("fps", f"got {fps}", "give frames per second, above 0")
        regular = np.arange(steps) / fps
    if "times" not in arrays:
        assert regular is not None
        return regular
    times = _numbers(
        arrays, "times", [(steps,)], f"positions have {steps} frames, give one time for each"
    )
    rising = np.isfinite(times).all() and abs(times[0]) < 1e-6 and (np.diff(times) > 0).all()
    if not rising:
        raise _error(
            "times",
            f"got {np.array2string(times, precision=3, threshold=6)}",
            "subtract times[0], and drop repeated frames",
        )
    if regular is not None and np.abs(times - regular).max() > 0.5 * regular[1]:
        raise _error(
            "fps",
            f"fps = {1 / regular[1]:g} does not agree with times, whose frames are "
            f"{np.diff(times).mean():.4g} s apart",
            "keep only one of the two",
        )
    return times


def _valid(arrays: Mapping[str, NDArray[Any]], steps: int, columns: int) -> NDArray[np.bool_]:
    if "valid" not in arrays:
        return np.ones((steps, columns), bool)
    valid = arrays["valid"]
    if valid.shape not in ((columns,), (steps, columns)):
        raise _error(
            "valid",
            f"got shape {valid.shape}",
            f"positions are ({steps}, {columns}, 3): match them",
        )
    if valid.dtype.kind not in "biu" or not np.isin(valid, (0, 1)).all():
        raise _error("valid", f"got values of type {valid.dtype}", "store True or False")
    return np.broadcast_to(valid.astype(bool), (steps, columns)).copy()


def _check_numbers(positions: NDArray[np.float64], valid: NDArray[np.bool_]) -> None:
    """Refuse what cannot be joints in front of a camera, in metres."""
    bad = valid & ~np.isfinite(positions).all(axis=2)
    if bad.any():
        frame, joint = (int(i) for i in np.argwhere(bad)[0])
        raise _error(
            "positions",
            f"NaN or infinity in {int(bad.sum())} valid joints, first frame {frame}, joint {joint}",
            "mark joints that are not known False in 'valid'",
        )
    if not valid.any():
        raise _error("valid", "no joint is valid in any frame", "mark the known joints True")
    z = positions[valid][:, 2]
    if np.median(np.abs(z)) > 10:
        raise _error(
            "positions",
            f"the joints are {np.median(np.abs(z)):.0f} m from the camera",
            "convert millimetres to metres (divide by 1000)",
        )
    if (z <= 0).all():
        raise _error(
            "positions",
            "every joint lies behind the camera (z <= 0)",
            "give the camera's optical frame: x right, y down, z forward, at each frame's time",
        )


def _into_slots(
    arrays: Mapping[str, NDArray[Any]], positions: NDArray[np.float64], valid: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Columns named by 'slot_names', moved to their slots; slots without a column are invalid."""
    if "slot_names" not in arrays:
        return positions, valid
    names = arrays["slot_names"]
    if names.dtype.kind not in "US" or names.shape != (positions.shape[1],):
        raise _error(
            "slot_names",
            f"got shape {names.shape} of type {names.dtype}",
            f"name each of the {positions.shape[1]} columns of positions",
        )
    listed = [name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist()]
    for name in listed:
        if name not in ALL_SLOTS:
            close = difflib.get_close_matches(name, ALL_SLOTS, n=1)
            hint = (
                f"did you mean '{close[0]}'?" if close else "docs/trajectory_format.md lists them"
            )
            raise _error("slot_names", f"got unknown slot '{name}'", f"use slot names; {hint}")
    if len(set(listed)) != len(listed):
        twice = sorted({name for name in listed if listed.count(name) > 1})
        raise _error("slot_names", f"{', '.join(twice)} is named twice", "name each slot once")
    slots = np.array([ALL_SLOTS.index(name) for name in listed])
    size = max(NUM_SLOTS, int(slots.max()) + 1)
    out = np.zeros((len(positions), size, 3))
    known = np.zeros((len(positions), size), bool)
    out[:, slots], known[:, slots] = positions, valid
    return out, known


def _camera(arrays: Mapping[str, NDArray[Any]]) -> PinholeCamera | None:
    if "intrinsics" not in arrays:
        if "image_size" in arrays:
            raise _error("intrinsics", "missing, but 'image_size' is given", "add both or neither")
        return None
    matrix = _numbers(arrays, "intrinsics", [(3, 3)], "store [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]")
    if "image_size" not in arrays:
        raise _error(
            "image_size", "missing beside 'intrinsics'", "add image_size = [width, height]"
        )
    width, height = _numbers(arrays, "image_size", [(2,)], "store [width, height]").tolist()
    if width != int(width) or height != int(height):
        raise _error("image_size", f"got {width}, {height}", "store whole pixels")
    if np.abs(matrix[2] - (0, 0, 1)).max() > 1e-6 or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        raise _error(
            "intrinsics",
            f"got {np.array2string(matrix, precision=4).replace(chr(10), ',')}",
            "store [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with fx, fy > 0 in pixels",
        )
    try:
        return PinholeCamera.from_matrix(matrix, int(width), int(height))
    except ValueError as error:
        raise _error("intrinsics", str(error), "correct the camera's values") from None
