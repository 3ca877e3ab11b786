"""PPL-mid: samples of middling perplexity (Marion et al. 2023, arXiv 2309.04564; row "PPL-mid" of arXiv
2503.13383, which does not publish its variant).

Neither what the model knows already nor what it cannot make sense of: the middle band of the answers' mean
negative log-likelihood under the backbone before SFT. With `model` set to a checkpoint after single-image SFT this
is our reading of row "PPL-si".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.api import Features, Pool, Scores
from selector_zoo.forward_band import ForwardBand, ForwardBandConfig


@dataclass(frozen=True, slots=True)
class PplMidConfig(ForwardBandConfig):
    """Whose perplexity, over which tokens, and which band of it."""

    owner = "ppl_mid"
    model: str = "mid"
    band: str = "middle"


class PplMid(ForwardBand):
    """Keep the samples whose answers are neither too likely nor too unlikely."""

    name = "ppl_mid"
    version = 1
    Config = PplMidConfig

    def score(self, pool: Pool, features: Features) -> Scores:
        """Mean negative log-likelihood of all counted tokens of a sample, in nats (perplexity is its exponential).

        Turns are not averaged on their own. NaN where a sample has no such token.
        """
        columns, mask = features["forward"], self.config.mask
        counts = np.asarray(columns[f"n_tok_{mask}"], dtype=np.float64)
        sums = np.where(counts > 0, columns[f"nll_sum_{mask}"], np.nan)
        return {"score": (sums / np.maximum(counts, 1)).astype(np.float32)}
