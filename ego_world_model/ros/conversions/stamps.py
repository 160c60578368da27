"""Time stamps as integer nanoseconds: exact, comparable, cheap."""

from __future__ import annotations

from builtin_interfaces.msg import Duration, Time

NANOSECONDS = 1_000_000_000


def nanoseconds(stamp: Time | Duration) -> int:
    """A stamp or duration message in nanoseconds."""
    return stamp.sec * NANOSECONDS + stamp.nanosec


def stamp_from_nanoseconds(value: int) -> Time:
    """Nanoseconds as a stamp message; negative times, which a stamp cannot hold, become 0."""
    sec, nanosec = divmod(max(0, int(value)), NANOSECONDS)
    return Time(sec=sec, nanosec=nanosec)


def duration_from_seconds(seconds: float) -> Duration:
    """Seconds as a duration message, rounded to the nanosecond."""
    sec, nanosec = divmod(round(float(seconds) * NANOSECONDS), NANOSECONDS)
    return Duration(sec=sec, nanosec=nanosec)
