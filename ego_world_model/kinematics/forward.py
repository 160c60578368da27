"""Forward kinematics: joint angles → links in the root frame → hand slots in the camera.

One state goes through pinocchio; a batch goes through the same joint placements written as numpy
matrix products over the batch, which avoids a Python call per state and frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pinocchio as pin
from numpy.typing import ArrayLike, NDArray

from ego_world_model.camera import CameraPose
from ego_world_model.embodiment import Embodiment
from ego_world_model.embodiment.model import build_pinocchio_model
from ego_world_model.hands import (
    NUM_SLOTS,
    SLOT_NAMES,
    SLOTS_PER_HAND,
    HandJoints,
    HandTrajectory,
)
from ego_world_model.kinematics.inverse import ArmSolver
from ego_world_model.kinematics.state import HandState, matrix_from_6d, rotation_6d

_SIDES = ("left", "right")


class HandKinematics:
    """Kinematics of one embodiment. Not thread-safe: make one per thread.

    Args:
        robot: the embodiment.
    """

    def __init__(self, robot: Embodiment) -> None:
        self.robot = robot
        self.model = build_pinocchio_model(robot.model_path, robot.urdf)
        self._slot_frame: dict[str, int] = {}
        for slot, source in robot.slots.items():
            link = self.model.getFrameId(source.link, pin.FrameType.BODY)
            frame = self.model.frames[link]
            if any(source.offset):
                offset = pin.SE3(np.eye(3), np.array(source.offset))
                frame = pin.Frame(
                    f"slot/{slot}",
                    frame.parentJoint,
                    link,
                    frame.placement * offset,
                    pin.FrameType.OP_FRAME,
                )
                link = self.model.addFrame(frame)
            self._slot_frame[slot] = link
        self.data = self.model.createData()
        self._solver: ArmSolver | None = None
        self._axes = [None] + [self._axis(joint) for joint in range(1, self.model.njoints)]

    # ---------------------------------------------------------------- links

    def q_from(self, q: ArrayLike | Mapping[str, float]) -> NDArray[np.float64]:
        """Joint vector (nq,) from a mapping, or a checked copy of an array in model order."""
        if isinstance(q, Mapping):
            return self.robot.q_from(q)
        q = np.asarray(q, dtype=np.float64)
        if q.shape != (self.model.nq,):
            raise ValueError(
                f"q must have shape ({self.model.nq},) in the order of "
                f"Embodiment.joint_names of {self.robot.name!r}, got {q.shape}"
            )
        if not np.isfinite(q).all():
            bad = [self.robot.joint_names[i] for i in np.flatnonzero(~np.isfinite(q))]
            raise ValueError(f"q is not finite at {', '.join(bad)}")
        return q

    def link_poses(
        self, q: ArrayLike | Mapping[str, float], links: Sequence[str]
    ) -> NDArray[np.float64]:
        """(L, 4, 4) pose of each link in the root frame.

        Raises:
            ValueError: for an unknown joint or link, or a joint value that is not finite.
        """
        pin.framesForwardKinematics(self.model, self.data, self.q_from(q))
        root = self.data.oMf[self._frame(self.robot.root)]
        return np.stack([root.actInv(self.data.oMf[self._frame(n)]).homogeneous for n in links])

    def link_positions(
        self, q: ArrayLike | Mapping[str, float], links: Sequence[str]
    ) -> NDArray[np.float64]:
        """(L, 3) metres, origin of each link in the root frame; see ``link_poses``."""
        return self.link_poses(q, links)[:, :3, 3]

    def camera_pose(
        self, q: ArrayLike | Mapping[str, float], camera: CameraPose | None = None
    ) -> NDArray[np.float64]:
        """(4, 4) root_T_optical: the camera's optical frame in the root frame."""
        camera = camera or self.robot.camera_pose
        return self.link_poses(q, [camera.link])[0] @ camera.matrix

    # ---------------------------------------------------------------- hands

    def slot_frame(self, slot: str) -> str:
        """Name of the frame of ``model`` whose origin fills a slot."""
        return self.model.frames[self._slot_frame[slot]].name

    def hand_joints(
        self,
        q: ArrayLike | Mapping[str, float],
        camera: CameraPose | None = None,
        *,
        extra_slots: Sequence[str] = (),
    ) -> HandJoints:
        """Hand joints in the camera's optical frame.

        Args:
            q: (nq,) radians in ``robot.joint_names`` order, or a mapping joint → radians.
            camera: mount to use instead of the nominal one.
            extra_slots: slots to append behind the 42 (elbows, forearms).

        Returns:
            positions (42 + E, 3) float32 metres and valid (42 + E,).
        """
        camera = camera or self.robot.camera_pose
        pin.framesForwardKinematics(self.model, self.data, self.q_from(q))
        poses = self.data.oMf
        slots, frames, valid = self._slots(extra_slots)
        points = np.array([poses[f].translation for f in frames])
        link = poses[self._frame(camera.link)]
        rotation = link.rotation @ camera.rotation
        origin = link.rotation @ camera.translation + link.translation
        positions = np.zeros((len(valid), 3), np.float32)
        positions[slots] = (points - origin) @ rotation
        return HandJoints(positions, valid)

    def hand_joints_batch(
        self,
        q: ArrayLike,
        camera: CameraPose | None = None,
        *,
        extra_slots: Sequence[str] = (),
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Hand joints of many configurations: q (N, nq) → positions (N, J, 3), valid (J,)."""
        camera = camera or self.robot.camera_pose
        slots, frames, valid = self._slots(extra_slots)
        rotation, origin = self._joint_poses(q, [*frames, self._frame(camera.link)])
        camera_rotation, camera_origin = self._camera_from_joints(rotation, origin, camera)
        positions = np.zeros((len(camera_origin), len(valid), 3), np.float32)
        points = self._points(rotation, origin, frames)
        relative = points - camera_origin[:, None]
        positions[:, slots] = relative @ camera_rotation
        return positions, valid

    def slot_positions(self, q: ArrayLike, slots: Sequence[str]) -> NDArray[np.float64]:
        """(N, S, 3) metres, named slots in the root frame for configurations q (N, nq)."""
        frames = [self._slot_frame[name] for name in slots]
        root = self._frame(self.robot.root)
        if len(q) == 1:  # a single state is faster in pinocchio than in numpy batches of one
            pin.framesForwardKinematics(self.model, self.data, self.q_from(q[0]))
            poses = self.data.oMf
            points = np.array([poses[frame].translation for frame in frames])
            return ((points - poses[root].translation) @ poses[root].rotation)[None]
        rotation, origin = self._joint_poses(q, [*frames, root])
        frame = self.model.frames[root]
        root_rotation = rotation[frame.parentJoint] @ frame.placement.rotation
        root_origin = self._points(rotation, origin, [root])
        return (self._points(rotation, origin, frames) - root_origin) @ root_rotation

    def trajectory(
        self,
        times: ArrayLike,
        q: ArrayLike,
        camera: CameraPose | None = None,
        *,
        extra_slots: Sequence[str] = (),
    ) -> HandTrajectory:
        """Hand trajectory of a joint trajectory, camera motion (waist, head) included.

        Args:
            times: (T,) seconds, starting at 0. q: (T, nq) radians.
        """
        camera = camera or self.robot.camera_pose
        positions, valid = self.hand_joints_batch(q, camera, extra_slots=extra_slots)
        joints = self._joint_poses(q, [self._frame(camera.link)])
        rotation, origin = self._camera_from_joints(*joints, camera)
        pose = np.repeat(np.eye(4)[None], len(positions), axis=0)
        pose[:, :3, :3] = rotation[0].T @ rotation
        pose[:, :3, 3] = (origin - origin[0]) @ rotation[0]
        if np.abs(pose - np.eye(4)).max() < 1e-9:
            pose[:] = np.eye(4)  # a still head is exactly still
        valid = np.repeat(valid[None], len(positions), axis=0)
        return HandTrajectory(times, positions, valid, pose)

    # ---------------------------------------------------------------- hand state

    def hand_state(
        self, q: ArrayLike | Mapping[str, float], camera: CameraPose | None = None
    ) -> HandState:
        """Wrist poses in the camera and finger angles; see ``HandState``."""
        q = self.q_from(q)
        to_camera = np.linalg.inv(self.camera_pose(q, camera))
        count = max((len(hand.fingers) for hand in self.robot.hands.values()), default=0)
        translation, rotation = np.zeros((2, 3)), np.tile([1.0, 0, 0, 0, 1.0, 0], (2, 1))
        fingers, valid = np.zeros((2, count)), np.zeros(2, bool)
        for row, side in enumerate(_SIDES):
            hand = self.robot.hands.get(side)
            if hand is None:
                continue
            pose = to_camera @ self.link_poses(q, [hand.wrist])[0]
            translation[row], rotation[row] = pose[:3, 3], rotation_6d(pose[:3, :3])
            fingers[row, : len(hand.fingers)] = q[self.robot.indices(hand.fingers)]
            valid[row] = True
        hands = [self.robot.hands.get(side) for side in _SIDES]
        names = tuple(hand.fingers if hand else () for hand in hands)
        return HandState(translation, rotation, fingers, valid, names)

    def slots_from_wrist(
        self,
        translation: ArrayLike,
        rotation: ArrayLike,
        fingers: ArrayLike,
        finger_names: Sequence[Sequence[str]] = ((), ()),
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Hand slots of wrists that stand somewhere with bent fingers; no arm is asked about.

        Args:
            translation: (N, 2, 3) metres, wrist of the left and the right hand in any one frame.
            rotation: (N, 2, 3, 3) their orientation in it.
            fingers: (N, 2, F) radians; columns beyond a hand's own are ignored.
            finger_names: per hand, the joints that ``fingers`` holds; () means the embodiment's.

        Returns:
            positions (N, 42, 3) metres in that frame, 0 where a slot is not filled; valid (42,).

        Raises:
            ValueError: if shapes differ, or ``finger_names`` are not the joints of this robot.
        """
        translation, rotation = np.asarray(translation, float), np.asarray(rotation, float)
        fingers, count = np.asarray(fingers, float), len(translation)
        if translation.shape != (count, 2, 3) or rotation.shape != (count, 2, 3, 3):
            raise ValueError(
                f"wrists are (N, 2, 3) and (N, 2, 3, 3), got {translation.shape} and "
                f"{rotation.shape}"
            )
        if fingers.ndim != 3 or fingers.shape[:2] != (count, 2):
            raise ValueError(f"fingers must have shape ({count}, 2, F), got {fingers.shape}")
        q = np.repeat(self.robot.neutral[None], count, axis=0)
        for row, side in enumerate(_SIDES):
            if side not in self.robot.hands:
                continue
            names = tuple(finger_names[row]) or self.robot.hands[side].fingers
            if set(names) != set(self.robot.hands[side].fingers):
                raise ValueError(
                    f"{self.robot.name!r} has the {side} finger joints "
                    f"{', '.join(self.robot.hands[side].fingers)}, not {', '.join(names)}"
                )
            if fingers.shape[2] < len(names):
                raise ValueError(
                    f"fingers has {fingers.shape[2]} columns for {len(names)} {side} joints"
                )
            q[:, self.robot.indices(names)] = fingers[:, row, : len(names)]
        slots, frames, valid = self._slots(())
        wrists = [self._frame(self.robot.hands[s].wrist) for s in _SIDES if s in self.robot.hands]
        base, origin = self._joint_poses(self.robot.coupled(q), [*frames, *wrists])
        points = np.zeros((count, NUM_SLOTS, 3))
        points[:, slots] = self._points(base, origin, frames)
        for row, side in enumerate(_SIDES):
            of_hand = slice(row * SLOTS_PER_HAND, (row + 1) * SLOTS_PER_HAND)
            if side not in self.robot.hands:
                valid[of_hand] = False
                continue
            frame = self.model.frames[self._frame(self.robot.hands[side].wrist)]
            turn = base[frame.parentJoint]  # (N, 3, 3)
            place = turn @ frame.placement.translation + origin[frame.parentJoint]
            turn = turn @ frame.placement.rotation
            in_wrist = (points[:, of_hand] - place[:, None]) @ turn
            turned = in_wrist @ np.swapaxes(rotation[:, row], -1, -2)
            points[:, of_hand] = turned + translation[:, row, None]
        return np.where(valid[:, None], points, 0.0), valid

    def wrist_poses(self, q: ArrayLike) -> NDArray[np.float64]:
        """(N, 2, 4, 4) left and right wrist in the root frame for configurations q (N, nq); the
        identity for a hand that the robot does not have."""
        hands = [
            (row, self.robot.hands[s]) for row, s in enumerate(_SIDES) if s in self.robot.hands
        ]
        frames = {row: self._frame(hand.wrist) for row, hand in hands}
        root = self._frame(self.robot.root)
        rotation, origin = self._joint_poses(q, [*frames.values(), root])

        def pose(index: int) -> NDArray[np.float64]:
            frame = self.model.frames[index]
            out = np.repeat(np.eye(4)[None], len(rotation[0]), axis=0)
            out[:, :3, :3] = rotation[frame.parentJoint] @ frame.placement.rotation
            out[:, :3, 3] = self._points(rotation, origin, [index])[:, 0]
            return out

        poses = np.tile(np.eye(4), (len(rotation[0]), 2, 1, 1))
        to_root = np.linalg.inv(pose(root))
        for row, index in frames.items():
            poses[:, row] = to_root @ pose(index)
        return poses

    def solve(
        self,
        state: HandState,
        q0: ArrayLike | Mapping[str, float],
        camera: CameraPose | None = None,
    ) -> NDArray[np.float64]:
        """Inverse kinematics: (nq,) radians within limits that reach a hand state, from ``q0``.

        The torso keeps its configuration of ``q0``; arms place the wrists, fingers are set and
        take the joints along that follow them.

        Raises:
            UnreachableError: if a wrist stays more than 5 mm or 0.05 rad from its target; an arm
                with fewer than six joints may miss the orientation.
        """
        if self._solver is None:
            self._solver = ArmSolver(self.robot, self.model)
        q0 = self.q_from(q0)
        root_from_camera = self.camera_pose(q0, camera)
        targets = {}
        q0 = q0.copy()
        for row, side in enumerate(_SIDES):
            if not state.valid[row] or side not in self.robot.hands:
                continue
            pose = np.eye(4)
            pose[:3, :3], pose[:3, 3] = matrix_from_6d(state.rotation[row]), state.translation[row]
            targets[side] = root_from_camera @ pose
            fingers = self.robot.indices(self.robot.hands[side].fingers)
            q0[fingers] = np.clip(
                state.fingers[row, : len(fingers)],
                self.robot.lower[fingers],
                self.robot.upper[fingers],
            )
        return self._solver.reach(targets, self.robot.coupled(q0))

    # ---------------------------------------------------------------- internals

    def _frame(self, link: str) -> int:
        index = self.model.getFrameId(link, pin.FrameType.BODY)
        if index >= self.model.nframes:
            raise ValueError(f"embodiment {self.robot.name!r} has no link {link!r}")
        return index

    def _slots(self, extra_slots: Sequence[str]) -> tuple[list[int], list[int], NDArray[np.bool_]]:
        """Slot numbers that are filled, their frames, and the validity mask (42 + E,)."""
        names = (*SLOT_NAMES, *extra_slots)
        filled = [(i, self._slot_frame[n]) for i, n in enumerate(names) if n in self._slot_frame]
        valid = np.zeros(NUM_SLOTS + len(extra_slots), bool)
        slots = [i for i, _ in filled]
        valid[slots] = True
        return slots, [frame for _, frame in filled], valid

    def _points(
        self,
        rotation: Mapping[int, NDArray[np.float64]],
        origin: Mapping[int, NDArray[np.float64]],
        frames: Sequence[int],
    ) -> NDArray[np.float64]:
        """(N, F, 3) origins of frames in the model's root."""
        out = []
        for index in frames:
            frame = self.model.frames[index]
            joint = frame.parentJoint
            out.append(rotation[joint] @ frame.placement.translation + origin[joint])
        return np.stack(out, axis=1)

    def _joint_poses(
        self, q: ArrayLike, frames: Sequence[int]
    ) -> tuple[dict[int, NDArray[np.float64]], dict[int, NDArray[np.float64]]]:
        """Rotation (N, 3, 3) and origin (N, 3) of the joints that carry ``frames``, q (N, nq)."""
        q = np.asarray(q, dtype=np.float64)
        if q.ndim != 2 or q.shape[1] != self.model.nq:
            raise ValueError(f"q must have shape (N, {self.model.nq}), got {q.shape}")
        if not np.isfinite(q).all():
            raise ValueError("q holds NaN or infinity")
        needed = {0}
        for index in frames:
            needed.update(self.model.supports[self.model.frames[index].parentJoint])
        rotation = {0: np.broadcast_to(np.eye(3), (len(q), 3, 3))}
        origin = {0: np.zeros((len(q), 3))}
        for joint in sorted(needed - {0}):
            parent, placement = self.model.parents[joint], self.model.jointPlacements[joint]
            angle = q[:, self.model.joints[joint].idx_q]
            axis, hinge = self._axes[joint]
            base = rotation[parent] @ placement.rotation
            here = rotation[parent] @ placement.translation + origin[parent]
            if hinge:  # Rodrigues' formula
                cross = pin.skew(axis)
                sine, versine = np.sin(angle), 1 - np.cos(angle)
                local = (
                    np.eye(3) + sine[:, None, None] * cross + versine[:, None, None] * cross @ cross
                )
                rotation[joint], origin[joint] = base @ local, here
            else:
                rotation[joint], origin[joint] = base, here + angle[:, None] * (base @ axis)
        return rotation, origin

    def _axis(self, joint: int) -> tuple[NDArray[np.float64], bool]:
        """Axis of a joint in its own frame, and whether it turns (else it slides)."""
        motion = np.asarray(self.model.joints[joint].createData().S).reshape(6)
        turning = motion[3:]
        return (turning, True) if np.any(turning) else (motion[:3], False)

    def _camera_from_joints(
        self,
        rotation: Mapping[int, NDArray[np.float64]],
        origin: Mapping[int, NDArray[np.float64]],
        camera: CameraPose,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Camera rotation (N, 3, 3) and origin (N, 3) in the root of the model."""
        frame = self.model.frames[self._frame(camera.link)]
        joint = frame.parentJoint
        pose = frame.placement.homogeneous @ camera.matrix
        return (
            rotation[joint] @ pose[:3, :3],
            rotation[joint] @ pose[:3, 3] + origin[joint],
        )
