"""An evaluation as files: results.json, report.md, plots and strips to look at."""

from __future__ import annotations

import json
from pathlib import Path

from ego_world_model.evaluation.benchmark import METHODS
from ego_world_model.evaluation.plots import Panel, interval_figure, line_figure
from ego_world_model.evaluation.results import COMPARED, Evaluation
from ego_world_model.evaluation.strips import (
    write_clip_strips,
    write_future_strips,
    write_study_strip,
)
from ego_world_model.evaluation.studies import Study
from ego_world_model.evaluation.summary import SUBSETS, over_time, subset, summarize
from ego_world_model.evaluation.tables import METRICS, comparison_tables, model_tables
from ego_world_model.media import write_png

Pictures = list[tuple[str, str]]
"""(caption, file relative to the report)"""


def write_report(evaluation: Evaluation, out: str | Path, *, strips: int = 4) -> None:
    """Write results.json, report.md, plots/ and ``strips`` strips of each kind into ``out``."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(evaluation.document(), indent=1) + "\n")
    several = len(evaluation.models) > 1
    lines = ["# Evaluation", ""]
    lines += [f"- {name}: {value}" for name, value in evaluation.about.items()]
    lines += comparison_tables(evaluation)
    lines += ["", "## Plots", "", *_shown(_write_plots(evaluation, out))]
    pictures = write_clip_strips({n: m.clips for n, m in evaluation.models.items()}, out, strips)
    for name, model in evaluation.models.items():
        prefix = f"{_file_name(name)}_" if several else ""
        lines += ["", f"## {name}", *model_tables(model)]
        plots = [_write_study_plot(study, out, prefix) for study in model.studies]
        lines += ["", *_shown(plots)] if plots else []
        for study in model.studies:
            pictures += write_study_strip(study, out, prefix=prefix)
        if model.futures:
            pictures += write_future_strips(model.futures, out, prefix=prefix)
    lines += ["", "## Strips", "", *_shown(pictures)]
    (out / "report.md").write_text("\n".join(lines))


def _write_plots(evaluation: Evaluation, out: Path) -> Pictures:
    """Intervals of the main metrics, and hand PSNR over time."""
    several = len(evaluation.models) > 1
    rows: dict[str, dict] = {METRICS[metric].name: {} for metric in COMPARED}
    for name, model in evaluation.models.items():
        parts = {part: summarize(subset(model.clips, part)) for part in SUBSETS}
        for metric in COMPARED:
            row = rows[METRICS[metric].name]
            for part, summary in parts.items():
                if metric in summary.get("model", {}):
                    label = f"{name}, {part}" if several else f"model, {part}"
                    row[label] = summary["model"][metric]
    first = next(iter(evaluation.models.values()))
    whole = summarize(first.clips)
    for metric in COMPARED:
        for method in ("copy_first", "truth"):
            if metric in whole[method]:
                rows[METRICS[metric].name][f"{method}, all"] = whole[method][metric]
    write_png(out / "plots/intervals.png", interval_figure(rows))
    if several:
        lines = {name: over_time(model.clips) for name, model in evaluation.models.items()}
        lines["copy_first"] = over_time(first.clips, "copy_first")
    else:
        lines = {method: over_time(first.clips, method) for method in METHODS}
    length = len(next(iter(lines.values())))
    panel = Panel(
        title="hand PSNR (dB)", x_label="imagined frame", x=list(range(1, length + 1)), lines=lines
    )
    write_png(out / "plots/over_time.png", line_figure([panel]))
    return [
        ("Means and 95 % intervals over episodes", "plots/intervals.png"),
        ("Hand PSNR of each imagined frame, mean over clips", "plots/over_time.png"),
    ]


def _write_study_plot(study: Study, out: Path, prefix: str) -> tuple[str, str]:
    panels = [
        Panel(
            title=METRICS[metric].name,
            x_label=study.setting,
            x=study.settings,
            lines={metric: [study.mean(setting, metric) for setting in study.settings]},
        )
        for metric in study.metrics
    ]
    file = f"plots/{prefix}{study.name}.png"
    write_png(out / file, line_figure(panels))
    return f"{study.title}: means and 95 % intervals over episodes", file


def _shown(pictures: Pictures) -> list[str]:
    return [f"{caption}\n\n![{caption}]({file})\n" for caption, file in pictures]


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)
