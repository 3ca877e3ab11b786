"""Build a report: every table, figure and number of a study, written to one folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from harness.benchmarks import Suite
from harness.types import Json
from reports.cost import CostLine, cost_lines, device
from reports.cost_table import cost_csv, cost_table
from reports.export import as_json, cost_json
from reports.main_table import TableOptions, table_of
from reports.render import render
from reports.rows import CellRow, ScoreRow, Status, cell_name
from reports.summary import BackboneSummary, summarise
from reports.table import Table

if TYPE_CHECKING:
    from reports.figures import Drawing

SCHEMA: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportMeta:
    """What a report says about itself; nothing here changes a number except `smallest`."""

    title: str
    created: str = ""
    """Date and time as printed; only report.json's `created` and the page show it."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Name and value of what was run: code revision, versions, machine."""
    titles: Mapping[str, str] = field(default_factory=dict)
    """Printed names of methods."""
    order: Sequence[str] = ()
    smallest: float = 1.0
    """Smallest difference to random worth having, in REL points."""
    source: str = ""
    uncertain: Sequence[str] = ()
    """Methods of which something is not published and was decided here."""
    leaky: Sequence[str] = ()
    """Methods that may have seen what they judge or what is scored."""

    @property
    def table_options(self) -> TableOptions:
        return TableOptions(
            titles=self.titles,
            order=self.order,
            smallest=self.smallest,
            source=self.source,
            uncertain=self.uncertain,
            leaky=self.leaky,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A built report: its numbers, and the files it was written to."""

    meta: ReportMeta
    suite: Suite
    table: Table
    summaries: tuple[BackboneSummary, ...]
    cells: tuple[CellRow, ...]
    costs: tuple[CostLine, ...]
    files: tuple[Path, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Number of cells by status, `ok` first."""
        found = Counter(c.status for c in self.cells)
        order: tuple[Status, ...] = ("ok", "external", "failed", "invalid", "pending", "missing")
        return {status: found[status] for status in order if found[status] or status == "ok"}

    @property
    def troubles(self) -> tuple[CellRow, ...]:
        """Cells without a result, in table order."""
        return tuple(c for c in self.cells if c.status not in ("ok", "external"))


def build_report(
    rows: Sequence[ScoreRow], cells: Sequence[CellRow], suite: Suite, out: Path, meta: ReportMeta
) -> Report:
    """Write table.{md,tex,csv}, cost.{md,csv}, report.json, index.html and figures/ to `out`; return the report.

    The tables depend on rows, suite and the choices in `meta` alone, to the byte; report.json too, apart from its
    keys `cost` and `created`. Without `cells` the status of each cell is taken from its scores.
    """
    from reports.page import page  # with Jinja2, which tables alone do not need

    report = summarise_report(rows, cells, suite, meta)
    out.mkdir(parents=True, exist_ok=True)
    texts = {
        "table.md": render(report.table, "md"),
        "table.tex": render(report.table, "tex"),
        "table.csv": render(report.table, "csv"),
        "report.json": json.dumps(report_json(report), indent=1, sort_keys=True, allow_nan=False) + "\n",
    }
    if report.costs:
        texts["cost.md"] = render(cost_table(report.costs, device(report.cells), meta.titles), "md")
        texts["cost.csv"] = cost_csv(report.costs, device(report.cells))
    drawings = drawings_of(report)
    texts["index.html"] = page(report, drawings, {n: t for n, t in texts.items() if n.startswith("table.")})
    for name, text in texts.items():
        (out / name).write_text(text)
    (out / "figures").mkdir(exist_ok=True)
    figures = [path for drawing in drawings for path in drawing.write(out / "figures")]
    return replace(report, files=(*(out / name for name in texts), *figures))


def drawings_of(report: Report) -> list[Drawing]:
    """Every figure of the report, backbone by backbone."""
    from reports.figures import draw  # with matplotlib

    return [d for s in report.summaries for d in draw(s, report.meta.titles, report.meta.smallest)]


def summarise_report(rows: Sequence[ScoreRow], cells: Sequence[CellRow], suite: Suite, meta: ReportMeta) -> Report:
    """Every number of a report, nothing written."""
    summaries = summarise(rows, suite, meta.order, meta.smallest)
    known = sorted(cells or _cells_of(summaries), key=lambda c: c.name)
    return Report(
        meta=meta,
        suite=suite,
        table=table_of(summaries, suite, meta.table_options),
        summaries=tuple(summaries),
        cells=tuple(known),
        costs=tuple(cost_lines(known, summaries)),
    )


def _cells_of(summaries: Sequence[BackboneSummary]) -> list[CellRow]:
    """Cells as far as their scores tell: the worst status over the benchmarks."""
    worst: tuple[Status, ...] = ("failed", "invalid", "pending", "missing", "external", "ok")
    return [
        CellRow(
            method=g.method,
            budget=g.budget,
            budget_fraction=g.budget_fraction,
            n_selected=g.n_selected,
            backbone=g.backbone,
            seed=seed,
            status=min(status, key=worst.index),
        )
        for s in summaries
        for g in s.grid.groups
        for seed, status in zip(g.seeds, g.status, strict=True)
    ]


def report_json(report: Report) -> dict[str, Json]:
    """The report as JSON: numbers, statuses and failures; what it cost and when it was made stand apart."""
    return {
        "schema": SCHEMA,
        "title": report.meta.title,
        **as_json(report.summaries, report.suite),
        "counts": dict(report.counts),
        "troubles": [
            {"cell": cell_name(c.method, c.budget, c.backbone, c.seed), "status": c.status, "failure": c.failure}
            for c in report.troubles
        ],
        "cost": cost_json(report.cells, report.costs),
        "created": {"at": report.meta.created, "provenance": dict(report.meta.provenance)},
    }
