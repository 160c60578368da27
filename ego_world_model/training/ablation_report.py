"""Tables of an ablation from its result files: means, and differences paired by clip and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ego_world_model.training.ablation import Ablation, load_results

Clip = tuple[str, int, int]
"""Dataset, episode, first frame."""

SUBSETS = ("all", "occlusion-heavy", "plain")
COLUMNS: tuple[tuple[str, str, bool], ...] = (
    ("hand PSNR (dB)", "hand_psnr", True),
    ("hand + object PSNR (dB)", "hand_object_psnr", True),
    ("hand IoU", "hand_iou", True),
    ("control error, moving joints (px)", "moving_control_error_px", False),
)
"""Heading, metric, whether more is better."""

_RESAMPLES = 4000


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap interval over episodes (clips of one episode stay together).

    Attributes:
        clips, seeds: how many lie behind it.
    """

    mean: float
    low: float
    high: float
    clips: int
    seeds: int

    def __str__(self) -> str:
        if not self.clips:
            return "n/a"
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"

    @property
    def signed(self) -> str:
        """With its sign, for differences."""
        if not self.clips:
            return "n/a"
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


class Comparison:
    """Results of all finished runs.

    Args:
        results: contents of result files, see ``ablation.run_ablation``.
    """

    def __init__(self, results: Sequence[dict[str, Any]]) -> None:
        self.runs: dict[str, dict[int, dict[str, Any]]] = {}
        for result in results:
            self.runs.setdefault(result["method"], {})[result["seed"]] = result

    def value(self, method: str, metric: str, subset: str = "all") -> Interval:
        """Mean of a metric over clips and seeds."""
        runs = [self._clips(run, metric, subset) for run in self.runs[method].values()]
        return _interval(runs)

    def difference(self, method: str, base: str, metric: str, subset: str = "all") -> Interval:
        """Mean of ``base`` minus ``method`` within each clip, over the seeds that both have."""
        pairs = []
        for seed in sorted(set(self.runs[method]) & set(self.runs[base])):
            theirs = self._clips(self.runs[method][seed], metric, subset)
            ours = self._clips(self.runs[base][seed], metric, subset)
            pairs.append({clip: ours[clip] - theirs[clip] for clip in ours.keys() & theirs.keys()})
        return _interval(pairs)

    def seed_spread(self, method: str, metric: str) -> float:
        """Standard deviation over seeds of the mean over clips; NaN with a single seed."""
        means = [
            np.mean(list(self._clips(run, metric, "all").values()))
            for run in self.runs[method].values()
        ]
        return float(np.std(means, ddof=1)) if len(means) > 1 else float("nan")

    @staticmethod
    def _clips(run: dict[str, Any], metric: str, subset: str) -> dict[Clip, float]:
        return {
            (clip["data"], clip["episode"], clip["first_frame"]): clip[metric]
            for clip in run["clips"]
            if clip[metric] is not None
            and (subset == "all" or clip["heavy"] == (subset == "occlusion-heavy"))
        }


def _interval(runs: Sequence[dict[Clip, float]]) -> Interval:
    """Average over runs within each clip, then over clips; episodes are what is resampled."""
    shared = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    if not shared:
        return Interval(float("nan"), float("nan"), float("nan"), 0, len(runs))
    values = np.array([np.mean([run[clip] for run in runs]) for clip in shared])
    names = {episode: n for n, episode in enumerate(dict.fromkeys(clip[:2] for clip in shared))}
    member = np.array([names[clip[:2]] for clip in shared])
    totals = np.bincount(member, values, len(names))
    counts = np.bincount(member, minlength=len(names))
    draws = np.random.default_rng(0).integers(len(names), size=(_RESAMPLES, len(names)))
    means = totals[draws].sum(axis=1) / counts[draws].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high), len(values), len(runs))


def write_report(config: Ablation, results: Path, path: Path, *, command: str) -> None:
    """Write the Markdown report of what is finished so far.

    Args:
        results: folder of result files.
        path: of the report.
        command: that the reader can repeat.
    """
    comparison = Comparison(load_results(results))
    methods = [m for m in config.methods if m.name in comparison.runs]
    base = config.methods[0].name
    if base not in comparison.runs:
        methods = []
    planned = sum(len(method.seeds) for method in config.methods)
    done = sum(len(runs) for runs in comparison.runs.values())
    lines = [
        "# Controls at equal budget",
        "",
        f"`{command}` · {done} of {planned} runs finished. Written by the command; what the "
        "numbers mean and what follows from them is in [peers.md](../peers.md).",
    ]
    for heading, metric, more in COLUMNS if methods else ():
        lines += ["", f"## {heading}, {'more' if more else 'less'} is better", ""]
        lines += [
            f"| control | seeds | {' | '.join(SUBSETS)} | {base} minus it, all | heavy | plain | "
            "deviation between seeds |",
            "|---" * 9 + "|",
        ]
        for method in methods:
            values = [str(comparison.value(method.name, metric, s)) for s in SUBSETS]
            differences = [
                ""
                if method.name == base
                else comparison.difference(method.name, base, metric, s).signed
                for s in SUBSETS
            ]
            spread = comparison.seed_spread(method.name, metric)
            lines.append(
                f"| {method.name} | {len(comparison.runs[method.name])} | "
                f"{' | '.join(values + differences)} | "
                f"{'' if np.isnan(spread) else f'{spread:.2f}'} |"
            )
    if methods:
        lines += _about(methods, comparison, base)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def _about(methods: Sequence[Any], comparison: Comparison, base: str) -> list[str]:
    counts = {s: comparison.value(base, "hand_psnr", s).clips for s in SUBSETS}
    lines = [
        "",
        "Means over held-out clips [95 % bootstrap interval over episodes]; "
        + ", ".join(
            f"{n} {name} clips" if name != "all" else f"{n} clips" for name, n in counts.items()
        )
        + ". Differences are taken within each clip and seed.",
        "",
        "| control | what it is | its parameters | steps | minutes of training a run |",
        "|---|---|---|---|---|",
    ]
    for method in methods:
        runs = list(comparison.runs[method.name].values())
        minutes = np.mean([run["minutes"] for run in runs])
        lines.append(
            f"| {method.name} | {method.about} | {runs[0]['parameters']['control']:,} | "
            f"{runs[0]['steps']} | {minutes:.1f} |"
        )
    shared = comparison.runs[base][min(comparison.runs[base])]["parameters"]["backbone"]
    return [*lines, "", f"The backbone, alike for all, has {shared:,} parameters."]
