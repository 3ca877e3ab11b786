"""CLIP-score: how well picture and text agree under a dual encoder (Hessel et al. 2021; row "CLIP" of
arXiv 2503.13383, whose exact text view and model are not published).

The raw cosine is ranked, not `2.5 * max(cos, 0)`: clipping would tie everything at zero. Text-only samples have
no score and are kept last.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from harness.api import Features, PassRef, Pool, Scores, Selection, Selector
from harness.errors import HarnessError
from harness.types import OMIT_DEFAULT, Json
from selector_zoo.bands import keep_band
from selector_zoo.shares import SCOPES, groups


@dataclass(frozen=True, slots=True)
class ClipScoreConfig:
    """Which encoder reads what."""

    model: str = "miniworld:clip"
    """A CLIP model: `miniworld:clip`, a folder, or a hub id pinned as `openai/clip-vit-large-patch14@COMMIT`."""
    text: str = "qa"
    """Text of the first turn: question and answer (`qa`), `q`, or `a`; or of `all` turns, cut where the encoder
    ends, in parts whose mean counts (`chunk_mean`), or the turn that agrees most (`turn_max`)."""
    direction: str = "top"
    """Keep the best agreeing (`top`), those nearest the median (`mid`), or by chance any that agree well enough
    (`threshold`) and, where these are too few, the best of the others."""
    tie: str = "hash"
    """Equal scores by seeded uid hash, or by `index`."""
    scope: str = field(default="global", metadata=OMIT_DEFAULT)
    """One ranking and median for the whole pool (`global`), or for each `source` with its share of the budget."""
    threshold: float = field(default=0.2, metadata=OMIT_DEFAULT)
    """Cosine that is well enough; what is usual depends on the model."""
    image: str = field(default="crop", metadata=OMIT_DEFAULT)
    """The middle of each picture (`crop`), as stock CLIP sees it, or all of it, padded to a square (`pad`)."""

    def __post_init__(self) -> None:
        allowed = {"direction": ("top", "mid", "threshold"), "scope": SCOPES, "tie": ("hash", "index")}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise HarnessError(f"clip_score: {name}={getattr(self, name)} is none of {', '.join(values)}.")
        if not -1 <= self.threshold <= 1:
            raise HarnessError(f"clip_score: threshold={self.threshold} is no cosine: give a number from -1 to 1.")


class ClipScore(Selector):
    """Keep the samples whose picture and text agree most."""

    name = "clip_score"
    version = 1
    Config = ClipScoreConfig
    uncertain = ("model, text view and band of row CLIP of arXiv 2503.13383 are not published",)
    config: ClipScoreConfig

    @property
    def nested(self) -> bool:
        """Not by source: shares are rounded."""
        return self.config.scope == "global"

    def needs(self) -> tuple[PassRef, ...]:
        """Image and text embeddings of one CLIP model."""
        config: dict[str, Json] = {"text": self.config.text, "image": self.config.image}
        return (PassRef(name="clip", model=self.config.model, config=config),)

    def score(self, pool: Pool, features: Features) -> Scores:
        """Cosine of the two embeddings, in [-1, 1], or 1 where a threshold is met; NaN without an image."""
        cosine = np.asarray(features["clip"]["cosine"], dtype=np.float32)
        if self.config.direction == "mid":
            cosine = -np.abs(cosine - medians(pool, cosine, self.config.scope))
        if self.config.direction == "threshold":
            cosine = np.where(cosine >= self.config.threshold, np.float32(1), cosine)
        return {"score": cosine}

    def select(self, pool: Pool, scores: Scores, features: Features, n: int, seed: int) -> Selection:
        """The highest scores, of the pool or of each source; with a threshold, what misses it is topping up."""
        c = self.config
        kept = keep_band(pool, scores["score"], n, seed, band="top", tie=c.tie, scope=c.scope)
        if c.direction != "threshold":
            return kept
        missed = int(np.count_nonzero(scores["score"][kept.positions] != 1))
        return Selection(positions=kept.positions, card={**kept.card, "n_topup": missed})


def medians(pool: Pool, values: npt.NDArray[np.float32], scope: str) -> npt.NDArray[np.float32]:
    """For each sample the median of the known values (n,) in its scope, (n,); NaN where none is known."""
    names, group = groups(pool, scope)
    known = ~np.isnan(values)
    parts = [values[known & (group == i)] for i in range(len(names))]
    middle = np.array([np.median(part) if len(part) else np.nan for part in parts], dtype=np.float32)
    return middle[group]
