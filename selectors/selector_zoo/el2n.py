"""EL2N: the samples whose answers a model gets most wrong (Paul et al. 2021, arXiv 2107.07075).

The error of a token is the length of the difference between the predicted distribution and the truth; a sample's
score is the mean over its answer tokens, as COINCIDE (arXiv 2406.10995) carries the classifier's score over to
language. The original averages several runs early in training; the default reads one model warmed up on 5 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.api import Features, Pool, Scores
from selector_zoo.forward_band import ForwardBand, ForwardBandConfig


@dataclass(frozen=True, slots=True)
class El2nConfig(ForwardBandConfig):
    """Which model's errors, on which tokens, and which of them are kept."""

    owner = "el2n"
    model: str = "warm"


class El2n(ForwardBand):
    """Keep the samples with the largest prediction errors."""

    name = "el2n"
    version = 1
    Config = El2nConfig

    def score(self, pool: Pool, features: Features) -> Scores:
        """Mean error norm of the counted tokens, in [0, sqrt(2)); NaN where a sample has none."""
        return {"score": np.asarray(features["forward"][f"el2n_mean_{self.config.mask}"], dtype=np.float32)}
