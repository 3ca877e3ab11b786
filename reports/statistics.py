"""Is a method better than random? Tests on run-level means, where one run is one training.

A run gives all benchmarks at once, so the mean over benchmarks is taken first and runs are compared after: the
correlation between benchmarks is then in the data and needs no assumption. All p-values are two-sided.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import numpy as np
from scipy import stats

from harness.keys import seed64
from reports.grid import Floats

LEVEL: Final = 0.05
EXACT: Final = 100_000
"""Largest number of relabellings that is enumerated; above it `DRAWS` seeded ones are drawn."""
DRAWS: Final = 9_999

Verdict = Literal["better", "better (small)", "inconclusive", "equivalent", "worse", "underpowered"]
Test = Literal["welch", "prediction", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """Differences `sample - reference` of run means with 95 % intervals; arrays of one shape, NaN: no test.

    Two or more runs on both sides: Welch's t. One run against several: the prediction interval of a new run.
    """

    delta: Floats
    low: Floats
    high: Floats
    p: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One method against random at one budget and backbone, in the unit of the samples (REL points)."""

    delta: float
    low: float | None
    high: float | None
    test: Test
    n: int
    n_reference: int
    p: float | None
    p_permutation: float | None
    """Exact where there are at most 100,000 relabellings of the runs."""
    p_holm: float | None = None
    """`p` adjusted over the methods of the same budget and backbone."""
    p_dunnett: float | None = None
    """Dunnett's many-to-one p (assumes equal variances); methods with one run have none."""
    verdict: Verdict = "underpowered"

    @property
    def words(self) -> str:
        """The verdict as printed, with the numbers of runs where they are why nothing can be said."""
        if self.verdict == "underpowered":
            return f"underpowered ({self.n} v {self.n_reference} runs)"
        return f"{self.verdict} (1 run)" if self.test == "prediction" else self.verdict


def contrast(sample: Floats, reference: Floats) -> Contrast:
    """Compare (runs, ...) arrays along their first axis; NaNs are runs without a value."""
    (n, mean, var), (m, ref_mean, ref_var) = _moments(sample), _moments(reference)
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = var / n, ref_var / m
        welch = (a + b) ** 2 / (a**2 / (n - 1) + b**2 / (m - 1))
        square = np.where(n > 1, a + b, ref_var * (1 + 1 / m))
        df = np.where(n > 1, welch, m - 1)
        testable = (n > 0) & (m > 1) & (square > 0)
        error = np.where(testable, np.sqrt(square), np.nan)
        delta = mean - ref_mean
        p = 2 * stats.t.sf(np.abs(delta) / error, df)
        half = stats.t.ppf(1 - LEVEL / 2, df) * error
    return Contrast(delta=delta, low=delta - half, high=delta + half, p=p)


def _moments(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Number, mean and sample variance (NaN below two) along axis 0, NaNs left out."""
    n = np.isfinite(values).sum(axis=0).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.nansum(values, axis=0) / n
        var = np.nansum((values - mean) ** 2, axis=0) / np.where(n > 1, n - 1, np.nan)
    return n, mean, var


def holm(p: Floats) -> Floats:
    """Holm's step-down adjustment; NaNs stay NaN and do not count as tests."""
    out = np.full(p.shape, np.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = np.arange(order.size, 0, -1) * p[order]
    out[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return out


def permutation_p(sample: Floats, reference: Floats) -> float | None:
    """Two-sided p of the difference of means over relabellings of the runs; None without runs on both sides."""
    n, m = sample.size, reference.size
    if not n or not m:
        return None
    pooled = np.concatenate([sample, reference])
    exact = math.comb(n + m, n) <= EXACT
    chosen = _relabellings(n + m, n) if exact else _draws(n + m, n)
    sums = chosen @ (pooled - pooled.mean())
    observed = abs(sums[0])
    # The first relabelling is the observed one; a hair of slack keeps ties from being lost to rounding.
    return float((np.abs(sums) >= observed - 1e-9 * max(observed, 1.0)).mean())


def permutation_floor(n: int, m: int) -> float:
    """Smallest one-sided p that `n` against `m` runs can reach by relabelling."""
    return 1.0 / math.comb(n + m, n)


@lru_cache(maxsize=8)
def _relabellings(total: int, n: int) -> Floats:
    """(choices, total) 0/1: every way to call `n` of `total` runs the sample; the first is the first `n`."""
    picks = np.array(list(itertools.combinations(range(total), n)))
    out = np.zeros((len(picks), total))
    np.put_along_axis(out, picks, 1.0, axis=1)
    return out


@lru_cache(maxsize=8)
def _draws(total: int, n: int) -> Floats:
    rng = np.random.default_rng(seed64("permutation", total, n))
    first = np.arange(total) < n
    drawn = rng.permuted(np.tile(first, (DRAWS, 1)), axis=1)
    return np.vstack([first, drawn]).astype(np.float64)


def compare(sample: Floats, reference: Floats) -> Comparison:
    """Compare the (runs,) means of one method with those of random, before any adjustment."""
    c = contrast(sample, reference)
    tested = bool(np.isfinite(c.p))
    test: Test = "none" if not tested else "welch" if sample.size > 1 else "prediction"
    return Comparison(
        delta=float(c.delta),
        low=float(c.low) if tested else None,
        high=float(c.high) if tested else None,
        test=test,
        n=sample.size,
        n_reference=reference.size,
        p=float(c.p) if tested else None,
        p_permutation=permutation_p(sample, reference),
    )


def compare_all(samples: Mapping[str, Floats], reference: Floats, smallest: float = 1.0) -> dict[str, Comparison]:
    """Compare every method of one budget and backbone with random: Holm over them, Dunnett beside, and verdicts.

    `smallest` is the difference (REL points) that is worth having. Methods without a complete run are left out.
    """
    found = {name: compare(s, reference) for name, s in samples.items() if s.size and reference.size}
    adjusted = holm(np.array([np.nan if c.p is None else c.p for c in found.values()]))
    dunnett = _dunnett({name: samples[name] for name in found}, reference)
    out = {}
    for (name, c), p in zip(found.items(), adjusted, strict=True):
        p_holm = float(p) if np.isfinite(p) else None
        out[name] = dataclasses.replace(
            c, p_holm=p_holm, p_dunnett=dunnett.get(name), verdict=verdict(c, p_holm, smallest)
        )
    return out


def _dunnett(samples: Mapping[str, Floats], reference: Floats) -> dict[str, float]:
    several = {name: s for name, s in samples.items() if s.size > 1}
    if not several or reference.size < 2 or all(np.ptp(s) == 0 for s in (*several.values(), reference)):
        return {}
    rng = np.random.default_rng(seed64("dunnett", len(several), reference.size))
    result = stats.dunnett(*several.values(), control=reference, rng=rng)
    return dict(zip(several, map(float, result.pvalue), strict=True))


def verdict(c: Comparison, p: float | None, smallest: float) -> Verdict:
    """The fixed word for a comparison, given its adjusted p and the smallest difference worth having.

    `equivalent` asks for the whole 95 % interval within +-smallest; `underpowered` means that nothing was found
    and that with so few runs a permutation test could not have found anything either.
    """
    if p is not None and p < LEVEL:
        if c.delta < 0:
            return "worse"
        return "better" if c.delta >= smallest else "better (small)"
    if c.low is not None and c.high is not None and -smallest < c.low and c.high < smallest:
        return "equivalent"
    if p is None or permutation_floor(c.n, c.n_reference) > LEVEL:
        return "underpowered"
    return "inconclusive"


def improvement_probability(sample: Floats, reference: Floats) -> float | None:
    """Mean over benchmarks of P(a run of `sample` beats a run of `reference`), ties one half.

    Arrays are (runs, benchmarks), oriented so that more is better; None where a run is incomplete.
    """
    if not sample.size or not reference.size or np.isnan(sample).any() or np.isnan(reference).any():
        return None
    lead = sample[:, None, :] - reference[None, :, :]
    return float(((lead > 0) + 0.5 * (lead == 0)).mean())


def holm_by_benchmark(sample: Floats, reference: Floats) -> tuple[Contrast, Floats]:
    """Per-benchmark contrast of (runs, benchmarks) arrays, and its p-values adjusted over the benchmarks."""
    c = contrast(sample, reference)
    return c, holm(c.p)


def runs_needed(sd: float, difference: float, power: float = 0.8, limit: int = 1000) -> int | None:
    """Runs per side for Welch's test at 5 % to find `difference` with `power`, given the SD over runs.

    None where `limit` runs do not suffice.
    """
    for n in range(2, limit + 1):
        df, shift = 2 * n - 2, difference / (sd * math.sqrt(2 / n))
        cut = stats.t.ppf(1 - LEVEL / 2, df)
        if stats.nct.sf(cut, df, shift) >= power:
            return n
    return None


def planned_runs(samples: Sequence[Floats], difference: float) -> int | None:
    """`runs_needed` with the SD pooled over the runs there are; None where no method has two."""
    several = [s for s in samples if s.size > 1]
    if not several:
        return None
    freedom = sum(s.size - 1 for s in several)
    square = sum(float(s.var(ddof=1)) * (s.size - 1) for s in several) / freedom
    return runs_needed(math.sqrt(square), difference) if square > 0 else None
