"""Random: uniform over samples, the baseline every method has to beat.

The order is that of a seeded hash of the uid, so it does not depend on the order of the pool, and 5 % is a
prefix of 10 % (arXiv 2503.13383, row "Random", three trials).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.api import Features, Pool, Scores, Selection, Selector
from harness.keys import mix64, seed64


@dataclass(frozen=True, slots=True)
class RandomConfig:
    """How random subsets of different budgets relate."""

    nested: bool = True
    """A smaller budget of the same seed is a subset of a larger one; false draws every budget afresh."""


class Random(Selector):
    """Keep a uniform random subset."""

    name = "random"
    version = 1
    Config = RandomConfig
    config: RandomConfig

    @property
    def nested(self) -> bool:
        """As configured."""
        return self.config.nested

    def select(self, pool: Pool, scores: Scores, features: Features, n: int, seed: int) -> Selection:
        """The first n of a seeded random order."""
        parts = ("random", seed) if self.config.nested else ("random", seed, n)
        rank = mix64(pool.column("uid_hash64"), seed64(*parts))
        return Selection(positions=np.argsort(rank, kind="stable")[:n].astype(np.int32))
