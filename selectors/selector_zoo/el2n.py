"""EL2N: the samples whose answers a model gets most wrong (Paul et al. 2021, arXiv 2107.07075).

The error of a token is the length of the difference between the predicted distribution and the truth; a sample's
score is the mean over its answer tokens, as COINCIDE (arXiv 2406.10995) carries the classifier's score over to
language. The original averages several runs early in training; the default reads one model warmed up on 5 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.api import Features, PassRef, Pool, Scores, Selection, Selector
from harness.errors import HarnessError
from selector_zoo.bands import BANDS, keep_band


@dataclass(frozen=True, slots=True)
class El2nConfig:
    """Which model's errors, on which tokens, and which of them are kept."""

    model: str = "warm"
    """`warm` (the backbone after SFT on a random 5 %), `mid` (before SFT), a folder, or a pinned hub id."""
    mask: str = "ans"
    """Tokens counted: the answers with their closing markers (`ans`), or all that training supervises (`sft`)."""
    band: str = "top"
    """Keep the largest errors (`top`), those in the `middle`, or the smallest (`bottom`)."""
    max_length: int = 12000
    """Tokens of a sample after image expansion; longer ones lose text from the right."""
    tie: str = "hash"
    """Equal scores by seeded uid hash, or by `index`."""

    def __post_init__(self) -> None:
        allowed = {"mask": ("ans", "sft"), "band": BANDS, "tie": ("hash", "index")}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise HarnessError(f"el2n: {name}={getattr(self, name)} is none of {', '.join(values)}.")


class El2n(Selector):
    """Keep the samples with the largest prediction errors."""

    name = "el2n"
    version = 1
    Config = El2nConfig

    def needs(self) -> tuple[PassRef, ...]:
        """One teacher-forced forward."""
        config = {"max_length": self.config.max_length}
        return (PassRef(name="forward", model=self.config.model, config=config),)

    def score(self, pool: Pool, features: Features) -> Scores:
        """Mean error norm of the counted tokens, in [0, sqrt(2)); NaN where a sample has none."""
        return {"score": np.asarray(features["forward"][f"el2n_mean_{self.config.mask}"], dtype=np.float32)}

    def select(self, pool: Pool, scores: Scores, features: Features, n: int, seed: int) -> Selection:
        """The configured band of the scores."""
        return keep_band(pool, scores["score"], n, seed, band=self.config.band, tie=self.config.tie)
