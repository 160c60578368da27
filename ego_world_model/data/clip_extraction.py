"""Training clips around the moments in which the hands are best seen.

The procedure is that of section 4.2 of *Controllable Egocentric Video Generation via
Occlusion-Aware Sparse 3D Hand Joints* (arXiv 2603.11755): a frame's score is the number of
annotated keypoints of both hands and wrists that project into the image; scores are averaged over
5 frames; the clip is centred on the best frame that leaves 60 frames on either side and whose own,
raw score reaches 8 keypoints, or else 4, 2 or 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ego_world_model.data.layout import write_json
from ego_world_model.data.reader import DatasetReader
from ego_world_model.data.schema import Episode
from ego_world_model.hands import NUM_SLOTS, SLOTS_PER_HAND
from ego_world_model.media import write_video

CLIP_FRAMES = 121
CLIP_FPS = 30.0
SMOOTHING = 5
THRESHOLDS: tuple[int, ...] = (8, 4, 2, 0)
INDEX_NAME = "clips.json"


@dataclass(frozen=True, kw_only=True)
class ClipWindow:
    """Where a clip lies in its episode.

    Attributes:
        start, stop: frames start..stop - 1, centred on ``center``.
        threshold: the strictest of the thresholds that a centre could be found for.
        visible: keypoints in the image at the centre; ``smoothed``: their moving average.
    """

    start: int
    stop: int
    center: int
    threshold: int
    visible: int
    smoothed: float


def visible_keypoints(episode: Episode) -> NDArray[np.int64]:
    """(T,) annotated keypoints (of the 42, wrists included) that project into the image.

    Extra slots (elbows, forearms) do not count; points behind the camera have no projection.
    """
    pixels = episode.camera.project(episode.hand_positions[:, :NUM_SLOTS])
    seen = episode.camera.contains(pixels) & episode.hand_valid[:, :NUM_SLOTS]
    return seen.sum(axis=1)


def moving_average(scores: ArrayLike, size: int = SMOOTHING) -> NDArray[np.float64]:
    """(T,) centred mean over ``size`` frames; at the ends, over the frames that exist."""
    scores = np.asarray(scores, dtype=np.float64)
    window = np.ones(size)
    return np.convolve(scores, window, "same") / np.convolve(np.ones_like(scores), window, "same")


def choose_window(
    scores: ArrayLike,
    *,
    frames: int = CLIP_FRAMES,
    thresholds: tuple[int, ...] = THRESHOLDS,
) -> ClipWindow | None:
    """The window centred on the best-seen frame, or None where no whole window fits.

    Args:
        scores: (T,) visible keypoints per frame.
        frames: odd length of the window.
        thresholds: raw scores that the centre must reach, the first that any frame reaches counts.
    """
    if frames < 1 or frames % 2 == 0:
        raise ValueError(f"a clip has one frame in its middle: frames must be odd, got {frames}")
    scores = np.asarray(scores)
    half = frames // 2
    if len(scores) < frames:
        return None
    smoothed = moving_average(scores)
    centers = np.arange(half, len(scores) - half)
    for threshold in thresholds:
        valid = centers[scores[centers] >= threshold]
        if len(valid):
            center = int(valid[np.argmax(smoothed[valid])])
            return ClipWindow(
                start=center - half,
                stop=center + half + 1,
                center=center,
                threshold=threshold,
                visible=int(scores[center]),
                smoothed=float(smoothed[center]),
            )
    return None


@dataclass(kw_only=True)
class ClipReport:
    """Outcome of an extraction: clips by threshold, and the episodes without one."""

    clips: list[dict[str, Any]] = field(default_factory=list)
    rejected: dict[int, str] = field(default_factory=dict)

    def by_threshold(self) -> dict[int, int]:
        """Threshold → clips that needed it."""
        wanted = [clip["threshold"] for clip in self.clips]
        return {threshold: wanted.count(threshold) for threshold in THRESHOLDS}


def extract_clips(
    reader: DatasetReader,
    out: Path,
    *,
    on_episode: Callable[[int, int], None] | None = None,
) -> ClipReport:
    """Writes one clip per episode of a 30 Hz dataset: ``clip_NNNNNN.mp4`` and ``.npz``.

    The number is the episode's. The ``.npz`` holds, for the T = 121 frames of the video: ``joints``
    (T, 42, 3) float32 metres in the camera's optical frame at that frame, ``valid`` (T, 42) bool,
    ``handedness`` (42,) 0 left and 1 right, ``intrinsics`` (3, 3) in pixels, ``distortion`` (5,)
    zeros, ``camera_pose`` (T, 4, 4) root_T_optical, ``frame_indices`` (T,) in the episode,
    ``fps``. Clips that are already there are kept.

    Raises:
        ValueError: the dataset has another frame rate.
    """
    if abs(reader.spec.fps - CLIP_FPS) > 1e-6:
        raise ValueError(
            f"{reader.root} has {reader.spec.fps:g} frames per second; clips are {CLIP_FPS:g} fps: "
            "import or simulate the episodes with --fps 30"
        )
    out.mkdir(parents=True, exist_ok=True)
    report = ClipReport()
    for record in reader.records:
        # Scores need no pictures: only a chosen window is decoded.
        episode = reader.episode(record.index, images=False, masks=False)
        window = choose_window(visible_keypoints(episode))
        if window is None:
            report.rejected[record.index] = f"{record.length} frames; a window needs {CLIP_FRAMES}"
        else:
            stem = out / f"clip_{record.index:06d}"
            if not (stem.with_suffix(".mp4").exists() and stem.with_suffix(".npz").exists()):
                clip = reader.episode(
                    record.index, start=window.start, stop=window.stop, masks=False
                )
                _write_clip(stem, clip, window)
            report.clips.append(_entry(stem, window, record.index, episode, record.metadata))
        if on_episode is not None:
            on_episode(record.index + 1, len(reader))
    write_json(
        out / INDEX_NAME,
        {
            "fps": CLIP_FPS,
            "frames": CLIP_FRAMES,
            "clips": report.clips,
            "rejected": {str(index): reason for index, reason in report.rejected.items()},
        },
    )
    return report


def _entry(
    stem: Path, window: ClipWindow, index: int, episode: Episode, metadata: Any
) -> dict[str, Any]:
    return {
        "video": stem.with_suffix(".mp4").name,
        "annotations": stem.with_suffix(".npz").name,
        "episode": index,
        "task": episode.task,
        "embodiment": episode.embodiment,
        "source": metadata.get("source"),
        "start": window.start,
        "stop": window.stop,
        "center": window.center,
        "threshold": window.threshold,
        "visible_at_center": window.visible,
        "smoothed_at_center": round(window.smoothed, 3),
    }


def _write_clip(stem: Path, clip: Episode, window: ClipWindow) -> None:
    handedness = (np.arange(NUM_SLOTS) >= SLOTS_PER_HAND).astype(np.uint8)
    temporary = stem.with_name(f".{stem.name}.npz")
    np.savez_compressed(
        temporary,
        joints=clip.hand_positions[:, :NUM_SLOTS],
        valid=clip.hand_valid[:, :NUM_SLOTS],
        handedness=handedness,
        intrinsics=clip.camera.matrix,
        distortion=np.zeros(5),  # k1 k2 p1 p2 k3: datasets hold rectified pictures
        camera_pose=clip.camera_pose,
        frame_indices=np.arange(window.start, window.stop, dtype=np.int64),
        fps=np.float64(clip.fps),
    )
    write_video(stem.with_suffix(".mp4"), clip.images, fps=clip.fps)
    temporary.replace(stem.with_suffix(".npz"))
