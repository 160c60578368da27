"""Smooth joint motion: minimum-jerk moves through waypoints, one track per side of the body."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ego_world_model.embodiment import Embodiment

_PEAK_OVER_MEAN = 1.875  # peak over mean speed of a minimum-jerk move


@dataclass
class Track:
    """Waypoints of some joints; between two of them the joints move with minimum jerk.

    Attributes:
        joints: (n,) positions of the joints in q.
        max_speed: (n,) rad/s that a move's peak keeps to.
    """

    joints: NDArray[np.intp]
    max_speed: NDArray[np.float64]
    times: list[float] = field(default_factory=list)
    values: list[NDArray[np.float64]] = field(default_factory=list)

    @classmethod
    def starting_at(cls, joints: ArrayLike, max_speed: ArrayLike, value: ArrayLike) -> Track:
        """A track that rests at ``value`` (n,) radians at time 0."""
        track = cls(np.asarray(joints, dtype=np.intp), np.asarray(max_speed, dtype=np.float64))
        track.times.append(0.0)
        track.values.append(np.asarray(value, dtype=np.float64))
        return track

    def move(self, value: ArrayLike, *, at_least: float = 0.3) -> None:
        """Go to ``value`` (n,) radians, in ``at_least`` seconds or as long as the speed needs."""
        value = np.asarray(value, dtype=np.float64)
        needed = np.max(_PEAK_OVER_MEAN * np.abs(value - self.values[-1]) / self.max_speed)
        self.times.append(self.times[-1] + max(at_least, float(needed)))
        self.values.append(value)

    def hold(self, seconds: float) -> None:
        """Rest for a while."""
        if seconds > 0:
            self.times.append(self.times[-1] + seconds)
            self.values.append(self.values[-1])

    @property
    def duration(self) -> float:
        return self.times[-1]

    def at(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, n) radians; before the start and after the end the track rests."""
        knots, values = np.array(self.times), np.array(self.values)
        if len(knots) == 1:
            return np.repeat(values, len(times), axis=0)
        right = np.clip(np.searchsorted(knots, times), 1, len(knots) - 1)
        span = np.maximum(knots[right] - knots[right - 1], 1e-9)
        s = np.clip((times - knots[right - 1]) / span, 0, 1)
        blend = s**3 * (10 - 15 * s + 6 * s**2)
        return values[right - 1] + blend[:, None] * (values[right] - values[right - 1])


@dataclass(frozen=True)
class JointPlan:
    """A motion of the whole robot: tracks over a base configuration.

    Attributes:
        robot: whose coupled joints follow those that the tracks move.
        base: (nq,) radians of joints that no track moves.
    """

    robot: Embodiment
    base: NDArray[np.float64]
    tracks: tuple[Track, ...]

    @property
    def duration(self) -> float:
        """Seconds until every track rests."""
        return max((track.duration for track in self.tracks), default=0.0)

    def at(self, times: ArrayLike) -> NDArray[np.float64]:
        """(N, nq) radians at times (N,) seconds from the plan's start."""
        times = np.asarray(times, dtype=np.float64)
        q = np.repeat(self.base[None], len(times), axis=0)
        for track in self.tracks:
            q[:, track.joints] = track.at(times)
        return self.robot.coupled(q)


@dataclass(frozen=True)
class FollowedPlan:
    """A motion given from outside as samples, interpolated linearly and held at its end."""

    times: NDArray[np.float64]
    q: NDArray[np.float64]

    @property
    def duration(self) -> float:
        return float(self.times[-1])

    def at(self, times: ArrayLike) -> NDArray[np.float64]:
        """(N, nq) radians at times (N,) seconds from the plan's start."""
        times = np.asarray(times, dtype=np.float64)
        return np.stack([np.interp(times, self.times, column) for column in self.q.T], axis=1)


class Disturbance:
    """A slow noise on the arm joints: four sinusoids each, of 0.15 to 0.7 Hz.

    Args:
        amplitude: standard deviation, radians. seed: of periods and phases.
    """

    def __init__(self, robot: Embodiment, amplitude: float, seed: int) -> None:
        rng = np.random.default_rng((13, seed))
        self._robot = robot
        self._joints = robot.indices(tuple(j for hand in robot.hands.values() for j in hand.arm))
        shape = (4, len(self._joints))
        self._frequency = 2 * np.pi * rng.uniform(0.15, 0.7, shape)
        self._phase = rng.uniform(0, 2 * np.pi, shape)
        self._amplitude = amplitude / np.sqrt(2)  # of each; four of them add up to ``amplitude``

    def __call__(self, q: NDArray[np.float64], time: float) -> NDArray[np.float64]:
        """q (nq,) as it is ``time`` seconds after the start, within the joint limits."""
        q, robot = q.copy(), self._robot
        q[self._joints] += self._amplitude * np.sin(self._frequency * time + self._phase).sum(0)
        return robot.coupled(np.clip(q, robot.lower, robot.upper))


def pad_to_common_end(tracks: Sequence[Track]) -> None:
    """Let every track rest until the last one ends."""
    end = max(track.duration for track in tracks)
    for track in tracks:
        track.hold(end - track.duration)
