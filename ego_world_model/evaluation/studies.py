"""Studies of one model on the same clips: with joints hidden, and with fewer denoising steps.

Both end in the same table: a row for each setting, and the difference to a base setting within each
clip. The metrics are those of the benchmark.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ego_world_model.data.schema import Episode
from ego_world_model.evaluation.benchmark import (
    Imagines,
    clip_regions,
    imagine_clip,
    region_scores,
)
from ego_world_model.evaluation.clips import command
from ego_world_model.evaluation.judge import Judge
from ego_world_model.evaluation.metrics import Estimate, estimate
from ego_world_model.hands import HandTrajectory, random_joint_mask
from ego_world_model.perception import KeypointEstimator

METRICS = (
    "hand_psnr",
    "hand_object_psnr",
    "background_psnr",
    "hand_gradient_energy",
    "hand_iou",
    "control_error_px",
    "control_error_mm",
)
REGIONS = ("hand", "hand_object", "background")

FEW_STEPS, MANY_STEPS = 4, 20
"""Denoising steps whose quality ``few_steps_checks`` compares."""
CONTROL_BOUND, SHARPNESS_BOUND = 1.15, 0.1
"""With few steps, the control error may be this many times that with many, and the hand's gradient
energy may differ by this share of it."""


@dataclass(frozen=True, kw_only=True)
class ClipStudy:
    """One clip under every setting.

    Attributes:
        episode, first_frame: where the clip was cut.
        scores: {setting: {metric: value}}; NaN where one does not apply.
        frames: {setting: (T, H, W, 3) uint8}, "truth" among them.
    """

    episode: int
    first_frame: int
    scores: dict[str, dict[str, float]]
    frames: dict[str, NDArray[np.uint8]] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Study:
    """One model under several settings.

    Attributes:
        name: of the study's files.
        title, setting: what it is about, and what its settings are.
        settings: as written in tables, in their order.
        base: the one that the others are compared with.
        clips: results.
        metrics: columns of its table.
    """

    name: str
    title: str
    setting: str
    settings: tuple[str, ...]
    base: str
    clips: Sequence[ClipStudy]
    metrics: tuple[str, ...] = METRICS

    def values(self, setting: str, metric: str) -> NDArray[np.float64]:
        """(clips,)"""
        return np.array([clip.scores[setting][metric] for clip in self.clips])

    def mean(self, setting: str, metric: str) -> Estimate:
        """Over clips, with the interval over episodes."""
        return self._estimate(self.values(setting, metric))

    def difference(self, setting: str, metric: str) -> Estimate:
        """Mean of the setting minus the base within each clip."""
        return self._estimate(self.values(setting, metric) - self.values(self.base, metric))

    def _estimate(self, values: NDArray[np.float64]) -> Estimate:
        return estimate(values, groups=[clip.episode for clip in self.clips])


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A ratio of two means over the same clips against its bounds.

    Attributes:
        low, high: 95 % bootstrap interval over episodes, numerator and denominator drawn together.
        least, most: bounds; ``least`` None for no lower one.
    """

    name: str
    value: float
    low: float
    high: float
    least: float | None
    most: float

    @property
    def met(self) -> bool:
        """Whether the value is within its bounds; an unknown one is not."""
        return (self.least is None or self.value >= self.least) and self.value <= self.most


def masked_joints(
    model: Imagines,
    estimator: KeypointEstimator,
    clips: Sequence[Episode],
    shares: Sequence[float],
    *,
    steps: int | None = None,
    seed: int = 0,
) -> Iterator[ClipStudy]:
    """Each clip with random joints hidden from the model throughout (``hands.random_joint_mask``).

    All shares of a clip are imagined at once, from one encoded reference and the same noise; each
    draws its own joints. Control errors are measured on all joints, hidden ones included.

    Args:
        shares: of hidden joints, in [0, 1).

    Raises:
        ValueError: if a share is out of range or none is 0, which the others are compared with.
    """
    if any(not 0 <= share < 1 for share in shares) or 0 not in shares:
        raise ValueError(f"shares of hidden joints must lie in [0, 1) and include 0, got {shares}")
    extra = tuple(model.config.extra_slots)
    for index, clip in enumerate(clips):
        own = command(clip, extra)
        hidden = [_hidden(own, share, (seed, index)) for share in shares]
        frames, _ = imagine_clip(model, clip, hidden, steps=steps, seed=seed + index)
        settings = [f"{share:.0%}" for share in shares]
        yield _measured(clip, estimator, dict(zip(settings, frames, strict=True)))


def denoising_steps(
    model: Imagines,
    estimator: KeypointEstimator,
    clips: Sequence[Episode],
    steps: Sequence[int],
    *,
    seed: int = 0,
) -> Iterator[ClipStudy]:
    """Each clip with every number of denoising steps, from the same noise.

    Raises:
        ValueError: if a number is not positive.
    """
    if not steps or min(steps) < 1:
        raise ValueError(f"numbers of denoising steps must be positive, got {steps}")
    extra = tuple(model.config.extra_slots)
    for index, clip in enumerate(clips):
        own, frames, seconds = [command(clip, extra)], {}, {}
        for count in steps:
            made, timings = imagine_clip(model, clip, own, steps=count, seed=seed + index)
            frames[str(count)], seconds[str(count)] = made[0], sum(timings.values())
        result = _measured(clip, estimator, frames)
        for setting, scores in result.scores.items():
            scores["seconds"] = seconds[setting]
        yield result


def masked_joints_study(shares: Sequence[float], clips: Sequence[ClipStudy]) -> Study:
    """The table of ``masked_joints``."""
    return Study(
        name="masked_joints",
        title="Joints hidden from the model",
        setting="joints hidden",
        settings=tuple(f"{share:.0%}" for share in shares),
        base="0%",
        clips=clips,
    )


def denoising_steps_study(steps: Sequence[int], clips: Sequence[ClipStudy]) -> Study:
    """The table of ``denoising_steps``; the base is the largest number."""
    return Study(
        name="denoising_steps",
        title="Denoising steps",
        setting="steps",
        settings=tuple(str(count) for count in steps),
        base=str(max(steps)),
        clips=clips,
        metrics=(*METRICS, "seconds"),
    )


def few_steps_checks(study: Study) -> list[Ratio]:
    """``FEW_STEPS`` against ``MANY_STEPS``, if the study has both; else nothing."""
    few, many = str(FEW_STEPS), str(MANY_STEPS)
    if few not in study.settings or many not in study.settings:
        return []
    bounds = {
        "control_error_px": (None, CONTROL_BOUND),
        "hand_gradient_energy": (1 - SHARPNESS_BOUND, 1 + SHARPNESS_BOUND),
    }
    checks = []
    for metric, (least, most) in bounds.items():
        value, low, high = _ratio(study, metric, few, many)
        name = f"{metric.replace('_', ' ')}, {few} steps against {many}"
        checks.append(Ratio(name=name, value=value, low=low, high=high, least=least, most=most))
    return checks


def _ratio(
    study: Study, metric: str, above: str, below: str, *, resamples: int = 2000
) -> tuple[float, float, float]:
    """Ratio of the means of two settings over the clips that have both, and its interval."""
    top, bottom = study.values(above, metric), study.values(below, metric)
    known = np.isfinite(top) & np.isfinite(bottom)
    if not known.any():
        return float("nan"), float("nan"), float("nan")
    episodes = np.array([clip.episode for clip in study.clips])[known]
    _, group = np.unique(episodes, return_inverse=True)
    top, bottom = (np.bincount(group, weights=part[known]) for part in (top, bottom))
    draws = np.random.default_rng(0).integers(len(top), size=(resamples, len(top)))
    low, high = np.percentile(top[draws].sum(1) / bottom[draws].sum(1), [2.5, 97.5])
    return float(top.sum() / bottom.sum()), float(low), float(high)


def _hidden(own: HandTrajectory, share: float, seed: tuple[int, ...]) -> HandTrajectory:
    valid = random_joint_mask(own.valid, share, np.random.default_rng(seed))
    return HandTrajectory(own.times, own.positions, valid, own.camera_pose)


def _measured(
    clip: Episode,
    estimator: KeypointEstimator,
    frames: dict[str, NDArray[np.uint8]],
) -> ClipStudy:
    """Scores of each setting's frames (T, H, W, 3)."""
    judge = Judge(clip, estimator)
    regions = {name: region for name, region in clip_regions(clip).items() if name in REGIONS}
    scores = {}
    for setting, video in frames.items():
        found = judge(video[1:])[0] | region_scores(video[1:], clip.images[1:], regions)
        scores[setting] = {metric: found[metric] for metric in METRICS}
    return ClipStudy(
        episode=clip.metadata["episode"],
        first_frame=clip.metadata["first_frame"],
        scores=scores,
        frames={"truth": clip.images, **frames},
    )
