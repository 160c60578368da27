"""Running chunks one after the other: late by their computation, joined without a step.

The rule. A chunk that was computed from an observation at time t0 and is pushed at t0 + delay loses
the steps that passed meanwhile. From then on the commanded motion goes over from the running one
to the new one: the new one's weight rises from 0 to 1 along a smoothstep over the ramp, and a
running motion that has ended counts as holding its end. The ramp lasts ``ramp`` seconds, or as
much longer as keeps the speed that it adds within a third of the new chunk's own median speed,
but never longer than what is left of the new chunk. What comes out is held to the joints' limits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ego_world_model.policy.limits import JointLimits
from ego_world_model.policy.targets import JointTargets

_KNOT = 0.02  # seconds between the samples of a ramp
_HISTORY = 2.0  # seconds of past motion that can still be asked for
_ADDED_SPEED = 0.33  # of the chunk's own median speed, which a ramp may add
_PEAK_OVER_MEAN = 1.5  # of the rise of a smoothstep


@dataclass(frozen=True)
class Merge:
    """How a chunk joined the motion.

    Attributes:
        dropped: steps that had passed. ramp: seconds of going over to it, 0 where all had passed.
        difference: radians, largest of any joint between the running and the new motion then.
        slowed: seconds of the merged motion in which limits kept it behind.
    """

    dropped: int
    ramp: float
    difference: float
    slowed: float


class ChunkExecutor:
    """The commanded motion of one robot, made of the chunks that arrive. Not thread-safe.

    Args:
        limits: of the robot; also of what lies between two chunks.
        q: (nq,) radians, where the robot is. time: seconds, on the clock of every later call.
        ramp: seconds, the shortest time for going over to a new chunk.
    """

    def __init__(
        self, limits: JointLimits, q: ArrayLike, time: float, *, ramp: float = 0.3
    ) -> None:
        if not ramp > 0:
            raise ValueError(f"ramp must be above 0 s, got {ramp}")
        self._limits, self._ramp = limits, ramp
        self.reset(q, time)

    def reset(self, q: ArrayLike, time: float) -> None:
        """Forget every chunk and hold q (nq,) from ``time`` on: after time jumped, after a stop, or
        where the robot was moved by others."""
        q = self._limits.kinematics.q_from(q)
        self._times, self._q = np.array([float(time)]), self._limits.clip(q)[None]
        self._observed = -np.inf

    @property
    def end(self) -> float:
        """Seconds, when the motion comes to its end and is held."""
        return float(self._times[-1])

    def at(self, times: ArrayLike) -> NDArray[np.float64]:
        """(..., nq) radians at times (...); after the end it is held, and of what is past the last
        two seconds are known."""
        return _at(np.asarray(times, dtype=np.float64), self._times, self._q)

    def push(self, targets: JointTargets, observed: float, now: float) -> Merge:
        """Go over to a new chunk.

        Args:
            targets: joint targets of the chunk, smoothed by temporal orthogonal filtering.
            observed: seconds, time of the observation. now: seconds, when the chunk is there; what
                was commanded before is not changed.

        Raises:
            ValueError: if the chunk is of the future, of an older observation than the last one, or
                of another robot, or ``now`` lies before the motion.
        """
        self._check(targets, observed, now)
        self._observed = observed
        times = np.concatenate([[observed], observed + targets.times])
        q = np.vstack([targets.start, targets.q])
        dropped = int(np.sum(times[1:] <= now))
        if dropped == len(targets.times):
            return Merge(dropped, 0.0, 0.0, 0.0)
        ramp, difference = self._ramp_to(times, q, now)
        knots = np.unique(
            np.concatenate(
                [
                    np.arange(now, now + ramp, _KNOT),
                    [now + ramp],
                    times[times > now],
                    self._times[(self._times > now) & (self._times < times[-1])],
                ]
            )
        )
        knots = knots[np.diff(knots, prepend=-np.inf) > 1e-6]
        share = np.clip((knots - now) / ramp, 0.0, 1.0)
        weight = (share**2 * (3.0 - 2.0 * share))[:, None]
        wanted = (1.0 - weight) * self.at(knots) + weight * _at(knots, times, q)
        merged, slowed = self._admitted(knots, wanted)
        past = np.flatnonzero(self._times < now)
        past = past[max(0, np.searchsorted(self._times[past], now - _HISTORY) - 1) :]
        self._times = np.concatenate([self._times[past], knots])
        self._q = np.vstack([self._q[past], merged])
        return Merge(dropped, ramp, difference, slowed)

    # ---------------------------------------------------------------- internals

    def _check(self, targets: JointTargets, observed: float, now: float) -> None:
        if targets.q.shape[1] != self._q.shape[1]:
            raise ValueError(
                f"the chunk moves {targets.q.shape[1]} joints, the robot has {self._q.shape[1]}"
            )
        if not (observed <= now and np.isfinite(now)):
            raise ValueError(f"a chunk observed at {observed:.3f} s cannot arrive at {now:.3f} s")
        if observed < self._observed:
            raise ValueError(
                f"a chunk observed at {observed:.3f} s comes after one of {self._observed:.3f} s; "
                "push in the order of observations, and reset() after time jumped back"
            )
        if now < self._times[0]:
            raise ValueError(
                f"the motion begins at {self._times[0]:.3f} s, after {now:.3f} s; reset() after "
                "time jumped back"
            )

    def _ramp_to(
        self, times: NDArray[np.float64], q: NDArray[np.float64], now: float
    ) -> tuple[float, float]:
        """Seconds of the ramp to the motion q (N, nq) at times (N,), and the largest difference."""
        left = times[-1] - now
        speed = float(np.median(np.linalg.norm(np.diff(q, axis=0), axis=1) / np.diff(times)))
        apart = self.at(now) - _at(np.array(now), times, q)
        needed = _PEAK_OVER_MEAN * float(np.linalg.norm(apart))
        allowed = _ADDED_SPEED * speed
        ramp = needed / allowed if allowed > 0 and needed < allowed * left else left
        if needed < 1e-9:
            ramp = self._ramp
        return min(max(ramp, self._ramp), left), float(np.abs(apart).max())

    def _admitted(
        self, knots: NDArray[np.float64], wanted: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], float]:
        """The motion ``wanted`` (K, nq) at ``knots`` (K,) as far as limits admit it, and seconds
        in which they did not."""
        merged, slowed = wanted.copy(), 0.0
        for k in range(1, len(knots)):
            seconds = knots[k] - knots[k - 1]
            merged[k] = self._limits.admit(merged[k - 1], wanted[k], seconds).q
            slowed += float(seconds) * bool(np.abs(merged[k] - wanted[k]).max() > 1e-6)
        return merged, slowed


def _at(
    when: NDArray[np.float64], times: NDArray[np.float64], q: NDArray[np.float64]
) -> NDArray[np.float64]:
    """q (N, nq) at ``times`` (N,), interpolated linearly at ``when`` (...) and held beyond."""
    right = np.clip(np.searchsorted(times, when, side="right"), 1, max(1, len(times) - 1))
    right = np.minimum(right, len(times) - 1)
    left = np.maximum(right - 1, 0)
    span = times[right] - times[left]
    share = np.clip((when - times[left]) / np.where(span > 0, span, 1.0), 0.0, 1.0)[..., None]
    return (1.0 - share) * q[left] + share * q[right]


def jitter(times: ArrayLike, values: ArrayLike) -> float:
    """Mean squared jerk of a motion: its third difference over the cube of the time step.

    Args:
        times: (N,) seconds, evenly spaced, at least 4. values: (N, ...) in any unit.

    Returns:
        The mean over steps and components, unit² / s⁶. The ratio of a smoothed and a raw motion's
        jitter says what smoothing gained.
    """
    times, values = np.asarray(times, dtype=np.float64), np.asarray(values, dtype=np.float64)
    steps = np.diff(times)
    if len(times) < 4 or len(times) != len(values):
        raise ValueError(f"jitter needs at least 4 times and values, got {len(times)}")
    if np.abs(steps - steps[0]).max() > 1e-6 or steps[0] <= 0:
        raise ValueError("jitter needs evenly spaced times; interpolate the motion first")
    return float(np.mean((np.diff(values, n=3, axis=0) / steps[0] ** 3) ** 2))


def border_ratios(times: ArrayLike, values: ArrayLike, borders: ArrayLike) -> NDArray[np.float64]:
    """(B,) steps across chunk borders over the median step elsewhere.

    Args:
        times: (N,) seconds, evenly spaced. values: (N, D). borders: (B,) seconds, when a new chunk
            took over, each within ``times``.

    Raises:
        ValueError: if the motion rests for most of its steps, so that there is no median step.
    """
    times, values = np.asarray(times, dtype=np.float64), np.asarray(values, dtype=np.float64)
    steps = np.linalg.norm(np.diff(values, axis=0), axis=1)  # (N - 1,)
    across = np.clip(np.searchsorted(times, borders, side="right") - 1, 0, len(steps) - 1)
    inside = np.delete(steps, np.unique(across))
    median = float(np.median(inside)) if len(inside) else 0.0
    if not median > 0:
        raise ValueError("the motion rests for most of its steps: a border has no ratio to it")
    return steps[across] / median
