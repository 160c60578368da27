"""A headless Chromium for tests that look at a page as a user would: in real time, as pixels."""

from __future__ import annotations

import base64
import io
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image
from websockets.sync.client import connect

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


class Browser:
    """One page in a headless Chromium with software WebGL, driven by its debugging protocol.

    Args:
        url: page to open.
        profile: an empty folder for the browser's files.
    """

    def __init__(self, url: str, profile: Path, *, width: int = 1280, height: int = 800) -> None:
        assert CHROMIUM is not None, "check CHROMIUM before opening a browser"
        self._process = subprocess.Popen(
            [
                CHROMIUM,
                "--headless=new",
                "--no-sandbox",
                "--use-gl=angle",
                "--use-angle=swiftshader",
                "--enable-unsafe-swiftshader",
                "--no-first-run",
                "--disable-background-networking",
                f"--user-data-dir={profile}",
                f"--window-size={width},{height}",
                "--remote-debugging-port=0",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = self._port(profile / "DevToolsActivePort")
            self._socket = connect(self._page(port), max_size=None)
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        self._numbers = itertools.count(1)
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + 60
        while not self._loaded():
            assert time.monotonic() < deadline, f"{url} did not load within 60 s"
            time.sleep(0.1)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the DevTools protocol and its result; AssertionError where it fails."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            reply = json.loads(self._socket.recv(timeout=60))
            if reply.get("id") == number:
                assert "error" not in reply, reply["error"]
                return reply["result"]

    def text(self) -> str:
        """All text that the page shows."""
        result = self.call("Runtime.evaluate", expression="document.body.innerText")
        return result["result"].get("value", "")

    def screenshot(self) -> np.ndarray:
        """(H, W, 3) uint8 of what the page shows now."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            return np.array(image.convert("RGB"))

    def close(self) -> None:
        self._socket.close()
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _loaded(self) -> bool:
        try:
            state = self.call("Runtime.evaluate", expression="document.readyState")
        except AssertionError:  # the page is between two documents
            return False
        return state["result"].get("value") == "complete" and bool(self.text())

    def _port(self, file: Path) -> int:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if file.exists() and (text := file.read_text().strip()):
                return int(text.splitlines()[0])
            assert self._process.poll() is None, "Chromium ended before it was ready"
            time.sleep(0.1)
        raise TimeoutError("Chromium did not open its debugging port within 60 s")

    @staticmethod
    def _page(port: int) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as reply:
            pages = json.load(reply)
        return next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
