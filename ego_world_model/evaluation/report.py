"""Evaluation results as files: results.json, report.md, and strips to look at."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ego_world_model.evaluation.benchmark import (
    METHODS,
    ClipResult,
    pooled_errors,
    summarize,
)
from ego_world_model.evaluation.metrics import Estimate
from ego_world_model.evaluation.obedience import OBEYED_IOU, FutureResult
from ego_world_model.media import strip, write_png

COLUMNS: tuple[tuple[str, str], ...] = (
    ("hand PSNR (dB)", "hand_psnr"),
    ("changed PSNR", "changed_psnr"),
    ("arms PSNR", "arms_psnr"),
    ("object PSNR", "object_psnr"),
    ("background PSNR", "background_psnr"),
    ("frame PSNR", "all_psnr"),
    ("frame SSIM", "all_ssim"),
    ("hand SSIM", "hand_ssim"),
    ("frame L1", "all_l1"),
    ("hand IoU", "hand_iou"),
    ("arms IoU", "arms_iou"),
    ("control error (px)", "control_error_px"),
    ("moving ≥ 8 px", "moving_control_error_px"),
    ("object IoU", "object_iou"),
    ("object follows", "object_follows"),
)
"""Columns of the main table: heading and metric."""


@dataclass(frozen=True)
class Evaluation:
    """All that one evaluation produced.

    Attributes:
        about: what was evaluated (model, data, number of clips, steps), for the report's head.
        clips: results of the held-out benchmark.
        futures: results of the obedience test; empty if it was not run.
    """

    about: dict[str, Any]
    clips: Sequence[ClipResult]
    futures: Sequence[FutureResult] = ()

    def summary(self) -> dict[str, Any]:
        """Everything in results.json except the per-clip numbers."""
        return {
            "about": self.about,
            "methods": {
                method: {name: asdict(value) for name, value in row.items()}
                for method, row in summarize(self.clips).items()
            },
            "control_error_pooled": {
                method: pooled_errors(self.clips, method) for method in ("truth", *METHODS)
            },
            "rollout_median_s": self.rollout_seconds(),
            "obedience": obedience_summary(self.futures) if self.futures else None,
            "floor": [asdict(check) for check in self.floor()],
        }

    def rollout_seconds(self) -> dict[str, float]:
        """Median seconds of each stage of a rollout, and of the whole."""
        stages = {
            stage: float(np.median([clip.timings[stage] for clip in self.clips]))
            for stage in self.clips[0].timings
        }
        whole = [sum(clip.timings.values()) for clip in self.clips]
        return stages | {"total": float(np.median(whole))}

    def floor(self) -> list[Check]:
        """The shipping floor, number by number."""
        model = summarize(self.clips)["model"]

        def check(name: str, value: float, bound: float, *, above: bool = True) -> Check:
            met = value >= bound if above else value <= bound
            return Check(name, value, f"{'≥' if above else '≤'} {bound:g}", bool(met))

        checks = [
            check(
                f"hand PSNR above {other.replace('_', ' ')} (dB)",
                model[f"hand_psnr_above_{other}"].mean,
                7,
            )
            for other in METHODS[1:]
        ]
        checks += [
            check("hand-mask IoU", model["hand_iou"].mean, 0.75),
            check("background PSNR (dB)", model["background_psnr"].mean, 25),
            check(
                "control error, joints moving ≥ 8 px (px)",
                model["moving_control_error_px"].mean,
                3,
                above=False,
            ),
            check("object follows (share of grasp clips)", model["object_follows"].mean, 0.6),
        ]
        if self.futures:
            lowest = obedience_summary(self.futures)["scene_lowest_iou_mean"]
            checks.append(check("lowest IoU of five futures, mean over scenes", lowest, OBEYED_IOU))
        return checks


@dataclass(frozen=True)
class Check:
    """One bound of the floor and whether the model meets it; an unknown value (NaN) does not."""

    name: str
    value: float
    bound: str
    met: bool


def obedience_summary(futures: Sequence[FutureResult]) -> dict[str, float | int]:
    """Numbers of the obedience test over scenes and futures."""
    scenes: dict[int, list[FutureResult]] = {}
    for result in futures:
        scenes.setdefault(result.scene, []).append(result)
    return {
        "scenes": len(scenes),
        "futures": len(futures),
        "iou_mean": float(np.mean([f.iou for f in futures])),
        "end_iou_mean": float(np.mean([f.end_iou for f in futures])),
        "scene_lowest_iou_mean": float(np.mean([min(f.iou for f in s) for s in scenes.values()])),
        "obeyed": float(np.mean([f.obeyed for f in futures])),
        "scenes_all_obeyed": float(np.mean([all(f.obeyed for f in s) for s in scenes.values()])),
        "told_apart": float(np.mean([f.best_match == f.future for f in futures])),
        "estimator_own_iou": float(np.mean([f.own_iou for f in futures])),
    }


def write_report(evaluation: Evaluation, out: str | Path, *, strips: int = 4) -> None:
    """Write results.json, report.md and ``strips`` strips of each kind into folder ``out``."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    clips = [
        {
            "name": c.name,
            "task": c.task,
            "kind": c.kind,
            "scores": c.scores,
            "timings": c.timings,
        }
        for c in evaluation.clips
    ]
    results = _plain(evaluation.summary() | {"clips": clips})
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "report.md").write_text(_markdown(evaluation, _write_strips(evaluation, out, strips)))


def clip_strip(result: ClipResult, *, columns: int = 9, scale: int = 2) -> np.ndarray:
    """Ground truth above imagination, evenly spaced frames from the reference to the last."""
    truth, imagined = result.frames["truth"], result.frames["model"]
    return _pair_strip(truth, imagined, columns=columns, scale=scale)


def _pair_strip(truth: np.ndarray, imagined: np.ndarray, *, columns: int, scale: int) -> np.ndarray:
    shown = np.unique(np.linspace(0, len(truth) - 1, columns).round().astype(int))
    return strip(
        [truth[shown], imagined[shown]],
        ["truth", "imagined"],
        columns=[f"frame {k}" for k in shown],
        scale=scale,
    )


def _write_strips(evaluation: Evaluation, out: Path, count: int) -> list[tuple[str, str]]:
    """Best, median and worst clips by hand PSNR, and the futures of one scene: (caption, file)."""
    ranked = sorted(
        (c for c in evaluation.clips if np.isfinite(c.scores["model"]["hand_psnr"])),
        key=lambda c: -c.scores["model"]["hand_psnr"],
    )
    count = min(count, len(ranked))
    middle = max(0, (len(ranked) - count) // 2)
    chosen = {
        "best": ranked[:count],
        "median": ranked[middle : middle + count],
        "worst": ranked[len(ranked) - count :],
    }
    written = []
    for kind, results in chosen.items():
        for number, result in enumerate(results):
            file = f"strips/{kind}_{number}.png"
            write_png(out / file, clip_strip(result))
            score = result.scores["model"]
            written.append(
                (
                    f"{kind}: {result.name}, {result.task}: hand {score['hand_psnr']:.1f} dB, "
                    f"hand IoU {score['hand_iou']:.2f}",
                    file,
                )
            )
    for result in [f for f in evaluation.futures if f.scene == evaluation.futures[0].scene]:
        file = f"strips/future_{result.future}.png"
        write_png(out / file, _pair_strip(result.truth, result.imagined, columns=9, scale=2))
        written.append((f"future {result.future} of one image: IoU {result.iou:.2f}", file))
    return written


def _markdown(evaluation: Evaluation, strips: list[tuple[str, str]]) -> str:
    summary = summarize(evaluation.clips)
    lines = ["# Evaluation", ""]
    lines += [f"- {name}: {value}" for name, value in evaluation.about.items()]
    lines += ["", "## Shipping floor", "", "| | value | bound | met |", "|---|---|---|---|"]
    lines += [
        f"| {c.name} | {c.value:.3g} | {c.bound} | {'yes' if c.met else 'no'} |"
        for c in evaluation.floor()
    ]
    lines += ["", "## Methods (mean over clips [95 % bootstrap interval])", ""]
    rows = ("model", *METHODS[1:], "truth")
    lines += [f"| | {' | '.join(rows)} | n |", "|---|" + "---|" * (len(rows) + 1)]
    for heading, metric in COLUMNS:
        values = [summary[row].get(metric) for row in rows]
        cells = [str(value) if value else "" for value in values]
        lines.append(f"| {heading} | {' | '.join(cells)} | {_count(values)} |")
    lines += [
        "",
        "`truth` is the estimator on the true frames: its own error. Regions, metrics and methods "
        "are defined in `ego_world_model/evaluation/metrics.py` and `benchmark.py`.",
        "",
        "## Control error over all joints (px)",
        "",
        "| | joints | n | mean | median | 90 % |",
        "|---|---|---|---|---|---|",
    ]
    for method in rows:
        for name, row in pooled_errors(evaluation.clips, method).items():
            lines.append(
                f"| {method} | {name} | {row['n']} | {row['mean']:.2f} | {row['median']:.2f} | "
                f"{row['p90']:.2f} |"
            )
    lines += _by_kind(evaluation.clips)
    seconds = [f"{stage} {value:.3f}" for stage, value in evaluation.rollout_seconds().items()]
    lines += ["", f"Median seconds of a rollout during this run: {', '.join(seconds)}."]
    if evaluation.futures:
        lines += ["", "## Different futures from one image", "", "| | |", "|---|---|"]
        lines += [f"| {k} | {v:.3g} |" for k, v in obedience_summary(evaluation.futures).items()]
    lines += ["", "## Strips", ""]
    lines += [f"{caption}\n\n![{caption}]({file})\n" for caption, file in strips]
    return "\n".join(lines)


def _by_kind(clips: Sequence[ClipResult]) -> list[str]:
    """Lines of a table: the model's numbers for each kind of task."""
    metrics = ("hand_psnr", "hand_psnr_above_copy_first", "hand_iou", "moving_control_error_px")
    lines = ["", "## By task", "", f"| | n | {' | '.join(metrics)} |", "|---|---|---|---|---|---|"]
    for kind in sorted({clip.kind for clip in clips}):
        some = [clip for clip in clips if clip.kind == kind]
        row = summarize(some)["model"]
        lines.append(f"| {kind} | {len(some)} | {' | '.join(str(row[m]) for m in metrics)} |")
    return lines


def _count(values: Sequence[Estimate | None]) -> str:
    counts = sorted({value.n for value in values if value})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"


def _plain(value: Any) -> Any:
    """For JSON: NaN becomes null, since JSON has none."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
