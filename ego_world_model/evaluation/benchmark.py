"""Held-out benchmark: a world model beside what it must beat, on the same clips.

Methods: ``model`` imagines each clip from its first frame and its own joints; ``copy_first``
repeats the first frame; ``shuffled`` is the model commanded with another clip's joints; ``frozen``
is the model commanded to stay as it starts. A model that ignored its joints would score alike on
``model``, ``shuffled`` and ``frozen``. ``truth`` gives the estimator the true frames, so that its
own error stands beside every number that depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from ego_world_model.data.schema import MASK_CLASSES, Episode
from ego_world_model.evaluation import metrics
from ego_world_model.evaluation.clips import ClipFormat, command, frozen
from ego_world_model.evaluation.metrics import Estimate
from ego_world_model.evaluation.moved_object import moved_object
from ego_world_model.hands import HandTrajectory
from ego_world_model.perception import CLASS_NAMES, KeypointEstimator, visible_joints

METHODS = ("model", "copy_first", "shuffled", "frozen")
MOVING_PX = 8.0
"""A joint counts as moving in a frame if it lies this far from its place in the reference."""
GRASP_FRAMES = 3
"""Frames at the end of a clip on which it is judged whether the object followed."""
FOLLOWS_IOU = 0.5


class Imagines(Protocol):
    """What is evaluated; ``world_model.WorldModel`` does this."""

    config: ClipFormat

    def imagine(self, image: Any, trajectories: Any, intrinsics: Any, **options: Any) -> Any:
        """Result with ``frames`` (K, T, H, W, 3) uint8 and ``timings`` {stage: seconds}."""
        ...


@dataclass(frozen=True)
class ClipResult:
    """One clip's numbers and pictures.

    Attributes:
        name: which clip, e.g. "episode 12, frame 0".
        task, kind: instruction under way at its start, and what kind of task that is.
        scores: {method: {metric: value}}, NaN where a metric does not apply.
        frames: {method: (T, H, W, 3) uint8}, the reference frame first; "truth" among them.
        timings: seconds per stage of the model's rollout.
        errors: {method: {"all" | "moving": (n,) px}}, distances behind the control errors.
    """

    name: str
    task: str
    kind: str
    scores: dict[str, dict[str, float]]
    frames: dict[str, NDArray[np.uint8]]
    timings: dict[str, float]
    errors: dict[str, dict[str, NDArray[np.float64]]] = field(repr=False)


class Benchmark:
    """Evaluates one model with one estimator.

    Args:
        model: see ``Imagines``.
        estimator: reads keypoints and masks off frames.
        steps: denoising steps, or None for the checkpoint's own.
        seed: of the first clip's noise; each clip has its own.
    """

    def __init__(
        self,
        model: Imagines,
        estimator: KeypointEstimator,
        *,
        steps: int | None = None,
        seed: int = 0,
    ) -> None:
        self.model, self.estimator = model, estimator
        self.steps, self.seed = steps, seed

    def run(self, clips: Sequence[Episode]) -> Iterator[ClipResult]:
        """Evaluate clips one by one; ``shuffled`` takes another clip's joints.

        Raises:
            ValueError: if there are fewer than two clips.
        """
        if len(clips) < 2:
            raise ValueError(f"shuffled joints need at least 2 clips, got {len(clips)}")
        extra = tuple(self.model.config.extra_slots)
        commands = [command(clip, extra) for clip in clips]
        for index, clip in enumerate(clips):
            partner = (index + len(clips) // 2) % len(clips)
            yield self._evaluate(index, clip, commands[index], commands[partner])

    def _evaluate(
        self, index: int, clip: Episode, own: HandTrajectory, others: HandTrajectory
    ) -> ClipResult:
        reference = clip.images[0]
        frames = {"truth": clip.images}
        frames["model"], timings = self._imagine(index, clip, own)
        frames["copy_first"] = np.repeat(reference[None], len(clip), axis=0)
        frames["shuffled"], _ = self._imagine(index, clip, others)
        frames["frozen"], _ = self._imagine(index, clip, frozen(own))
        assert clip.masks is not None  # evaluation clips have masks
        regions = metrics.regions(clip.masks[0], clip.masks[1:])
        judge = Judge(clip, self.estimator)
        scores, errors = {}, {}
        for method, video in frames.items():
            scores[method], errors[method] = judge(video[1:])
            if method != "truth":
                scores[method] |= region_scores(video[1:], clip.images[1:], regions)
        name = f"episode {clip.metadata['episode']}, frame {clip.metadata['first_frame']}"
        kind = clip.metadata["kind"]
        return ClipResult(name, clip.task, kind, scores, frames, timings, errors)

    def _imagine(
        self, index: int, clip: Episode, trajectory: HandTrajectory
    ) -> tuple[NDArray[np.uint8], dict[str, float]]:
        result = self.model.imagine(
            clip.images[0],
            trajectory,
            clip.camera.matrix,
            steps=self.steps,
            seed=self.seed + index,
        )
        frames = np.asarray(result.frames)[0]
        if frames.shape != clip.images.shape:
            raise ValueError(f"model gave frames {frames.shape}, the clip has {clip.images.shape}")
        return frames, dict(result.timings)


class Judge:
    """Measures frames 1.. of one clip with the estimator, against the simulator's truth.

    Metrics: ``hand_iou`` (either hand), ``arms_iou``; ``control_error_px`` and
    ``moving_control_error_px`` (mean over joints that can be seen in the true frame, the second
    over those that moved at least ``MOVING_PX``); ``object_iou`` over the last ``GRASP_FRAMES``
    frames and ``object_follows`` (1 or 0), in clips with a moved object only. The estimator knows
    objects but not which one was moved, so pixels of the others, as the simulator shows them, are
    left out.
    """

    def __init__(self, clip: Episode, estimator: KeypointEstimator) -> None:
        if clip.masks is None:
            raise ValueError("a clip without masks cannot be judged; use simulated episodes")
        self.estimator = estimator
        self.masks = clip.masks
        slots = list(estimator.config.slot_numbers)
        pixels, visible = visible_joints(
            clip.hand_positions, clip.hand_valid, clip.masks, clip.camera, clip.depth
        )
        self.pixels, self.visible = pixels[:, slots], visible[1:, slots]
        self.moved = moved_object(clip.masks)

    def __call__(
        self, frames: NDArray[np.uint8]
    ) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
        """Metrics of (T - 1, H, W, 3) frames, and the distances behind the control errors."""
        said = self.estimator(frames)
        truth = self.masks[1:]
        errors = {
            name: metrics.control_error(said.pixels, self.pixels, self.visible, moved=moved)
            for name, moved in (("all", 0.0), ("moving", MOVING_PX))
        }
        scores = {
            "hand_iou": metrics.iou(said.hand_mask(), _is(truth, "left_hand", "right_hand")),
            "arms_iou": metrics.iou(
                said.classes == CLASS_NAMES.index("arms"), _is(truth, "left_arm", "right_arm")
            ),
            "control_error_px": _mean(errors["all"]),
            "moving_control_error_px": _mean(errors["moving"]),
        }
        overlap = float("nan")
        if self.moved is not None:
            there, last = self.moved[-GRASP_FRAMES:], truth[-GRASP_FRAMES:]
            other = _is(last, "manipulated_object", "other_objects") & ~there
            other = binary_dilation(other, np.ones((1, 3, 3), bool)) & ~there
            found = said.classes[-GRASP_FRAMES:] == CLASS_NAMES.index("objects")
            overlap = metrics.iou(found & ~other, there)
        scores["object_iou"] = overlap
        scores["object_follows"] = (
            float("nan") if np.isnan(overlap) else float(overlap >= FOLLOWS_IOU)
        )
        return scores, errors


def region_scores(
    frames: NDArray[np.uint8], truth: NDArray[np.uint8], regions: dict[str, NDArray[np.bool_]]
) -> dict[str, float]:
    """``{region}_{l1, psnr, ssim}`` of frames (T, H, W, 3) in every region (T, H, W)."""
    similarity = metrics.ssim_map(frames, truth)
    scores = {}
    for name, region in regions.items():
        scores[f"{name}_l1"] = metrics.l1(frames, truth, region)
        scores[f"{name}_psnr"] = metrics.psnr(frames, truth, region)
        scores[f"{name}_ssim"] = metrics.pooled(similarity, region)
    return scores


def summarize(results: Sequence[ClipResult]) -> dict[str, dict[str, Estimate]]:
    """{method: {metric: mean over clips with interval}}.

    ``model`` also gets ``hand_psnr_above_{other}``: the mean over clips of the difference within
    each clip, whose interval is that of a paired comparison.
    """
    summary = {
        method: {
            metric: metrics.estimate(result.scores[method][metric] for result in results)
            for metric in results[0].scores[method]
        }
        for method in results[0].scores
    }
    for other in METHODS[1:]:
        summary["model"][f"hand_psnr_above_{other}"] = metrics.estimate(
            result.scores["model"]["hand_psnr"] - result.scores[other]["hand_psnr"]
            for result in results
        )
    return summary


def pooled_errors(results: Sequence[ClipResult], method: str) -> dict[str, dict[str, float]]:
    """Control error over the joints of all clips: {"all" | "moving": {n, mean, median, p90}}."""
    out = {}
    for name in ("all", "moving"):
        pooled = np.concatenate([result.errors[method][name] for result in results])
        some = len(pooled) > 0
        out[name] = {
            "n": len(pooled),
            "mean": float(pooled.mean()) if some else float("nan"),
            "median": float(np.median(pooled)) if some else float("nan"),
            "p90": float(np.percentile(pooled, 90)) if some else float("nan"),
        }
    return out


def _is(masks: NDArray[np.uint8], *names: str) -> NDArray[np.bool_]:
    return np.isin(masks, [MASK_CLASSES.index(name) for name in names])


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else float("nan")
