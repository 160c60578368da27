"""Joint configurations as hand states and chunks, seen from one camera that stands still."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ego_world_model.kinematics import HandKinematics
from ego_world_model.kinematics.state import HandState, matrix_from_6d
from ego_world_model.policy.chunk import HandChunk

_SIDES = ("left", "right")


def chunk_from_joints(
    kinematics: HandKinematics, times: ArrayLike, q: ArrayLike, camera_pose: ArrayLike
) -> HandChunk:
    """The hands of configurations to come.

    Args:
        times: (N,) seconds from the observation. q: (N, nq) radians then.
        camera_pose: (4, 4) root_T_optical at the observation; a torso that turns moves the hands
            in it, and the camera of the observation stays where it was.
    """
    translation, rotation, fingers = _hands(kinematics, np.asarray(q), np.asarray(camera_pose))
    hands = [kinematics.robot.hands.get(side) for side in _SIDES]
    return HandChunk(
        np.asarray(times, dtype=np.float64),
        translation,
        rotation,
        fingers,
        np.array([hand is not None for hand in hands]),
        tuple(hand.fingers if hand else () for hand in hands),
    )


def state_from_joints(
    kinematics: HandKinematics, q: ArrayLike, camera_pose: ArrayLike
) -> HandState:
    """The hands at one configuration q (nq,), in a camera at ``camera_pose`` (4, 4) in the root."""
    one = chunk_from_joints(kinematics, [1.0], np.asarray(q)[None], camera_pose)
    return one.state(0)


def chunk_slots(
    chunk: HandChunk, kinematics: HandKinematics
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Hand slots of a chunk in the camera of its observation: (N, 42, 3) metres, valid (42,)."""
    positions, valid = kinematics.slots_from_wrist(
        chunk.translation, chunk.rotation, chunk.fingers, chunk.finger_names
    )
    return positions, valid & np.repeat(chunk.valid, len(valid) // 2)


def chunk_from_states(times: ArrayLike, states: Sequence[HandState]) -> HandChunk:
    """A chunk of N states, (N,) seconds from the observation."""
    return HandChunk(
        np.asarray(times, dtype=np.float64),
        np.stack([state.translation for state in states]),
        matrix_from_6d(np.stack([state.rotation for state in states])),
        np.stack([state.fingers for state in states]),
        states[0].valid,
        states[0].finger_names,
    )


def _hands(
    kinematics: HandKinematics, q: NDArray, camera_pose: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Wrists (N, 2, 3) and (N, 2, 3, 3) in the camera and finger angles (N, 2, F)."""
    robot = kinematics.robot
    count = max((len(hand.fingers) for hand in robot.hands.values()), default=0)
    translation = np.zeros((len(q), 2, 3))
    rotation = np.tile(np.eye(3), (len(q), 2, 1, 1))
    fingers = np.zeros((len(q), 2, count))
    to_camera = np.linalg.inv(camera_pose)
    for row, side in enumerate(_SIDES):
        hand = robot.hands.get(side)
        if hand is None:
            continue
        poses = to_camera @ np.stack([kinematics.link_poses(one, [hand.wrist])[0] for one in q])
        translation[:, row], rotation[:, row] = poses[:, :3, 3], poses[:, :3, :3]
        fingers[:, row, : len(hand.fingers)] = q[:, robot.indices(hand.fingers)]
    return translation, rotation, fingers
