"""Which part of a ranking is kept: the top, the bottom, or the middle."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from harness.api import Pool, Selection, ranked

BANDS = ("top", "middle", "bottom")


def keep_band(
    pool: Pool, score: npt.NDArray[Any], n: int, seed: int, *, band: str, tie: str = "hash"
) -> Selection:
    """The `n` samples of one band of a score, shape (n,); those without a score (NaN) only where others run out.

    The middle is ranks `N//2 - n//2` to `N//2 - n//2 + n - 1` of the N samples with a score in ascending order,
    as COINCIDE's training loader (arXiv 2406.10995) cuts it.
    """
    values = np.asarray(score, dtype=np.float64)
    n_nan = int(np.isnan(values).sum())
    scored = pool.n - n_nan
    order = ranked(pool, values if band == "top" else -values, seed, tie)
    if band == "middle":
        # From the middle rank outwards, the lower neighbour first: every prefix is the band of its size.
        distance = np.abs(np.arange(scored) - scored // 2)
        order[:scored] = order[np.argsort(distance, kind="stable")]
    return Selection(positions=order[:n], card={"n_nan": n_nan, "n_topup": max(0, n - scored), "band": band})
