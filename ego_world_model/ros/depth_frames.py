"""Depth images that are aligned to the colour image, each found again by its colour image's stamp.

Depth is optional: a node that asks for it goes on without where none comes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from rclpy.node import Node
from rclpy.subscription import Subscription
from sensor_msgs.msg import Image

from ego_world_model.ros.camera_frames import CameraFrame
from ego_world_model.ros.conversions import MessageError
from ego_world_model.ros.diagnostics import Diagnostics
from ego_world_model.ros.qos import subscribe
from ego_world_model.ros.raw_image import RawImage
from ego_world_model.ros.topics import DEPTH

_SYNC_NS = 20_000_000  # colour and depth of one capture have equal or nearly equal stamps
_FLOWS = 0.5  # seconds without depth after which no frame waits for it


class DepthFrames:
    """The newest depth images; subscribed to only while somebody wants them.

    Args:
        always: subscribe from the start, whatever the demand.
        on_depth: called after each that arrives.
        wait: seconds that a frame may wait for its depth, while depth flows.
    """

    def __init__(
        self,
        node: Node,
        diagnostics: Diagnostics,
        *,
        always: bool,
        on_depth: Callable[[], None],
        wait: float,
    ) -> None:
        self._node = node
        self._diagnostics = diagnostics
        self._always = always
        self._on_depth = on_depth
        self._wait = wait
        self._frames: deque[tuple[RawImage, float]] = deque(maxlen=8)
        self._subscription: Subscription | None = None
        self.topic: str = node.resolve_topic_name(DEPTH)
        self.follow(False)

    def follow(self, demand: bool) -> None:
        """Subscribe while there is demand."""
        demand = demand or self._always
        if demand and self._subscription is None:
            self._subscription = subscribe(
                self._node, Image, DEPTH, self._receive, depth=4, raw=True
            )
        elif not demand and self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None
            self._frames.clear()

    def of(self, frame: CameraFrame) -> tuple[RawImage, float] | None:
        """The depth of the same capture and when it arrived (monotonic), or None."""
        best = min(self._frames, key=lambda item: abs(item[0].stamp - frame.stamp), default=None)
        if best is None or abs(best[0].stamp - frame.stamp) > _SYNC_NS:
            return None
        return best

    def flows(self, now: float) -> bool:
        """Whether depth came lately (``now``: monotonic)."""
        return bool(self._frames) and now - self._frames[-1][1] <= _FLOWS

    def settled(self, frame: CameraFrame, arrival: float, now: float) -> bool:
        """Whether nothing is gained by waiting: the frame's depth is here or will not come.

        Args:
            arrival: monotonic time at which the frame came.
        """
        if not self.flows(now) or now - arrival > self._wait:
            return True
        return self._frames[-1][0].stamp >= frame.stamp - _SYNC_NS

    def check(self, depth: RawImage, frame: CameraFrame) -> None:
        """Raise MessageError unless ``depth`` has the pixels of the colour image ``frame``."""
        remedy = "publish depth that is aligned to the colour image (align_depth.enable:=true)"
        if depth.size != frame.size:
            raise MessageError(
                self.topic,
                "width, height",
                f"are {depth.width}x{depth.height} but the colour image is "
                f"{frame.width}x{frame.height}",
                remedy,
            )
        if depth.frame_id != frame.frame_id:
            raise MessageError(
                self.topic,
                "header.frame_id",
                f"is {depth.frame_id!r} but the colour image's is {frame.frame_id!r}",
                remedy,
            )

    def _receive(self, serialised: bytes) -> None:
        try:
            image = RawImage.from_serialised(serialised, topic=self.topic)
        except MessageError as error:
            self._diagnostics.warn("depth rejected", str(error))
            return
        self._diagnostics.tick("depth")
        if self._frames and image.stamp < self._frames[-1][0].stamp:  # time was set back
            self._frames.clear()
        self._frames.append((image, time.monotonic()))
        self._on_depth()
