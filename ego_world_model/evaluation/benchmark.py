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

from ego_world_model.data.schema import Episode
from ego_world_model.evaluation import metrics
from ego_world_model.evaluation.clips import ClipFormat, command, frozen
from ego_world_model.evaluation.judge import Judge
from ego_world_model.evaluation.sharpness import energy_ratio, gradient_energy
from ego_world_model.evaluation.subsets import HEAVY, occlusion
from ego_world_model.evaluation.temporal import gmsd_t, motion_direction, st_ssim
from ego_world_model.hands import HandTrajectory
from ego_world_model.perception import KeypointEstimator

METHODS = ("model", "copy_first", "shuffled", "frozen")
TEMPORAL_REGIONS = ("all", "hand", "hand_object")
"""Regions in which motion over time is compared; in small ones its windows see little."""


class Imagines(Protocol):
    """What is evaluated; ``world_model.WorldModel`` does this."""

    config: ClipFormat

    def imagine(self, image: Any, trajectories: Any, intrinsics: Any, **options: Any) -> Any:
        """Result with ``frames`` (K, T, H, W, 3) uint8 and ``timings`` {stage: seconds}."""
        ...


@dataclass(frozen=True, kw_only=True)
class ClipResult:
    """One clip's numbers and pictures.

    Attributes:
        episode, first_frame: where the clip was cut.
        task, kind: instruction under way at its start, and what kind of task that is.
        occlusion: share of hidden joints, see ``subsets.occlusion``.
        scores: {method: {metric: value}}, NaN where a metric does not apply.
        over_time: {method: (T - 1,) dB}, hand PSNR of each imagined frame; NaN without a hand.
        frames: {method: (T, H, W, 3) uint8}, the reference frame first; "truth" among them.
        timings: seconds per stage of the model's rollout.
        errors: {method: {"all" | "moving": {"px" | "mm": (n,)}}}, distances behind the control
            errors.
    """

    episode: int
    first_frame: int
    task: str
    kind: str
    occlusion: float
    scores: dict[str, dict[str, float]]
    over_time: dict[str, NDArray[np.float64]] = field(repr=False)
    frames: dict[str, NDArray[np.uint8]] = field(repr=False)
    timings: dict[str, float]
    errors: dict[str, dict[str, dict[str, NDArray[np.float64]]]] = field(repr=False)

    @property
    def name(self) -> str:
        return f"episode {self.episode}, frame {self.first_frame}"

    @property
    def heavy(self) -> bool:
        """Whether the clip is occlusion-heavy, see ``subsets.HEAVY``."""
        return self.occlusion >= HEAVY


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
        frames = {"truth": clip.images}
        frames["model"], timings = self._imagine(index, clip, own)
        frames["copy_first"] = np.repeat(clip.images[:1], len(clip), axis=0)
        frames["shuffled"], _ = self._imagine(index, clip, others)
        frames["frozen"], _ = self._imagine(index, clip, frozen(own))
        regions = clip_regions(clip)
        motion = motion_direction(clip.images[1:])
        judge = Judge(clip, self.estimator)
        scores, errors, over_time = {}, {}, {}
        for method, video in frames.items():
            scores[method], errors[method] = judge(video[1:])
            if method == "truth":
                continue
            imagined, true = video[1:], clip.images[1:]
            scores[method] |= region_scores(imagined, true, regions)
            scores[method] |= temporal_scores(imagined, true, regions, motion)
            over_time[method] = np.array(
                [metrics.psnr(*pair) for pair in zip(imagined, true, regions["hand"], strict=True)]
            )
        return ClipResult(
            episode=clip.metadata["episode"],
            first_frame=clip.metadata["first_frame"],
            task=clip.task,
            kind=clip.metadata["kind"],
            occlusion=occlusion(clip),
            scores=scores,
            over_time=over_time,
            frames=frames,
            timings=timings,
            errors=errors,
        )

    def _imagine(
        self, index: int, clip: Episode, trajectory: HandTrajectory
    ) -> tuple[NDArray[np.uint8], dict[str, float]]:
        options = {"steps": self.steps, "seed": self.seed + index}
        frames, timings = imagine_clip(self.model, clip, [trajectory], **options)
        return frames[0], timings


def imagine_clip(
    model: Imagines, clip: Episode, trajectories: Sequence[HandTrajectory], **options: Any
) -> tuple[NDArray[np.uint8], dict[str, float]]:
    """(K, T, H, W, 3) frames of a clip's first frame under K trajectories, and seconds per stage.

    Args:
        options: of ``Imagines.imagine``.

    Raises:
        ValueError: if the model's frames are not of the clip's length and size.
    """
    result = model.imagine(clip.images[0], list(trajectories), clip.camera.matrix, **options)
    frames = np.asarray(result.frames)
    if frames.shape[1:] != clip.images.shape:
        raise ValueError(f"model gave frames {frames.shape[1:]}, the clip has {clip.images.shape}")
    return frames, dict(result.timings)


def clip_regions(clip: Episode) -> dict[str, NDArray[np.bool_]]:
    """``metrics.regions`` of a clip's frames 1.., each (T - 1, H, W)."""
    assert clip.masks is not None  # evaluation clips have masks
    return metrics.regions(clip.masks[0], clip.masks[1:])


def region_scores(
    frames: NDArray[np.uint8], truth: NDArray[np.uint8], regions: dict[str, NDArray[np.bool_]]
) -> dict[str, float]:
    """``{region}_{l1, psnr, ssim, gradient_energy}`` of frames (T, H, W, 3) in every region
    (T, H, W); the gradient energy is a share of the truth's, see ``sharpness``."""
    similarity = metrics.ssim_map(frames, truth)
    energy, true_energy = gradient_energy(frames), gradient_energy(truth)
    scores = {}
    for name, region in regions.items():
        scores[f"{name}_l1"] = metrics.l1(frames, truth, region)
        scores[f"{name}_psnr"] = metrics.psnr(frames, truth, region)
        scores[f"{name}_ssim"] = metrics.pooled(similarity, region)
        scores[f"{name}_gradient_energy"] = energy_ratio(energy, true_energy, region)
    return scores


def temporal_scores(
    frames: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    regions: dict[str, NDArray[np.bool_]],
    motion: NDArray[np.int8],
) -> dict[str, float]:
    """``{region}_{st_ssim, gmsd_t}`` of frames (T, H, W, 3) in ``TEMPORAL_REGIONS``.

    Args:
        motion: ``temporal.motion_direction(truth)``.
    """
    scores = {}
    for name in TEMPORAL_REGIONS:
        scores[f"{name}_st_ssim"] = st_ssim(frames, truth, regions[name], motion=motion)
        scores[f"{name}_gmsd_t"] = gmsd_t(frames, truth, regions[name])
    return scores
