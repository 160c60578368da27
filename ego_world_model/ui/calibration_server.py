"""The annotation page: a small HTTP server on the loopback around one calibration session.

Clicking sub-pixels on a zoomed picture wants a plain canvas, so the page is three static files and
a JSON interface: ``GET /api/session`` describes the frames and joints, ``GET /image/N`` is a
picture, ``POST /api/annotate``, ``/api/undo`` and ``/api/save`` change things. Every answer to a
change carries the state that follows from it, so that the page holds none of its own.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ego_world_model.calibration import CalibrationError
from ego_world_model.calibration.output import cautions, summary
from ego_world_model.calibration.session import CalibrationSession
from ego_world_model.calibration.solver import CalibrationResult
from ego_world_model.drawing import slot_colours
from ego_world_model.hands import NUM_SLOTS, bones, slot_index
from ego_world_model.media import encode_png

_FOLDER = Path(__file__).parent / "calibration_page"
_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
_MAX_BODY = 10_000  # bytes of a request; all of ours are far smaller


class CalibrationPage:
    """Serves a session until closed.

    Args:
        session: owned by the page from now on; requests take turns on it.
        save: writes the result; returns a sentence saying where.
        port: on 127.0.0.1; 0 takes a free one.

    Raises:
        OSError: if the port is taken.
    """

    def __init__(
        self,
        session: CalibrationSession,
        *,
        save: Callable[[CalibrationResult], str],
        port: int = 0,
    ) -> None:
        self._session, self._save = session, save
        self._lock = threading.Lock()
        self._names = list(session.frames)
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="calibration page", daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    @property
    def hosts(self) -> tuple[str, str]:
        """Host headers that are answered: a foreign name that resolves to the loopback is not."""
        port = self._server.server_address[1]
        return f"127.0.0.1:{port}", f"localhost:{port}"

    def close(self) -> None:
        """Stop serving; annotations are already in their file."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)

    # ---------------------------------------------------------------- requests

    def image(self, number: int) -> bytes:
        """PNG of a frame.

        Raises:
            IndexError: for a frame that is not there.
        """
        if not 0 <= number < len(self._names):
            raise IndexError(number)
        return encode_png(self._session.frames[self._names[number]].image)

    def describe(self) -> dict[str, Any]:
        """What never changes: frames, joints with their colours, and bones between them."""
        session = self._session
        numbers = [slot_index(name) for name in session.slots]
        colours = slot_colours(max(NUM_SLOTS, max(numbers) + 1))
        valid = [n in numbers for n in range(len(colours))]
        position = {n: i for i, n in enumerate(numbers)}
        return {
            "robot": session.kinematics.robot.name,
            "annotation_file": session.annotations.path.name,
            "frames": [
                {"name": name, "width": frame.camera.width, "height": frame.camera.height}
                for name, frame in session.frames.items()
            ],
            "slots": [
                {"name": name, "colour": "rgb({},{},{})".format(*colours[n])}
                for name, n in zip(session.slots, numbers, strict=True)
            ],
            "bones": [[position[a], position[b]] for a, b in bones(valid)],
        }

    def state(self) -> dict[str, Any]:
        """What follows from the annotations: the solution, and every frame's projections."""
        with self._lock:
            return self._state()

    def annotate(self, request: dict[str, Any]) -> dict[str, Any]:
        """``{"frame": name, "slot": name, "pixel": [u, v] or null}`` → the new state."""
        pixel = request.get("pixel")
        if pixel is not None:
            if not isinstance(pixel, list) or not all(_is_number(v) for v in pixel):
                raise CalibrationError(f"pixel must be [u, v] or null, got {pixel!r}")
            pixel = tuple(pixel)
        with self._lock:
            self._session.annotate(str(request.get("frame")), str(request.get("slot")), pixel)
            return self._state()

    def undo(self, _: dict[str, Any]) -> dict[str, Any]:
        """Take back the last change → the new state, and in ``undone`` where it was."""
        with self._lock:
            undone = self._session.undo()
            return {**self._state(), "undone": undone}

    def save(self, _: dict[str, Any]) -> dict[str, Any]:
        """Write the result → the state and a sentence, ``saved``."""
        with self._lock:
            solution = self._session.solution()
            if solution.result is None:
                raise CalibrationError(f"nothing to save: {solution.problem}")
            return {**self._state(), "saved": self._save(solution.result)}

    def _state(self) -> dict[str, Any]:
        session = self._session
        solution = session.solution()
        frames = {}
        for name in session.frames:
            frames[name] = {
                "annotations": session.annotations.of(name),
                "nominal": _pixels(session.projections(name, calibrated=False)),
                "calibrated": _pixels(session.projections(name, calibrated=True)),
            }
        return {
            "frames": frames,
            "problem": solution.problem,
            "result": None if solution.result is None else _report(solution.result),
        }


def _report(result: CalibrationResult) -> dict[str, Any]:
    deviations = result.standard_deviations
    rows = []
    for parameter, value, deviation in zip(
        result.parameters, result.values, deviations, strict=True
    ):
        factor, unit = parameter.readable
        rows.append(
            {
                "name": parameter.name,
                "value": value * factor,
                "deviation": None if math.isnan(deviation) else deviation * factor,
                "bound": parameter.bound * factor,
                "unit": unit,
                "held": parameter.name in result.active_bounds,
            }
        )
    return {
        "summary": summary(result),
        "rms": result.rms,
        "nominal_rms": result.nominal_rms,
        "parameters": rows,
        "constrained": result.observability.constrained,
        "observability": result.observability.sentence(),
        "cautions": cautions(result),
        "by_slot": {name: row[1] for name, row in result.rms_by_slot().items()},
    }


def _pixels(array: Any) -> list[list[float] | None]:
    """(S, 2) as JSON, None where there is no image (JSON has no NaN)."""
    return [None if math.isnan(u + v) else [u, v] for u, v in array.tolist()]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _handler(page: CalibrationPage) -> type[BaseHTTPRequestHandler]:
    """The request handler class of one page."""
    posts: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "/api/annotate": page.annotate,
        "/api/undo": page.undo,
        "/api/save": page.save,
    }

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.headers.get("Host") not in page.hosts:
                self._json(HTTPStatus.FORBIDDEN, {"error": "this page answers on 127.0.0.1 only"})
            elif self.path in _PAGE:
                file, kind = _PAGE[self.path]
                self._send(HTTPStatus.OK, kind, (_FOLDER / file).read_bytes())
            elif self.path == "/api/session":
                self._json(HTTPStatus.OK, {**page.describe(), "state": page.state()})
            elif self.path.startswith("/image/"):
                try:
                    picture = page.image(int(self.path.removeprefix("/image/")))
                except (ValueError, IndexError):
                    self._json(HTTPStatus.NOT_FOUND, {"error": f"no picture {self.path}"})
                else:
                    self._send(HTTPStatus.OK, "image/png", picture)
            else:
                self._json(HTTPStatus.NOT_FOUND, {"error": f"no page {self.path}"})

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(min(length, _MAX_BODY))
            # A page of another site can neither send JSON here without asking first, nor name us.
            kind = self.headers.get("Content-Type", "")
            if self.headers.get("Host") not in page.hosts or not kind.startswith(
                "application/json"
            ):
                self._json(
                    HTTPStatus.FORBIDDEN, {"error": "JSON from this page's own address only"}
                )
            elif self.path not in posts:
                self._json(HTTPStatus.NOT_FOUND, {"error": f"no page {self.path}"})
            else:
                try:
                    request = json.loads(body)
                    if not isinstance(request, dict):
                        raise ValueError("a request is a JSON object")
                    answer = posts[self.path](request)
                except (ValueError, OSError) as error:
                    self._json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
                else:
                    self._json(HTTPStatus.OK, answer)

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are no news."""

        def _json(self, status: HTTPStatus, content: dict[str, Any]) -> None:
            self._send(status, "application/json", json.dumps(content, allow_nan=False).encode())

        def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

    return Handler
