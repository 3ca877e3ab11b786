"""Full: the whole pool, the run that everything else is measured against."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.api import Features, Pool, Scores, Selection, Selector


@dataclass(frozen=True, slots=True)
class FullConfig:
    """Nothing to set."""


class Full(Selector):
    """Keep everything, in pool order."""

    name = "full"
    version = 1
    Config = FullConfig

    def select(self, pool: Pool, scores: Scores, features: Features, n: int, seed: int) -> Selection:
        """All positions; the planner gives it no budget but the whole pool."""
        return Selection(positions=np.arange(n, dtype=np.int32))
