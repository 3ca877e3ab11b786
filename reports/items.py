"""Tests on single questions: would the difference hold for other questions of the same kind?

All runs answer the same questions, so differences are paired by item; items that share an image or a question
group are resampled together. Score arrays are (runs, items) and hold each item's contribution: the benchmark's
value is the mean over items, or with strata (MME's categories) the sum of the means within them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import stats

from harness.errors import HarnessError
from harness.keys import seed64
from reports.grid import Floats

FEW_RUNS: Final = 5
"""Below this many runs the bootstrap over runs is too narrow, and runs are kept fixed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemScores:
    """Item scores of one benchmark for the runs of a method, of random and of the full run."""

    method: Floats
    random: Floats
    full: Floats
    clusters: npt.NDArray[Any]
    """(items,) labels; equal ones are drawn together."""
    strata: npt.NDArray[Any] | None = None
    """(items,) labels of parts whose means are added; None for a plain mean."""

    def __post_init__(self) -> None:
        shapes = {a.shape[-1] for a in (self.method, self.random, self.full)} | {self.clusters.size}
        if len(shapes) != 1 or (self.strata is not None and self.strata.size not in shapes):
            raise HarnessError(f"item scores have {sorted(shapes)} items: runs, clusters and strata must agree.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Mean difference over items with its clustered standard error and 95 % t interval."""

    delta: float
    se: float
    se_independent: float
    """The standard error that ignores clusters."""
    low: float
    high: float
    p: float
    clusters: int


def paired(sample: Floats, reference: Floats, clusters: npt.NDArray[Any]) -> Paired | None:
    """Compare (runs, items) scores item by item, runs averaged first; None below two clusters.

    The t quantile has clusters - 1 degrees of freedom; without real clusters this is the paired t-test.
    """
    difference = sample.mean(axis=0) - reference.mean(axis=0)
    _, member = np.unique(clusters, return_inverse=True)
    n, c = difference.size, int(member.max(initial=-1)) + 1
    if c < 2:
        return None
    delta = float(difference.mean())
    sums = np.bincount(member, weights=difference - delta)
    se = math.sqrt(float((sums**2).sum()) * c / (c - 1)) / n
    half = float(stats.t.ppf(0.975, c - 1)) * se
    return Paired(
        delta=delta,
        se=se,
        se_independent=float(difference.std(ddof=1)) / math.sqrt(n),
        low=delta - half,
        high=delta + half,
        p=float(2 * stats.t.sf(abs(delta) / se, c - 1)) if se > 0 else float(delta == 0),
        clusters=c,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """Replicates of /FULL under resampling of questions and, where there are enough, of runs."""

    method: Floats
    random: Floats
    runs_resampled: bool

    @property
    def scope(self) -> str:
        return "runs and items" if self.runs_resampled else "items only"

    @property
    def delta(self) -> Floats:
        """(replicates,) REL points over random."""
        return self.method - self.random

    @staticmethod
    def interval(values: Floats) -> tuple[float, float]:
        """95 % percentile interval."""
        low, high = np.quantile(values, [0.025, 0.975])
        return float(low), float(high)


@dataclass(slots=True)
class _Draws:
    """Random choices of one bootstrap: whole runs once for all benchmarks, clusters per benchmark."""

    rng: np.random.Generator
    replicates: int
    resample_runs: bool
    runs: dict[str, Floats] = field(default_factory=dict)

    def run_weights(self, who: str, n: int) -> Floats:
        """(replicates, n) weights of the runs of `who`, the same for every benchmark."""
        if who not in self.runs:
            self.runs[who] = (
                self.multinomial(n) / n if self.resample_runs else np.full((self.replicates, n), 1 / n)
            )
        return self.runs[who]

    def multinomial(self, n: int) -> Floats:
        return self.rng.multinomial(n, np.full(n, 1 / n), size=self.replicates).astype(np.float64)


def bootstrap(benchmarks: Sequence[ItemScores], replicates: int = 2000, seed: int = 0) -> Bootstrap:
    """Hierarchical bootstrap of /FULL of a method and of random over all benchmarks of a suite.

    Each replicate draws whole runs with replacement, and per benchmark whole clusters once for every run, so
    pairing is kept. With fewer than five runs on a side the runs stay fixed: see `Bootstrap.scope`.
    """
    fewest = min(len(a) for b in benchmarks for a in (b.method, b.random))
    rng = np.random.default_rng(seed64("bootstrap", seed))
    draws = _Draws(rng=rng, replicates=replicates, resample_runs=fewest >= FEW_RUNS)
    method, random = np.zeros(replicates), np.zeros(replicates)
    for b in benchmarks:
        values = _values(b, draws)
        method += 100 * values["method"] / values["full"] / len(benchmarks)
        random += 100 * values["random"] / values["full"] / len(benchmarks)
    return Bootstrap(method=method, random=random, runs_resampled=draws.resample_runs)


def _values(b: ItemScores, draws: _Draws) -> dict[str, Floats]:
    """(replicates,) value of the benchmark for method, random and full."""
    out = {name: np.zeros(draws.replicates) for name in ("method", "random", "full")}
    strata = np.zeros(b.clusters.size) if b.strata is None else b.strata
    for stratum in np.unique(strata):
        inside = strata == stratum
        labels, member = np.unique(b.clusters[inside], return_inverse=True)
        weights = draws.multinomial(labels.size)
        items = weights @ np.bincount(member, minlength=labels.size)
        for name in out:
            scores = getattr(b, name)[:, inside]
            sums = np.array([np.bincount(member, weights=run, minlength=labels.size) for run in scores])
            means = weights @ sums.T / items[:, None]
            out[name] += (means * draws.run_weights(name, len(scores))).sum(axis=1)
    return out
