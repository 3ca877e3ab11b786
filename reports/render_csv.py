"""Tables as CSV for further work: plain numbers, spreads and numbers of runs in columns of their own."""

from __future__ import annotations

import csv
import io

from reports.table import Column, Table, TableCell


def table_csv(table: Table) -> str:
    """One line per row; scores to six decimals, counts as `k/N`, empty where there is no number."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    runs = ["runs"] if table.counts_runs else []
    writer.writerow(["block", "section", "row", *runs, *(name for c in table.columns for name in _names(c))])
    for block in table.blocks:
        for section in block.sections:
            for row in section.rows:
                cells = zip(row.cells, table.columns, strict=True)
                values = [v for cell, column in cells for v in _values(cell, column)]
                writer.writerow([block.title, section.title, row.label, *([row.n] if runs else []), *values])
    return out.getvalue()


def _names(column: Column) -> list[str]:
    return [column.key] if column.kind == "count" else [column.key, f"{column.key}_sd"]


def _values(cell: TableCell, column: Column) -> list[str]:
    if column.kind == "count":
        return ["" if cell.value is None else cell.plain]
    return [_number(cell.value), _number(cell.sd)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"
