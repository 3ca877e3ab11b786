"""Everything a tracker is told of a sweep."""

from __future__ import annotations

from harness.store import Store
from harness.tracking.content import RunContent
from harness.tracking.from_store import SweepSource
from harness.tracking.report_run import report_run
from reports.build import Report, ReportMeta, summarise_report
from reports.metrics import relative
from reports.records import read_sweep


def sweep_runs(store: Store, name: str) -> list[RunContent]:
    """The select, train and eval runs of a sweep as far as their stages are done, and its report run last.

    Raises HarnessError where the store has no such sweep.
    """
    records = read_sweep(store, name)
    report = summarise_report(records.scores, records.cells, records.suite, ReportMeta(title=name))
    source = SweepSource(
        store=store,
        records=records,
        cells=store.sweep(name)["cells"],
        relative=_relative(report),
    )
    return [*source.runs(), report_run(store, records, report)]


def _relative(report: Report) -> dict[tuple[str, str, str, int], list[float]]:
    """REL of every single run, per benchmark in suite order."""
    found: dict[tuple[str, str, str, int], list[float]] = {}
    for grid in (s.grid for s in report.summaries):
        for group in grid.groups if grid.full else ():
            assert grid.full is not None
            rows = relative(group.values, grid.full.means(), grid.higher)
            for seed, row in zip(group.seeds, rows, strict=True):
                found[group.method, group.budget, group.backbone, seed or 0] = row.tolist()
    return found
