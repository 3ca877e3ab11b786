"""Random, stratified: every source keeps its share of the pool, at random within (a variant of row "Random" of
arXiv 2503.13383, which itself draws uniformly).

Shares are rounded by largest remainder, so a larger budget may give a small source fewer samples than a smaller
one did: subsets are not nested.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.api import Features, Pool, Scores, Selection, Selector
from harness.keys import mix64, seed64


@dataclass(frozen=True, slots=True)
class RandomStratifiedConfig:
    """Nothing to set: the strata are the sources of the pool."""


class RandomStratified(Selector):
    """Keep a random subset with the pool's own mixture of sources."""

    name = "random_stratified"
    version = 1
    Config = RandomStratifiedConfig
    nested = False

    def select(self, pool: Pool, scores: Scores, features: Features, n: int, seed: int) -> Selection:
        """The first of each source in a seeded random order, as many as its share."""
        names, stratum, sizes = strata(pool)
        quota = largest_remainder(sizes, n, names)
        rank = mix64(pool.column("uid_hash64"), seed64("random_stratified", seed))
        order = np.argsort(rank, kind="stable")
        kept = order[place_in_group(stratum[order]) < quota[stratum[order]]]
        return Selection(positions=kept.astype(np.int32))


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
    total = int(sizes.sum())
    quota, remainder = np.divmod(sizes * n, total)
    left = n - int(quota.sum())
    first = sorted(range(len(sizes)), key=lambda i: (-remainder[i], names[i]))[:left]
    quota[first] += 1
    return np.asarray(quota, dtype=np.int64)
