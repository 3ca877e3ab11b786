"""PPL-mid: samples of middling perplexity (Marion et al. 2023, arXiv 2309.04564; row "PPL-mid" of arXiv
2503.13383, which does not publish its variant).

Neither what the model knows already nor what it cannot make sense of: the middle band of the answers' mean
negative log-likelihood under the backbone before SFT. Under a checkpoint after single-image SFT it is one
reading of row "PPL-si": see `ppl_si`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from harness.api import Columns, Features, Pool, Scores
from harness.types import Json
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
    besides: ClassVar[dict[str, Json]] = {"hidden": "post_norm"}
    """Deita's embedding: one forward of the backbone serves both, for two bytes a number more on disk."""
    uncertain = ("checkpoint, tokens and band of row PPL-mid of arXiv 2503.13383 are not published",)

    def score(self, pool: Pool, features: Features) -> Scores:
        """Mean negative log-likelihood of a sample's counted tokens, in nats; NaN where it has none."""
        return {"score": mean_loss(features["forward"], self.config.mask)}


def mean_loss(columns: Columns, mask: str) -> npt.NDArray[np.float32]:
    """Mean negative log-likelihood of all tokens of a sample under a mask, (n,), in nats.

    Perplexity is its exponential. Turns are not averaged on their own. NaN where a sample has no such token.
    """
    counts = np.asarray(columns[f"n_tok_{mask}"], dtype=np.float64)
    sums = np.where(counts > 0, columns[f"nll_sum_{mask}"], np.nan)
    mean: npt.NDArray[np.float32] = (sums / np.maximum(counts, 1)).astype(np.float32)
    return mean
