"""CLIP-score: how well picture and text agree under a dual encoder (Hessel et al. 2021; row "CLIP" of
arXiv 2503.13383, whose exact text view and model are not published).

The raw cosine is ranked, not `2.5 * max(cos, 0)`: clipping would tie everything at zero. Text-only samples have
no score and are kept last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.api import Features, PassRef, Pool, Scores, Selector
from harness.errors import HarnessError


@dataclass(frozen=True, slots=True)
class ClipScoreConfig:
    """Which encoder reads what."""

    model: str = "miniworld:clip"
    """A CLIP model: `miniworld:clip`, a folder, or a hub id pinned as `openai/clip-vit-large-patch14@COMMIT`."""
    text: str = "qa"
    """Text of the first turn: question and answer (`qa`), `q`, or `a`; or of `all` turns, cut where the encoder
    ends, in parts whose mean counts (`chunk_mean`), or the turn that agrees most (`turn_max`)."""
    direction: str = "top"
    """Keep the best agreeing (`top`) or those nearest the median (`mid`)."""
    tie: str = "hash"
    """Equal scores by seeded uid hash, or by `index`."""

    def __post_init__(self) -> None:
        if self.direction not in ("top", "mid"):
            raise HarnessError(f"clip_score: direction={self.direction} is neither top nor mid")


class ClipScore(Selector):
    """Keep the samples whose picture and text agree most."""

    name = "clip_score"
    version = 1
    Config = ClipScoreConfig
    uncertain = ("model, text view and band of row CLIP of arXiv 2503.13383 are not published",)

    def needs(self) -> tuple[PassRef, ...]:
        """Image and text embeddings of one CLIP model."""
        return (PassRef(name="clip", model=self.config.model, config={"text": self.config.text}),)

    def score(self, pool: Pool, features: Features) -> Scores:
        """Cosine of the two embeddings, in [-1, 1]; NaN where a sample has no image."""
        cosine = np.asarray(features["clip"]["cosine"], dtype=np.float32)
        if self.config.direction == "mid":
            cosine = -np.abs(cosine - np.nanmedian(cosine))
        return {"score": cosine}
