"""Distances between the features of imagined frames (or videos) and those of the true ones.

Rows of the two sets belong together (the same frame of the same clip), and rows of one group depend
on each other: a group is a clip, or an episode that gave several. Only groups are independent. The
Fréchet distance of few rows is far above zero even between two samples of one distribution, so it
never goes without the kernel distance, which is unbiased at any n.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROWS_AT_ONCE = 1024
"""Rows of the kernel matrix that are held at a time."""


@dataclass(frozen=True, kw_only=True)
class Distance:
    """A distance between two sets of features.

    Attributes:
        value: NaN where it could not be measured; ``warning`` then says why.
        error: standard error over groups; None where the distance has no honest one.
        n: rows (frames, or videos) of each set.
        groups: independent groups that the rows come from.
        dimensions: of a feature.
        warning: what to know before the number is believed; empty if nothing.
    """

    value: float
    error: float | None
    n: int
    groups: int
    dimensions: int
    warning: str = ""

    def __str__(self) -> str:
        if not np.isfinite(self.value):
            return "n/a"
        known = self.error is not None and np.isfinite(self.error)
        error = f" ± {self.error:.2g}" if known else ""
        return f"{self.value:.4g}{error} (n = {self.n} in {self.groups} groups)"


def frechet_distance(
    imagined: ArrayLike, truth: ArrayLike, groups: ArrayLike | None = None
) -> Distance:
    """Fréchet distance of Gaussians fitted to two sets (Heusel et al., 2017), squared:
    |m1 - m2|² + Tr(C1 + C2 - 2 (C1 C2)^½), in float64.

    With A and B the centred sets over √(n - 1), Tr (C1 C2)^½ is the sum of the singular values of
    A Bᵀ, so no square root of a nearly singular matrix is taken.

    Args:
        imagined, truth: (n, D) features.
        groups: (n,) group of each row, to count them; by default each row is one of its own.

    Returns:
        The distance, with a warning where n <= D: the covariances then lack full rank and the
        distance is mostly small-sample bias.

    Raises:
        ValueError: if the shapes do not fit or a feature is not finite.
    """
    x, y, label = _checked(imagined, truth, groups)
    (n, dimensions), count = x.shape, _count(label)
    if count < 2:
        return _unknown(n, count, dimensions)
    mean = x.mean(axis=0) - y.mean(axis=0)
    a, b = _root(x), _root(y)
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    value = mean @ mean + np.sum(a * a) + np.sum(b * b) - 2 * cross
    warning = ""
    if n <= dimensions:
        warning = (
            f"n = {n} rows give covariances of rank {n - 1} at most in {dimensions} dimensions: "
            "mostly small-sample bias, read the kernel distance"
        )
    return Distance(
        value=float(max(0.0, value)),
        error=None,
        n=n,
        groups=count,
        dimensions=dimensions,
        warning=warning,
    )


def kernel_distance(
    imagined: ArrayLike, truth: ArrayLike, groups: ArrayLike | None = None
) -> Distance:
    """Squared maximum mean discrepancy with the kernel (a·b / D + 1)³ of KID (Bińkowski et al.,
    2018), unbiased.

    The U-statistic of Gretton et al. (2012, lemma 6): the mean of k(x_i, x_j) + k(y_i, y_j) -
    k(x_i, y_j) - k(x_j, y_i) over pairs of rows from *different* groups. The estimator of unpaired
    sets also takes k(x_i, y_i), which is no sample of independent rows here and would draw the
    distance below zero. A copy of the truth gives exactly 0. All rows are used at once instead of
    random subsets.

    Args:
        imagined, truth: (n, D) features, row by row of the same frame or video.
        groups: (n,) group of each row; by default each row is one of its own.

    Returns:
        The distance, which may be slightly negative, with its jackknife standard error over
        groups (NaN for two).

    Raises:
        ValueError: if the shapes do not fit or a feature is not finite.
    """
    x, y, label = _checked(imagined, truth, groups)
    (n, dimensions), count = x.shape, _count(label)
    if count < 2:
        return _unknown(n, count, dimensions)
    order = np.argsort(label, kind="stable")
    x, y = x[order], y[order]
    _, starts, group, sizes = np.unique(
        label[order], return_index=True, return_inverse=True, return_counts=True
    )
    sums = np.zeros(count)  # per group, over pairs of its rows with others'
    for rows in np.array_split(np.arange(n), -(-n // ROWS_AT_ONCE)):
        a, b = x[rows], y[rows]
        core = _kernel(a, x) + _kernel(b, y) - _kernel(a, y) - _kernel(b, x)  # (rows, n)
        own = np.add.reduceat(core, starts, axis=1)[np.arange(len(rows)), group[rows]]
        sums += np.bincount(group[rows], core.sum(axis=1) - own, minlength=count)
    pairs = sizes * (n - sizes)
    error = float("nan")
    if count > 2:
        without = (sums.sum() - 2 * sums) / (pairs.sum() - 2 * pairs)
        error = float(np.sqrt((count - 1) / count * np.square(without - without.mean()).sum()))
    return Distance(
        value=float(sums.sum() / pairs.sum()),
        error=error,
        n=n,
        groups=count,
        dimensions=dimensions,
        warning="two groups give no standard error" if count == 2 else "",
    )


def _kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _root(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """(min(n, D), D) matrix R with RᵀR the covariance of the rows of x."""
    centred = (x - x.mean(axis=0)) / np.sqrt(len(x) - 1)
    return np.linalg.qr(centred, mode="r") if len(x) > x.shape[1] else centred


def _checked(
    imagined: ArrayLike, truth: ArrayLike, groups: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray]:
    x, y = np.asarray(imagined, np.float64), np.asarray(truth, np.float64)
    label = np.arange(len(x)) if groups is None else np.asarray(groups)
    if x.ndim != 2 or x.shape != y.shape or label.shape != x.shape[:1]:
        raise ValueError(
            "expected imagined and truth (n, D) row by row, and groups (n,), got "
            f"{x.shape}, {y.shape} and {label.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("features must be finite; the feature network gave NaN or infinity")
    return x, y, label


def _count(label: NDArray) -> int:
    return len(np.unique(label))


def _unknown(n: int, groups: int, dimensions: int) -> Distance:
    return Distance(
        value=float("nan"),
        error=None,
        n=n,
        groups=groups,
        dimensions=dimensions,
        warning=f"needs at least 2 groups, got {groups}",
    )
