"""What a plug-in needs: the Selector and FeaturePass contracts and the values they exchange."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from harness.keys import mix64
from harness.pool import Pool, Record
from harness.types import Json, Lessons, PassRef, WarmUp

__all__ = [
    "Columns",
    "FeaturePass",
    "Features",
    "Lessons",
    "PassContext",
    "PassRef",
    "Pool",
    "Record",
    "Scores",
    "Selection",
    "Selector",
    "WarmUp",
    "ranked",
]

Columns = Mapping[str, npt.NDArray[Any]]
"""Columns of one pass, each with one row a sample, in pool order."""

Features = Mapping[str, Columns]
"""The columns of every pass a selector asked for, by the label it asked under."""

Scores = dict[str, npt.NDArray[Any]]
"""Budget-free columns in pool order; the one called `score` is what a top-n selector ranks by (higher first)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The chosen positions of a pool, in order of preference."""

    positions: npt.NDArray[np.int32]
    card: Mapping[str, Json] = field(default_factory=dict)
    """What the selector wants to tell: top-ups, NaNs, variant, uncertainties."""


def ranked(pool: Pool, score: npt.NDArray[Any], seed: int, tie: str = "hash") -> npt.NDArray[np.int32]:
    """Positions by score, highest first; NaN last; ties by the seeded uid hash (`tie="index"`: by position).

    `score` has shape (n,). Returns int32 of shape (n,).
    """
    values = np.asarray(score, dtype=np.float64)
    if values.shape != (pool.n,):
        raise ValueError(f"the score has shape {values.shape}, the pool {pool.n} samples")
    primary = np.where(np.isnan(values), np.inf, -values)
    if tie not in ("hash", "index"):
        raise ValueError(f"ties are decided by hash or index, not by {tie!r}")
    second = np.arange(pool.n) if tie == "index" else mix64(pool.column("uid_hash64"), seed)
    return np.lexsort((second, primary)).astype(np.int32)


class Selector:
    """One selection method. Subclass it, name it, and implement `score` (or `select` for more than a ranking).

    Pure: the same pool, features, n and seed give the same selection on any machine; no globals, no network.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    Config: ClassVar[type]
    """A dataclass of plain values; it becomes a Hydra option by itself."""
    uncertain: ClassVar[tuple[str, ...]] = ()
    """What is not published of the method and decided here; every card says it, and tables name the method."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def nested(self) -> bool:
        """True where a smaller budget of the same seed is always a subset of a larger one.

        `nested = False` in a subclass replaces it; where settings decide, a property of its own does.
        """
        return True

    def needs(self) -> tuple[PassRef, ...]:
        """The feature passes to run first."""
        return ()

    def score(self, pool: Pool, features: Features) -> Scores | None:
        """Budget-free columns in pool order, computed once for all budgets and seeds; None for no scores."""
        return None

    def select(self, pool: Pool, scores: Scores, features: Features, n: int, seed: int) -> Selection:
        """Choose exactly `n` samples; by default the `n` highest of `scores["score"]`."""
        score = scores["score"]
        order = ranked(pool, score, seed, tie=getattr(self.config, "tie", "hash"))
        n_nan = int(np.isnan(np.asarray(score, dtype=np.float64)).sum())
        usable = pool.n - n_nan
        return Selection(positions=order[:n], card={"n_nan": n_nan, "n_topup": max(0, n - usable)})


@dataclass(frozen=True, slots=True, kw_only=True)
class PassContext:
    """What a pass may use besides its configuration."""

    model_path: str
    """Folder of the model the pass was resolved to; empty where it needs none."""
    device: str = "cpu"
    adapter_path: str = ""
    """Folder of the adapters that are merged into the model, with their Adam moments; empty where it has none."""


class FeaturePass(ABC):
    """A per-sample computation shared by selectors, run in fixed shards and cached.

    A pass is opened once in a process and then computes any number of shards; a shard's columns may depend on
    nothing but its samples.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    Config: ClassVar[type]
    identity: ClassVar[str] = "weights"
    """What of the model decides the columns: `weights` (with its tokenizer and processor), `processor` alone
    (tokenizer and geometry), or `none`."""
    work: ClassVar[float] = 2.0
    """Operations per weight and token, for estimates before anything has run: 2 a forward, 6 with a backward."""
    asks: ClassVar[float] = 0.0
    """Tokens it adds to every sample, for the same estimates."""

    @staticmethod
    def shows(config: Mapping[str, Any]) -> str:
        """How much of a picture is seen, for the same estimates: all tiles (`checkpoint`) or one (`single`)."""
        return str(config.get("views", "checkpoint"))

    def __init__(self, config: Any, context: PassContext) -> None:
        self.config = config
        self.context = context

    def open(self) -> None:  # noqa: B027 - not every pass has something to load
        """Load models and tokenizers; called once before the first shard."""

    @abstractmethod
    def run(self, pool: Pool, start: int, stop: int) -> tuple[dict[str, npt.NDArray[Any]], list[str]]:
        """Columns for positions [start, stop), each of length stop - start, and one failure reason a sample.

        The reason is "" where all went well; failed rows hold NaN (floats) or -1 (integers).
        """
