"""What every importer hands over: frames of one recording, and a tally of what was left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ego_world_model.camera import PinholeCamera


class RejectedError(Exception):
    """A recording cannot be imported; says why and what helps."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason, self.remedy = reason, remedy


@dataclass(frozen=True, kw_only=True)
class SourceFrame:
    """One camera frame with the joints that belong to its instant.

    Attributes:
        stamp: nanoseconds, any epoch, the same for all frames of a recording.
        load: decodes the picture, (H, W, 3) uint8 RGB; called only for frames that are kept.
        q: (nq,) rad, measured, in ``Embodiment.joint_names`` order.
        action: (nq,) rad, commanded for the next frame, NaN where the recording has none.
        camera: intrinsics of the picture where the recording has them.
        number: the frame's number in the recording, from 0.
        load_depth: decodes the depth image that belongs to the picture, (H, W) uint16 millimetres
            and 0 where unknown; None where the recording has none.
        task: instruction that held at the frame, None where the recording has one for all.
    """

    stamp: int
    load: Callable[[], NDArray[np.uint8]]
    q: NDArray[np.float64]
    number: int
    action: NDArray[np.float64] | None = None
    camera: PinholeCamera | None = None
    load_depth: Callable[[], NDArray[np.uint16]] | None = None
    task: str | None = None


@dataclass(kw_only=True)
class Tally:
    """What became of a recording's frames, and what had to be assumed.

    Attributes:
        read: frames that the recording holds (those that could be looked at).
        rate: frames a second that the recording holds on average, None before two were read.
        thinned: frames left out because the recording is faster than the dataset.
        dropped: reason → [count, first example].
        notes: assumptions, each once.
    """

    read: int = 0
    rate: float | None = None
    thinned: int = 0
    written: int = 0
    episodes: int = 0
    dropped: dict[str, list[Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def drop(self, reason: str, example: str = "", count: int = 1) -> None:
        """Counts frames that are left out for ``reason``."""
        self.dropped.setdefault(reason, [0, example])[0] += count

    def note(self, text: str) -> None:
        """Keeps an assumption, once."""
        if text not in self.notes:
            self.notes.append(text)


class Source(Protocol):
    """One recording.

    Attributes:
        name: stable between runs and machines; episodes are recognised by it when an interrupted
            import goes on.
        kind: format, for the report.
    """

    name: str
    kind: str

    def task(self) -> str:
        """Instruction in plain words; may raise ``RejectedError``."""
        ...

    def frames(self, tally: Tally) -> Iterator[SourceFrame]:
        """Frames in order of time, streamed.

        Raises:
            RejectedError: the recording cannot be used.
        """
        ...


def source_name(path: Path, root: Path) -> str:
    """A recording's name: its place below the folder that the user gave, and that folder's name."""
    root = root.resolve()
    return str(root.name / path.resolve().relative_to(root))


def spell_out(name: str) -> str:
    """A folder's name as an instruction: ``pick_up-cup`` → ``pick up cup``."""
    return " ".join(name.replace("_", " ").replace("-", " ").split())


def one_eye(image: NDArray[np.uint8], tally: Tally) -> NDArray[np.uint8]:
    """(H, W, 3) → the left half of a side-by-side stereo picture; others unchanged."""
    height, width = image.shape[:2]
    if width < 2.5 * height:
        return image
    tally.note(f"pictures are {width}x{height}, two eyes side by side: the left half is used")
    return image[:, : width // 2]
