"""Per-feature statistics as LeRobot keeps them: min, max, mean, std and count.

Each episode's own are stored in ``meta/episodes``; the dataset's, in ``meta/stats.json``, are
pooled from them, so they can be rebuilt at any time and never need a second pass over the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Stats = dict[str, NDArray[Any]]


def vector_stats(values: NDArray[Any]) -> Stats:
    """Statistics over the first axis of (T, ...) values; scalars per frame give shape (1,)."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim == 1:
        numbers = numbers[:, None]
    return {
        "min": numbers.min(axis=0),
        "max": numbers.max(axis=0),
        "mean": numbers.mean(axis=0),
        "std": numbers.std(axis=0),
        "count": np.array([len(numbers)], dtype=np.int64),
    }


def image_stats(images: NDArray[Any], *, scale: float = 255.0, every: int = 4) -> Stats:
    """Per-channel statistics (C, 1, 1) of every ``every``-th of (T, H, W[, C]) images / scale."""
    images = images[::every]
    pixels = images.reshape(-1, images.shape[3] if images.ndim == 4 else 1)
    mean = pixels.mean(axis=0, dtype=np.float64)
    square = np.array([np.square(p, dtype=np.float64).mean() for p in pixels.T])
    stats = {
        "min": pixels.min(axis=0),
        "max": pixels.max(axis=0),
        "mean": mean,
        "std": np.sqrt(np.maximum(square - mean**2, 0)),
    }
    out = {name: (value / scale).reshape(-1, 1, 1) for name, value in stats.items()}
    return out | {"count": np.array([len(images)], dtype=np.int64)}


def pooled(episodes: Iterable[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """One dataset's statistics (nested lists, for JSON) from those of its episodes."""
    by_feature: dict[str, list[Mapping[str, Any]]] = {}
    for episode in episodes:
        for key, stats in episode.items():
            by_feature.setdefault(key, []).append(stats)
    return {key: _pool(stats) for key, stats in by_feature.items()}


def _pool(stats: list[Mapping[str, Any]]) -> dict[str, Any]:
    means, stds = (np.array([s[name] for s in stats], np.float64) for name in ("mean", "std"))
    counts = np.array([s["count"] for s in stats], np.float64).reshape(
        -1, *([1] * (means.ndim - 1))
    )
    total = counts.sum()
    mean = (means * counts).sum(axis=0) / total
    variance = ((stds**2 + (means - mean) ** 2) * counts).sum(axis=0) / total
    return {
        "min": np.min([s["min"] for s in stats], axis=0).tolist(),
        "max": np.max([s["max"] for s in stats], axis=0).tolist(),
        "mean": mean.tolist(),
        "std": np.sqrt(variance).tolist(),
        "count": [int(total)],
    }
