"""A policy's evaluation as files: report.md, results.json, plots, strips."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ego_world_model.evaluation.metrics import Estimate
from ego_world_model.evaluation.plots import Panel, line_figure
from ego_world_model.evaluation.policy.jobs import unique
from ego_world_model.evaluation.policy.tables import (
    UNITS,
    Line,
    closed_loop_tables,
    error,
    flipped,
    obeyed,
    open_loop_tables,
    step_errors,
    success,
    swap_tables,
)
from ego_world_model.media import write_png

_NOTES = """
Success: within the time of an episode the named hand holds the named object 3 cm above the table
(grasp), both palms do (bimanual), or its grasp point is within 10 cm of the object's top and nearer
to no other (reach). Every method meets the same scenes; scenes without a scripted plan, or in which
the goal is achieved at the start, are left out for all. Intervals of shares are Wilson's, of errors
a bootstrap over episodes, all 95 %. The scripted expert goes through the same chunks, inverse
kinematics and limits: it is what the executing chain lets pass, not what a policy could see.
Depth is rendered depth with the noise model of `perception/depth_noise.py`, which stands for a
sensor's or an estimator's. Errors are those of `evaluation/policy/errors.py`: MPJPE-PA aligns each
hand at each step by rotation, translation and scale, "path" once for all steps as in the MEgoHand
paper; MRE is the mean over wrist and finger joints. A hand moves if its true wrist travels 2 cm in
the chunk. Steps after the instruction changed, or the episode ended, do not count.
"""


def write_policy_report(
    out: Path,
    *,
    about: dict[str, Any],
    times: Sequence[float],
    open_loop: Sequence[Line] = (),
    closed_loop: Sequence[Line] = (),
    swaps: Sequence[Line] = (),
    pictures: Sequence[tuple[str, str]] = (),
) -> None:
    """Write report.md, results.json and plots/ into ``out``.

    Args:
        about: name → value, listed at the top (the command among them).
        times: (N,) seconds of a chunk's steps.
        open_loop, closed_loop, swaps: lines of the jobs; a part without lines is left out.
        pictures: (caption, file relative to ``out``).
    """
    out.mkdir(parents=True, exist_ok=True)
    lines = ["# Motion policy: evaluation", ""]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    lines += ["", *_NOTES.strip().splitlines()]
    if closed_loop:
        lines += ["", "## Closed loop", *closed_loop_tables(closed_loop)]
    if swaps:
        lines += ["", "## Swapped instructions", *swap_tables(swaps)]
    if open_loop:
        lines += ["", "## Open loop", *open_loop_tables(open_loop, times), ""]
        lines += [f"![{c}]({f})\n" for c, f in _write_plots(out, open_loop, times)]
    if pictures:
        lines += ["", "## Episodes", ""]
        lines += [f"{caption}\n\n![{caption}]({file})\n" for caption, file in pictures]
    (out / "report.md").write_text("\n".join(lines).rstrip() + "\n")
    document = {
        "about": about,
        "open_loop": _open_loop_document(open_loop),
        "closed_loop": _success_document(closed_loop),
        "swaps": _swap_document(swaps),
        "episodes": [_plain(line) for line in (*closed_loop, *swaps)],
    }
    (out / "results.json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def _write_plots(out: Path, lines: Sequence[Line], times: Sequence[float]) -> list[tuple[str, str]]:
    methods, panels = unique(line["method"] for line in lines), []
    policies = [method for method in methods if method.startswith("policy")]
    others = [*policies[-1:], *(method for method in methods if method not in policies)]
    unit = UNITS["mpjpe"]
    for robot in unique(line["robot"] for line in lines):
        for some in (others, policies):
            curves = {
                method: [
                    _scaled(e, unit.factor) for e in step_errors(lines, method, "mpjpe", robot)
                ]
                for method in some
            }
            panels.append(
                Panel(
                    title=f"{robot}: {unit.heading}",
                    x_label="seconds ahead",
                    x=[round(float(t), 3) for t in times],
                    lines=curves,
                )
            )
    write_png(out / "plots/by_time.png", line_figure(panels, columns=2))
    return [("Error by time ahead, mean and 95 % interval over episodes", "plots/by_time.png")]


def _scaled(value: Estimate, factor: float) -> Estimate:
    return Estimate(*(factor * v for v in (value.mean, value.low, value.high)), value.n)


def _open_loop_document(lines: Sequence[Line]) -> dict[str, Any]:
    """{robot: {method: {error: estimate in metres or radians}}}"""
    document: dict[str, Any] = {}
    for robot in unique(line["robot"] for line in lines):
        some = [line for line in lines if line["robot"] == robot]
        document[robot] = {
            method: {
                f"{prefix}{name}": _estimate(error(some, method, f"{prefix}{name}"))
                for prefix in ("", "moving_")
                for name in UNITS
            }
            for method in unique(line["method"] for line in some)
        }
    return document


def _success_document(lines: Sequence[Line]) -> dict[str, Any]:
    """{robot: {method: {task: share of successes}}}"""
    return {
        robot: {
            method: {
                task: _estimate(success(lines, robot=robot, method=method, task=task))
                for task in unique(line["task"] for line in lines)
            }
            for method in unique(line["method"] for line in lines)
        }
        for robot in unique(line["robot"] for line in lines)
    }


def _swap_document(lines: Sequence[Line]) -> dict[str, Any]:
    """{robot: {method: {kind: {"obeyed", "flipped"}}}}"""
    return {
        robot: {
            method: {
                kind: {
                    "obeyed": _estimate(obeyed(lines, robot=robot, method=method, kind=kind)),
                    "flipped": _estimate(flipped(lines, robot=robot, method=method, kind=kind)),
                }
                for kind in unique(line["kind"] for line in lines)
            }
            for method in unique(line["method"] for line in lines)
        }
        for robot in unique(line["robot"] for line in lines)
    }


def _estimate(value: Estimate) -> dict[str, Any]:
    numbers = {"mean": value.mean, "low": value.low, "high": value.high}
    return {**{name: _number(v) for name, v in numbers.items()}, "n": value.n}


def _plain(line: Line) -> Line:
    return {name: _number(v) if isinstance(v, float) else v for name, v in line.items()}


def _number(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None
