"""Pairs camera frames with joint states and intrinsics that belong to them, or drops them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ego_world_model.camera import PinholeCamera
from ego_world_model.kinematics.joint_buffer import Interpolated, JointBuffer, Match
from ego_world_model.ros.camera_frames import CameraFrame
from ego_world_model.ros.conversions import MessageError


@dataclass(frozen=True)
class PairedFrame:
    """A camera frame with everything that belongs to its instant.

    Attributes:
        q: (nq,) rad, interpolated to the image's stamp.
        ready: when the last part of the pair arrived (monotonic seconds).
    """

    image: CameraFrame
    camera: PinholeCamera
    q: NDArray[np.float64]
    ready: float


class FramePairer:
    """Holds frames until the joint state behind their stamp has arrived.

    Args:
        buffer: joint states; add to it from outside, then call ``take``.
        wait: seconds that a frame waits for its joint states and intrinsics.
        info_topic: where the intrinsics come from, named in what is said.
        settled: asked for a frame that is complete, its arrival and the present (monotonic): False
            where it is worth its while to wait for something optional.
        pace: seconds of the clock that inputs keep, where that is not the wall clock (a bag that
            is played slowly): a frame then waits by both.
        on_drop: called with a counter's name and an explanation for every frame dropped.
        capacity: frames that may wait; the oldest is dropped first.
    """

    def __init__(
        self,
        buffer: JointBuffer,
        *,
        wait: float,
        info_topic: str,
        on_drop: Callable[[str, str], None],
        settled: Callable[[CameraFrame, float, float], bool] = lambda *_: True,
        pace: Callable[[], float] | None = None,
        capacity: int = 16,
    ) -> None:
        self._buffer = buffer
        self._wait = wait
        self._info_topic = info_topic
        self._on_drop = on_drop
        self._settled = settled
        self._pace = pace
        self._capacity = capacity
        self._waiting: deque[tuple[CameraFrame, float, float]] = deque()  # …, arrival, its pace
        self._camera: PinholeCamera | None = None
        self._camera_arrival = 0.0

    def set_camera(self, camera: PinholeCamera, now: float) -> None:
        """The newest intrinsics."""
        if camera != self._camera:
            self._camera, self._camera_arrival = camera, now

    def add(self, image: CameraFrame, now: float) -> None:
        """A new frame, at monotonic time ``now``."""
        if len(self._waiting) == self._capacity:
            self._waiting.popleft()
            self._on_drop("frames dropped: too many waiting", "frames arrive faster than they pair")
        self._waiting.append((image, now, now if self._pace is None else self._pace()))

    def take(self, now: float) -> list[PairedFrame]:
        """Frames that are complete now, oldest first; frames that cannot be paired are dropped."""
        done: list[PairedFrame] = []
        still: deque[tuple[CameraFrame, float, float]] = deque()
        paced_now = now if self._pace is None else self._pace()
        for waiting in self._waiting:
            image, arrival, paced = waiting
            state = self._buffer.at(image.stamp)
            camera = self._camera
            if state.match in (Match.TOO_OLD, Match.GAP):
                self._drop(image, state)
            elif (
                state.match is Match.FOUND
                and camera is not None
                and (camera.width, camera.height) == image.size
            ):
                if not self._settled(image, arrival, now):
                    still.append(waiting)
                    continue
                assert state.q is not None and state.arrival is not None
                ready = max(arrival, state.arrival, self._camera_arrival)
                done.append(PairedFrame(image, camera, state.q, ready))
            elif now - arrival > self._wait and not 0.0 <= paced_now - paced <= self._wait:
                self._drop(image, state)  # also where the clock was set back
            else:
                still.append(waiting)
        self._waiting = still
        return done

    def _drop(self, image: CameraFrame, state: Interpolated) -> None:
        """Says why a frame has no partner."""
        if state.match is not Match.FOUND:
            self._on_drop("frames dropped: no joint states", self._why(image, state))
        elif self._camera is None:
            self._on_drop(
                "frames dropped: no camera_info",
                "frames arrive without CameraInfo; check that the camera driver publishes it",
            )
        else:
            try:
                image.check_size(self._camera, self._info_topic)
            except MessageError as error:
                self._on_drop("frames dropped: resolution", str(error))

    def _why(self, image: CameraFrame, state: Interpolated) -> str:
        newest = self._buffer.newest
        if newest is None:
            return "frames arrive without joint states"
        ahead = (image.stamp - newest) * 1e-9
        tolerance = self._buffer.tolerance_ns * 1e-6
        if state.match is Match.GAP:
            return (
                f"joint states around the image are more than {tolerance:.0f} ms apart; publish "
                "them faster, or raise the parameter joint_tolerance"
            )
        if state.match is Match.TOO_OLD:
            return (
                f"an image is {-ahead:.3f} s older than the newest joint state, and older than all "
                "that are kept; the clocks of camera and robot differ (a constant delay belongs "
                "into joint_time_offset), or the image came too late"
            )
        return (
            f"an image is {ahead:.3f} s newer than the newest joint state after waiting "
            f"{self._wait * 1e3:.0f} ms; joint states stopped, or the clocks of camera and robot "
            "differ (a constant delay belongs into joint_time_offset)"
        )
