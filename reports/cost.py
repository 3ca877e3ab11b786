"""What a cell costs with its selection included, and what random sampling would do with the same money."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from harness.types import Cost
from reports.curves import at_budget
from reports.rows import FULL, RANDOM, CellRow, Part, budget_order
from reports.summary import BackboneSummary

Unit = Literal["gpu_s", "wall_s"]
PARTS: Final[tuple[Part, ...]] = ("select", "train", "eval")


@dataclass(frozen=True, slots=True, kw_only=True)
class CostLine:
    """Mean seconds per cell of one method at one budget on one backbone.

    `select` counts a cell's selection stages in full, `select_shared` divides each by the cells that use it.
    Budgets and comparisons are about selection and training; evaluation is the same for everyone.
    """

    method: str
    budget: str
    backbone: str
    n: int
    select: float
    select_shared: float
    train: float
    eval: float
    saved: float | None
    """Share of the full run's training saved, the whole selection paid: 1 - (select + train) / full."""
    break_even: float | None
    """Trainings that must share the selection before anything is saved; None where none ever suffice."""
    equal_compute_budget: float | None
    """Budget random sampling could afford if it spent the selection's seconds on training."""
    equal_compute_lead: float | None
    """REL points over random at that budget."""


def unit(cells: Iterable[CellRow]) -> Unit:
    """GPU seconds where any stage used a GPU, wall-clock seconds otherwise."""
    return "gpu_s" if any(s.cost.gpu_s > 0 for c in cells for s in c.stages) else "wall_s"


def total(cells: Iterable[CellRow]) -> dict[Part, Cost]:
    """What all cells together cost by part, a shared stage counted once."""
    stages = {s.key: s for c in cells for s in c.stages}.values()
    return {part: sum((s.cost for s in stages if s.part == part), Cost()) for part in PARTS}


def cost_lines(cells: Sequence[CellRow], summaries: Sequence[BackboneSummary]) -> list[CostLine]:
    """One line per method, budget and backbone, in table order."""
    measure = unit(cells)
    sharers = Counter(key for c in cells for key in {s.key for s in c.stages})
    groups: dict[tuple[str, str, str], list[CellRow]] = {}
    for cell in sorted(cells, key=_table_order):
        if cell.stages:
            groups.setdefault((cell.backbone, cell.budget, cell.method), []).append(cell)
    full = {backbone: _mean(cs, "train", measure) for (backbone, _, m), cs in groups.items() if m == FULL}
    by_name = {s.grid.backbone: s for s in summaries}
    return [
        _line(group, sharers, measure, full.get(group[0].backbone), by_name.get(group[0].backbone))
        for group in groups.values()
    ]


def _table_order(cell: CellRow) -> tuple[str, bool, tuple[float, float, str], bool, str, int]:
    size = budget_order(cell.budget_fraction, cell.n_selected, cell.budget)
    return cell.backbone, cell.method == FULL, size, cell.method != RANDOM, cell.method, cell.seed or 0


def _line(
    group: list[CellRow],
    sharers: Mapping[str, int],
    measure: Unit,
    full: float | None,
    summary: BackboneSummary | None,
) -> CostLine:
    first = group[0]
    select, train = _mean(group, "select", measure), _mean(group, "train", measure)
    shared = sum(
        getattr(s.cost, measure) / sharers[s.key] for c in group for s in c.stages if s.part == "select"
    ) / len(group)
    compared = full is not None and first.method != FULL
    afforded = equal_compute_budget(first.budget_fraction, select, full) if compared else None
    return CostLine(
        method=first.method,
        budget=first.budget,
        backbone=first.backbone,
        n=len(group),
        select=select,
        select_shared=shared,
        train=train,
        eval=_mean(group, "eval", measure),
        saved=1 - (select + train) / full if compared and full else None,
        break_even=break_even(select, train, full) if compared and full else None,
        equal_compute_budget=afforded,
        equal_compute_lead=_lead(first, afforded, summary),
    )


def equal_compute_budget(budget: float | None, select: float, full: float | None) -> float | None:
    """Share of the pool that random can train on for a method's selection and training together, at most 1."""
    return None if budget is None or not full else min(1.0, budget + select / full)


def break_even(select: float, train: float, full: float) -> float | None:
    """Number of trainings over which a selection must be shared to cost less than as many full trainings."""
    return select / (full - train) if train < full else None


def _lead(cell: CellRow, afforded: float | None, summary: BackboneSummary | None) -> float | None:
    if afforded is None or summary is None or cell.method in (RANDOM, FULL):
        return None
    mine, curve = summary.find(cell.method, cell.budget), summary.random_curve
    theirs = at_budget(curve.with_full(), afforded) if summary.full and curve and curve.values.size else None
    return None if mine is None or mine.rel is None or theirs is None else mine.rel - theirs


def _mean(cells: Sequence[CellRow], part: Part, measure: Unit) -> float:
    return float(sum(getattr(c.cost(part), measure) for c in cells)) / len(cells)
