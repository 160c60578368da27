"""Scores of many clips that need feature networks: distances of sets, and means over clips.

A name of a score is ``{region}_{metric}``; region ``all`` is the whole frame. In other regions the
networks are shown ``metrics.composite``: the imagined frame inside, the true one outside. A copy of
the truth scores perfectly there and what lies outside cannot contribute, but what is alike outside
draws every distance down, the more the smaller the region: compare methods on the same clips with
them, not regions with each other nor with papers that blank the outside.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ego_world_model.evaluation.distribution import Distance, frechet_distance, kernel_distance
from ego_world_model.evaluation.features import CLIP_SCORE_WEIGHT, FeatureNetworks, cosine
from ego_world_model.evaluation.metrics import Estimate, composite, estimate

Clips = Sequence[NDArray[np.uint8]]

KERNEL_NAMES = {"fid": "kid", "clip_fid": "clip_kid", "fvd": "kvd"}
"""Fréchet distance → the kernel distance on the same features, always given beside it."""


def set_scores(
    imagined: Clips,
    truth: Clips,
    regions: Mapping[str, Sequence[NDArray[np.bool_]]],
    networks: FeatureNetworks,
    instructions: Sequence[str] | None = None,
    *,
    groups: Sequence[Hashable] | None = None,
    metrics: Sequence[str] | None = None,
) -> dict[str, Estimate | Distance]:
    """Every score that the networks make possible, in the whole frame and in each region.

    - ``fid`` and ``kid``: Inception features of frames. ``clip_fid`` and ``clip_kid``: CLIP image
      embeddings of frames. ``fvd`` and ``kvd``: I3D features of whole clips. Each a ``Distance``
      that states n.
    - ``lpips``, ``clip_image`` (cosine of the embeddings of an imagined frame and its true one) and
      ``clip_score`` (Hessel et al., 2021: 2.5 max(cosine, 0) of a frame and the clip's
      instruction, no prompt added): mean over a clip's frames, then an ``Estimate`` over clips.

    Frames in which a region is empty are left out of it, and clips in which it is always empty.
    Leave the given reference frame out of the clips: it is no imagination.

    Args:
        imagined, truth: per clip (T, H, W, 3) uint8; one T, H and W for all.
        regions: per name, (T, H, W) bool for each clip, e.g. those of ``metrics.regions``.
        networks: see there.
        instructions: per clip; clips with an empty one have no ``clip_score``.
        groups: per clip, what counts as one independent draw in errors and intervals, e.g. its
            episode; None: each clip.
        metrics: of ``features.FEATURE_METRICS``; by default all that the networks and the
            instructions allow.

    Raises:
        MissingNetworkError: for a metric in ``metrics`` whose network is not in the folder.
        ValueError: if clips, regions or instructions do not fit, or the clips are too short for
            ``fvd``.
    """
    _check(imagined, truth, regions, instructions, groups)
    if metrics is None:
        metrics = [m for m in networks.metrics if m != "clip_score" or instructions is not None]
    networks.require(metrics)
    if "clip_score" in metrics and instructions is None:
        raise ValueError("clip_score compares frames with instructions, which were not given")
    groups = list(range(len(truth))) if groups is None else groups
    whole = [np.ones(clip.shape[:3], bool) for clip in truth]
    scores: dict[str, Estimate | Distance] = {}
    parts = _Parts(truth, networks, metrics, instructions, groups)
    for name, masks in {"all": whole, **regions}.items():
        found = parts.scores(imagined, masks)
        scores |= {f"{name}_{metric}": score for metric, score in found.items()}
    return scores


class _Parts:
    """Scores of one region, with the true frames' features computed once for all regions."""

    def __init__(
        self,
        truth: Clips,
        networks: FeatureNetworks,
        metrics: Sequence[str],
        instructions: Sequence[str] | None,
        groups: Sequence[Hashable],
    ) -> None:
        self.truth, self.networks, self.metrics = truth, networks, metrics
        number = {group: k for k, group in enumerate(dict.fromkeys(groups))}
        self.group = [number[group] for group in groups]
        self.true: dict[str, list[NDArray[np.float64]]] = {}  # per network, (T, D) of each clip
        if "fid" in metrics:
            self.true["inception"] = [networks.inception(clip) for clip in truth]
        if {"clip_fid", "clip_image"} & set(metrics):
            self.true["clip"] = [networks.clip_images(clip) for clip in truth]
        if "fvd" in metrics:
            self.true["i3d"] = [networks.i3d(clip[None]) for clip in truth]
        self.texts = (
            [networks.clip_texts([text]) if text else None for text in instructions]
            if "clip_score" in metrics and instructions is not None
            else []
        )

    def scores(
        self, imagined: Clips, masks: Sequence[NDArray[np.bool_]]
    ) -> dict[str, Estimate | Distance]:
        """Of frames that are imagined inside the masks and true outside."""
        used = [np.asarray(mask, bool).any(axis=(1, 2)) for mask in masks]  # (T,) each
        clips = [k for k, frames in enumerate(used) if frames.any()]
        shown = {k: composite(imagined[k], self.truth[k], masks[k]) for k in clips}

        def frames(extract: Callable[[NDArray], NDArray]) -> dict[int, NDArray]:
            return {k: extract(shown[k][used[k]]) for k in clips}

        def true(network: str) -> dict[int, NDArray]:
            return {k: self.true[network][k][used[k]] for k in clips}

        out: dict[str, Estimate | Distance] = {}
        if "fid" in self.metrics:
            out |= self._distances("fid", frames(self.networks.inception), true("inception"))
        if "fvd" in self.metrics:
            videos = {k: self.networks.i3d(shown[k][None]) for k in clips}
            out |= self._distances("fvd", videos, {k: self.true["i3d"][k] for k in clips})
        if "lpips" in self.metrics:
            out["lpips"] = self._estimate(
                {k: self.networks.lpips(shown[k][used[k]], self.truth[k][used[k]]) for k in clips}
            )
        if not {"clip_fid", "clip_image", "clip_score"} & set(self.metrics):
            return out
        embedded = frames(self.networks.clip_images)
        if "clip_fid" in self.metrics:
            out |= self._distances("clip_fid", embedded, true("clip"))
        if "clip_image" in self.metrics:
            near = true("clip")
            out["clip_image"] = self._estimate({k: cosine(embedded[k], near[k]) for k in clips})
        if "clip_score" in self.metrics:
            out["clip_score"] = self._estimate(
                {
                    k: CLIP_SCORE_WEIGHT * np.maximum(cosine(embedded[k], text), 0)
                    for k in clips
                    if (text := self.texts[k]) is not None
                }
            )
        return out

    def _estimate(self, frames: Mapping[int, NDArray]) -> Estimate:
        """Of the means over each clip's frames."""
        return estimate(
            (values.mean() for values in frames.values()), groups=[self.group[k] for k in frames]
        )

    def _distances(
        self, metric: str, imagined: Mapping[int, NDArray], truth: Mapping[int, NDArray]
    ) -> dict[str, Distance]:
        """The Fréchet and the kernel distance of features (n, D) per clip."""
        if not truth:
            nothing = Distance(
                value=float("nan"),
                error=None,
                n=0,
                groups=0,
                dimensions=0,
                warning="the region is empty in all clips",
            )
            return {metric: nothing, KERNEL_NAMES[metric]: nothing}
        label = np.repeat([self.group[k] for k in truth], [len(rows) for rows in truth.values()])
        sets = [np.concatenate([rows[k] for k in truth]) for rows in (imagined, truth)]
        return {
            metric: frechet_distance(*sets, label),
            KERNEL_NAMES[metric]: kernel_distance(*sets, label),
        }


def _check(
    imagined: Clips,
    truth: Clips,
    regions: Mapping[str, Sequence[NDArray[np.bool_]]],
    instructions: Sequence[str] | None,
    groups: Sequence[Hashable] | None,
) -> None:
    if len(truth) < 2:
        raise ValueError(f"scores of a set need at least 2 clips, got {len(truth)}")
    shape = np.shape(truth[0])
    wrong = {np.shape(clip) for clip in (*imagined, *truth)} - {shape}
    if len(imagined) != len(truth) or wrong or len(shape) != 4 or shape[-1] != 3:
        raise ValueError(
            f"imagined and true clips must be as many, all (T, H, W, 3) of one size; got "
            f"{len(imagined)} and {len(truth)}, the first {shape}, others {sorted(wrong)}"
        )
    if "all" in regions:
        raise ValueError("region 'all' is the whole frame and always there; leave it out")
    for name, masks in regions.items():
        if len(masks) != len(truth) or any(np.shape(mask) != shape[:3] for mask in masks):
            raise ValueError(f"region {name!r} must have a mask {shape[:3]} for each clip")
    if instructions is not None and len(instructions) != len(truth):
        raise ValueError(f"got {len(instructions)} instructions for {len(truth)} clips")
    if groups is not None and len(groups) != len(truth):
        raise ValueError(f"got {len(groups)} groups for {len(truth)} clips")
