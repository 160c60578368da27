"""Tables of a policy's evaluation as Markdown, from the lines of its jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest

from ego_world_model.evaluation.metrics import Estimate, estimate
from ego_world_model.evaluation.policy.jobs import unique
from ego_world_model.evaluation.policy.outcomes import FAILURES
from ego_world_model.evaluation.policy.swap import KINDS
from ego_world_model.evaluation.tables import cell, table

Line = dict[str, Any]
FLIP_FLOOR = 0.8
"""Share of cases in which the hand is wanted to go for what the instruction names."""


class Unit(NamedTuple):
    """How an error is written: its name with the unit, the factor from SI, and decimals."""

    heading: str
    factor: float
    digits: int


UNITS: dict[str, Unit] = {
    "mpjpe": Unit("MPJPE (cm)", 100, 2),
    "pa_mpjpe": Unit("MPJPE-PA (cm)", 100, 2),
    "pa_mpjpe_path": Unit("MPJPE-PA, path (cm)", 100, 2),
    "mwte": Unit("MWTE (cm)", 100, 2),
    "mre": Unit("MRE (rad)", 1, 3),
    "wrist_rotation": Unit("wrist rotation (rad)", 1, 3),
}


def share(hits: int, n: int) -> Estimate:
    """A share with its 95 % Wilson interval, which stays honest at 0 and at 1."""
    if not n:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    bounds = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    return Estimate(hits / n, float(bounds.low), float(bounds.high), n)


# -------------------------------------------------------------------- open loop


def error(lines: Sequence[Line], method: str, name: str, **chosen: str) -> Estimate:
    """Mean error of a method over windows, with a bootstrap interval over episodes, in SI units.

    Args:
        name: one of ``ERRORS``, with ``moving_`` before it for hands that move alone.
        chosen: ``robot`` or ``kind`` of task; all where not given.
    """
    values, groups = [], []
    for line, window in _windows(lines, method, **chosen):
        values.append(window[name])
        groups.append(f"{line['data']}/{line['episode']}")
    return estimate(values, groups=groups)


def error_difference(
    lines: Sequence[Line], method: str, base: str, name: str, **chosen: str
) -> Estimate:
    """Mean of a method's error minus the base's within each window."""
    values, groups = [], []
    ours, theirs = (list(_windows(lines, m, **chosen)) for m in (method, base))
    paired = {_place(line, window): window for line, window in theirs}
    for line, window in ours:
        values.append(window[name] - paired[_place(line, window)][name])
        groups.append(f"{line['data']}/{line['episode']}")
    return estimate(values, groups=groups)


def step_errors(lines: Sequence[Line], method: str, name: str, robot: str) -> list[Estimate]:
    """Error of each step of the chunk, (N,) in SI units."""
    windows = list(_windows(lines, method, robot=robot))
    groups = [f"{line['data']}/{line['episode']}" for line, _ in windows]
    rows = np.array([window["steps"][name] for _, window in windows], dtype=np.float64)
    return [estimate(column, groups=groups) for column in rows.T]


def open_loop_tables(lines: Sequence[Line], times: Sequence[float]) -> list[str]:
    """Everything about the open loop."""
    methods, out = unique(line["method"] for line in lines), []
    for robot in unique(line["robot"] for line in lines):
        some = [line for line in lines if line["robot"] == robot]
        windows = sum(len(line["windows"]) for line in some if line["method"] == methods[0])
        episodes = sum(line["method"] == methods[0] for line in some)
        for prefix, what in (("", "both hands"), ("moving_", "hands that move")):
            rows = [
                (m, *(_written(name, error(some, m, prefix + name)) for name in UNITS))
                for m in methods
            ]
            title = f"{robot}, open loop, {what} ({windows} windows of {episodes} episodes)"
            out += table(title, ("", *(f"{unit.heading} ↓" for unit in UNITS.values())), rows)
        base = "policy TID"
        if base in methods:
            rows = [
                (
                    m,
                    *(
                        _written(name, error_difference(some, m, base, f"moving_{name}"), True)
                        for name in UNITS
                    ),
                )
                for m in methods
                if m != base
            ]
            title = f"{robot}, the others minus {base} within each window, hands that move"
            out += table(title, ("", *(unit.heading for unit in UNITS.values())), rows)
        kinds = unique(window["kind"] for line in some for window in line["windows"])
        rows = [
            (m, *(_written("mpjpe", error(some, m, "mpjpe", kind=kind)) for kind in kinds))
            for m in methods
        ]
        out += table(f"{robot}, MPJPE (cm) by kind of task ↓", ("", *kinds), rows)
        shown = [k for k in range(len(times)) if k % 4 == 3] or [len(times) - 1]
        rows = []
        for m in methods:
            steps = step_errors(some, m, "mpjpe", robot)
            rows.append((m, *(_written("mpjpe", steps[k]) for k in shown)))
        head = ("", *(f"{times[k]:.1f} s" for k in shown))
        out += table(f"{robot}, MPJPE (cm) by time ahead ↓", head, rows)
    return out


def _windows(
    lines: Iterable[Line], method: str, *, robot: str | None = None, kind: str | None = None
) -> Iterable[tuple[Line, Line]]:
    for line in lines:
        if line["method"] == method and robot in (None, line["robot"]):
            for window in line["windows"]:
                if kind in (None, window["kind"]):
                    yield line, window


def _place(line: Line, window: Line) -> tuple[str, int, int]:
    return line["data"], line["episode"], window["frame"]


def _written(name: str, value: Estimate, signed: bool = False) -> str:
    unit = UNITS[name]
    scaled = Estimate(*(unit.factor * v for v in (value.mean, value.low, value.high)), value.n)
    return cell(scaled, unit.digits, signed=signed)


# -------------------------------------------------------------------- closed loop


def success(lines: Sequence[Line], **chosen: str) -> Estimate:
    """Share of episodes with success among those of a ``method``, ``robot``, ``task``."""
    some = _chosen(lines, **chosen)
    return share(sum(line["success"] for line in some), len(some))


def closed_loop_tables(lines: Sequence[Line]) -> list[str]:
    """Everything about the closed loop."""
    methods = unique(line["method"] for line in lines)
    robots, tasks = (unique(line[name] for line in lines) for name in ("robot", "task"))
    out: list[str] = []
    for robot in robots:
        some = _chosen(lines, robot=robot)
        rows = []
        for method in methods:
            ours = _chosen(some, method=method)
            shares = [success(ours, task=task) for task in tasks]
            rows.append((method, *(_percent(s) for s in (*shares, success(ours))), len(ours)))
        out += table(f"{robot}, success in closed loop (%)", ("", *tasks, "all", "n"), rows)
        rows = []
        for method in methods:
            ours = _chosen(some, method=method)
            rows.append(
                (
                    method,
                    *(_median_time(_chosen(ours, task=task)) for task in tasks),
                    _median([line["closest"] for line in ours if line["task"] == "grasp"], 100, 1),
                    _mean([line["tracking"] for line in ours], 1000, 1),
                    _mean([100 * line["missed"] for line in ours], 1, 1),
                    _mean([line["prediction_seconds"] for line in ours], 1000, 0),
                )
            )
        head = (
            "",
            *(f"{task}: seconds to success" for task in tasks),
            "grasp: closest (cm)",
            "joints' tracking error (mm)",
            "steps missed (%)",
            "ms a chunk",
        )
        out += table(f"{robot}, how episodes went (medians; means from the error on)", head, rows)
        for task in tasks:
            kinds = FAILURES[task]
            rows = []
            for method in methods:
                count = Counter(line["outcome"] for line in _chosen(some, method=method, task=task))
                rows.append((method, *(count.get(kind, 0) or "" for kind in ("success", *kinds))))
            out += table(f"{robot}, {task}: outcomes (episodes)", ("", "success", *kinds), rows)
    return out


def _chosen(lines: Iterable[Line], **wanted: str) -> list[Line]:
    return [line for line in lines if all(line[name] == value for name, value in wanted.items())]


def _percent(value: Estimate) -> str:
    scaled = Estimate(*(100 * v for v in (value.mean, value.low, value.high)), value.n)
    return cell(scaled, 0)


def _median_time(lines: Sequence[Line]) -> str:
    return _median([line["time"] for line in lines if line["success"]], 1, 1)


def _median(values: Sequence[float], factor: float, digits: int) -> str:
    return _statistic(values, np.median, factor, digits)


def _mean(values: Sequence[float], factor: float, digits: int) -> str:
    return _statistic(values, np.mean, factor, digits)


def _statistic(
    values: Sequence[float], statistic: Callable[..., Any], factor: float, digits: int
) -> str:
    return f"{factor * float(statistic(values)):.{digits}f}" if len(values) else ""


# -------------------------------------------------------------------- instruction swap


def obeyed(lines: Sequence[Line], **chosen: str) -> Estimate:
    """Share of episodes in which the hand that acted went for what was named."""
    some = _chosen(lines, **chosen)
    return share(sum(line["obeyed"] for line in some), len(some))


def flipped(lines: Sequence[Line], **chosen: str) -> Estimate:
    """Share of scenes in which both instructions were obeyed, so that swapping flips the target."""
    scenes: dict[tuple, list[bool]] = {}
    for line in _chosen(lines, **chosen):
        place = tuple(line[name] for name in ("method", "robot", "kind", "number"))
        scenes.setdefault(place, []).append(line["obeyed"])
    whole = [both for both in scenes.values() if len(both) == 2]
    return share(sum(all(both) for both in whole), len(whole))


def swap_tables(lines: Sequence[Line]) -> list[str]:
    """Everything about swapped instructions."""
    methods, out = unique(line["method"] for line in lines), []
    for kind in KINDS:
        rows = []
        for method in methods:
            for robot in unique(line["robot"] for line in lines):
                some = _chosen(lines, method=method, robot=robot, kind=kind)
                if some:
                    told, both = obeyed(some), flipped(some)
                    met = "yes" if told.mean >= FLIP_FLOOR else "no"
                    good = success(some)
                    rows.append(
                        (method, robot, _percent(told), met, _percent(both), _percent(good), both.n)
                    )
        head = (
            "",
            "robot",
            f"goes to the named {kind} (%)",
            f"at least {FLIP_FLOOR:.0%}",
            "both instructions of a scene (%)",
            "task succeeds (%)",
            "scenes",
        )
        what = "object" if kind == "object" else "hand"
        out += table(f"Instructions that differ in the {what} alone", head, rows)
    return out
