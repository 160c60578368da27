"""Annotated pixels in a file that is written after every change, so a session can be gone on with.

JSON: ``{"robot": …, "frames": {frame: {slot: [u, v]}}}``, pixel centres at integer coordinates.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ego_world_model.calibration.problem import CalibrationError

Pixel = tuple[float, float]


class Annotations:
    """Pixels by frame and slot, with undo; every change is saved at once.

    Args:
        path: JSON file; read if it exists, written at every change (whole or not at all).
        robot: name of the embodiment, which a file must agree with.

    Raises:
        CalibrationError: naming the file and the entry that is wrong.
    """

    def __init__(self, path: str | Path, robot: str) -> None:
        self.path = Path(path)
        self.robot = robot
        self._frames: dict[str, dict[str, Pixel]] = {}
        self._history: list[tuple[str, str, Pixel | None]] = []
        if self.path.exists():
            self._frames = _read(self.path, robot)

    def of(self, frame: str) -> Mapping[str, Pixel]:
        """Slot → (u, v) of one frame."""
        return dict(self._frames.get(frame, {}))

    @property
    def frames(self) -> tuple[str, ...]:
        """Frames that have annotations."""
        return tuple(name for name, pixels in self._frames.items() if pixels)

    def __len__(self) -> int:
        return sum(map(len, self._frames.values()))

    def set(self, frame: str, slot: str, pixel: Pixel | None) -> None:
        """Annotate a joint, move its annotation, or remove it (None)."""
        before = self._frames.get(frame, {}).get(slot)
        if pixel == before:
            return
        self._history.append((frame, slot, before))
        self._put(frame, slot, pixel)
        self.save()

    def undo(self) -> tuple[str, str] | None:
        """Take back the last change of this session; the frame and slot it was in, or None."""
        if not self._history:
            return None
        frame, slot, before = self._history.pop()
        self._put(frame, slot, before)
        self.save()
        return frame, slot

    def save(self) -> None:
        """Write the file; the folder is made if needed."""
        text = {"robot": self.robot, "frames": {name: self._frames[name] for name in self.frames}}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.path)

    def _put(self, frame: str, slot: str, pixel: Pixel | None) -> None:
        pixels = self._frames.setdefault(frame, {})
        if pixel is None:
            pixels.pop(slot, None)
        else:
            pixels[slot] = (float(pixel[0]), float(pixel[1]))


def _read(path: Path, robot: str) -> dict[str, dict[str, Pixel]]:
    try:
        text = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CalibrationError(f"{path} is no JSON: {error}") from None
    if not isinstance(text, dict) or not isinstance(text.get("frames"), dict):
        raise CalibrationError(
            f'{path}: an annotation file is {{"robot": …, "frames": {{frame: {{slot: [u, v]}}}}}}'
        )
    if text.get("robot") != robot:
        raise CalibrationError(
            f"{path}: annotations are of robot {text.get('robot')!r}, not {robot!r}; give --robot, "
            "or another file with --annotations"
        )
    frames: dict[str, dict[str, Pixel]] = {}
    for frame, pixels in text["frames"].items():
        frames[frame] = {}
        for slot, pixel in dict(pixels).items():
            numbers = np.asarray(pixel, dtype=object)
            if numbers.shape != (2,) or not all(isinstance(v, int | float) for v in numbers):
                raise CalibrationError(f"{path}: {frame}: {slot} must be [u, v], got {pixel}")
            frames[frame][slot] = (float(pixel[0]), float(pixel[1]))
    return frames
