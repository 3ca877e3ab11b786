"""Random, stratified: every source keeps its share of the pool, at random within (a variant of row "Random" of
arXiv 2503.13383, which itself draws uniformly).

Shares are rounded by largest remainder, so a larger budget may give a small source fewer samples than a smaller
one did: subsets are not nested.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.api import Features, Pool, Scores, Selection, Selector
from harness.keys import mix64, seed64
from selector_zoo.shares import largest_remainder, place_in_group, strata


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
