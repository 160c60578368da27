"""The graph as a browser page: live camera with joints, imagined future, hands in 3-D, rates.

The node only listens, and only while a browser shows the page: without one it has no subscription
at all, so nobody's lazy publisher works for it.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from numpy.typing import NDArray
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo

from ego_world_model import msg
from ego_world_model.hands import EXTRA_SLOTS, SLOT_NAMES, HandJoints, HandTrajectory
from ego_world_model.ros.camera_frames import CameraFrame, CameraIntake
from ego_world_model.ros.conversions import (
    MessageError,
    camera_from_info,
    hand_joints_from_message,
    hand_trajectory_from_message,
    nanoseconds,
    rgb_from_image,
)
from ego_world_model.ros.diagnostics import Diagnostics
from ego_world_model.ros.input_watch import SIMULATION_HINT
from ego_world_model.ros.parameters import declare
from ego_world_model.ros.qos import subscribe
from ego_world_model.ros.run import StartError, run_node
from ego_world_model.ros.topics import CAMERA_INFO, HAND_JOINTS

if TYPE_CHECKING:
    from ego_world_model.ui.page import ViewerPage

PREDICTED = "hands/predicted"
ROLLOUT = "imagined/rollout"
DIAGNOSTICS = "/diagnostics"

ALL_SLOTS = SLOT_NAMES + EXTRA_SLOTS

_UNPAIRED_AFTER = 0.5  # seconds without hands after which the bare image is shown
_SILENT_AFTER = 3.0  # seconds after which a topic counts as silent


class ViewerNode(Node):
    """Feeds a :class:`~ego_world_model.ui.page.ViewerPage`; see the module."""

    def __init__(self) -> None:
        super().__init__("viewer")
        port = declare(
            self,
            "port",
            8080,
            "TCP port of the page on 127.0.0.1; 0 takes any free one, one in use the next free",
            minimum=0,
            maximum=65535,
            read_only=True,
        )
        pitch = declare(
            self,
            "camera_pitch",
            47.6,
            "degrees that the camera looks down; keeps the 3-D view level (G1's head: 47.6)",
            minimum=-90.0,
            maximum=90.0,
            read_only=True,
        )
        rate = declare(
            self,
            "rate",
            15.0,
            "pictures a second sent to the browser",
            minimum=1.0,
            maximum=60.0,
            read_only=True,
        )
        self._title = declare(
            self, "title", "", "heading; empty: the embodiment's name", read_only=True
        )
        self._diagnostics = Diagnostics(self)
        self._camera = CameraIntake(self)
        self._period = 0.9 / rate
        self._images: deque[CameraFrame] = deque(maxlen=15)
        self._subscriptions_kept: list[Any] = []
        self._meters = {topic: Meter() for topic in (self._camera.topic, HAND_JOINTS, ROLLOUT)}
        self._troubles: dict[str, tuple[float, str]] = {}
        self._said: dict[str, tuple[float, dict[str, str]]] = {}  # node → when, its report
        self._hands_delay = 0.0
        self._last_live = self._last_paired = -math.inf
        self._rollout: msg.Rollout | None = None
        # Browsers come and go in the page's threads; the executor follows.
        self._demand = self.create_guard_condition(self._follow_demand)
        self._timer = self.create_timer(
            0.5, self._show_status, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )
        self._page = self._open_page(port=port, pitch=math.radians(pitch), rate=rate)
        self._diagnostics.value("page", self._page.url)
        self.get_logger().info(f"open {self._page.url} in a browser on this machine")

    def destroy_node(self) -> None:
        """Closes the page before what feeds it."""
        self._page.close()
        super().destroy_node()

    def _open_page(self, *, port: int, pitch: float, rate: float) -> ViewerPage:
        try:
            from ego_world_model.ui.page import ViewerPage
        except ModuleNotFoundError as error:
            raise StartError(
                f"the browser page needs the Python package {error.name}: pip install viser, or "
                "start without the page (viewer:=false)"
            ) from None
        try:
            return ViewerPage(
                port=port,
                title=self._title or "ego world model",
                camera_pitch=pitch,
                rate=rate,
                on_viewers=lambda _: self._demand.trigger(),
            )
        except OSError as error:
            raise StartError(f"parameter 'port': no page on port {port}: {error}") from None

    # ------------------------------------------------------------------ demand

    def _follow_demand(self) -> None:
        """Subscribes when the first browser comes, unsubscribes when the last has gone."""
        watched = self._page.viewers > 0
        if watched == bool(self._subscriptions_kept):
            return
        if not watched:
            for subscription in self._subscriptions_kept:
                self.destroy_subscription(subscription)
            self._subscriptions_kept = []
            self._images.clear()
            self.get_logger().info("nobody looks at the page: unsubscribed")
            return
        for meter in self._meters.values():
            meter.reset()
        self._subscriptions_kept = [
            self._camera.subscribe(self._guard(self._on_image), self._reject),
            subscribe(self, CameraInfo, CAMERA_INFO, self._guard(self._on_info)),
            subscribe(self, msg.HandJoints, HAND_JOINTS, self._guard(self._on_hands)),
            subscribe(self, msg.Rollout, ROLLOUT, self._guard(self._on_rollout), depth=2),
            subscribe(self, msg.HandTrajectory, PREDICTED, self._guard(self._on_motion), depth=2),
            subscribe(self, DiagnosticArray, DIAGNOSTICS, self._on_diagnostics, depth=50),
        ]
        self.get_logger().info("a browser shows the page: subscribed")

    def _guard(self, handle: Callable[[Any], None]) -> Callable[[Any], None]:
        """A callback that reports a message which cannot be shown, and goes on."""

        def callback(message: Any) -> None:
            try:
                handle(message)
            except ValueError as error:  # MessageError, and what the page refuses
                self._reject(error)

        return callback

    def _reject(self, error: ValueError) -> None:
        self._diagnostics.warn("messages rejected", str(error))

    # ------------------------------------------------------------------ inputs

    def _on_image(self, image: CameraFrame) -> None:
        now = time.monotonic()
        self._meters[self._camera.topic].tick(now)
        self._images.append(image)
        if now - self._last_paired > _UNPAIRED_AFTER:
            self._show_live(image, None)

    def _on_info(self, message: CameraInfo) -> None:
        camera = camera_from_info(message, topic=self.resolve_topic_name(CAMERA_INFO))
        self._page.show_camera(camera)

    def _on_hands(self, message: msg.HandJoints) -> None:
        now = time.monotonic()
        self._meters[HAND_JOINTS].tick(now)
        stamp = nanoseconds(message.header.stamp)
        self._hands_delay = (self.get_clock().now().nanoseconds - stamp) * 1e-9
        if not self._title and message.embodiment:
            self._title = message.embodiment
            self._page.show_title(message.embodiment)
        image = next((image for image in self._images if image.stamp == stamp), None)
        if image is not None:
            self._last_paired = now
            self._show_live(image, message)

    def _show_live(self, image: CameraFrame, message: msg.HandJoints | None) -> None:
        """Hands an image to the page, no more often than the page sends them."""
        from ego_world_model.ui.page import LiveView

        now = time.monotonic()
        if now - self._last_live < self._period:
            return
        self._last_live = now
        pixels = image.rgb()
        if message is None:
            self._page.show_live(LiveView(pixels))
            return
        hands, where, seen = drawable(message, topic=self.resolve_topic_name(HAND_JOINTS))
        self._page.show_live(LiveView(pixels, hands, where, seen))

    def _on_rollout(self, message: msg.Rollout) -> None:
        from ego_world_model.ui.page import ImaginedView

        self._meters[ROLLOUT].tick(time.monotonic())
        topic = self.resolve_topic_name(ROLLOUT)
        if not message.frames or len(message.frames) != len(message.times):
            raise MessageError(
                topic,
                "frames",
                f"holds {len(message.frames)} images for {len(message.times)} times",
                "send one image per time",
            )
        self._rollout = message
        self._page.show_imagined(
            ImaginedView(
                np.stack([rgb_from_image(frame, topic=topic) for frame in message.frames]),
                np.asarray(message.times, dtype=np.float64),
                self._motion(message.trajectory, f"{topic}.trajectory"),
                camera_from_info(message.camera_info, topic=topic),
                message.checkpoint,
            )
        )

    def _on_motion(self, message: msg.HandTrajectory) -> None:
        self._page.show_motion(self._motion(message, self.resolve_topic_name(PREDICTED)))

    @staticmethod
    def _motion(message: msg.HandTrajectory, topic: str) -> HandTrajectory:
        return hand_trajectory_from_message(message, slot_names=ALL_SLOTS, topic=topic)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        now = time.monotonic()
        for status in message.status:
            name = status.name.rsplit("/", 1)[-1]
            if name in ("motion_policy", "robot_sim"):
                self._said[name] = (now, {pair.key: pair.value for pair in status.values})
            if name in ("hand_kinematics", "motion_policy", "world_model", "robot_sim"):
                if status.level == DiagnosticStatus.OK:
                    self._troubles.pop(status.name, None)
                else:
                    self._troubles[status.name] = (now, status.message)

    # ------------------------------------------------------------------ status

    def _show_status(self) -> None:
        """The table of rates and latencies, and what is wrong."""
        if not self._subscriptions_kept:
            return
        now = time.monotonic()
        rates = {topic: meter.rate(now) for topic, meter in self._meters.items()}
        rows = {
            "Camera": f"{rates[self._camera.topic]:.1f} Hz",
            "Hands": f"{rates[HAND_JOINTS]:.1f} Hz",
            "Hands are": age(self._hands_delay),
            "Rollouts": f"{rates[ROLLOUT]:.2f} Hz" if rates[ROLLOUT] else "none yet",
        }
        if self._rollout is not None:
            since = self.get_clock().now().nanoseconds - nanoseconds(self._rollout.header.stamp)
            rows["Imagining took"] = f"{self._rollout.latency:.2f} s"
            rows["Imagined from"] = f"a frame {age(since * 1e-9)}"
        policy, sim = self._report("motion_policy"), self._report("robot_sim")
        if "chunk rate" in policy:
            rows["Predictions"] = policy["chunk rate"]
            rows["Predicting took"] = policy.get("chunk median", "")
        words = {"Instruction": policy.get("instruction"), "Task": sim.get("task")}
        messages = [text for when, text in self._troubles.values() if now - when < 10]
        silent = [topic for topic, meter in self._meters.items() if meter.silent(now)]
        if silent:
            names = ", ".join(self.resolve_topic_name(topic) for topic in silent)
            messages.append(f"Nothing on {names}.")
        if self._camera.topic in silent:
            messages.append(f"To see something, {SIMULATION_HINT}.")
        self._page.show_status(
            rows,
            "\n\n".join(f"⚠ {text}" for text in dict.fromkeys(messages)),
            words={name: text for name, text in words.items() if text},
        )

    def _report(self, node: str) -> dict[str, str]:
        """What a node reports now, {} where it has fallen silent."""
        when, values = self._said.get(node, (-math.inf, {}))
        return values if time.monotonic() - when < _SILENT_AFTER else {}


class Meter:
    """Counts events for a rate over the last seconds."""

    def __init__(self, window: float = 5.0) -> None:
        self._window = window
        self._times: deque[float] = deque()
        self._start = self._last = time.monotonic()

    def reset(self) -> None:
        self._times.clear()
        self._start = self._last = time.monotonic()

    def tick(self, now: float) -> None:
        self._times.append(now)
        self._last = now

    def rate(self, now: float) -> float:
        """Hz."""
        while self._times and self._times[0] < now - self._window:
            self._times.popleft()
        return len(self._times) / max(min(self._window, now - self._start), 0.5)

    def silent(self, now: float) -> bool:
        return now - self._last > max(_SILENT_AFTER, self._window)


def age(seconds: float) -> str:
    """How old something is, in words; stamps of another clock (a bag's, say) say nothing."""
    if abs(seconds) > 100:
        return "of another clock"
    return f"{seconds * 1e3:.0f} ms old" if abs(seconds) < 1 else f"{seconds:.1f} s old"


def drawable(
    message: msg.HandJoints, *, topic: str
) -> tuple[HandJoints, NDArray[np.float64], NDArray[np.float64]]:
    """Joints, (J, 2) pixels (NaN where unknown) and (J,) visibility of all slots, extra ones too.

    Raises:
        MessageError: fields whose lengths differ, or unknown slots.
    """
    hands = hand_joints_from_message(message, slot_names=ALL_SLOTS, topic=topic)
    joints = len(message.slot_names)
    for field in ("u", "v", "disparity", "visibility"):
        length = len(getattr(message, field))
        if length != joints:
            raise MessageError(
                topic, field, f"has {length} entries, {joints} expected", "send one per slot"
            )
    slots = [ALL_SLOTS.index(name) for name in message.slot_names]
    pixels = np.full((len(ALL_SLOTS), 2), np.nan)
    pixels[slots] = np.stack([message.u, message.v], axis=1)
    in_front = np.zeros(len(ALL_SLOTS), bool)
    in_front[slots] = np.asarray(message.disparity) > 0
    pixels[~in_front] = np.nan
    visibility = np.zeros(len(ALL_SLOTS))
    visibility[slots] = message.visibility
    return hands, pixels, visibility


def main(args: list[str] | None = None) -> int:
    """Runs the node until it is interrupted."""
    return run_node(ViewerNode, args)


if __name__ == "__main__":
    sys.exit(main())
