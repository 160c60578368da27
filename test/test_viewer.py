"""The browser page as a user sees it: pixels of a real (headless) browser, over real DDS.

The page's pictures have colours that nothing else on it has; they must appear on the screen.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ego_world_model.camera import PinholeCamera
from ego_world_model.hands import NUM_SLOTS, HandJoints, HandTrajectory

pytest.importorskip("viser", reason="the browser page needs viser (pip install viser)")
from headless import CHROMIUM, Browser
from support import wait_until

from ego_world_model.ui.page import (
    PAUSE,
    ImaginedView,
    LiveView,
    RolloutLoop,
    ViewerPage,
)

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt: chromium)")

LIVE, IMAGINED = (20, 150, 60), (150, 40, 160)
CAMERA = PinholeCamera(640, 480, 605, 605, 320, 240)


def share(screen: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """(H, W) whether a pixel shows the colour, as far as JPEG leaves it."""
    return np.abs(screen.astype(int) - colour).max(axis=2) < 14


def shows(browser: Browser, colour: tuple[int, int, int]) -> bool:
    """Whether a large part of the screen has the colour."""
    return bool(share(browser.screenshot(), colour).sum() > 50_000)


def hands() -> HandJoints:
    rng = np.random.default_rng(0)
    positions = rng.uniform((-0.2, 0.0, 0.4), (0.2, 0.2, 0.5), (NUM_SLOTS, 3))
    return HandJoints(positions, np.ones(NUM_SLOTS, bool))


def plain(colour: tuple[int, int, int], height: int = 480, width: int = 640) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def motion() -> HandTrajectory:
    positions = np.stack([hands().positions + (0, 0, 0.01 * k) for k in range(17)])
    return HandTrajectory(np.arange(17) / 10, positions)


@pytest.fixture
def watched() -> list[bool]:
    return []


@pytest.fixture
def page(watched: list[bool]) -> Iterator[ViewerPage]:
    page = ViewerPage(port=0, title="test robot", on_viewers=watched.append)
    yield page
    page.close()


@needs_browser
def test_browser_shows_camera_with_joints_imagination_and_status(page, watched, tmp_path):
    page.show_camera(CAMERA)
    joints = hands()
    page.show_live(LiveView(plain(LIVE), joints, CAMERA.project(joints.positions)))
    frames = np.repeat(plain(IMAGINED, 96, 128)[None], 17, axis=0)
    page.show_imagined(
        ImaginedView(frames, motion().times, motion(), CAMERA.resized(128, 96), "tiny")
    )
    page.show_status({"Camera": "15.0 Hz"}, "nothing is missing")
    with Browser(page.url, tmp_path) as browser:
        wait_until(
            lambda: shows(browser, LIVE) and shows(browser, IMAGINED),
            timeout=60,
            what="both pictures on the screen",
        )
        screen, text = browser.screenshot(), browser.text()
        page.show_live(LiveView(plain(LIVE)))  # without joints more of the picture keeps its colour
        wait_until(
            lambda: bool(
                share(browser.screenshot(), LIVE).sum() > share(screen, LIVE).sum() + 2000
            ),
            timeout=30,
            what="the picture without joints",
        )
    for word in ("Live camera", "Imagined future", "test robot", "15.0 Hz", "nothing is missing"):
        assert word in text
    live, imagined = (np.argwhere(share(screen, colour)) for colour in (LIVE, IMAGINED))
    # Columns, without the few pixels elsewhere that happen to have the colour (overlay, hands).
    live, imagined = (np.percentile(pixels[:, 1], (2, 98)) for pixels in (live, imagined))
    assert live[1] < imagined[0], "live stands left of imagined"
    assert min(np.ptp(live), np.ptp(imagined)) > 400, "pictures are large"
    wait_until(lambda: watched == [True, False], what=f"the page to notice the browser: {watched}")


def test_views_that_do_not_fit_are_refused_where_they_are_made():
    """A wrong shape is told to the sender; it never reaches the page's thread."""
    joints = hands()
    with pytest.raises(ValueError, match="image"):
        LiveView(np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="pixels"):
        LiveView(plain(LIVE), joints, np.zeros((3, 2)))
    frames = np.zeros((17, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="17 frames, 16 times"):
        ImaginedView(frames, np.arange(16) / 10)
    with pytest.raises(ValueError, match="17 trajectory steps"):
        ImaginedView(frames[:16], np.arange(16) / 10, motion())


def test_page_works_for_nobody_when_nobody_looks(page, monkeypatch):
    """Without a browser no picture is encoded, however many are shown."""
    drawn: list[int] = []
    monkeypatch.setattr("ego_world_model.ui.page.caption", lambda *_: drawn.append(1))
    for _ in range(20):
        page.show_live(LiveView(plain(LIVE)))
        time.sleep(0.02)
    assert page.viewers == 0 and not drawn


def test_page_is_for_this_machine_only_and_finds_a_port(page):
    """A second page asked for the first one's port serves on another, on the loopback."""
    port = int(page.url.rsplit(":", 1)[1])
    second = ViewerPage(port=port)
    try:
        assert second.url.startswith("http://127.0.0.1:") and second.url != page.url
    finally:
        second.close()


def test_rollout_plays_in_real_time_and_a_newer_one_waits_for_the_end():
    def view(note: str) -> ImaginedView:
        return ImaginedView(np.zeros((17, 4, 4, 3), np.uint8), np.arange(17) / 10, note=note)

    loop = RolloutLoop()
    assert loop.at(100.0) is None
    loop.queue(view("a"))
    assert loop.at(100.0)[1:] == (0, True)
    assert loop.at(100.05)[1:] == (0, False)
    assert loop.at(100.8)[1:] == (8, True)
    loop.queue(view("b"))
    loop.queue(view("c"))
    assert (loop.at(101.6)[0].note, loop.at(101.6)[1]) == ("a", 16)
    later = 101.6 + PAUSE + 0.1
    assert (loop.at(later)[0].note, loop.at(later)[1]) == ("c", 0)
    again = later + 1.6 + PAUSE + 0.1
    assert (loop.at(again)[0].note, loop.at(again)[1]) == ("c", 0)


# ------------------------------------------------------------------------------- over DDS


class Robot:
    """What the viewer listens to, published by the test's own node."""

    def __init__(self, node: Any) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from sensor_msgs.msg import CameraInfo, CompressedImage, Image

        from ego_world_model import msg
        from ego_world_model.ros.qos import advertise

        self.node = node
        self.publishers = {
            topic: advertise(node, kind, topic)
            for topic, kind in (
                ("camera/color/image_raw", Image),
                ("camera/color/image_raw/compressed", CompressedImage),
                ("camera/color/camera_info", CameraInfo),
                ("hands/joints", msg.HandJoints),
                ("imagined/rollout", msg.Rollout),
                ("/diagnostics", DiagnosticArray),
            )
        }

    def subscribers(self) -> int:
        """Subscriptions of others to the topics that cost something."""
        return sum(
            publisher.get_subscription_count()
            for topic, publisher in self.publishers.items()
            if topic != "/diagnostics"
        )

    def publish(self) -> None:
        from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
        from std_msgs.msg import Header

        from ego_world_model import msg
        from ego_world_model.hands import SLOT_NAMES
        from ego_world_model.ros.conversions import (
            hand_joints_to_message,
            hand_trajectory_to_message,
            image_from_array,
            info_from_camera,
        )

        stamp = self.node.get_clock().now().to_msg()
        header = Header(stamp=stamp, frame_id="camera_color_optical_frame")
        joints = hands()
        small = CAMERA.resized(128, 96)
        self.publishers["camera/color/image_raw"].publish(
            image_from_array(plain(LIVE), "rgb8", header=header)
        )
        self.publishers["camera/color/camera_info"].publish(info_from_camera(CAMERA, header=header))
        self.publishers["hands/joints"].publish(
            hand_joints_to_message(
                joints,
                header=header,
                embodiment="g1_dex3",
                slot_names=SLOT_NAMES,
                pixels=CAMERA.project(joints.positions),
                visibility=np.ones(NUM_SLOTS),
                image_size=(640, 480),
            )
        )
        frame = image_from_array(plain(IMAGINED, 96, 128), "rgb8", header=header)
        self.publishers["imagined/rollout"].publish(
            msg.Rollout(
                header=header,
                checkpoint="tiny",
                times=motion().times.tolist(),
                frames=[frame] * 17,
                camera_info=info_from_camera(small, header=header),
                trajectory=hand_trajectory_to_message(motion(), header=header, source="planned"),
                latency=0.75,
            )
        )
        trouble = DiagnosticStatus(
            level=DiagnosticStatus.WARN, name="/world_model", message="motion is late"
        )
        self.publishers["/diagnostics"].publish(DiagnosticArray(status=[trouble]))


@pytest.fixture
def robot(ros_node: Any) -> Robot:
    return Robot(ros_node)


def start_viewer(**parameters: object) -> tuple[Any, str]:
    """The node as a process and its page's URL."""
    from support import node

    process = node("viewer_node", parameters={"port": 0, **parameters})
    try:
        line = process.wait_for("http://127.0.0.1:", timeout=60)
    except AssertionError:
        process.stop()
        raise
    return process, "http://" + line.split("http://")[1].split()[0]


def test_node_subscribes_to_nothing_while_nobody_looks(robot):
    process, _ = start_viewer()
    with process:
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            assert robot.subscribers() == 0
            robot.publish()
            time.sleep(0.2)
        assert process.alive
        assert process.stop() == 0, process.output
        assert "Traceback" not in process.output


@needs_browser
def test_node_shows_one_eye_of_compressed_pairs(robot, tmp_path):
    from sensor_msgs.msg import CompressedImage

    from ego_world_model.media import encode_jpeg

    pair = CompressedImage(
        format="jpeg", data=encode_jpeg(np.hstack([plain(IMAGINED), plain(LIVE)]))
    )
    process, url = start_viewer(image_transport="compressed", stereo="right")
    with process, Browser(url, tmp_path) as browser:

        def shown() -> bool:
            robot.publishers["camera/color/image_raw/compressed"].publish(pair)
            return shows(browser, LIVE)

        wait_until(shown, timeout=90, what="the right eye on the screen")
        assert not shows(browser, IMAGINED), "the left eye is not shown"


@needs_browser
def test_node_brings_the_graph_to_the_browser_and_lets_go(robot, tmp_path):
    """Pictures, robot, latency and trouble appear, after a broken message too; closing the browser
    unsubscribes."""
    from ego_world_model import msg

    process, url = start_viewer()
    with process:
        with Browser(url, tmp_path) as browser:

            def reported() -> bool:
                robot.publishers["imagined/rollout"].publish(msg.Rollout(times=[0.0]))
                return "/imagined/rollout: frames" in process.output

            wait_until(reported, timeout=90, what="the complaint about a rollout without frames")

            def shown() -> bool:
                robot.publish()
                return shows(browser, LIVE) and shows(browser, IMAGINED)

            wait_until(shown, timeout=90, what="both pictures on the screen")

            def told() -> bool:
                robot.publish()
                text = browser.text()
                return all(word in text for word in ("g1_dex3", "0.75 s", "motion is late"))

            wait_until(told, timeout=30, what="robot, latency and trouble on the page")
        wait_until(lambda: robot.subscribers() == 0, timeout=30, what="the viewer to unsubscribe")
        assert process.alive, process.output
        assert process.stop() == 0, process.output
        assert "Traceback" not in process.output


def test_node_says_what_to_install_where_viser_is_missing(ros_domain, tmp_path: Path):
    """Without viser the node refuses to start, in one line with the remedy."""
    program = (
        "import sys\n"
        "sys.modules['viser'] = None\n"
        "from ego_world_model.ros.viewer_node import main\n"
        "sys.exit(main(['viewer']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.returncode == 1
    assert "viser" in done.stderr and "viewer:=false" in done.stderr
    assert "Traceback" not in done.stderr
