"""The annotation page as a user works with it: clicks, wheel and keys in a headless Chromium."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from headless import CHROMIUM, Browser
from mounts import diverse_poses, pixels
from support import wait_until

from ego_world_model.calibration import (
    CalibrationOptions,
    CalibrationResult,
    corrected_mount,
)
from ego_world_model.calibration.annotations import Annotations
from ego_world_model.calibration.frames import CalibrationFrame
from ego_world_model.calibration.session import CalibrationSession
from ego_world_model.embodiment import load_embodiment
from ego_world_model.kinematics import HandKinematics
from ego_world_model.ui.calibration_server import CalibrationPage

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt: chromium)")

ROBOT = load_embodiment("g1_dex3")
FK = HandKinematics(ROBOT)
MOUNT = corrected_mount(ROBOT.camera_pose, np.radians([3.0, -2.0, 1.0]), [0.02, 0.01, -0.015])
PLAIN, MARK = (40, 60, 90), (0, 255, 0)
MARKED = (300, 220)
"""One pixel (u, v) of the pictures that has a colour of its own."""


@pytest.fixture
def saved() -> list[CalibrationResult]:
    return []


@pytest.fixture
def page(tmp_path, saved) -> Iterator[CalibrationPage]:
    image = np.full((480, 640, 3), PLAIN, np.uint8)
    image[MARKED[1], MARKED[0]] = MARK
    frames = [
        CalibrationFrame(name=f"pose {i}", image=image, camera=ROBOT.camera, q=q)
        for i, q in enumerate(diverse_poses(FK, 3))
    ]
    kept = Annotations(tmp_path / "annotations.json", ROBOT.name)
    session = CalibrationSession(frames, kept, FK, CalibrationOptions())

    def save(result: CalibrationResult) -> str:
        saved.append(result)
        return "Saved calibration.yaml"

    page = CalibrationPage(session, save=save)
    yield page
    page.close()


class Annotator:
    """A user of the page."""

    def __init__(self, browser: Browser, file: Path) -> None:
        self._browser, self._file = browser, file
        wait_until(lambda: self.value("state !== null"), timeout=30, what="the page shows a frame")

    def value(self, expression: str) -> Any:
        """A JavaScript expression's value in the page."""
        reply = self._browser.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def screen(self, pixel: tuple[float, float]) -> tuple[float, float]:
        """Where a picture's pixel is in the window."""
        left, top = self.value(
            "[canvas.getBoundingClientRect().x, canvas.getBoundingClientRect().y]"
        )
        x, y = self.value(f"toScreen({list(pixel)})")
        return left + x, top + y

    def mouse(self, kind: str, at: tuple[float, float], **more: Any) -> None:
        self._browser.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], **more)

    def click(self, at: tuple[float, float]) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, at, button="left", clickCount=1)
        self.settle()

    def key(self, key: str, *, modifiers: int = 0) -> None:
        """modifiers: 2 is Ctrl, 8 is Shift."""
        for kind in ("rawKeyDown", "keyUp"):
            self._browser.call("Input.dispatchKeyEvent", type=kind, key=key, modifiers=modifiers)
        self.settle()

    def settle(self) -> None:
        """Until the server has answered all changes."""
        self.value("queue.then(() => new Promise((done) => setTimeout(done, 0)))")

    def annotations(self) -> dict[str, dict[str, list[float]]]:
        """What the annotation file holds now."""
        return json.loads(self._file.read_text())["frames"] if self._file.exists() else {}

    def slot(self) -> str:
        return self.value("session.slots[slot].name")


@pytest.fixture
def annotator(page, tmp_path) -> Iterator[tuple[Annotator, Browser]]:
    with Browser(page.url, tmp_path / "browser") as browser:
        yield Annotator(browser, tmp_path / "annotations.json"), browser


@needs_browser
def test_clicks_zoom_undo_and_keys_make_annotations(annotator):
    user, browser = annotator
    assert "no solution yet" in browser.text() and "pose 0" in browser.text()

    # a click lands on the pixel below it, sub-pixel when zoomed, and the next joint is up
    user.value("select(session.slots.findIndex((s) => s.name === 'left_index_mcp'))")
    first = user.slot()
    user.click(user.screen((200.0, 150.0)))
    assert user.annotations()["pose 0"][first] == pytest.approx([200.0, 150.0], abs=0.6)
    second = user.slot()
    assert second != first
    before = user.value("view.scale")
    for _ in range(3):
        user.mouse("mouseWheel", user.screen(MARKED), deltaX=0, deltaY=-500)
    user.settle()
    assert user.value("view.scale") > 8 * before
    square = np.argwhere(np.abs(browser.screenshot().astype(int) - MARK).max(axis=2) < 30)
    assert len(square) > 50, "the marked pixel is a square on the screen"
    row, column = square.mean(axis=0)
    user.click((float(column), float(row)))
    u, v = user.annotations()["pose 0"][second]
    assert (u, v) == pytest.approx(MARKED, abs=0.1), "pixel centres are at integers"

    # nudge, undo, remove
    user.value(f"select(session.slots.findIndex((s) => s.name === '{second}'))")
    user.key("ArrowRight", modifiers=8)
    assert user.annotations()["pose 0"][second] == pytest.approx([u + 0.25, v], abs=0.006)
    user.key("z", modifiers=2)
    assert user.annotations()["pose 0"][second] == [u, v]
    user.key("Delete")
    assert second not in user.annotations()["pose 0"]
    user.key("z", modifiers=2)
    assert user.annotations()["pose 0"][second] == [u, v]

    # a drag moves the picture and annotates nothing
    held = user.annotations()
    start = user.screen((300.0, 220.0))
    end = (start[0] + 60, start[1] + 40)
    x = user.value("view.x")
    user.mouse("mousePressed", start, button="left", clickCount=1)
    user.mouse("mouseMoved", end, button="left", buttons=1)
    user.mouse("mouseReleased", end, button="left", clickCount=1)
    user.settle()
    assert user.value("view.x") == pytest.approx(x + 60, abs=1) and user.annotations() == held

    # keys for joints and frames, ends included; fit shows the whole picture again
    user.key("ArrowDown")
    assert user.slot() != second
    user.key("ArrowUp")
    assert user.slot() == second
    for _ in range(5):
        user.key("ArrowRight")
    assert "pose 2" in browser.text()
    user.key("ArrowLeft")
    assert "pose 1" in browser.text()
    user.key("f")
    assert user.value("view.scale") == pytest.approx(before)
    user.key("z", modifiers=2)
    assert "pose 0" in browser.text(), "undo shows where it was"


@needs_browser
def test_annotating_by_mouse_calibrates_live_and_saves(annotator, saved):
    """Three frames clicked at the true pixels; the numbers, the drawing and Save follow."""
    user, browser = annotator
    plain = shown(browser)
    for number, q in enumerate(diverse_poses(FK, 3)):
        user.value(f"goto({number})")
        for slot, pixel in list(pixels(FK, q, MOUNT, ROBOT.camera).items()):
            user.value(f"select(session.slots.findIndex((s) => s.name === '{slot}'))")
            user.click(user.screen(pixel))
    text = browser.text()
    assert "RMS" in text and "translation z" in text and "nominal mount" in text.lower()
    rms = user.value("state.result.rms")
    assert rms < 1.5 < 10 < user.value("state.result.nominal_rms")
    assert shown(browser) != plain

    # the calibrated joints lie on the annotations, the nominal ones far away with lines between
    near = red(browser)
    user.key("p")
    assert "Nominal" in browser.text() and red(browser) > near + 300
    user.key("p")

    user.key("s")
    assert "Saved calibration.yaml" in browser.text() and len(saved) == 1
    assert np.linalg.norm(saved[0].mount.translation - MOUNT.translation) < 5e-3
    assert saved[0].rms == pytest.approx(rms)


@needs_browser
def test_saving_too_early_says_what_is_missing(annotator, saved):
    user, browser = annotator
    user.key("s")
    assert "nothing to save: 0 annotated pixels" in browser.text() and not saved


def shown(browser: Browser) -> bytes:
    return browser.screenshot()[60:740, :1000].tobytes()


def red(browser: Browser) -> int:
    """Pixels of residual lines."""
    return int((np.abs(browser.screenshot().astype(int) - (255, 93, 93)).max(axis=2) < 20).sum())


# ------------------------------------------------------------------------------ the interface


def ask(
    url: str, body: Any = None, *, host: str | None = None, kind: str = "application/json"
) -> tuple[int, dict[str, Any]]:
    """Status and JSON of a request."""
    headers = {"Content-Type": kind} | ({"Host": host} if host else {})
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_impossible_requests_are_answered_with_the_reason(page):
    url = page.url + "api/annotate"
    sound = {"frame": "pose 0", "slot": "left_wrist", "pixel": [10, 10]}
    for change, words in (
        ({"frame": "pose 9"}, "no frame 'pose 9'"),
        ({"slot": "tail"}, "tail is no joint"),
        ({"pixel": [10]}, "two finite numbers"),
        ({"pixel": "left"}, "pixel must be [u, v]"),
        ({"pixel": [1e9, 0]}, "outside the picture"),
        ({"pixel": [True, 0]}, "pixel must be [u, v]"),
    ):
        status, answer = ask(url, {**sound, **change})
        assert status == 400 and words in answer["error"]
    assert ask(url, [1])[0] == 400 and ask(page.url + "image/7")[0] == 404
    assert ask(page.url + "page/../../secret")[0] == 404
    status, state = ask(url, sound)
    assert status == 200 and state["frames"]["pose 0"]["annotations"] == {"left_wrist": [10, 10]}


def test_other_sites_cannot_reach_the_page(page):
    """Neither by a name that resolves to the loopback, nor by a form, which cannot send JSON."""
    sound = {"frame": "pose 0", "slot": "left_wrist", "pixel": [10, 10]}
    assert ask(page.url + "api/session", host="evil.example")[0] == 403
    assert ask(page.url + "api/annotate", sound, host="evil.example")[0] == 403
    assert ask(page.url + "api/annotate", sound, kind="text/plain")[0] == 403
    assert ask(page.url + "api/session")[1]["state"]["frames"]["pose 0"]["annotations"] == {}
