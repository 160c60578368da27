"""What Humanoid Everyday and xr_teleoperate share: a folder per episode with a ``data.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ego_world_model.data.importers import joints as naming
from ego_world_model.data.importers.base import RejectedError, Tally, one_eye
from ego_world_model.embodiment import Embodiment
from ego_world_model.media import read_image

Group = tuple[str, Sequence[str], Sequence[float]]
"""A part of a frame's state: its field, the joints' names, their values."""


def find_episodes(path: Path) -> list[Path]:
    """The episode folders at or below a path, in order of their numbers.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [entry.parent for entry in path.rglob("data.json")]
    if not found:
        raise FileNotFoundError(
            f"no data.json at or below {path}; give a folder of episodes (unpack archives first)"
        )
    return sorted(found, key=lambda folder: (str(folder.parent), len(folder.name), folder.name))


def read_data(folder: Path) -> Any:
    """The content of an episode's ``data.json``.

    Raises:
        RejectedError: not JSON, such as one whose recorder was stopped before it was complete.
    """
    path = folder / "data.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RejectedError(
            f"{path.name} is not complete JSON ({error})",
            "the recorder was stopped while writing: remove the episode or close its brackets",
        ) from error


def load_picture(path: Path, tally: Tally) -> NDArray[np.uint8]:
    """(H, W, 3) RGB; of a side-by-side stereo picture the left half."""
    return one_eye(read_image(path), tally)


class GroupedJoints:
    """Joint values that come in groups (left arm, right hand, …), each with its own names.

    Args:
        required: joints without which hands cannot be placed.
        normalised: whether Inspire joints come as 0..1.
    """

    def __init__(
        self, robot: Embodiment, *, required: Sequence[str], tally: Tally, normalised: bool = True
    ) -> None:
        self._robot, self._required, self._tally = robot, required, tally
        self._normalised = normalised
        self._maps: dict[tuple[str, tuple[str, ...]], naming.JointMap] = {}
        self._checked = False

    def joints(self, groups: Sequence[Group]) -> dict[str, float]:
        """Joint → radians of one frame.

        Raises:
            RejectedError: required joints are in no group, a group's length is wrong.
        """
        found: dict[str, float] = {}
        for field, names, values in groups:
            if len(names) != len(values):
                raise RejectedError(
                    f"{field} has {len(values)} values, {self._robot.name} has {len(names)} joints "
                    "there",
                    "choose the robot of the recording with --robot",
                )
            key = (field, tuple(names))
            if key not in self._maps:
                self._maps[key] = naming.JointMap(
                    self._robot,
                    names,
                    required=(),
                    where=field,
                    tally=self._tally,
                    normalised=self._normalised,
                )
            found |= self._maps[key].values(values)
        if not self._checked and self._required:
            spelt = [name for entry in self._maps.values() for name in entry.names]
            unknown = [name for name in spelt if naming.joint_name(name, self._robot) is None]
            where = " with ".join(field for field, _, _ in groups) or "data.json"
            naming.refuse_missing(
                self._robot, list(found), required=self._required, unknown=unknown, where=where
            )
            naming.note_assumed(self._robot, list(found), self._tally)
            self._checked = True
        return found


def field_of(frame: Mapping[str, Any], name: str, number: int) -> Any:
    """A field of a frame.

    Raises:
        RejectedError: naming the field that is missing.
    """
    if not isinstance(frame, Mapping) or frame.get(name) is None:
        raise RejectedError(
            f"frame {number} of data.json has no {name!r}",
            "see docs/importing.md for the fields of the format",
        )
    return frame[name]
