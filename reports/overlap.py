"""How much subsets of one pool share, and how much random ones of the same sizes would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_SPAN: Final = 12.0
"""SDs around the mean within which chance is summed up; beyond them lies less than a double can tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """What every pair of subsets shares; arrays of shape (subsets, subsets)."""

    shared: npt.NDArray[np.int64]
    """Samples in both."""
    jaccard: Floats
    """Samples in both, divided by samples in either."""
    expected: Floats
    """Mean of `jaccard` over independent random subsets of the same sizes; 1 on the diagonal."""
    surprise: Floats
    """`shared` less its mean over such subsets, in SDs of it; NaN where it cannot vary, and on the diagonal."""


def overlap(subsets: Sequence[npt.NDArray[np.int32]], n: int) -> Overlap:
    """Overlap of subsets of a pool of `n`, each without repetitions."""
    shared = np.array([[len(np.intersect1d(a, b)) for b in subsets] for a in subsets], dtype=np.int64)
    sizes = np.diag(shared)
    expected, surprise = np.ones(shared.shape), np.full(shared.shape, np.nan)
    for i, j in zip(*np.triu_indices(len(subsets), 1), strict=True):
        mean, spread, jaccard = by_chance(int(sizes[i]), int(sizes[j]), n)
        expected[i, j] = expected[j, i] = jaccard
        if spread > 0:
            surprise[i, j] = surprise[j, i] = (shared[i, j] - mean) / spread
    either = sizes[:, None] + sizes[None, :] - shared
    return Overlap(shared=shared, jaccard=shared / either, expected=expected, surprise=surprise)


def by_chance(a: int, b: int, n: int) -> tuple[float, float, float]:
    """Mean and SD of the number two random subsets of sizes `a` and `b` of `n` share, and their mean Jaccard.

    The number is hypergeometric; the Jaccard's mean is summed over it, because the mean of a ratio is not the
    ratio of the means.
    """
    from scipy.stats import hypergeom

    mean = a * b / n
    spread = float(np.sqrt(mean * (n - a) * (n - b) / (n * max(1, n - 1))))
    low = max(0, a + b - n, int(mean - _SPAN * spread - 1))
    high = min(a, b, int(mean + _SPAN * spread + 2))
    x = np.arange(low, high + 1)
    return mean, spread, float(hypergeom.pmf(x, n, a, b) @ (x / (a + b - x)))
