"""Several datasets, of several robots perhaps, beside each other: a page over their reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ego_world_model.evaluation.metrics import Estimate
from ego_world_model.evaluation.results import (
    COMPARED,
    Check,
    Evaluation,
    floor,
    model_difference,
    obedience_summary,
)
from ego_world_model.evaluation.summary import SUBSETS, summarize
from ego_world_model.evaluation.tables import METRICS, cell, table

OBEDIENCE = {
    "iou_mean": "mean hand IoU",
    "scene_lowest_iou_mean": "lowest hand IoU of a scene's futures, mean",
    "obeyed": "share obeyed",
    "told_apart": "share told apart",
    "estimator_own_iou": "estimator's own IoU",
}
"""What the page says of the different futures."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What the page says of one dataset; its pictures stay in its own report.

    Attributes:
        robot: the dataset's embodiment.
        about: see ``Evaluation.about``.
        scores: {model: {metric: mean over clips}}.
        truth: {metric: the estimator's own, on true frames}.
        differences: {model: {metric: paired difference to the first model}}, without the first.
        floors: {model: shipping floor}.
        futures: {model: ``obedience_summary``}, empty where it was not run.
    """

    robot: str
    about: Mapping[str, object]
    scores: Mapping[str, Mapping[str, Estimate]]
    truth: Mapping[str, Estimate]
    differences: Mapping[str, Mapping[str, Estimate]]
    floors: Mapping[str, Sequence[Check]]
    futures: Mapping[str, Mapping[str, float]]

    @classmethod
    def of(cls, evaluation: Evaluation, robot: str) -> Part:
        """The numbers of one dataset's evaluation."""
        summaries = {name: summarize(model.clips) for name, model in evaluation.models.items()}
        return cls(
            robot=robot,
            about=evaluation.about,
            scores={name: summary["model"] for name, summary in summaries.items()},
            truth=next(iter(summaries.values()))["truth"],
            differences={
                name: {m: model_difference(evaluation, name, m, SUBSETS[0]) for m in COMPARED}
                for name in list(evaluation.models)[1:]
            },
            floors={name: floor(model) for name, model in evaluation.models.items()},
            futures={
                name: obedience_summary(model.futures)
                for name, model in evaluation.models.items()
                if model.futures
            },
        )


def part_names(datasets: Sequence[tuple[str, str]]) -> list[str]:
    """A name for each (robot, folder name): the robot's, or with the folder's if it has several.

    >>> part_names([("g1_dex3", "test"), ("h1_2_inspire", "test")])
    ['g1_dex3', 'h1_2_inspire']

    Raises:
        ValueError: if two are alike.
    """
    robots = [robot for robot, _ in datasets]
    names = [r if robots.count(r) == 1 else f"{r}_{folder}" for r, folder in datasets]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(
            f"several datasets would be reported as {', '.join(doubled)}; datasets of one robot "
            "need folders of different names"
        )
    return names


def write_overview(parts: Mapping[str, Part], out: str | Path) -> None:
    """Write ``report.md`` over the reports ``{name}/report.md`` of the parts."""
    lines = ["# Evaluation", ""]
    for name, part in parts.items():
        clips, data = part.about["clips"], part.about["data"]
        lines.append(f"- [{name}]({name}/report.md): {clips} clips of {data}")
    lines += overview_tables(parts)
    lines += [
        "",
        "`truth` is the estimator on the true frames: its own error on that robot. ↓: less is "
        "better. Slots that a robot does not have are not counted.",
        "",
    ]
    (Path(out) / "report.md").write_text("\n".join(lines))


def overview_tables(parts: Mapping[str, Part]) -> list[str]:
    """The models on every dataset, what each gained, the floor, and the different futures."""
    models = list(next(iter(parts.values())).scores)
    columns = [(part, model) for part in parts.values() for model in models]
    several = len(models) > 1

    def heads(with_truth: bool) -> list[str]:
        heads = []
        for name in parts:
            heads += [f"{name}: {model}" if several else name for model in models]
            heads += [f"{name}: truth"] if with_truth else []
        return heads

    rows = []
    for metric, written in METRICS.items():
        if any(metric in part.scores[model] for part, model in columns):
            cells = []
            for part in parts.values():
                values = [*(part.scores[model].get(metric) for model in models)]
                cells += [
                    cell(value, written.digits) for value in (*values, part.truth.get(metric))
                ]
            rows.append((written.heading, *cells))
    lines = table("Means over clips [95 % interval]", ("", *heads(True)), rows)
    for model in models[1:]:
        rows = []
        for metric in COMPARED:
            gains = [part.differences[model][metric] for part in parts.values()]
            cells = [cell(gain, METRICS[metric].digits, signed=True) for gain in gains]
            rows.append((METRICS[metric].heading, *cells))
        lines += table(f"{model} minus {models[0]}, within each clip", ("", *parts), rows)
    checks = [{check.name: check for check in part.floors[model]} for part, model in columns]
    rows = []
    for name, bound in {c.name: c.bound for column in checks for c in column.values()}.items():
        met = [column.get(name) for column in checks]
        rows.append((name, bound, *(_judged(check) if check else "" for check in met)))
    lines += table("Shipping floor (no: not met)", ("", "bound", *heads(False)), rows)
    if all(part.futures for part in parts.values()):
        rows = [
            (said, *(f"{part.futures[model][key]:.3g}" for part, model in columns))
            for key, said in OBEDIENCE.items()
        ]
        lines += table("Different futures from one image", ("", *heads(False)), rows)
    return lines


def _judged(check: Check) -> str:
    return f"{check.value:.3g}{'' if check.met else ' (no)'}"
