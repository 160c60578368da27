"""Recent joint states, interpolated to the stamp of an image; never a stale pairing."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ego_world_model.camera import CameraPose
from ego_world_model.embodiment.model import Coupling
from ego_world_model.kinematics import HandKinematics


class Match(enum.Enum):
    """How an image's stamp lies among the joint states."""

    FOUND = "bracketed by two joint states close enough in time"
    WAIT = "newer than the newest joint state; the next one may bracket it"
    EMPTY = "no joint state arrived yet"
    TOO_OLD = "older than the oldest joint state kept"
    GAP = "between two joint states further apart than the tolerance"


@dataclass(frozen=True)
class Interpolated:
    """Joint positions at an image's stamp.

    Attributes:
        match: FOUND, or why there are none.
        q: (nq,) rad where FOUND, else None.
        arrival: when the later bracketing sample arrived (the clock given to ``add``), else None.
    """

    match: Match
    q: NDArray[np.float64] | None = None
    arrival: float | None = None


class JointBuffer:
    """A ring of joint states by time.

    Args:
        joint_names: order of q.
        required: joints that every joint state must hold; the others may be missing and are then
            taken from ``defaults``. Default: all.
        defaults: (nq,) rad for joints that are not required; default zero.
        couplings: joints that follow another one where a joint state does not name them.
        capacity: samples kept.
        tolerance: seconds; two neighbouring samples further apart are never interpolated.
        time_offset: seconds added to every sample's stamp (``joint_time_offset``): positive where
            images are stamped later than the joint states of the same instant.
    """

    def __init__(
        self,
        joint_names: Sequence[str],
        *,
        required: Sequence[str] | None = None,
        defaults: NDArray[np.float64] | None = None,
        couplings: Sequence[Coupling] = (),
        capacity: int = 512,
        tolerance: float = 0.05,
        time_offset: float = 0.0,
    ) -> None:
        self.joint_names = tuple(joint_names)
        self.tolerance_ns = round(tolerance * 1e9)
        self.time_offset_ns = round(time_offset * 1e9)
        self._index = {name: i for i, name in enumerate(self.joint_names)}
        self._required = self.joint_names if required is None else tuple(required)
        self._defaults = (
            np.zeros(len(self.joint_names)) if defaults is None else np.array(defaults, float)
        )
        followers = {coupling.follower for coupling in couplings}
        self._required = tuple(name for name in self._required if name not in followers)
        self._couplings = tuple(couplings)
        self._following: tuple[Coupling, ...] = ()
        self._stamps = np.zeros(capacity, np.int64)
        self._q = np.zeros((capacity, len(self.joint_names)))
        self._arrivals = np.zeros(capacity)
        self._count = 0  # samples ever accepted; sample i lives at i % capacity
        self._names: list[str] = []
        self._source: NDArray[np.intp] = np.empty(0, np.intp)
        self._target: NDArray[np.intp] = np.empty(0, np.intp)
        self.unknown: tuple[str, ...] = ()
        self.restarts = 0

    def __len__(self) -> int:
        return min(self._count, len(self._stamps))

    @property
    def newest(self) -> int | None:
        """Stamp of the newest sample in nanoseconds, ``time_offset`` included."""
        return int(self._stamps[(self._count - 1) % len(self._stamps)]) if self._count else None

    @property
    def newest_q(self) -> NDArray[np.float64] | None:
        """(nq,) rad of the newest sample."""
        return self._q[(self._count - 1) % len(self._stamps)].copy() if self._count else None

    def add(
        self, stamp: int, names: Sequence[str], positions: Sequence[float], arrival: float = 0.0
    ) -> None:
        """Adds a joint state.

        Joints of other robots in the message are ignored and listed in ``unknown``. Time that
        jumps back by more than a second (a restarted simulation or bag) empties the buffer.

        Args:
            stamp: nanoseconds, the joint state's own; ``time_offset`` is added here.
            arrival: when it arrived, any clock; handed back with the samples it brackets.

        Raises:
            ValueError: the joint state cannot be used: required joints missing, lengths that
                differ, NaN, or a stamp that is not newer than the newest sample.
        """
        if len(names) != len(positions):
            raise ValueError(
                f"name has {len(names)} entries but position has {len(positions)}; send one "
                "position in radians per joint"
            )
        if names != self._names:
            self._map(names)
        values = np.asarray(positions, dtype=np.float64)[self._source]
        if not np.isfinite(values).all():
            bad = [names[self._source[i]] for i in np.flatnonzero(~np.isfinite(values))]
            raise ValueError(f"position is NaN or infinite for {', '.join(bad)}")
        stamp += self.time_offset_ns
        newest = self.newest
        if newest is not None and stamp <= newest:
            if newest - stamp < 1_000_000_000:
                raise ValueError(
                    f"header.stamp is {(newest - stamp) * 1e-6:.1f} ms older than the joint state "
                    "before it; joint states must arrive in order of time from one publisher"
                )
            self._count = 0
            self.restarts += 1
        slot = self._count % len(self._stamps)
        self._stamps[slot] = stamp
        self._q[slot] = self._defaults
        self._q[slot, self._target] = values
        for coupling in self._following:
            driver = self._q[slot, self._index[coupling.driver]]
            follower = self._index[coupling.follower]
            self._q[slot, follower] = coupling.multiplier * driver + coupling.offset
        self._arrivals[slot] = arrival
        self._count += 1

    def samples(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """All that is kept: stamps (N,) ns, rising, and q (N, nq) rad."""
        kept = np.arange(self._count - len(self), self._count) % len(self._stamps)
        return self._stamps[kept], self._q[kept]

    def at(self, stamp: int) -> Interpolated:
        """Joint positions at an image's ``stamp`` (nanoseconds), linear between the bracketing
        samples."""
        kept = len(self)
        if kept == 0:
            return Interpolated(Match.EMPTY)
        capacity = len(self._stamps)
        # Images lie near the newest samples: walk back from there instead of sorting the ring.
        later = self._count - 1
        if stamp > self._stamps[later % capacity]:
            return Interpolated(Match.WAIT)
        oldest = self._count - kept
        while later > oldest and self._stamps[(later - 1) % capacity] >= stamp:
            later -= 1
        after = later % capacity
        if self._stamps[after] == stamp:
            return Interpolated(Match.FOUND, self._q[after].copy(), float(self._arrivals[after]))
        if later == oldest:
            return Interpolated(Match.TOO_OLD)
        before = (later - 1) % capacity
        span = int(self._stamps[after] - self._stamps[before])
        if span > self.tolerance_ns:
            return Interpolated(Match.GAP)
        weight = (stamp - int(self._stamps[before])) / span
        q = (1.0 - weight) * self._q[before] + weight * self._q[after]
        return Interpolated(Match.FOUND, q, float(self._arrivals[after]))

    def _map(self, names: Sequence[str]) -> None:
        """Learns which entries of a message go where."""
        present = set(names)
        missing = [name for name in self._required if name not in present]
        if missing:
            raise ValueError(
                f"name lacks {len(missing)} joints of this robot: {', '.join(missing[:6])}"
                f"{', ...' if len(missing) > 6 else ''}; publish all of them in one message, or "
                "start with the embodiment of this robot"
            )
        pairs = [(i, self._index[name]) for i, name in enumerate(names) if name in self._index]
        self._source = np.array([i for i, _ in pairs], np.intp)
        self._target = np.array([j for _, j in pairs], np.intp)
        self.unknown = tuple(name for name in names if name not in self._index)
        self._following = tuple(c for c in self._couplings if c.follower not in present)
        self._names = list(names)


def influential_joints(
    kinematics: HandKinematics, camera: CameraPose, extra_slots: Sequence[str] = ()
) -> tuple[str, ...]:
    """Joints that move a hand slot in the camera; a joint state without them is useless.

    Legs, for one, are not needed, and some robots do not publish them with the arms.
    """
    robot = kinematics.robot
    base = 0.5 * (robot.lower + robot.upper)
    nudged = base + 0.01 * np.eye(len(base))
    states = np.concatenate([base[None], nudged])
    positions, valid = kinematics.hand_joints_batch(states, camera, extra_slots=extra_slots)
    moved = np.abs(positions[1:, valid] - positions[0, valid]).max(axis=(1, 2)) > 1e-6
    return tuple(name for name, does in zip(robot.joint_names, moved, strict=True) if does)
