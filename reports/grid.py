"""Rows arranged as arrays: one (runs x benchmarks) matrix per method, budget and backbone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.benchmarks import Suite
from harness.errors import HarnessError
from reports.rows import FULL, HAS_VALUE, RANDOM, ScoreRow, Status, budget_order

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All runs of one method at one budget on one backbone.

    `values` is (runs, benchmarks) in suite order, NaN where a run has no score; `status` has the same shape.
    """

    method: str
    budget: str
    budget_fraction: float | None
    n_selected: int | None
    backbone: str
    seeds: tuple[int | None, ...]
    values: Floats
    status: tuple[tuple[Status, ...], ...]
    trials: tuple[int, ...]
    """Runs that each row of `values` averages: 1 unless it is a published mean."""
    external: bool

    @property
    def complete(self) -> npt.NDArray[np.bool_]:
        """(runs,) true where a run has every benchmark of the suite."""
        complete: npt.NDArray[np.bool_] = np.isfinite(self.values.sum(axis=1))
        return complete

    @property
    def n_trials(self) -> int:
        """Number of complete runs behind the summaries, counting those inside published means."""
        return int(np.array(self.trials)[self.complete].sum())

    @property
    def n_missing(self) -> int:
        """Number of benchmarks without a score in at least one run."""
        return int(np.isnan(self.values).any(axis=0).sum())

    def means(self) -> Floats:
        """(benchmarks,) mean over the runs that have the benchmark; NaN where none has."""
        return column_means(self.values)

    def sds(self) -> Floats:
        """(benchmarks,) sample SD over runs; NaN below two runs."""
        return column_sds(self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Groups of one backbone: the full runs, and per budget (ascending) the methods with random first."""

    backbone: str
    suite: Suite
    full: Group | None
    budgets: tuple[tuple[Group, ...], ...]

    @property
    def higher(self) -> npt.NDArray[np.bool_]:
        return np.array([b.higher_is_better for b in self.suite.benchmarks])

    @property
    def groups(self) -> tuple[Group, ...]:
        """Every group in table order: budget by budget, the full run last."""
        return (*(g for budget in self.budgets for g in budget), *([self.full] if self.full else []))


def column_means(values: Floats) -> Floats:
    """Mean over axis 0 without NaNs; NaN for columns that hold nothing else."""
    n = (~np.isnan(values)).sum(axis=0)
    return np.where(n > 0, np.nansum(values, axis=0) / np.maximum(n, 1), np.nan)


def column_sds(values: Floats) -> Floats:
    """Sample SD over axis 0 without NaNs; NaN for columns with fewer than two values."""
    n = (~np.isnan(values)).sum(axis=0)
    squares = np.nansum((values - column_means(values)) ** 2, axis=0)
    return np.where(n > 1, np.sqrt(squares / np.maximum(n - 1, 1)), np.nan)


def grids(rows: Iterable[ScoreRow], suite: Suite, order: Sequence[str] = ()) -> list[Grid]:
    """Arrange rows by backbone, budget and method; the order of the rows does not matter.

    Random comes first, then the methods named in `order`, then the others by name. Rows of benchmarks outside
    the suite are left out. Two rows for one run and benchmark raise HarnessError.
    """
    place = {RANDOM: -1, **{name: i for i, name in enumerate(order) if name != RANDOM}}
    column = {b.name: j for j, b in enumerate(suite.benchmarks)}
    buckets: dict[tuple[str, str, str], list[ScoreRow]] = defaultdict(list)
    for row in rows:
        if row.benchmark in column:
            buckets[row.backbone, row.budget, row.method].append(row)
    groups = [_group(bucket, column) for bucket in buckets.values()]
    groups.sort(key=lambda g: (place.get(g.method, len(order)), g.method.casefold(), g.method))
    return [
        _grid(backbone, suite, [g for g in groups if g.backbone == backbone])
        for backbone in sorted({g.backbone for g in groups})
    ]


def _group(rows: list[ScoreRow], column: Mapping[str, int]) -> Group:
    first = rows[0]
    seeds = sorted({r.seed for r in rows}, key=lambda s: (s is None, s or 0))
    line = {seed: i for i, seed in enumerate(seeds)}
    values = np.full((len(seeds), len(column)), np.nan)
    status: list[list[Status]] = [["missing"] * len(column) for _ in seeds]
    trials = [1] * len(seeds)
    seen: set[tuple[int, int]] = set()
    for row in rows:
        at = line[row.seed], column[row.benchmark]
        if at in seen:
            raise HarnessError(f"{row.where}: two rows give this score; keep one of them.")
        seen.add(at)
        status[at[0]][at[1]] = row.status
        trials[at[0]] = max(trials[at[0]], row.trials)
        if row.value is not None and row.status in HAS_VALUE:
            values[at] = row.value
    return Group(
        method=first.method,
        budget=first.budget,
        budget_fraction=first.budget_fraction,
        n_selected=first.n_selected,
        backbone=first.backbone,
        seeds=tuple(seeds),
        values=values,
        status=tuple(tuple(s) for s in status),
        trials=tuple(trials),
        external=any(r.status == "external" for r in rows),
    )


def _grid(backbone: str, suite: Suite, groups: list[Group]) -> Grid:
    full = [g for g in groups if g.method == FULL]
    if len(full) > 1:
        raise HarnessError(f"backbone {backbone}: the full run appears under several budgets; label it 100%.")
    by_budget: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        if group.method != FULL:
            by_budget[group.budget].append(group)
    ordered = sorted(by_budget.values(), key=lambda gs: budget_order(*_size(gs), gs[0].budget))
    return Grid(
        backbone=backbone,
        suite=suite,
        full=full[0] if full else None,
        budgets=tuple(tuple(gs) for gs in ordered),
    )


def _size(groups: list[Group]) -> tuple[float | None, int | None]:
    fractions = [g.budget_fraction for g in groups if g.budget_fraction is not None]
    counts = [g.n_selected for g in groups if g.n_selected is not None]
    return (min(fractions) if fractions else None, min(counts) if counts else None)
