"""Means over clips, whole or by subset, and differences paired by clip, with their intervals.

Intervals are 95 % bootstrap intervals over episodes: clips of one episode stay together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ego_world_model.evaluation.benchmark import METHODS, ClipResult
from ego_world_model.evaluation.metrics import Estimate, estimate

SUBSETS = ("all", "occlusion-heavy", "plain")

Summary = dict[str, dict[str, Estimate]]
"""{method: {metric: mean over clips}}"""


def subset(results: Sequence[ClipResult], name: str) -> list[ClipResult]:
    """The clips of one of ``SUBSETS``."""
    if name == "all":
        return list(results)
    return [result for result in results if result.heavy == (name == "occlusion-heavy")]


def summarize(results: Sequence[ClipResult]) -> Summary:
    """{method: {metric: mean over clips with interval}}; nothing for no clips.

    ``model`` also gets ``hand_psnr_above_{other}``, the paired difference.
    """
    if not results:
        return {}
    summary = {
        method: {
            metric: mean([result.scores[method][metric] for result in results], results)
            for metric in results[0].scores[method]
        }
        for method in results[0].scores
    }
    for other in METHODS[1:]:
        summary["model"][f"hand_psnr_above_{other}"] = difference(
            results, results, "hand_psnr", their_method=other
        )
    return summary


def difference(
    ours: Sequence[ClipResult],
    theirs: Sequence[ClipResult],
    metric: str,
    *,
    our_method: str = "model",
    their_method: str = "model",
) -> Estimate:
    """Mean of ours minus theirs within each clip, over the clips that have both numbers.

    Raises:
        ValueError: if the two were not measured on the same clips.
    """
    if [clip.name for clip in ours] != [clip.name for clip in theirs]:
        raise ValueError("a paired difference needs results of the same clips in the same order")
    return mean(
        [
            our.scores[our_method][metric] - their.scores[their_method][metric]
            for our, their in zip(ours, theirs, strict=True)
        ],
        ours,
    )


def mean(values: Sequence[float], results: Sequence[ClipResult]) -> Estimate:
    """Mean of one value per clip; NaN is left out."""
    return estimate(values, groups=[result.episode for result in results])


def over_time(results: Sequence[ClipResult], method: str = "model") -> list[Estimate]:
    """Hand PSNR of each imagined frame, mean over clips."""
    frames = np.stack([result.over_time[method] for result in results], axis=1)  # (T - 1, clips)
    return [mean(list(row), results) for row in frames]


def pooled_errors(
    results: Sequence[ClipResult], method: str
) -> dict[str, dict[str, dict[str, float]]]:
    """Control error over the joints of all clips: {"all" | "moving": {"px" | "mm": {n, mean,
    median, p90}}}."""
    return {
        joints: {
            unit: _spread(np.concatenate([r.errors[method][joints][unit] for r in results]))
            for unit in ("px", "mm")
        }
        for joints in ("all", "moving")
    }


def _spread(values: NDArray[np.float64]) -> dict[str, float]:
    some = len(values) > 0
    return {
        "n": len(values),
        "mean": float(values.mean()) if some else float("nan"),
        "median": float(np.median(values)) if some else float("nan"),
        "p90": float(np.percentile(values, 90)) if some else float("nan"),
    }
