"""One door to the renderers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal

from harness.errors import unknown_name
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
