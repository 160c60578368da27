"""The camera-joint delay: how much later the pictures show what the joint states say.

Both tell of one motion. For a candidate delay, the joint states predict how far each hand joint
moves in the picture between two frames; were the prediction right, the brightness there would
change by minus its gradient times that motion. The delay at which the predictions explain most of
the observed change, over all frames, is the answer. No mark is clicked and no hand is detected,
and the mount need only be roughly right, because it is the timing of the motion that decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter, map_coordinates

from ego_world_model.camera import PinholeCamera
from ego_world_model.media import resize

WIDTH = 160
"""Pixels to which pictures are reduced: motion between frames becomes small, memory as well."""

MAX_DELAY = 0.3
"""Seconds to either side within which the delay is sought, unless asked otherwise."""

MAX_DEVIATION = 0.005
"""Seconds of standard deviation above which the motion counts as leaving the delay open."""

_COARSE, _FINE = 0.02, 0.005  # s between candidates of the first and of the last search
_NEAR = 0.1  # s around the first search's answer that the last one looks at
_GAP = 0.15  # s between two frames, or joint states, across which nothing is concluded
_SPAN = 0.5  # s in which a joint's motion shows equally well in the picture
_BLOCK = 2  # spans that the bootstrap draws together: motion is not independent between frames
_BLUR = 1.5  # px, standard deviation: motion up to about this is seen without aliasing
_WINDOW = 3.0  # px, standard deviation of the neighbourhood of a joint that moves with it
_CALM = 0.1  # share of the mean change of brightness that counts as noise, not as motion
_MOVING = 0.25  # px a frame that count as motion
_NEEDED = 3.0  # s of motion in view
_DRAWS = 300  # of the bootstrap


class DelayError(ValueError):
    """The recording does not tell the delay; the text says why and what to record."""


@dataclass(frozen=True, kw_only=True)
class Take:
    """An unbroken recording: pictures, and the hands as the joint states place them.

    Attributes:
        times: (T,) s, the pictures' stamps, rising.
        images: (T, h, w) uint8 grey, reduced (see ``reduced``). camera: intrinsics of that size.
        joint_times: (N,) s, the joint states' stamps, rising, from the same epoch as ``times``.
        points: (N, S, 3) m, hand joints in the camera's optical frame at each joint state.
    """

    times: NDArray[np.float64]
    images: NDArray[np.uint8]
    camera: PinholeCamera
    joint_times: NDArray[np.float64]
    points: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DelayEstimate:
    """What a recording says about the delay.

    Attributes:
        delay: s, by which images are stamped later than the joint states of the same instant: the
            nodes' parameter ``joint_time_offset``.
        deviation: s, standard deviation by bootstrap over blocks of a second.
        explained: share (0 to 1) of the change of brightness around the hands that the joint
            states explain at ``delay``.
        seconds: of motion in view that the estimate rests on.
        delays, curve: (D,) candidates in s around ``delay``, and the share that each explains.
    """

    delay: float
    deviation: float
    explained: float
    seconds: float
    delays: NDArray[np.float64]
    curve: NDArray[np.float64]


def reduced(
    image: NDArray[np.uint8], camera: PinholeCamera
) -> tuple[NDArray[np.uint8], PinholeCamera]:
    """(H, W, 3) RGB → (h, w) uint8 grey of ``WIDTH`` pixels at most, with its intrinsics."""
    height, width = image.shape[:2]
    if width > WIDTH:
        camera = camera.resized(WIDTH, round(height * WIDTH / width))
        image = resize(image, camera.width, camera.height)
    return np.rint(image @ np.array([0.299, 0.587, 0.114])).astype(np.uint8), camera


def estimate_delay(
    takes: Sequence[Take],
    *,
    max_delay: float = MAX_DELAY,
    max_deviation: float = MAX_DEVIATION,
) -> DelayEstimate:
    """The camera-joint delay of recordings that share one.

    Raises:
        DelayError: the hands are hardly seen to move, the delay lies beyond ``max_delay``, or the
            motion leaves it open.
    """
    changes = [_Changes(take) for take in takes if len(take.times) > 1 < len(take.joint_times)]
    coarse = _candidates(0.0, max_delay, _COARSE)
    gained, energy = _explained(changes, coarse, None)
    if energy == 0.0:
        raise DelayError(
            "no two frames in a row show hands by the joint states; are they of these pictures, "
            "and is --robot right?"
        )
    rough = float(coarse[np.argmax(gained.sum(axis=0))])
    seconds = sum(change.moving_seconds(rough) for change in changes)
    if seconds < _NEEDED:
        raise DelayError(
            f"the hands move in view for {seconds:.1f} s only; record at least {_NEEDED:g} s of "
            "quick, irregular motion, better a minute"
        )
    fine = _candidates(rough, _NEAR, _FINE)
    gained, energy = _explained(changes, fine, rough)
    curve = gained.sum(axis=0) / energy
    delay = float(_peak(fine, curve[None])[0])
    blocks = len(gained)
    draws = np.random.default_rng(0).multinomial(blocks, np.full(blocks, 1 / blocks), size=_DRAWS)
    deviation = float(_peak(fine, draws @ gained).std())
    if abs(delay) > max_delay - _COARSE:
        raise DelayError(
            f"the best delay, {delay * 1e3:.0f} ms, lies at the edge of the search; raise "
            "--max-delay, and check that camera and robot stamp by one clock"
        )
    if deviation > max_deviation:
        raise DelayError(
            f"the motion leaves the delay open: {delay * 1e3:.0f} ms with a standard deviation of "
            f"{deviation * 1e3:.0f} ms, where {max_deviation * 1e3:g} ms are asked for; record a "
            "minute of quick, irregular motion with turns and stops, and check that pictures and "
            "joint states are of one recording and the camera is roughly calibrated"
        )
    return DelayEstimate(
        delay=delay,
        deviation=deviation,
        explained=float(curve.max()),
        seconds=seconds,
        delays=fine,
        curve=curve,
    )


class _Changes:
    """Changes of brightness between the frames of a take, around where its hands may be."""

    def __init__(self, take: Take) -> None:
        self._camera, self._times, self._images = take.camera, take.times, take.images
        self._path = _Path(take.joint_times, take.points)
        steps = np.diff(take.times)
        self._pairs = np.flatnonzero((steps > 0) & (steps < _GAP))

    def explained(
        self, delays: NDArray[np.float64], at: float | None
    ) -> tuple[NDArray[np.float64], float]:
        """(blocks, D) change of brightness that each candidate explains in each block of time, and
        the change that there is in all.

        Observed = gain * predicted, with a gain for every joint and span of time that absorbs how
        well the joint is seen (occlusion, texture, light). Were it one for all, a contrast that
        grows in the course of a motion would pass for a delay.

        Args:
            at: delay by which the joints' neighbourhoods are placed; None: by each candidate.
        """
        sums = np.array([self._products(pair, delays, at) for pair in self._pairs])  # (K, D, S, 3)
        energy = sums[..., 2].mean(axis=1).sum(axis=1) if len(sums) else np.zeros(0)  # (K,)
        if not energy.any():
            return np.zeros((0, len(delays))), 0.0
        # What a prediction misses grows with the motion: fast frames must not outvote slow ones.
        sums *= (1.0 / (energy + _CALM * energy.mean()))[:, None, None, None]
        spans = ((self._times[self._pairs] - self._times[0]) // _SPAN).astype(int)
        crossed, predicted, observed = np.moveaxis(_gathered(sums, spans), -1, 0)  # (spans, D, S)
        gained = np.maximum(crossed, 0.0) ** 2 / (predicted + 0.01 * predicted.mean() + 1e-12)
        blocks = _gathered(gained.sum(axis=-1), np.unique(spans) // _BLOCK)
        return blocks, float(observed.sum(axis=(0, 2)).mean())

    def moving_seconds(self, delay: float) -> float:
        """Seconds in which some joint in view moves noticeably."""
        total = 0.0
        for pair in self._pairs:
            _, motion, seen = self._motion(pair, np.array([delay]))
            if (seen & (np.linalg.norm(motion, axis=-1) > _MOVING)).any():
                total += float(self._times[pair + 1] - self._times[pair])
        return total

    def _motion(
        self, pair: int, delays: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Middle and motion (D, S, 2) px of the joints between two frames; (D, S) if in view."""
        points, known = self._path(self._times[pair : pair + 2, None] - delays)  # (2, D, S, 3)
        pixels = self._camera.project(points)
        seen = self._camera.contains(pixels).all(axis=0) & known.all(axis=0)[:, None]
        first, second = np.where(seen[..., None], pixels, 0.0)
        return 0.5 * (first + second), second - first, seen

    def _products(
        self, pair: int, delays: NDArray[np.float64], at: float | None
    ) -> NDArray[np.float64]:
        """(D, S, 3) of two frames: predicted * observed, predicted squared, observed squared.

        Zero for joints that are not in view by every candidate: no curve may follow what is left
        out of it.
        """
        middle, motion, seen = self._motion(pair, delays)
        in_view = seen.all(axis=0)  # (S,)
        if at is not None:
            middle, _, there = self._motion(pair, np.array([at]))
            in_view &= there[0]
        if not in_view.any():
            return np.zeros((*motion.shape[:2], 3))
        xx, xy, yy, xt, yt, tt = _gradients(self._images[pair], self._images[pair + 1], middle)
        u, v = motion[..., 0], motion[..., 1]
        crossed, predicted = -(u * xt + v * yt), u * u * xx + 2 * u * v * xy + v * v * yy
        tt = np.broadcast_to(tt, u.shape)
        return np.stack([crossed, predicted, tt], axis=-1) * in_view[:, None]


class _Path:
    """Hand joints between joint states: a cubic, so that states as rare as frames suffice."""

    def __init__(self, times: NDArray[np.float64], points: NDArray[np.float64]) -> None:
        self._times = times
        self._spline = CubicSpline(times, points, axis=0)

    def __call__(self, times: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """(..., S, 3) m at ``times`` (...), and whether joint states surround them closely."""
        later = np.clip(np.searchsorted(self._times, times), 1, len(self._times) - 1)
        known = (times >= self._times[0]) & (times <= self._times[-1])
        known &= self._times[later] - self._times[later - 1] < _GAP
        return self._spline(np.clip(times, self._times[0], self._times[-1])), known


def _gradients(
    first: NDArray[np.uint8], second: NDArray[np.uint8], places: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(6, ...) products of the gradient (x, y) and the change (t) of brightness around ``places``
    (..., 2) px: xx, xy, yy, xt, yt, tt."""
    a, b = first.astype(np.float32), second.astype(np.float32)
    mean, t = 0.5 * (a + b), gaussian_filter(b - a, _BLUR)
    x, y = gaussian_filter(mean, _BLUR, order=(0, 1)), gaussian_filter(mean, _BLUR, order=(1, 0))
    rows_columns = np.moveaxis(places, -1, 0)[::-1]
    return np.stack(
        [
            map_coordinates(gaussian_filter(product, _WINDOW), rows_columns, order=1)
            for product in (x * x, x * y, y * y, x * t, y * t, t * t)
        ]
    )


def _explained(
    changes: Sequence[_Changes], delays: NDArray[np.float64], at: float | None
) -> tuple[NDArray[np.float64], float]:
    """``_Changes.explained`` of all takes."""
    parts = [change.explained(delays, at) for change in changes]
    blocks = [gained for gained, _ in parts] or [np.zeros((0, len(delays)))]
    return np.concatenate(blocks), sum(energy for _, energy in parts)


def _candidates(centre: float, reach: float, step: float) -> NDArray[np.float64]:
    count = round(reach / step)
    return centre + np.arange(-count, count + 1) * step


def _gathered(values: NDArray[np.float64], groups: NDArray[np.intp]) -> NDArray[np.float64]:
    """Sums of neighbouring rows of equal ``groups`` (rising)."""
    return np.add.reduceat(values, np.flatnonzero(np.diff(groups, prepend=-1)), axis=0)


def _peak(delays: NDArray[np.float64], curves: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) s of the maxima of curves (n, D), between the candidates by a parabola."""
    best = np.clip(curves.argmax(axis=1), 1, len(delays) - 2)
    rows = np.arange(len(curves))
    left, middle, right = (curves[rows, best + shift] for shift in (-1, 0, 1))
    bend = np.minimum(left - 2 * middle + right, -1e-12)
    return delays[best] + np.clip(0.5 * (left - right) / bend, -1, 1) * (delays[1] - delays[0])
