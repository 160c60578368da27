"""Frames of a real camera on the regular grid of a dataset, without inventing or shifting any."""

from __future__ import annotations

from collections.abc import Iterator

from ego_world_model.data.importers.base import SourceFrame, Tally

_FOLLOW = 0.05
"""Share of a frame's deviation by which the grid follows the camera's own clock."""


def on_grid(
    frames: Iterator[SourceFrame], *, fps: float, tally: Tally
) -> Iterator[tuple[bool, SourceFrame]]:
    """The frame nearest to each multiple of 1 / fps, with True where a new run begins.

    A run ends where a grid instant has no frame of its own (a gap, a dropped frame). The grid
    follows a camera whose true rate differs slightly (29.97 for 30), so that neither doubles nor
    gaps arise from the drift. Frames between grid instants are counted as thinned.
    """
    pending: SourceFrame | None = None
    place, deviation, first, origin = 0, 0.0, True, 0.0
    for frame in frames:
        if pending is None:
            pending, origin = frame, float(frame.stamp)
            continue
        if frame.stamp <= pending.stamp:
            tally.drop(
                "stamp not newer than the frame before",
                f"frame {frame.number} is {(pending.stamp - frame.stamp) * 1e-9:.3f} s older",
            )
            continue
        instant = (frame.stamp - origin) * 1e-9 * fps
        number = round(instant)
        if number == place:
            tally.thinned += 1
            if abs(instant - number) < abs(deviation):
                pending, deviation = frame, instant - number
            continue
        yield first, pending
        first = number != place + 1
        if first:
            pending, place, deviation, origin = frame, 0, 0.0, float(frame.stamp)
            continue
        origin += _FOLLOW * deviation / fps * 1e9
        instant = (frame.stamp - origin) * 1e-9 * fps
        pending, place, deviation = frame, number, instant - number
    if pending is not None:
        yield first, pending
