"""From a store to a printed table and a report folder."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from harness.errors import HarnessError
from harness.provenance import code_revision, package_versions
from harness.store import Store
from reports.build import ReportMeta, build_report, summarise_report
from reports.cost import device
from reports.cost_table import cost_table
from reports.main_table import main_table
from reports.published_report import published_report
from reports.records import Records, read_sweep
from reports.render import Format, render
from reports.render_terminal import print_table


def only_sweep(store: Store) -> str:
    """The name of the store's sweep, where it has just one.

    Raises HarnessError where it has none or several.
    """
    names = store.sweeps()
    if len(names) == 1:
        return names[0]
    if not names:
        raise HarnessError(f"store {store.root} has no sweeps: 'sievebench run' makes one; or give --store DIR.")
    raise HarnessError(f"store {store.root} has several sweeps: name one of {', '.join(names)}.")


def write_report(store: Store, name: str, folder: Path | None) -> Path:
    """Write a sweep's report folder from what the store has; returns the folder."""
    records = read_sweep(store, name)
    out = folder or store.root / "reports" / name
    build_report(records.scores, records.cells, records.suite, out, _meta(records))
    return out


def _meta(records: Records) -> ReportMeta:
    code = code_revision()
    revision = str(code.get("commit", "not a checkout"))[:12] + (" (changed)" if code.get("dirty") else "")
    return ReportMeta(
        title=records.name,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        provenance={"code": revision, **package_versions(), "command": records.command},
        titles=records.titles,
        uncertain=records.uncertain,
        leaky=records.leaky,
    )


def show_table(store: Store, name: str, console: Console) -> None:
    """Print the paper-style table of a sweep."""
    records = read_sweep(store, name)
    table = main_table(records.scores, records.suite, _meta(records).table_options)
    print_table(table, console)


def show_cost(store: Store, name: str, console: Console) -> None:
    """Print what the cells of a sweep have cost; nothing before any of them has run."""
    records = read_sweep(store, name)
    report = summarise_report(records.scores, records.cells, records.suite, _meta(records))
    if sum(line.total for line in report.costs):
        print_table(cost_table(report.costs, device(report.cells), report.meta.titles), console)


def print_report(store: Store, name: str, form: Format, out: Path | None, console: Console) -> int:
    """Print a sweep's table in some format, and write the whole report where a folder is given."""
    if out is not None:
        console.print(f"Report: {write_report(store, name, out) / 'index.html'}", highlight=False, soft_wrap=True)
    if form == "terminal":
        show_table(store, name, console)
        show_cost(store, name, console)
    else:
        records = read_sweep(store, name)
        report = summarise_report(records.scores, records.cells, records.suite, _meta(records))
        print(render(report.table, form), end="")
    return 0


def print_published(name: str, form: Format) -> int:
    """Print a paper's table, recomputed from its printed raw scores by the code our own results go through."""
    print(published_report(name, form), end="")
    return 0
