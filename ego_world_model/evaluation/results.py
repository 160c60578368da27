"""All that one evaluation produced, and what it says against the shipping floor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ego_world_model.evaluation.benchmark import METHODS, ClipResult
from ego_world_model.evaluation.distribution import Distance
from ego_world_model.evaluation.metrics import Estimate
from ego_world_model.evaluation.obedience import OBEYED_IOU, FutureResult
from ego_world_model.evaluation.studies import Study, few_steps_checks
from ego_world_model.evaluation.summary import (
    SUBSETS,
    difference,
    over_time,
    pooled_errors,
    subset,
    summarize,
)

ROWS = ("model", *METHODS[1:], "truth")
"""Methods in the order of tables."""

COMPARED = (
    "hand_psnr",
    "hand_object_psnr",
    "hand_object_ssim",
    "hand_gradient_energy",
    "background_psnr",
    "hand_iou",
    "control_error_px",
    "moving_control_error_px",
    "moving_control_error_mm",
    "object_follows",
)
"""Metrics of paired differences between models and in subsets."""

Scores = Mapping[str, Estimate | Distance]


@dataclass(frozen=True, kw_only=True)
class ModelEvaluation:
    """One model.

    Attributes:
        clips: results of the held-out benchmark.
        futures: results of the obedience test; empty if it was not run.
        studies: those that were run.
        features: {method: scores that need feature networks}; empty without networks.
    """

    clips: Sequence[ClipResult]
    futures: Sequence[FutureResult] = ()
    studies: Sequence[Study] = ()
    features: Mapping[str, Scores] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One or several models on the same clips.

    Attributes:
        about: what was evaluated (data, number of clips, steps), for the report's head.
        models: by name; the first is what the others are compared with.
    """

    about: dict[str, Any]
    models: Mapping[str, ModelEvaluation]

    def document(self) -> dict[str, Any]:
        """What results.json holds, every clip's numbers included; NaN as null."""
        names = list(self.models)
        differences = {
            name: {
                part: {m: asdict(model_difference(self, name, m, part)) for m in COMPARED}
                for part in SUBSETS
            }
            for name in names[1:]
        }
        document = {
            "about": self.about,
            "models": {name: _model_document(model) for name, model in self.models.items()},
            "compared_with": names[0] if differences else None,
            "differences": differences,
        }
        return _plain(document)


@dataclass(frozen=True)
class Check:
    """One bound of the floor and whether the model meets it; an unknown value (NaN) does not."""

    name: str
    value: float
    bound: str
    met: bool


def model_difference(evaluation: Evaluation, name: str, metric: str, part: str) -> Estimate:
    """A model's metric minus the first model's within each clip of a subset."""
    first = next(iter(evaluation.models.values()))
    return difference(
        subset(evaluation.models[name].clips, part), subset(first.clips, part), metric
    )


def floor(model: ModelEvaluation) -> list[Check]:
    """The shipping floor, number by number."""
    scores = summarize(model.clips)["model"]

    def check(name: str, value: float, bound: float, *, above: bool = True) -> Check:
        met = value >= bound if above else value <= bound
        return Check(name, value, f"{'≥' if above else '≤'} {bound:g}", bool(met))

    checks = [
        check(
            f"hand PSNR above {other.replace('_', ' ')} (dB)",
            scores[f"hand_psnr_above_{other}"].mean,
            7,
        )
        for other in METHODS[1:]
    ]
    checks += [
        check("hand-mask IoU", scores["hand_iou"].mean, 0.75),
        check("background PSNR (dB)", scores["background_psnr"].mean, 25),
        check(
            "control error, joints moving ≥ 8 px (px)",
            scores["moving_control_error_px"].mean,
            3,
            above=False,
        ),
        check("object follows (share of grasp clips)", scores["object_follows"].mean, 0.6),
    ]
    if model.futures:
        lowest = obedience_summary(model.futures)["scene_lowest_iou_mean"]
        checks.append(check("lowest IoU of five futures, mean over scenes", lowest, OBEYED_IOU))
    for study in model.studies:
        for ratio in few_steps_checks(study):
            bound = f"≤ {ratio.most:g}"
            if ratio.least is not None:
                bound = f"{ratio.least:g} to {ratio.most:g}"
            checks.append(Check(ratio.name, ratio.value, bound, ratio.met))
    return checks


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


def rollout_seconds(clips: Sequence[ClipResult]) -> dict[str, float]:
    """Median seconds of each stage of a rollout, and of the whole."""
    stages = {
        stage: float(np.median([clip.timings[stage] for clip in clips]))
        for stage in clips[0].timings
    }
    whole = [sum(clip.timings.values()) for clip in clips]
    return stages | {"total": float(np.median(whole))}


def _model_document(model: ModelEvaluation) -> dict[str, Any]:
    return {
        "methods": _summary(model.clips),
        "subsets": {name: _summary(subset(model.clips, name)) for name in SUBSETS[1:]},
        "control_error_pooled": {method: pooled_errors(model.clips, method) for method in ROWS},
        "hand_psnr_over_time": {
            method: [asdict(value) for value in over_time(model.clips, method)]
            for method in METHODS
        },
        "rollout_median_s": rollout_seconds(model.clips),
        "obedience": obedience_summary(model.futures) if model.futures else None,
        "features": {
            method: {name: asdict(score) for name, score in scores.items()}
            for method, scores in model.features.items()
        },
        "studies": {study.name: _study_document(study) for study in model.studies},
        "floor": [asdict(check) for check in floor(model)],
        "clips": [_clip_document(clip) for clip in model.clips],
        "futures": [
            {
                name: getattr(future, name)
                for name in ("scene", "future", "iou", "end_iou", "own_iou", "best_match")
            }
            for future in model.futures
        ],
    }


def _summary(clips: Sequence[ClipResult]) -> dict[str, Any]:
    return {
        method: {name: asdict(value) for name, value in row.items()}
        for method, row in summarize(clips).items()
    }


def _clip_document(clip: ClipResult) -> dict[str, Any]:
    return {
        "name": clip.name,
        "episode": clip.episode,
        "first_frame": clip.first_frame,
        "task": clip.task,
        "kind": clip.kind,
        "occlusion": clip.occlusion,
        "heavy": clip.heavy,
        "scores": clip.scores,
        "hand_psnr_over_time": {m: values.tolist() for m, values in clip.over_time.items()},
        "timings": clip.timings,
    }


def _study_document(study: Study) -> dict[str, Any]:
    def table(value: Any) -> dict[str, Any]:
        return {s: {m: asdict(value(s, m)) for m in study.metrics} for s in study.settings}

    return {
        "settings": study.settings,
        "base": study.base,
        "means": table(study.mean),
        "differences_to_base": table(study.difference),
        "checks": [asdict(check) | {"met": check.met} for check in few_steps_checks(study)],
        "clips": [
            {"episode": c.episode, "first_frame": c.first_frame, "scores": c.scores}
            for c in study.clips
        ],
    }


def _plain(value: Any) -> Any:
    """For JSON: NaN becomes null, since JSON has none."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
