"""A budget shared out: the strata of a pool, and how many samples each may keep."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from harness.api import Pool

SCOPES = ("global", "source")
"""What a ranking runs over: the whole pool, or each source by itself."""


def groups(pool: Pool, scope: str) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Names of what a ranking runs over, and each sample's index into them, shape (n,)."""
    if scope == "source":
        return strata(pool)[:2]
    return ["pool"], np.zeros(pool.n, dtype=np.int64)


def strata(pool: Pool) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Names of the pool's sources, each sample's index into them, shape (n,), and how many samples each has."""
    _, first, stratum, sizes = np.unique(
        pool.column("source_id"), return_index=True, return_inverse=True, return_counts=True
    )
    return [pool.record(int(i)).source for i in first], stratum, sizes


def place_in_group(group: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """For each entry, how many of the same group stand before it."""
    by_group = np.argsort(group, kind="stable")
    ordered = group[by_group]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    run = np.repeat(starts, np.diff(np.append(starts, len(group))))
    place = np.empty(len(group), dtype=np.int64)
    place[by_group] = np.arange(len(group)) - run
    return place


def largest_remainder(sizes: npt.NDArray[np.int64], n: int, names: list[str]) -> npt.NDArray[np.int64]:
    """Split `n` in proportion to `sizes`, exactly: what rounding down leaves goes to the largest remainders.

    Equal remainders go by name. No share is larger than its size where `n` is at most their sum.
    """
    total = max(1, int(sizes.sum()))
    quota, remainder = np.divmod(sizes * n, total)
    left = n - int(quota.sum())
    first = sorted(range(len(sizes)), key=lambda i: (-remainder[i], names[i]))[:left]
    quota[first] += 1
    return np.asarray(quota, dtype=np.int64)
