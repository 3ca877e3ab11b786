"""One door to the renderers, and the published tables through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal

from harness.errors import unknown_name
from reports import published
from reports.main_table import TableOptions, main_table
from reports.render_csv import table_csv
from reports.render_html import table_html
from reports.render_latex import latex
from reports.render_markdown import markdown
from reports.render_terminal import terminal
from reports.table import Table

Format = Literal["md", "csv", "tex", "html", "terminal"]

RENDERERS: Final[Mapping[str, Callable[[Table], str]]] = {
    "md": markdown,
    "csv": table_csv,
    "tex": latex,
    "html": table_html,
    "terminal": terminal,
}


def render(table: Table, form: Format) -> str:
    """`table` as text in one of the formats of `RENDERERS`; raises HarnessError for another."""
    if form not in RENDERERS:
        raise unknown_name("table format", form, RENDERERS)
    return RENDERERS[form](table)


def published_table(name: str) -> Table:
    """The main table of a published paper, recomputed from its printed scores by our own metrics."""
    rows, suite = published.load(name)
    order = tuple(dict.fromkeys(row.method for row in rows))
    source = f"Printed scores of {published.TABLES[name].citation}; summaries recomputed."
    return main_table(rows, suite, TableOptions(order=order, source=source))


def published_report(name: str, form: Format = "md") -> str:
    """A published table as text; an unknown name or format raises HarnessError with the known ones."""
    return render(published_table(name), form)
