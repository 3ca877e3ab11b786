"""What a cell costs with its selection included, and what random sampling would do with the same money."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from harness.types import Cost
from reports.curves import at_budget
from reports.rows import FULL, RANDOM, CellRow, Part, StageUse, budget_order
from reports.summary import BackboneSummary

Device = Literal["GPU", "CPU-device", "GPU and CPU-device"]
PARTS: Final[tuple[Part, ...]] = ("select", "train", "eval")


@dataclass(frozen=True, slots=True, kw_only=True)
class CellCost:
    """Device-seconds of one cell, or of several in the mean.

    `full` figures count every stage a cell rests on as if it were the cell's alone; in shared ones each stage is
    divided by the number of cells that rest on it.
    """

    select: float
    select_shared: float
    train: float
    train_shared: float
    eval: float
    peak_rss_gb: float = 0.0
    """The most memory a stage took."""

    @property
    def full(self) -> float:
        return self.select + self.train + self.eval

    @property
    def shared(self) -> float:
        return self.select_shared + self.train_shared + self.eval


@dataclass(frozen=True, slots=True, kw_only=True)
class CostLine:
    """Mean device-seconds per finished cell of one method at one budget on one backbone.

    `select` counts a cell's selection stages in full, `select_shared` divides each by the cells that use it.
    Budgets and comparisons are about selection and training; evaluation is the same for everyone.
    """

    method: str
    budget: str
    backbone: str
    n: int
    """Finished cells, those that the means are over."""
    planned: int
    select: float
    select_shared: float
    train: float
    eval: float
    total: float
    """Selection in full, training and evaluation."""
    total_shared: float
    """The same with every stage divided by the cells that use it."""
    peak_rss_gb: float
    saved: float | None
    """Share of the full run's training saved, the whole selection paid: 1 - (select + train) / full.

    None without a finished full run, as are the others below.
    """
    break_even: float | None
    """Trainings that must share the selection before anything is saved; None where none ever suffice."""
    equal_compute_budget: float | None
    """Budget random sampling could afford if it spent the selection's seconds on training."""
    equal_compute_lead: float | None
    """REL points over random at that budget."""


def device_seconds(use: StageUse) -> float:
    """Seconds for which a stage held devices, times their number.

    A process without a GPU holds one CPU-device, the executor's fixed number of threads.
    """
    return use.cost.gpu_s or use.cost.wall_s * use.processes


def device(cells: Iterable[CellRow]) -> Device:
    """What the device-seconds of some cells are seconds of."""
    found = {s.cost.gpu_s > 0 for c in cells for s in c.stages if device_seconds(s)}
    return "GPU" if found == {True} else "GPU and CPU-device" if True in found else "CPU-device"


def total(cells: Iterable[CellRow]) -> dict[Part, Cost]:
    """What all cells together cost by part, a shared stage counted once.

    A training that is one cell's own and another one's warm-up counts as training.
    """
    once = _once(cells)
    return {part: sum((s.cost for s in once if s.part == part), Cost()) for part in PARTS}


def total_seconds(cells: Iterable[CellRow]) -> dict[Part, float]:
    """The same in device-seconds."""
    once = _once(cells)
    return {part: sum(device_seconds(s) for s in once if s.part == part) for part in PARTS}


def _once(cells: Iterable[CellRow]) -> list[StageUse]:
    stages = sorted((s for c in cells for s in c.stages), key=lambda s: s.part == "train")
    return list({s.key: s for s in stages}.values())


def sharers(cells: Iterable[CellRow]) -> Counter[str]:
    """Number of cells that rest on each stage, by its key."""
    return Counter(key for c in cells for key in {s.key for s in c.stages})


def cell_cost(cell: CellRow, users: Mapping[str, int]) -> CellCost:
    """What one cell cost, given how many cells use each stage."""
    full, shared = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0.0)
    for s in cell.stages:
        full[s.part] += device_seconds(s)
        shared[s.part] += device_seconds(s) / users[s.key]
    return CellCost(
        select=full["select"],
        select_shared=shared["select"],
        train=full["train"],
        train_shared=shared["train"],
        eval=full["eval"],
        peak_rss_gb=cell.cost().peak_rss_gb,
    )


def cost_lines(cells: Sequence[CellRow], summaries: Sequence[BackboneSummary]) -> list[CostLine]:
    """One line per method, budget and backbone that has a finished cell, in table order."""
    users, planned = sharers(cells), Counter(map(_where, cells))
    groups: dict[tuple[str, str, str], list[CellRow]] = {}
    for cell in sorted(cells, key=_table_order):
        if cell.status == "ok" and any(map(device_seconds, cell.stages)):
            groups.setdefault(_where(cell), []).append(cell)
    means = {where: _mean([cell_cost(c, users) for c in group]) for where, group in groups.items()}
    full = {backbone: means[backbone, budget, m].train for backbone, budget, m in groups if m == FULL}
    by_name = {s.grid.backbone: s for s in summaries}
    return [
        _line(group, planned[where], means[where], full.get(where[0]), by_name.get(where[0]))
        for where, group in groups.items()
    ]


def _where(cell: CellRow) -> tuple[str, str, str]:
    return cell.backbone, cell.budget, cell.method


def _table_order(cell: CellRow) -> tuple[str, bool, tuple[float, float, str], bool, str, int]:
    size = budget_order(cell.budget_fraction, cell.n_selected, cell.budget)
    return cell.backbone, cell.method == FULL, size, cell.method != RANDOM, cell.method, cell.seed or 0


def _mean(costs: Sequence[CellCost]) -> CellCost:
    n = len(costs)
    return CellCost(
        select=sum(c.select for c in costs) / n,
        select_shared=sum(c.select_shared for c in costs) / n,
        train=sum(c.train for c in costs) / n,
        train_shared=sum(c.train_shared for c in costs) / n,
        eval=sum(c.eval for c in costs) / n,
        peak_rss_gb=max(c.peak_rss_gb for c in costs),
    )


def _line(
    group: list[CellRow], planned: int, mean: CellCost, full: float | None, summary: BackboneSummary | None
) -> CostLine:
    first = group[0]
    compared = full if first.method != FULL else None
    afforded = equal_compute_budget(first.budget_fraction, mean.select, compared)
    return CostLine(
        method=first.method,
        budget=first.budget,
        backbone=first.backbone,
        n=len(group),
        planned=planned,
        select=mean.select,
        select_shared=mean.select_shared,
        train=mean.train,
        eval=mean.eval,
        total=mean.full,
        total_shared=mean.shared,
        peak_rss_gb=mean.peak_rss_gb,
        saved=1 - (mean.select + mean.train) / compared if compared else None,
        break_even=break_even(mean.select, mean.train, compared) if compared else None,
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
