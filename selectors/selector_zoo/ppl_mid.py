"""PPL-mid: samples of middling perplexity (Marion et al. 2023, arXiv 2309.04564; row "PPL-mid" of arXiv
2503.13383, which does not publish its variant).

Neither what the model knows already nor what it cannot make sense of: the middle band of the answers' mean
negative log-likelihood under the backbone before SFT. With `model` set to a checkpoint after single-image SFT this
is our reading of row "PPL-si".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.api import Features, PassRef, Pool, Scores, Selection, Selector
from harness.errors import HarnessError
from selector_zoo.bands import BANDS, keep_band


@dataclass(frozen=True, slots=True)
class PplMidConfig:
    """Whose perplexity, over which tokens, and which band of it."""

    model: str = "mid"
    """`mid` (the backbone before SFT), `warm` (after SFT on a random 5 %), a folder, or a pinned hub id."""
    mask: str = "ans"
    """Tokens counted: the answers with their closing markers (`ans`), or all that training supervises (`sft`)."""
    band: str = "middle"
    """Keep the `middle`, the least likely answers (`top`), or the most likely (`bottom`)."""
    max_length: int = 12000
    """Tokens of a sample after image expansion; longer ones lose text from the right."""
    tie: str = "hash"
    """Equal scores by seeded uid hash, or by `index`."""

    def __post_init__(self) -> None:
        allowed = {"mask": ("ans", "sft"), "band": BANDS, "tie": ("hash", "index")}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise HarnessError(f"ppl_mid: {name}={getattr(self, name)} is none of {', '.join(values)}.")


class PplMid(Selector):
    """Keep the samples whose answers are neither too likely nor too unlikely."""

    name = "ppl_mid"
    version = 1
    Config = PplMidConfig

    def needs(self) -> tuple[PassRef, ...]:
        """One teacher-forced forward."""
        config = {"max_length": self.config.max_length}
        return (PassRef(name="forward", model=self.config.model, config=config),)

    def score(self, pool: Pool, features: Features) -> Scores:
        """Mean negative log-likelihood of all counted tokens of a sample, in nats (perplexity is its exponential).

        Turns are not averaged on their own. NaN where a sample has no such token.
        """
        columns, mask = features["forward"], self.config.mask
        counts = np.asarray(columns[f"n_tok_{mask}"], dtype=np.float64)
        sums = np.where(counts > 0, columns[f"nll_sum_{mask}"], np.nan)
        return {"score": (sums / np.maximum(counts, 1)).astype(np.float32)}

    def select(self, pool: Pool, scores: Scores, features: Features, n: int, seed: int) -> Selection:
        """The configured band of the scores."""
        return keep_band(pool, scores["score"], n, seed, band=self.config.band, tie=self.config.tie)
