"""HandJoints and HandTrajectory messages ↔ the dataclasses of ``ego_world_model.hands``."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from geometry_msgs.msg import Point
from numpy.typing import ArrayLike, NDArray
from std_msgs.msg import Header

from ego_world_model import msg
from ego_world_model.hands import EXTRA_SLOTS, NUM_SLOTS, SLOT_NAMES, HandJoints, HandTrajectory
from ego_world_model.ros.conversions.errors import MessageError
from ego_world_model.ros.conversions.poses import matrix_from_pose, pose_from_matrix

_KNOWN = frozenset(SLOT_NAMES + EXTRA_SLOTS)


def hand_joints_to_message(
    hands: HandJoints,
    *,
    header: Header,
    embodiment: str,
    slot_names: Sequence[str],
    pixels: ArrayLike,
    visibility: ArrayLike,
    image_size: tuple[int, int],
) -> msg.HandJoints:
    """Hand joints of one image as a message.

    Args:
        pixels: (J, 2) columns and rows of the joints in the image; NaN where a joint has none.
        visibility: (J,) 0..1.
        image_size: (width, height) of the image that ``pixels`` refer to.
    """
    pixels = np.nan_to_num(np.asarray(pixels, dtype=np.float32), nan=0.0)
    pixels[~hands.valid] = 0.0
    depth = hands.positions[:, 2]
    disparity = np.zeros(len(depth), np.float32)
    np.divide(1.0, depth, out=disparity, where=hands.valid & (depth > 0))
    return msg.HandJoints(
        header=header,
        embodiment=embodiment,
        slot_names=list(slot_names),
        positions=points_from_array(hands.positions),
        valid=hands.valid.tolist(),
        u=array("f", pixels[:, 0].tobytes()),
        v=array("f", pixels[:, 1].tobytes()),
        disparity=array("f", disparity.tobytes()),
        visibility=array("f", np.asarray(visibility, dtype=np.float32).tobytes()),
        image_width=image_size[0],
        image_height=image_size[1],
    )


def hand_joints_from_message(
    message: msg.HandJoints,
    *,
    slot_names: Sequence[str] | None = None,
    topic: str = "hands/joints",
) -> HandJoints:
    """The joints of a message, in the order of ``slot_names`` (default: the message's own slots).

    Raises:
        MessageError: naming the field, its shape and what it should be.
    """
    columns, names = _slot_columns(message.slot_names, slot_names, topic)
    joints = len(message.slot_names)
    _check_length(topic, "positions", len(message.positions), joints, "one point per slot")
    _check_length(topic, "valid", len(message.valid), joints, "one flag per slot")
    positions = np.zeros((len(names), 3), np.float32)
    valid = np.zeros(len(names), bool)
    have = columns >= 0
    positions[have] = array_from_points(message.positions)[columns[have]]
    valid[have] = np.asarray(message.valid, dtype=bool)[columns[have]]
    try:
        return HandJoints(positions, valid)
    except ValueError as error:
        raise MessageError(
            topic, "positions", f"are wrong ({error})", "mark unknown joints invalid"
        ) from None


def hand_trajectory_to_message(
    trajectory: HandTrajectory,
    *,
    header: Header,
    source: str,
    slot_names: Sequence[str] | None = None,
) -> msg.HandTrajectory:
    """A trajectory as a message; camera poses are left out where the camera stays still.

    Args:
        slot_names: J names; default: the 42 slots followed by as many extra slots as there are.
    """
    joints = trajectory.positions.shape[1]
    names = (SLOT_NAMES + EXTRA_SLOTS)[:joints] if slot_names is None else tuple(slot_names)
    if len(names) != joints:
        raise ValueError(f"slot_names must hold {joints} names, got {len(names)}")
    still = np.abs(trajectory.camera_pose - np.eye(4)).max() < 1e-9
    return msg.HandTrajectory(
        header=header,
        source=source,
        slot_names=list(names),
        times=array("d", trajectory.times.tobytes()),
        positions=points_from_array(trajectory.positions.reshape(-1, 3)),
        valid=trajectory.valid.ravel().tolist(),
        camera_poses=[] if still else [pose_from_matrix(pose) for pose in trajectory.camera_pose],
    )


def hand_trajectory_from_message(
    message: msg.HandTrajectory,
    *,
    slot_names: Sequence[str] | None = None,
    topic: str = "hands/predicted",
) -> HandTrajectory:
    """The motion in a message, in the order of ``slot_names`` (default: the message's own slots).

    Slots may come in any order; all 42 must be named. Extra slots that are asked for but not
    named are invalid in the result.

    Raises:
        MessageError: naming the field, its shape and what it should be.
    """
    columns, names = _slot_columns(message.slot_names, slot_names, topic)
    steps, joints = len(message.times), len(message.slot_names)
    if steps == 0:
        raise MessageError(topic, "times", "is empty", "send T >= 1 times, the first one 0")
    shape = f"{steps} times x {joints} slots, frame-major"
    _check_length(topic, "positions", len(message.positions), steps * joints, shape)
    _check_length(topic, "valid", len(message.valid), steps * joints, shape)
    if len(message.camera_poses) not in (0, steps):
        raise MessageError(
            topic,
            "camera_poses",
            f"has {len(message.camera_poses)} poses for {steps} times",
            "send one pose per time, or none where the camera stays still",
        )
    have = columns >= 0
    positions = np.zeros((steps, len(names), 3), np.float32)
    valid = np.zeros((steps, len(names)), bool)
    points = array_from_points(message.positions).reshape(steps, joints, 3)
    positions[:, have] = points[:, columns[have]]
    valid[:, have] = np.asarray(message.valid, bool).reshape(steps, joints)[:, columns[have]]
    poses = None
    if message.camera_poses:
        poses = np.stack(
            [
                matrix_from_pose(pose, topic=topic, field=f"camera_poses[{k}]")
                for k, pose in enumerate(message.camera_poses)
            ]
        )
    try:
        return HandTrajectory(message.times, positions, valid, poses)
    except ValueError as error:
        raise MessageError(
            topic, "times, positions, camera_poses", f"are wrong ({error})", "fix the sender"
        ) from None


def points_from_array(positions: NDArray[np.floating]) -> list[Point]:
    """(N, 3) metres as points."""
    return [Point(x=x, y=y, z=z) for x, y, z in positions.tolist()]


def array_from_points(points: Sequence[Point]) -> NDArray[np.float32]:
    """Points as (N, 3) float32 metres."""
    return np.array([(p.x, p.y, p.z) for p in points], dtype=np.float32).reshape(-1, 3)


def _slot_columns(
    present: Sequence[str], wanted: Sequence[str] | None, topic: str
) -> tuple[NDArray[np.intp], tuple[str, ...]]:
    """For each wanted slot its column in the message (-1: not there), and the wanted names."""
    unknown = [name for name in present if name not in _KNOWN]
    if unknown:
        raise MessageError(
            topic,
            "slot_names",
            f"holds unknown slots {', '.join(map(repr, unknown[:5]))}",
            "use the names of ego_world_model.hands.SLOT_NAMES (left_wrist, left_thumb_cmc, ...)",
        )
    where = {name: column for column, name in enumerate(present)}
    missing = [name for name in SLOT_NAMES if name not in where]
    if missing or len(where) != len(present):
        problem = f"lacks {', '.join(missing[:5])}" if missing else "names a slot twice"
        raise MessageError(
            topic,
            "slot_names",
            f"({len(present)} names) {problem}",
            f"name each of the {NUM_SLOTS} slots once and mark those without a position invalid",
        )
    # Without a wish, canonical order: the 42 first, so that row i is slot i for every reader.
    names = (
        tuple(name for name in SLOT_NAMES + EXTRA_SLOTS if name in where)
        if wanted is None
        else tuple(wanted)
    )
    return np.array([where.get(name, -1) for name in names], dtype=np.intp), names


def _check_length(topic: str, field: str, length: int, expected: int, shape: str) -> None:
    if length != expected:
        raise MessageError(
            topic, field, f"has {length} entries, {expected} expected", f"send {shape}"
        )
