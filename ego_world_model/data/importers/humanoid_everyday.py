"""Episodes of the Humanoid Everyday data set: ``<task>/episode_N/{data.json, color/, …}``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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

_RATE = 30.0
_DEX3, _INSPIRE = 14, 12


class HumanoidEverydaySource:
    """One episode folder; see ``base.Source``.

    Args:
        index_first: the right Dex3 hand lists index before middle (the SDK's order). The data
            set's own description says middle first, for both hands.
    """

    kind = "humanoid-everyday"

    def __init__(
        self, folder: Path, *, root: Path, kinematics: HandKinematics, index_first: bool = False
    ) -> None:
        self.name = source_name(folder, root)
        self._folder, self._index_first = folder, index_first
        self._robot = kinematics.robot
        self._required = naming.required_joints(kinematics)

    def task(self) -> str:
        return spell_out(self._folder.resolve().parent.name)

    def frames(self, tally: Tally) -> Iterator[SourceFrame]:
        data = read_data(self._folder)
        if not isinstance(data, list):
            raise RejectedError(
                "data.json is not a list of frames",
                "use `import xr-teleoperate` for episodes of that recorder",
            )
        measured = GroupedJoints(self._robot, required=self._required, tally=tally)
        commanded = GroupedJoints(self._robot, required=(), tally=tally)
        arms = [joint for side in ("left", "right") for joint in self._robot.hands[side].arm]
        for number, frame in enumerate(data):
            tally.read += 1
            states = field_of(frame, "states", number)
            q = self._robot.q_from(measured.joints(self._groups(states, arms, number)))
            image = self._folder / field_of(frame, "image", number)
            action = None
            if (solved := (frame.get("actions") or {}).get("sol_q")) is not None:
                group = ("actions.sol_q", arms, solved)
                action = naming.vector(self._robot, commanded.joints([group]))
            yield SourceFrame(
                stamp=self._stamp(frame, number, tally),
                load=partial(load_picture, image, tally),
                q=q,
                action=action,
                number=number,
            )

    def _stamp(self, frame: Mapping[str, Any], number: int, tally: Tally) -> int:
        if frame.get("time") is None:
            tally.note(f"frames have no time: taken as {_RATE:g} per second")
            return round(number / _RATE * 1e9)
        return round(float(frame["time"]) * 1e9)

    def _groups(self, states: Mapping[str, Any], arms: list[str], number: int) -> list[Group]:
        """The fields of ``states``, with names from the embodiment's wire orders."""
        robot = self._robot
        groups: list[Group] = [("arm_state", arms, field_of(states, "arm_state", number))]
        legs = states.get("leg_state")
        if legs is not None:
            # Legs, then the waist: the beginning of the body's own order.
            body = naming.wire_order(robot, "unitree_hg/LowState")
            waist = body[: body.index(robot.hands["left"].arm[0])]
            groups.append(("leg_state", waist, legs))
        hands = field_of(states, "hand_state", number)
        if len(hands) == _DEX3:
            right = "dex3/right" if self._index_first else "dex3/right_middle_first"
            left = naming.wire_order(robot, "dex3/left")
            names = [*left, *naming.wire_order(robot, right)]
        elif len(hands) == _INSPIRE:
            naming.wire_order(robot, "inspire/state")  # refuses a robot without such hands
            names = [*naming.inspire_names("left"), *naming.inspire_names("right")]
        else:
            raise RejectedError(
                f"hand_state of frame {number} has {len(hands)} values",
                f"it must have {_DEX3} (Dex3) or {_INSPIRE} (Inspire)",
            )
        groups.append(("hand_state", names, hands))
        return groups
