"""Summaries of one row of scores: the papers' two numbers, and honest ones beside them.

Everywhere `scores`, `full` and `reference` are (benchmarks,) arrays in one order, in the benchmarks' own scales;
`higher` is true where more is better. NaN is a missing score. Summaries over benchmarks are None as soon as one
benchmark is missing; counts leave missing benchmarks out and say over how many they were taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata, trim_mean

from harness.benchmarks import Suite
from harness.keys import SHORT, digest
from reports.grid import Floats

Bools = npt.NDArray[np.bool_]

REL_FULL: Final = "rel_full@v1"
"""Unweighted mean over the declared suite of 100 * score / full."""
BEATS_RANDOM: Final = "beats_random@v1"
"""Number of benchmarks strictly better than the mean of the random runs at the same budget and backbone."""

RATIO_RANGE: Final = (70.0, 130.0)
"""Relative scores outside of this range (percent) deserve a second look: a floor or a tiny denominator."""
SMALLEST_GAP: Final = 1.0
"""REL points between random and full below which the share of the gap closed means nothing."""


def suite_digest(suite: Suite) -> str:
    """Digest of what a summary depends on: the benchmarks, how their number is made, scale and direction."""
    return digest(
        {
            "protocol": suite.protocol,
            "benchmarks": [
                [b.name, list(b.metrics), str(b.scale), str(b.minimum), str(b.maximum), b.higher_is_better]
                for b in suite.benchmarks
            ],
        }
    )[:SHORT]


def metric_version(metric: str, suite: Suite) -> str:
    """Full identity of a summary, for example `rel_full@v1+3f2a...`: the definition and the suite it is over."""
    return f"{metric}+{suite_digest(suite)}"


def relative(scores: Floats, full: Floats, higher: Bools) -> Floats:
    """Percent of the full run per benchmark: 100 s/F, or 100 F/s where lower is better; NaN unless both are > 0.

    A score of exactly 0 counts as 0 percent where higher is better. Values above 100 are legal.
    """
    top, bottom = np.where(higher, scores, full), np.where(higher, full, scores)
    defined = (bottom > 0) & (top >= 0)
    return np.where(defined, 100.0 * top / np.where(defined, bottom, 1.0), np.nan)


def mean(values: Floats) -> float | None:
    """Unweighted mean, None where anything is missing."""
    return None if np.isnan(values).any() else float(values.mean())


def rel_full(scores: Floats, full: Floats, higher: Bools) -> float | None:
    """`rel_full@v1`: the mean of `relative` over the suite."""
    return mean(relative(scores, full, higher))


@dataclass(frozen=True, slots=True, kw_only=True)
class Averages:
    """Other averages of the same relative scores, and how far one benchmark moves the mean."""

    geometric: float
    median: float
    iqm: float
    """Mean of the middle half (a quarter cut on each side)."""
    loo_min: float
    loo_max: float


def averages(rel: Floats) -> Averages | None:
    """Alternative averages of relative scores (percent); None where one is missing or not positive."""
    if np.isnan(rel).any() or (rel <= 0).any():
        return None
    n = rel.size
    left_out = (rel.sum() - rel) / (n - 1) if n > 1 else rel
    return Averages(
        geometric=float(np.exp(np.log(rel).mean())),
        median=float(np.median(rel)),
        iqm=float(trim_mean(rel, 0.25)),
        loo_min=float(left_out.min()),
        loo_max=float(left_out.max()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Benchmarks won, tied and lost against a reference; benchmarks missing on either side are in none."""

    wins: int
    ties: int
    losses: int

    @property
    def n(self) -> int:
        return self.wins + self.ties + self.losses

    def __str__(self) -> str:
        return f"{self.wins}/{self.n}"


def beats(scores: Floats, reference: Floats, higher: Bools, margin: float = 0.0) -> Count | None:
    """`beats_random@v1`: strict wins over the reference; None where no benchmark can be compared.

    With `margin` (on relative scores: REL points) a benchmark counts only if it differs by at least that much.
    """
    lead = np.where(higher, scores - reference, reference - scores)
    lead = lead[~np.isnan(lead)]
    if not lead.size:
        return None
    wins = int(((lead > 0) & (lead >= margin)).sum())
    losses = int(((lead < 0) & (lead <= -margin)).sum())
    return Count(wins=wins, ties=int(lead.size) - wins - losses, losses=losses)


def gap_closed(rel: float | None, rel_random: float | None) -> float | None:
    """Share of the way from random to full that is gained; None where that way is under one REL point."""
    if rel is None or rel_random is None or 100.0 - rel_random < SMALLEST_GAP:
        return None
    return (rel - rel_random) / (100.0 - rel_random)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Rank summaries of one method among the methods of one budget (1 is best; ties share the mean rank)."""

    mean_rank: float
    borda: float
    win_rate: float
    """Mean share of the other methods beaten, ties counting one half."""


def rankings(scores: Floats, higher: Bools) -> list[Ranking | None]:
    """Rank (methods, benchmarks) scores; methods with a missing score get None and are not ranked against."""
    complete = np.isfinite(scores.sum(axis=1))
    m = int(complete.sum())
    ranks = rankdata(np.where(higher, -scores, scores)[complete], axis=0) if m else scores
    results = iter([_ranking(row, m) for row in ranks] if m else [])
    return [next(results) if ok else None for ok in complete]


def _ranking(ranks: Floats, m: int) -> Ranking:
    average = float(ranks.mean())
    return Ranking(
        mean_rank=average,
        borda=float((m - ranks).sum()),
        win_rate=(m - average) / (m - 1) if m > 1 else 0.5,
    )
