"""Free space between the two hands and arms: measured, and kept by inverse kinematics.

A hand or arm is a chain of spheres: one at every slot, elbow and forearm where the robot has them,
and one in the middle of every bone between them. The torso, the legs and the table are not in it.
"""

from __future__ import annotations

import numpy as np
import pinocchio as pin
from numpy.typing import NDArray
from pink import Configuration
from pink.limits import Limit

from ego_world_model.hands import EXTRA_SLOTS, SLOT_NAMES, bones
from ego_world_model.kinematics import HandKinematics

_HAND_RADIUS = 0.02  # metres, of a finger or half a palm
_ARM_RADIUS = 0.04  # metres, of an elbow or forearm
_NEAR = 0.1  # metres; pairs of spheres farther apart cannot touch within a step
_ROWS = 10  # closest pairs that constrain a step; others hardly differ from them
_BUFFER = 0.004  # metres kept beyond the margin, for a step is linearised
_ROUNDING = 1e-7  # metres
_PUSH = 0.01  # metres that one step is to gain where the margin is not kept


class HandClearance:
    """The spheres of one robot's hands and arms. Not thread-safe, as its kinematics."""

    def __init__(self, kinematics: HandKinematics) -> None:
        self.kinematics = kinematics
        robot = kinematics.robot
        every = SLOT_NAMES + EXTRA_SLOTS
        self.slots = tuple(name for name in every if name in robot.slots)
        number = {name: i for i, name in enumerate(self.slots)}
        joints = [(name, name) for name in self.slots]
        present = np.array([name in number for name in every])
        middles = [(every[a], every[b]) for a, b in bones(present)]
        ends = [*joints, *middles]
        self._ends = np.array([[number[a], number[b]] for a, b in ends])  # (P, 2)
        self._radius = np.array(
            [_ARM_RADIUS if a in EXTRA_SLOTS else _HAND_RADIUS for a, _ in ends]
        )
        left = np.array([a.startswith("left") for a, _ in ends])
        self._left, self._right = np.flatnonzero(left), np.flatnonzero(~left)
        self._radii = self._radius[self._left][:, None] + self._radius[self._right]

    def gap(self, q: NDArray[np.float64]) -> float:
        """Metres of free space between left and right at q (nq,), below 0 where they overlap;
        infinite for a robot with one hand."""
        return float(self._gaps(self._spheres(q)).min(initial=np.inf))

    def stays_apart(
        self, start: NDArray[np.float64], end: NDArray[np.float64], margin: float
    ) -> bool:
        """Whether ``margin`` metres stay free on the straight way in joint space between two
        configurations (nq,); where the start has less, whether the gap never shrinks below that."""
        centres = self._spheres(start)
        kept = min(margin, self._gaps(centres).min(initial=np.inf)) - _ROUNDING
        return self._stays_apart(start, centres, end, self._spheres(end), kept, 4)

    def gaps(self, slots: NDArray[np.float64]) -> NDArray[np.float64]:
        """(A, B) metres between the spheres of both sides, for ``slots`` (S, 3) in any frame."""
        return self._gaps(self._at(slots))

    def ends(self, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> NDArray[np.intp]:
        """(R, 2, 2) numbers in ``slots`` of the bones, left and right, in whose middles the spheres
        of the gaps ``[rows, columns]`` lie; a sphere at a slot has it at both ends."""
        return np.stack([self._ends[self._left[rows]], self._ends[self._right[columns]]], axis=1)

    # ---------------------------------------------------------------- internals

    def _at(self, slots: NDArray[np.float64]) -> NDArray[np.float64]:
        """(S, 3) slots → (P, 3) centres of the spheres."""
        return 0.5 * (slots[self._ends[:, 0]] + slots[self._ends[:, 1]])

    def _spheres(self, q: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._at(self.kinematics.slot_positions(q[None], self.slots)[0])

    def _distances(self, centres: NDArray[np.float64]) -> NDArray[np.float64]:
        left, right = centres[self._left], centres[self._right]
        squared = (left * left).sum(1)[:, None] + (right * right).sum(1) - 2.0 * left @ right.T
        return np.sqrt(np.maximum(squared, 0.0))

    def _gaps(self, centres: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._distances(centres) - self._radii

    def _stays_apart(
        self,
        start: NDArray[np.float64],
        centres: NDArray[np.float64],
        end: NDArray[np.float64],
        end_centres: NDArray[np.float64],
        gap: float,
        halvings: int,
    ) -> bool:
        """Halve the way until what the spheres move is certain to leave the gap."""
        ends = np.minimum(self._gaps(centres), self._gaps(end_centres))  # (A, B)
        if ends.min(initial=np.inf) < gap:
            return False
        moved = np.linalg.norm(end_centres - centres, axis=1)
        # Centres move on arcs hardly longer than their chords: a gap shrinks by half of both.
        lost = 0.55 * (moved[self._left][:, None] + moved[self._right])
        if halvings == 0 or (ends - lost).min(initial=np.inf) >= gap or lost.max() < 1e-3:
            return True
        middle = 0.5 * (start + end)
        middle_centres = self._spheres(middle)
        return self._stays_apart(
            start, centres, middle, middle_centres, gap, halvings - 1
        ) and self._stays_apart(middle, middle_centres, end, end_centres, gap, halvings - 1)


class HandsApart(Limit):
    """Inequalities for pin-pink that keep the spheres of both sides ``margin`` metres apart.

    Args:
        clearance: of the robot. margin: metres.
        yielding: where the margin is not kept, ask only that the gap does not shrink (which can
            always be done), instead of opening it.
    """

    def __init__(self, clearance: HandClearance, margin: float, *, yielding: bool = False) -> None:
        self._clearance, self._margin, self._yielding = clearance, margin + _BUFFER, yielding
        self._frames: list[int] | None = None
        self.active_below = self._margin + 1e-3  # metres of a gap that this has a say in

    def compute_qp_inequalities(
        self, configuration: Configuration, dt: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """G (R, nv) and h (R,) of G Δq <= h, for the closest pairs; None where none is near."""
        clearance, model, data = self._clearance, configuration.model, configuration.data
        if self._frames is None:
            name = clearance.kinematics.slot_frame
            self._frames = [model.getFrameId(name(slot)) for slot in clearance.slots]
        slots = np.array([data.oMf[frame].translation for frame in self._frames])
        gaps = clearance.gaps(slots)
        near = np.argsort(gaps, axis=None)[:_ROWS]
        near = near[gaps.flat[near] < _NEAR]
        if not len(near):
            return None
        rows, columns = np.unravel_index(near, gaps.shape)
        ends = clearance.ends(rows, columns)  # (R, 2 sides, 2 ends)
        used, where = np.unique(ends, return_inverse=True)
        jacobians = np.array(
            [
                pin.getFrameJacobian(model, data, self._frames[slot], pin.LOCAL_WORLD_ALIGNED)[:3]
                for slot in used
            ]
        )
        moving = jacobians[where.reshape(ends.shape)].mean(axis=2)  # (R, 2, 3, nv)
        centres = slots[ends].mean(axis=2)  # (R, 2, 3)
        towards = centres[:, 1] - centres[:, 0]
        towards /= np.maximum(np.linalg.norm(towards, axis=1, keepdims=True), 1e-9)
        closing = np.einsum("rk,rkv->rv", towards, moving[:, 0] - moving[:, 1])
        room = gaps[rows, columns] - self._margin
        return closing, np.maximum(room, 0.0 if self._yielding else -_PUSH)
