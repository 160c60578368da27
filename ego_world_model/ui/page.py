"""The live page: what the camera sees and what the model imagines, side by side, and hands in 3-D.

The page is fed from any thread and knows nothing of ROS. It keeps only the newest picture; one
thread sends it on at a steady rate, and sleeps while no browser is connected.
"""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import viser
from numpy.typing import NDArray

from ego_world_model.camera import PinholeCamera
from ego_world_model.drawing import draw_hands
from ego_world_model.hands import HandJoints, HandTrajectory
from ego_world_model.ui.pictures import RGB, caption, enlarge, placeholder
from ego_world_model.ui.scene import HandScene

HOST = "127.0.0.1"
"""The page shows a robot's camera; it is for this machine only."""

PAUSE = 0.6
"""Seconds for which the last imagined frame stays before the loop starts again."""

_PANEL_WIDTH = 500


@dataclass(frozen=True)
class LiveView:
    """One camera frame and the hands in it, as far as they are known.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        hands: joints in the camera optical frame of this image.
        pixels: (J, 2) where the joints project in this image.
        visibility: (J,) 0..1.

    Raises:
        ValueError: if a shape does not fit.
    """

    image: RGB
    hands: HandJoints | None = None
    pixels: NDArray[np.float64] | None = None
    visibility: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        # Checked here, where the sender can be told, and not in the page's own thread.
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise ValueError(f"image must be (H, W, 3) uint8 RGB, got {self.image.shape}")
        joints = 0 if self.hands is None else len(self.hands.valid)
        for name, shape in (("pixels", (joints, 2)), ("visibility", (joints,))):
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise ValueError(f"{name} must be {shape} to match hands, got {value.shape}")


@dataclass(frozen=True)
class ImaginedView:
    """One imagined future.

    Attributes:
        frames: (T, h, w, 3) uint8 RGB; frame 0 is the reference.
        times: (T,) seconds after the reference.
        trajectory: the motion imagined, at ``times``.
        camera: intrinsics of ``frames``; needed to draw the joints on them.
        note: what made it, shown in the caption, e.g. ``"tiny, 0.8 s"``.

    Raises:
        ValueError: if a length or shape does not fit.
    """

    frames: RGB
    times: NDArray[np.float64]
    trajectory: HandTrajectory | None = None
    camera: PinholeCamera | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[3] != 3 or self.frames.dtype != np.uint8:
            raise ValueError(f"frames must be (T, h, w, 3) uint8 RGB, got {self.frames.shape}")
        lengths = {len(self.frames), len(self.times)}
        if self.trajectory is not None:
            lengths.add(len(self.trajectory))
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                "frames, times and trajectory must have one entry per frame, got "
                f"{len(self.frames)} frames, {len(self.times)} times"
                + ("" if self.trajectory is None else f", {len(self.trajectory)} trajectory steps")
            )


class ViewerPage:
    """A web page on the loopback.

    Args:
        port: TCP port; 0 takes any free one, and a port in use is answered by the next free one.
        title: what stands over the status, e.g. the robot's name.
        camera_pitch: radians that the camera looks down, to keep the 3-D view level.
        rate: pictures a second sent to the browser.
        on_viewers: called with True when the first browser connects and with False when the last
            one leaves, from a thread of the server.

    Raises:
        OSError: if no port can be bound.
    """

    def __init__(
        self,
        *,
        port: int = 8080,
        title: str = "ego world model",
        camera_pitch: float = 0.83,
        rate: float = 15.0,
        on_viewers: Callable[[bool], None] | None = None,
    ) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # viser prints a banner; we print a URL
            self._server = viser.ViserServer(host=HOST, port=port, label=title, verbose=False)
        self._period = 1.0 / rate
        self._lock = threading.Lock()
        self._live: LiveView | None = None
        self._next: ImaginedView | None = None
        self._loop = RolloutLoop()
        self._predicted: HandTrajectory | None = None
        self._shown_prediction: HandTrajectory | None = None
        self._shown_motion: HandTrajectory | None = None
        self._still: HandTrajectory | None = None  # the shown motion in the reference camera
        self._clients_lock = threading.Lock()
        self._watched = threading.Event()
        self._closed = threading.Event()
        self._on_viewers = on_viewers
        self.scene = HandScene(self._server, camera_pitch=camera_pitch)
        self._build_panels()
        self._server.on_client_connect(self._clients_changed)
        self._server.on_client_disconnect(self._clients_changed)
        self._thread = threading.Thread(target=self._run, name="viewer_page", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self._server.get_port()}"

    @property
    def viewers(self) -> int:
        """How many browsers show the page now."""
        return len(self._server.get_clients())

    def show_live(self, view: LiveView) -> None:
        """The newest camera frame; an older one that was not yet sent is dropped."""
        with self._lock:
            self._live = view

    def show_imagined(self, view: ImaginedView) -> None:
        """The newest rollout; it starts when the one that is playing has reached its end."""
        with self._lock:
            self._next = view

    def show_motion(self, trajectory: HandTrajectory) -> None:
        """The newest prediction: where it ends stands in 3-D in violet; its trails, too, until a
        rollout comes."""
        with self._lock:
            self._predicted = trajectory

    def show_title(self, title: str) -> None:
        """What stands over the status."""
        self._server.gui.set_panel_label(title)

    def show_camera(self, camera: PinholeCamera) -> None:
        """Intrinsics of the live camera, for its frustum."""
        self.scene.show_camera(camera)

    def show_status(
        self, rows: Mapping[str, str], message: str = "", *, words: Mapping[str, str] | None = None
    ) -> None:
        """Names and values in a table, and a message beneath (what is missing, say).

        Args:
            words: names and texts too long for a table, which stand above it.
        """
        lines = ["| | |", "|:--|--:|", *(f"| {k} | **{v}** |" for k, v in rows.items())]
        above = "".join(f"{k}: **{v}**\n\n" for k, v in (words or {}).items())
        text = above + "\n".join(lines) + (f"\n\n{message}" if message else "")
        if text != self._status.content:
            self._status.content = text

    def close(self) -> None:
        """Stop serving."""
        self._closed.set()
        self._watched.set()
        self._thread.join(timeout=5.0)
        with contextlib.redirect_stdout(io.StringIO()):
            self._server.stop()

    def _build_panels(self) -> None:
        gui = self._server.gui
        gui.configure_theme(
            dark_mode=True, show_logo=False, show_share_button=False, brand_color=(255, 171, 64)
        )
        live, imagined = gui.add_panel(), gui.add_panel()
        with live.add_tab("Live camera", viser.Icon.VIDEO):
            self._live_image = gui.add_image(placeholder("waiting for the camera"))
        with imagined.add_tab("Imagined future", viser.Icon.SPARKLES):
            self._imagined_image = gui.add_image(placeholder("waiting for the first rollout"))
        live.float(x=8, y=8, width=_PANEL_WIDTH)
        imagined.float(x=_PANEL_WIDTH + 16, y=8, width=_PANEL_WIDTH)
        gui.main_panel.float(x=-8, y=8, width=244)
        self._status = gui.add_markdown("waiting for data")
        self._overlay = gui.add_checkbox("Joints on camera", True)
        self._planned = gui.add_checkbox("Joints on imagination", False)
        self._trails = gui.add_checkbox("Imagined hands in 3-D", True)
        self._ghosts = gui.add_checkbox("Predicted hands in 3-D", True)

    def _clients_changed(self, _: viser.ClientHandle) -> None:
        with self._clients_lock:  # browsers come and go in several threads of the server
            watched = self.viewers > 0
            if watched == self._watched.is_set() or self._closed.is_set():
                return
            if watched:
                self._watched.set()
            else:
                self._watched.clear()
            if self._on_viewers is not None:
                self._on_viewers(watched)

    def _run(self) -> None:
        sent: LiveView | None = None
        while True:
            self._watched.wait()
            if self._closed.is_set():
                return
            start = time.monotonic()
            with self._lock:
                live, self._next, coming = self._live, None, self._next
            if coming is not None:
                self._loop.queue(coming)
            with self._server.atomic():
                if live is not None and live is not sent:
                    self._send_live(live)
                    sent = live
                self._send_imagined(start)
                self._send_prediction()
            self._closed.wait(max(0.0, self._period - (time.monotonic() - start)))

    def _send_live(self, view: LiveView) -> None:
        image = enlarge(view.image)
        if view.hands is not None:
            self.scene.show_hands(view.hands.positions, view.hands.valid)
            if view.pixels is not None and self._overlay.value:
                scale = image.shape[1] / view.image.shape[1]
                pixels = (view.pixels + 0.5) * scale - 0.5
                image = draw_hands(image, pixels, view.hands.valid, view.visibility)
        self._live_image.image = caption(image, "now")

    def _send_imagined(self, now: float) -> None:
        shown = self._loop.at(now)
        if shown is None:
            with self._lock:
                self._send_motion(self._predicted, -1)
            return
        view, k, fresh = shown
        motion = view.trajectory
        self._send_motion(motion, k)
        if not fresh:
            return
        image = enlarge(view.frames[k])
        if motion is not None and view.camera is not None and self._planned.value:
            camera = view.camera.resized(image.shape[1], image.shape[0])
            image = draw_hands(image, camera.project(motion.positions[k]), motion.valid[k])
        note = f"+{view.times[k]:.1f} s" + (f"   {view.note}" if view.note else "")
        progress = view.times[k] / view.times[-1] if view.times[-1] > 0 else 1.0
        self._imagined_image.image = caption(image, note, progress)

    def _send_prediction(self) -> None:
        """Where the newest prediction ends, unless the user switched it off."""
        with self._lock:
            prediction = self._predicted if self._ghosts.value else None
        if prediction is self._shown_prediction:
            return
        self._shown_prediction = prediction
        if prediction is None:
            self.scene.predicted.hide()
            return
        end = prediction.in_reference().frame(len(prediction) - 1)
        self.scene.predicted.show(end.positions, end.valid)

    def _send_motion(self, motion: HandTrajectory | None, k: int) -> None:
        """Trails of a motion and its hands at frame k, unless the user switched them off."""
        if motion is None or not self._trails.value:
            self.scene.clear_motion()
            self._shown_motion = None
            return
        if motion is not self._shown_motion:
            self.scene.show_motion(motion)
            self._shown_motion, self._still = motion, motion.in_reference()
        assert self._still is not None
        self.scene.ghost.show(self._still.positions[k], self._still.valid[k])


class RolloutLoop:
    """Plays the newest rollout in real time, over and over; a newer one waits for the end."""

    def __init__(self) -> None:
        self._view: ImaginedView | None = None
        self._next: ImaginedView | None = None
        self._start = 0.0
        self._last = -1

    def queue(self, view: ImaginedView) -> None:
        """Play ``view`` when the current pass is over, or at once if nothing plays."""
        self._next = view

    def at(self, now: float) -> tuple[ImaginedView, int, bool] | None:
        """The rollout, frame number and whether that differs from the last call's, at time ``now``
        (seconds on any steady clock); None before the first rollout."""
        view = self._view
        ended = view is None or now - self._start > view.times[-1] + PAUSE
        if ended:
            if self._next is not None:
                self._view, self._next, self._last = self._next, None, -1
            self._start = now
        view = self._view
        if view is None:
            return None
        k = int(np.searchsorted(view.times, now - self._start + 1e-6, side="right")) - 1
        fresh, self._last = k != self._last, k
        return view, k, fresh
