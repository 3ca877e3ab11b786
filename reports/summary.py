"""Everything that is said about each method at each budget on each backbone, computed once from the rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from harness.benchmarks import Suite
from reports import metrics
from reports.curves import Crossing, Curve, area, crossing, random_equivalent
from reports.grid import Floats, Grid, Group, column_means, grids
from reports.rows import RANDOM, ScoreRow
from reports.statistics import LEVEL, Comparison, compare_all, holm_by_benchmark, improvement_probability

FEW_RANDOM_RUNS: Final = 3
"""Fewer random runs than this give the comparison a dagger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VsRandom:
    """A method against the random runs of the same budget and backbone."""

    beats: metrics.Count | None
    """`beats_random@v1`."""
    beats_by_one: metrics.Count | None
    """The same count with a margin of one REL point."""
    margins: Floats
    """(benchmarks,) REL points over the random mean; NaN where either is missing."""
    benchmark_low: Floats
    benchmark_high: Floats
    """(benchmarks,) 95 % interval of `margins`, NaN without a test."""
    benchmark_p: Floats
    """(benchmarks,) p-values after Holm over the benchmarks."""
    gap_closed: float | None
    equivalent: Crossing | None
    """Budget at which random sampling reaches this REL."""
    multiplier: float | None
    comparison: Comparison | None
    improvement: float | None

    @property
    def significant(self) -> tuple[int, int]:
        """Benchmarks significantly better and worse."""
        sure = self.benchmark_p < LEVEL
        return int((sure & (self.margins > 0)).sum()), int((sure & (self.margins < 0)).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSummary:
    """One row of the main table and what stands behind it."""

    group: Group
    scores: Floats
    sds: Floats
    relative: Floats
    """(benchmarks,) mean over runs of 100 s/F."""
    rel_runs: Floats
    """(complete runs,) REL of each."""
    rel: float | None
    """`rel_full@v1`, mean over the complete runs."""
    rel_sd: float | None
    averages: metrics.Averages | None
    ranking: metrics.Ranking | None
    vs_random: VsRandom | None
    """None for random itself, for the full run, and where random is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveSummary:
    """One method over the budgets of one backbone."""

    method: str
    curve: Curve
    area: float | None
    budget_95: Crossing | None
    budget_98: Crossing | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneSummary:
    """All summaries of one backbone: budgets ascending, random first in each; the full run apart."""

    grid: Grid
    budgets: tuple[tuple[MethodSummary, ...], ...]
    full: MethodSummary | None
    curves: tuple[CurveSummary, ...]

    @property
    def methods(self) -> tuple[MethodSummary, ...]:
        """Every row in table order, the full run last."""
        return (*(s for budget in self.budgets for s in budget), *([self.full] if self.full else []))

    def find(self, method: str, budget: str) -> MethodSummary | None:
        return next((m for m in self.methods if (m.group.method, m.group.budget) == (method, budget)), None)

    @property
    def random_curve(self) -> Curve | None:
        return next((c.curve for c in self.curves if c.method == RANDOM), None)


def summarise(
    rows: Iterable[ScoreRow], suite: Suite, order: Sequence[str] = (), smallest: float = 1.0
) -> list[BackboneSummary]:
    """Summaries of every backbone in `rows`; `order` and `smallest` as in `grids` and `compare_all`."""
    return [_backbone(grid, smallest) for grid in grids(rows, suite, order)]


def _backbone(grid: Grid, smallest: float) -> BackboneSummary:
    full = grid.full.means() if grid.full else np.full(len(grid.suite.benchmarks), np.nan)
    relatives = {id(g): metrics.relative(g.values, full, grid.higher) for g in grid.groups}
    curves = _curves(grid, relatives)
    random = next((c.curve for c in curves if c.method == RANDOM), None)
    return BackboneSummary(
        grid=grid,
        budgets=tuple(_budget(groups, grid, relatives, random, smallest) for groups in grid.budgets),
        full=_plain(grid.full, relatives[id(grid.full)]) if grid.full else None,
        curves=curves,
    )


def _curves(grid: Grid, relatives: Mapping[int, Floats]) -> tuple[CurveSummary, ...]:
    points: dict[str, dict[float, float | None]] = {}
    for group in (g for budget in grid.budgets for g in budget):
        if group.budget_fraction is not None:
            line = points.setdefault(group.method, {})
            line[group.budget_fraction] = _mean(_complete(relatives[id(group)]))
    return tuple(_curve(method, Curve.of(line)) for method, line in points.items())


def _curve(method: str, curve: Curve) -> CurveSummary:
    whole = curve.with_full()
    return CurveSummary(
        method=method,
        curve=curve,
        area=area(curve),
        budget_95=crossing(whole, 95.0) if curve.values.size else None,
        budget_98=crossing(whole, 98.0) if curve.values.size else None,
    )


def _budget(
    groups: tuple[Group, ...],
    grid: Grid,
    relatives: Mapping[int, Floats],
    curve: Curve | None,
    smallest: float,
) -> tuple[MethodSummary, ...]:
    ranks = metrics.rankings(np.array([g.means() for g in groups]), grid.higher)
    random = next((g for g in groups if g.method == RANDOM), None)
    if random is None:
        return tuple(_plain(g, relatives[id(g)], r) for g, r in zip(groups, ranks, strict=True))
    theirs = relatives[id(random)]
    others = {g.method: _complete(relatives[id(g)]) for g in groups if g is not random}
    comparisons = compare_all(others, _complete(theirs), smallest)
    return tuple(
        _plain(
            g,
            relatives[id(g)],
            ranking,
            None
            if g is random
            else _vs_random(g, random, grid, (relatives[id(g)], theirs), curve, comparisons.get(g.method)),
        )
        for g, ranking in zip(groups, ranks, strict=True)
    )


def _plain(
    group: Group,
    relative: Floats,
    ranking: metrics.Ranking | None = None,
    vs_random: VsRandom | None = None,
) -> MethodSummary:
    runs = _complete(relative)
    per_benchmark = column_means(relative)
    return MethodSummary(
        group=group,
        scores=group.means(),
        sds=group.sds(),
        relative=per_benchmark,
        rel_runs=runs,
        rel=_mean(runs),
        rel_sd=float(runs.std(ddof=1)) if runs.size > 1 else None,
        averages=metrics.averages(per_benchmark),
        ranking=ranking,
        vs_random=vs_random,
    )


def _vs_random(
    group: Group,
    random: Group,
    grid: Grid,
    relatives: tuple[Floats, Floats],
    curve: Curve | None,
    comparison: Comparison | None,
) -> VsRandom:
    mine, theirs = column_means(relatives[0]), column_means(relatives[1])
    rel, rel_random = _mean(_complete(relatives[0])), _mean(_complete(relatives[1]))
    equivalent = random_equivalent(curve, rel) if curve is not None and rel is not None else None
    bounds, p = holm_by_benchmark(*relatives)
    sign = np.where(grid.higher, 1.0, -1.0)
    return VsRandom(
        beats=metrics.beats(group.means(), random.means(), grid.higher),
        beats_by_one=metrics.beats(mine, theirs, np.full(mine.shape, True), margin=1.0),
        margins=mine - theirs,
        benchmark_low=bounds.low,
        benchmark_high=bounds.high,
        benchmark_p=p,
        gap_closed=metrics.gap_closed(rel, rel_random),
        equivalent=equivalent,
        multiplier=_multiplier(equivalent, group.budget_fraction),
        comparison=comparison and replace(comparison, n=group.n_trials, n_reference=random.n_trials),
        improvement=improvement_probability(
            sign * group.values[group.complete], sign * random.values[random.complete]
        ),
    )


def _multiplier(equivalent: Crossing | None, budget: float | None) -> float | None:
    if equivalent is None or equivalent.bound or budget is None:
        return None
    return equivalent.budget / budget


def _complete(relative: Floats) -> Floats:
    """(complete runs,) mean over benchmarks of the runs that have all of them."""
    runs: Floats = relative.mean(axis=1)
    return runs[np.isfinite(runs)]


def _mean(runs: Floats) -> float | None:
    return float(runs.mean()) if runs.size else None
