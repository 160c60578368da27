"""Tables of an evaluation as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ego_world_model.evaluation.benchmark import METHODS, ClipResult
from ego_world_model.evaluation.distribution import Distance
from ego_world_model.evaluation.metrics import Estimate
from ego_world_model.evaluation.results import (
    COMPARED,
    ROWS,
    Evaluation,
    ModelEvaluation,
    floor,
    model_difference,
    obedience_summary,
    rollout_seconds,
)
from ego_world_model.evaluation.studies import Study, few_steps_checks
from ego_world_model.evaluation.subsets import HEAVY
from ego_world_model.evaluation.summary import (
    SUBSETS,
    difference,
    mean,
    pooled_errors,
    subset,
    summarize,
)


class Metric(NamedTuple):
    """How a metric is written.

    Attributes:
        name: with its unit, in letters that every font has.
        digits: decimals.
        lower: whether less is better.
    """

    name: str
    digits: int
    lower: bool = False

    @property
    def heading(self) -> str:
        """Name in a table."""
        return f"{self.name} ↓" if self.lower else self.name


METRICS: dict[str, Metric] = {
    "hand_psnr": Metric("hand PSNR (dB)", 2),
    "hand_object_psnr": Metric("hand-object PSNR (dB)", 2),
    "changed_psnr": Metric("changed PSNR (dB)", 2),
    "arms_psnr": Metric("arms PSNR (dB)", 2),
    "object_psnr": Metric("object PSNR (dB)", 2),
    "background_psnr": Metric("background PSNR (dB)", 2),
    "all_psnr": Metric("frame PSNR (dB)", 2),
    "hand_ssim": Metric("hand SSIM", 3),
    "hand_object_ssim": Metric("hand-object SSIM", 3),
    "all_ssim": Metric("frame SSIM", 3),
    "hand_st_ssim": Metric("hand ST-SSIM", 3),
    "hand_object_st_ssim": Metric("hand-object ST-SSIM", 3),
    "all_st_ssim": Metric("frame ST-SSIM", 3),
    "hand_gmsd_t": Metric("hand GMSD-T", 3, lower=True),
    "hand_object_gmsd_t": Metric("hand-object GMSD-T", 3, lower=True),
    "all_gmsd_t": Metric("frame GMSD-T", 3, lower=True),
    "hand_l1": Metric("hand L1 (levels)", 2, lower=True),
    "hand_object_l1": Metric("hand-object L1 (levels)", 2, lower=True),
    "all_l1": Metric("frame L1 (levels)", 2, lower=True),
    "hand_gradient_energy": Metric("hand gradient energy (1: as true)", 2),
    "hand_object_gradient_energy": Metric("hand-object gradient energy", 2),
    "hand_iou": Metric("hand IoU", 3),
    "arms_iou": Metric("arms IoU", 3),
    "control_error_px": Metric("control error (px)", 2, lower=True),
    "control_error_mm": Metric("control error (mm)", 1, lower=True),
    "moving_control_error_px": Metric("control error, moving (px)", 2, lower=True),
    "moving_control_error_mm": Metric("control error, moving (mm)", 1, lower=True),
    "pa_mpjpe_mm": Metric("PA-MPJPE (mm)", 1, lower=True),
    "object_iou": Metric("object IoU", 2),
    "object_follows": Metric("object follows", 2),
    "seconds": Metric("seconds", 2, lower=True),
}
"""Every metric by the name of its score, in the order of the main table."""


def cell(value: Estimate | None, digits: int = 2, *, signed: bool = False) -> str:
    """An estimate as ``mean [low, high]``; nothing for one that does not apply."""
    if value is None:
        return ""
    if value.n == 0:
        return "n/a"
    form = f"{{:{'+' if signed else ''}.{digits}f}}"
    mean, low, high = (form.format(v) for v in (value.mean, value.low, value.high))
    return f"{mean} [{low}, {high}]"


def model_tables(model: ModelEvaluation) -> list[str]:
    """Everything about one model but its pictures."""
    lines = table(
        "Shipping floor",
        ("", "value", "bound", "met"),
        [(c.name, f"{c.value:.3g}", c.bound, "yes" if c.met else "no") for c in floor(model)],
    )
    lines += _methods(model.clips)
    lines += _pooled(model.clips)
    lines += _subsets(model.clips)
    lines += _by_kind(model.clips)
    seconds = [f"{stage} {value:.3f}" for stage, value in rollout_seconds(model.clips).items()]
    lines += ["", f"Median seconds of a rollout during this run: {', '.join(seconds)}."]
    for study in model.studies:
        lines += _study(study)
    if model.features:
        lines += _features(model)
    if model.futures:
        rows = [(k, f"{v:.3g}") for k, v in obedience_summary(model.futures).items()]
        lines += table("Different futures from one image", ("", ""), rows)
    return lines


def comparison_tables(evaluation: Evaluation) -> list[str]:
    """Several models beside each other; nothing for a single one."""
    names = list(evaluation.models)
    if len(names) == 1:
        return []
    summaries = [summarize(model.clips) for model in evaluation.models.values()]
    truth = summaries[0]["truth"]
    rows = [
        (
            METRICS[metric].heading,
            *(cell(summary["model"].get(metric), METRICS[metric].digits) for summary in summaries),
            cell(truth.get(metric), METRICS[metric].digits),
        )
        for metric in METRICS
        if metric in summaries[0]["model"]
    ]
    lines = table("Models", ("", *names, "truth"), rows)
    for name in names[1:]:
        rows = []
        for metric in COMPARED:
            digits = METRICS[metric].digits
            parts = [model_difference(evaluation, name, metric, part) for part in SUBSETS]
            cells = [f"{cell(part, digits, signed=True)} (n = {part.n})" for part in parts]
            rows.append((METRICS[metric].heading, *cells))
        lines += table(f"{name} minus {names[0]}, within each clip", ("", *SUBSETS), rows)
    return lines


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a section with one table."""
    lines = ["", f"### {title}", "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return lines + [f"| {' | '.join(str(c) for c in row)} |" for row in rows]


def _methods(clips: Sequence[ClipResult]) -> list[str]:
    summary = summarize(clips)
    rows = []
    for metric, written in METRICS.items():
        values = [summary[row].get(metric) for row in ROWS]
        if any(values):
            cells = [cell(value, written.digits) for value in values]
            rows.append((written.heading, *cells, _count(values)))
    return table("Methods (mean over clips [95 % interval])", ("", *ROWS, "n"), rows) + [
        "",
        "`truth` is the estimator on the true frames: its own error. ↓: less is better. "
        "docs/evaluation.md defines methods, regions and metrics.",
    ]


def _pooled(clips: Sequence[ClipResult]) -> list[str]:
    rows = []
    for method in ROWS:
        for joints, units in pooled_errors(clips, method).items():
            px, mm = units["px"], units["mm"]
            numbers = [f"{px[k]:.2f}" for k in ("mean", "median", "p90")]
            numbers += [f"{mm[k]:.1f}" for k in ("mean", "median", "p90")]
            rows.append((method, joints, str(px["n"]), *numbers))
    units = [f"{k} ({unit})" for unit in ("px", "mm") for k in ("mean", "median", "90 %")]
    return table("Control error over all joints of all clips", ("", "joints", "n", *units), rows)


def _subsets(clips: Sequence[ClipResult]) -> list[str]:
    """The model, the estimator's own error, and the paired gain over a copied frame, by subset."""
    parts = [subset(clips, name) for name in SUBSETS]
    rows: list[tuple[str, ...]] = [("clips", *(str(len(part)) for part in parts))]
    hidden = [mean([clip.occlusion for clip in part], part) for part in parts]
    rows.append(("joints hidden", *(cell(value) for value in hidden)))
    for method in ("model", "truth"):
        for metric in COMPARED:
            written = METRICS[metric]
            values = [summarize(part).get(method, {}).get(metric) for part in parts]
            if any(values):
                cells = [cell(value, written.digits) for value in values]
                rows.append((f"{method}: {written.heading}", *cells))
    for other in METHODS[1:]:
        gains = [difference(part, part, "hand_psnr", their_method=other) for part in parts]
        name = f"model − {other}: hand PSNR (dB)"
        rows.append((name, *(cell(gain, signed=True) for gain in gains)))
    title = f"Occlusion-heavy clips (at least {HEAVY:.0%} of joints hidden) and plain ones"
    return table(title, ("", *SUBSETS), rows)


def _by_kind(clips: Sequence[ClipResult]) -> list[str]:
    """The model's numbers for each kind of task."""
    metrics = ("hand_psnr", "hand_object_psnr", "hand_iou", "moving_control_error_px")
    rows = []
    for kind in sorted({clip.kind for clip in clips}):
        some = [clip for clip in clips if clip.kind == kind]
        scores = summarize(some)["model"]
        cells = [cell(scores[metric], METRICS[metric].digits) for metric in metrics]
        gain = cell(scores["hand_psnr_above_copy_first"], signed=True)
        rows.append((kind, str(len(some)), *cells, gain))
    head = ("", "n", *(METRICS[m].heading for m in metrics), "hand PSNR − copy_first (dB)")
    return table("By task", head, rows)


def _study(study: Study) -> list[str]:
    head = (study.setting, *(METRICS[metric].heading for metric in study.metrics))
    rows = [
        (setting, *(cell(study.mean(setting, m), METRICS[m].digits) for m in study.metrics))
        for setting in study.settings
    ]
    lines = table(f"{study.title} ({len(study.clips)} clips)", head, rows)
    rows = [
        (
            setting,
            *(
                cell(study.difference(setting, m), METRICS[m].digits, signed=True)
                for m in study.metrics
            ),
        )
        for setting in study.settings
        if setting != study.base
    ]
    lines += table(f"The same minus {study.setting} {study.base}, within each clip", head, rows)
    for check in few_steps_checks(study):
        bound = f"at most {check.most:g}"
        if check.least is not None:
            bound = f"{check.least:g} to {check.most:g}"
        lines += [
            "",
            f"- {check.name}: {check.value:.2f} [{check.low:.2f}, {check.high:.2f}] "
            f"(wanted: {bound}): {'met' if check.met else 'not met'}",
        ]
    return lines


def _features(model: ModelEvaluation) -> list[str]:
    """Scores that need feature networks; Fréchet distances have the kernel's in the next row."""
    methods = list(model.features)
    names = list(model.features[methods[0]])
    rows, warnings = [], []
    for name in names:
        scores = [model.features[method][name] for method in methods]
        rows.append((name, *(f"{s}" if isinstance(s, Distance) else _mean(s) for s in scores)))
        warning = getattr(scores[0], "warning", "")
        if warning:
            warnings.append(f"- {name}: {warning}")
    title = "Feature networks (region_metric; kid, clip_kid and kvd: unbiased kernel distances)"
    return table(title, ("", *methods), rows) + ([""] if warnings else []) + warnings


def _mean(value: Estimate) -> str:
    return f"{cell(value, 3)} (n = {value.n})"


def _count(values: Sequence[Estimate | None]) -> str:
    counts = sorted({value.n for value in values if value})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
