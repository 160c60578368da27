"""Episodes of Unitree's xr_teleoperate recorder: ``episode_NNNN/{data.json, colors/, depths/}``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ego_world_model.data.importers import joints as naming
from ego_world_model.data.importers.base import (
    RejectedError,
    SourceFrame,
    Tally,
    source_name,
    spell_out,
)
from ego_world_model.data.importers.episode_folders import (
    Group,
    GroupedJoints,
    field_of,
    load_picture,
    read_data,
)
from ego_world_model.kinematics import HandKinematics


class XrTeleoperateSource:
    """One episode folder; see ``base.Source``.

    Groups of joints are named by ``info.joint_names`` where the recorder filled it. Where it is
    empty, the recorder's fixed layout gives the names: arms and body in the order of the robot's
    own messages, hands in that of their SDK.

    Args:
        camera: which of an item's ``colors`` is the head camera.
    """

    kind = "xr-teleoperate"

    def __init__(
        self,
        folder: Path,
        *,
        root: Path,
        kinematics: HandKinematics,
        camera: str = "color_0",
    ) -> None:
        self.name = source_name(folder, root)
        self._folder, self._camera = folder, camera
        self._robot = kinematics.robot
        self._required = naming.required_joints(kinematics)
        self._data: Any = None

    def task(self) -> str:
        text = self._read().get("text") or {}
        return text.get("goal") or spell_out(self._folder.resolve().parent.name)

    def frames(self, tally: Tally) -> Iterator[SourceFrame]:
        data = self._read()
        info = data.get("info") or {}
        rate = (info.get("image") or {}).get("fps")
        if not rate:
            raise RejectedError(
                "info.image.fps is missing, and items have no time",
                "write the recording's frames per second there",
            )
        listed = info.get("joint_names") or {}
        measured = GroupedJoints(self._robot, required=self._required, tally=tally)
        commanded = GroupedJoints(self._robot, required=(), tally=tally)
        for item in data["data"]:
            number = tally.read
            tally.read += 1
            states = self._groups(field_of(item, "states", number), listed, "states")
            actions = self._groups(item.get("actions") or {}, listed, "actions")
            picture = (item.get("colors") or {}).get(self._camera)
            if not picture:
                tally.drop(f"no {self._camera}", f"item {number}")
                continue
            # Items carry no time; idx tells where the recorder left one out.
            place = int(item.get("idx", number))
            yield SourceFrame(
                stamp=round(place / float(rate) * 1e9),
                load=partial(load_picture, self._folder / picture, tally),
                q=self._robot.q_from(measured.joints(states)),
                action=naming.vector(self._robot, commanded.joints(actions)),
                number=number,
            )

    def _read(self) -> Any:
        if self._data is None:
            self._data = read_data(self._folder)
            if not isinstance(self._data, dict) or "data" not in self._data:
                raise RejectedError(
                    "data.json has no 'data' with the frames",
                    "use `import humanoid-everyday` for episodes of that data set",
                )
        return self._data

    def _groups(
        self, states: Mapping[str, Any], listed: Mapping[str, Sequence[str]], field: str
    ) -> list[Group]:
        """Groups that hold positions, with their names."""
        groups: list[Group] = []
        for group, content in states.items():
            values = content.get("qpos") if isinstance(content, Mapping) else None
            if not values or (group, field) == ("body", "actions"):
                continue  # the body's actions are walking velocities
            names = listed.get(group) or self._convention(group, len(values))
            if group == "body":
                values = values[: len(names)]  # LowState's spare motors follow
            if names:
                groups.append((f"{field}.{group}", names, values))
        return groups

    def _convention(self, group: str, count: int) -> Sequence[str]:
        """Names of a group that the recorder does not list; none where it holds no joints."""
        robot = self._robot
        side, _, part = group.partition("_")
        if part == "arm" and side in robot.hands:
            return robot.hands[side].arm
        if part == "ee" and count == 6:
            naming.wire_order(robot, "inspire/state")  # refuses a robot without such hands
            return naming.inspire_names(side)
        if part == "ee":
            return naming.wire_order(robot, f"dex3/{side}")
        if group == "body":
            return naming.wire_order(robot, "unitree_hg/LowState")
        return ()
