"""PPL-si: perplexity under a model that has seen single-image instructions (row "PPL-si" of arXiv 2503.13383).

What the suffix means is written nowhere. Two readings are offered. `stage`: as everywhere in that code base "si"
is the single-image stage, so the score is PPL-mid's under a checkpoint after that stage; which checkpoint, and
which band of it, is unknown. `ifd`: how little question and picture help with the answer, by the ratio of its loss
with and without them (Li et al. 2023, arXiv 2308.12032). A checkpoint after SFT has been trained on the very
samples it judges.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from harness.api import Columns, Features, PassRef, Pool, Scores, Selection
from harness.errors import HarnessError
from harness.types import Json
from selector_zoo.bands import keep_band
from selector_zoo.blocks import blocks
from selector_zoo.forward_band import ForwardBand, ForwardBandConfig
from selector_zoo.ppl_mid import mean_loss

LEAKAGE: Final = "the model was trained on samples that it judges here, or on their like"
"""What cards say, unless the model is the backbone before SFT."""

SMALLEST_LOSS: Final = 1e-6
"""A loss below this without question and picture says nothing to divide by."""


@dataclass(frozen=True, slots=True)
class PplSiConfig(ForwardBandConfig):
    """Whose perplexity, read how, and which band of it."""

    owner = "ppl_si"
    model: str = "warm"
    """A checkpoint after single-image SFT, as a folder or a pinned hub id; `warm` is the backbone after SFT on a
    random 5 % of this pool."""
    band: str = "middle"
    reading: str = "stage"
    """`stage`: the loss, by band; `ifd`: its ratio to the loss of the answer alone, largest below 1 first."""

    def __post_init__(self) -> None:
        ForwardBandConfig.__post_init__(self)
        if self.reading not in ("stage", "ifd"):
            raise HarnessError(f"ppl_si: reading={self.reading} is neither stage nor ifd.")
        if self.reading == "ifd" and (self.band, self.mask) != ("middle", "ans"):
            raise HarnessError("ppl_si: band and mask belong to reading=stage; leave them out with reading=ifd.")


class PplSi(ForwardBand):
    """Keep the samples of middling perplexity under a model after single-image SFT."""

    name = "ppl_si"
    version = 1
    Config = PplSiConfig
    uncertain = ("the meaning of 'si', its checkpoint and its band are not published",)
    config: PplSiConfig

    def needs(self) -> tuple[PassRef, ...]:
        """One teacher-forced forward; for `ifd` another one over the answers alone."""
        (forward,) = super().needs()
        return (forward,) if self.config.reading == "stage" else (forward, replace(forward, name="answer_only"))

    def score(self, pool: Pool, features: Features) -> Scores:
        """Mean loss of the answers' tokens in nats, or its ratio to that without question and picture."""
        if self.config.reading == "stage":
            return {"score": mean_loss(features["forward"], self.config.mask)}
        return {"score": ifd(features["forward"], features["answer_only"]).astype(np.float32)}

    def select(self, pool: Pool, scores: Scores, features: Features, n: int, seed: int) -> Selection:
        """The configured band; or the largest ratios below 1, then the largest of the others."""
        leakage: dict[str, Json] = {} if self.config.model == "mid" else {"leakage": LEAKAGE}
        if self.config.reading == "stage":
            chosen = super().select(pool, scores, features, n, seed)
            return replace(chosen, card={**chosen.card, **leakage})
        ratio = np.asarray(scores["score"], dtype=np.float64)
        misleading = ratio >= 1
        # -1/x keeps the order of ratios from 1 upwards, below all that are smaller than 1.
        rank = np.where(misleading, -1 / np.maximum(ratio, 1), ratio)
        chosen = keep_band(pool, rank, n, seed, band="top", tie=self.config.tie, scope=self.config.scope)
        card: dict[str, Json] = {
            **chosen.card,
            **leakage,
            "n_topup": n - int((ratio[chosen.positions] < 1).sum()),
            "n_above_1": int(misleading.sum()),
        }
        return replace(chosen, card=card)


def ifd(forward: Columns, alone: Columns) -> npt.NDArray[np.float64]:
    """Mean loss of the answers' tokens over that of the same tokens without question and picture, (n,).

    All turns count as one. NaN where nothing is left of the answers, the passes read other tokens, or the loss
    without is next to nothing.
    """
    n = len(forward["turn_ntok"])
    ratio = np.empty(n)
    for rows in blocks(n):
        with_, without = ({name: values[rows] for name, values in told.items()} for told in (forward, alone))
        ratio[rows] = _ifd(with_, without)
    return ratio


def _ifd(forward: Columns, alone: Columns) -> npt.NDArray[np.float64]:
    """The same of rows that fit in memory."""
    counts, others = np.asarray(forward["turn_ntok"]), np.asarray(alone["turn_ntok"])
    same = (counts == others).all(axis=1) & (counts.clip(0).sum(axis=1) > 0)
    spoken = counts > 0
    helped = np.where(spoken, forward["turn_nll"], 0).astype(np.float64).sum(axis=1)
    bare = np.where(spoken, alone["turn_nll"], 0).astype(np.float64).sum(axis=1)
    mean = bare / np.maximum(counts.clip(0).sum(axis=1), 1)
    usable = same & (mean >= SMALLEST_LOSS)
    return np.where(usable, helped / np.where(usable, bare, 1), np.nan)
