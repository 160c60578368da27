"""Strips to look at: true frames above imagined ones, chosen by rank so that failures show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ego_world_model.evaluation.benchmark import ClipResult
from ego_world_model.evaluation.obedience import FutureResult
from ego_world_model.evaluation.studies import Study
from ego_world_model.media import strip, write_png

COLUMNS, SCALE = 9, 2


def video_strip(
    videos: Mapping[str, NDArray[np.uint8]], *, columns: int = COLUMNS, scale: int = SCALE
) -> NDArray[np.uint8]:
    """{label: (T, H, W, 3)} one above the other; evenly spaced frames from first to last."""
    length = len(next(iter(videos.values())))
    shown = np.unique(np.linspace(0, length - 1, columns).round().astype(int))
    return strip(
        [video[shown] for video in videos.values()],
        list(videos),
        columns=[f"frame {k}" for k in shown],
        scale=scale,
    )


def write_clip_strips(
    models: Mapping[str, Sequence[ClipResult]], out: Path, count: int
) -> list[tuple[str, str]]:
    """``count`` strips each of the best, median and worst clips by the first model's hand PSNR.

    With several models, their imaginations stand below each other.

    Args:
        models: {name: results}, on the same clips in the same order.

    Returns:
        (caption, file relative to ``out``) of each.
    """
    first = next(iter(models.values()))
    ranked = sorted(
        (k for k in range(len(first)) if np.isfinite(_hand_psnr(first[k]))),
        key=lambda k: -_hand_psnr(first[k]),
    )
    count = min(count, len(ranked))
    middle = max(0, (len(ranked) - count) // 2)
    chosen = {
        "best": ranked[:count],
        "median": ranked[middle : middle + count],
        "worst": ranked[len(ranked) - count :],
    }
    written = []
    for kind, clips in chosen.items():
        for number, k in enumerate(clips):
            videos = {"truth": first[k].frames["truth"]}
            for name, results in models.items():
                label = "imagined" if len(models) == 1 else name
                videos[label] = results[k].frames["model"]
            file = f"strips/{kind}_{number}.png"
            write_png(out / file, video_strip(videos))
            scores = "; ".join(
                _scores(name, results[k], models) for name, results in models.items()
            )
            written.append((f"{kind}: {first[k].name}, {first[k].task}: {scores}", file))
    return written


def write_future_strips(
    futures: Sequence[FutureResult], out: Path, *, prefix: str = ""
) -> list[tuple[str, str]]:
    """The different futures of the first scene: (caption, file) of each."""
    written = []
    for result in [f for f in futures if f.scene == futures[0].scene]:
        file = f"strips/{prefix}future_{result.future}.png"
        write_png(out / file, video_strip({"truth": result.truth, "imagined": result.imagined}))
        written.append((f"future {result.future} of one image: IoU {result.iou:.2f}", file))
    return written


def write_study_strip(study: Study, out: Path, *, prefix: str = "") -> list[tuple[str, str]]:
    """The study's median clip by the base setting's hand PSNR, under every setting."""
    ranked = sorted(
        (clip for clip in study.clips if np.isfinite(clip.scores[study.base]["hand_psnr"])),
        key=lambda clip: clip.scores[study.base]["hand_psnr"],
    )
    if not ranked:
        return []
    clip = ranked[len(ranked) // 2]
    file = f"strips/{prefix}{study.name}.png"
    write_png(out / file, video_strip(clip.frames))
    place = f"episode {clip.episode}, frame {clip.first_frame}"
    return [(f"{study.title}, median clip ({place}); rows: {study.setting}", file)]


def _hand_psnr(result: ClipResult) -> float:
    return result.scores["model"]["hand_psnr"]


def _scores(name: str, result: ClipResult, models: Mapping[str, object]) -> str:
    score = result.scores["model"]
    who = "" if len(models) == 1 else f"{name} "
    return f"{who}hand {score['hand_psnr']:.1f} dB, hand IoU {score['hand_iou']:.2f}"
