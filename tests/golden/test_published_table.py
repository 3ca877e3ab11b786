"""The published main table, rendered as Markdown and read back cell by cell."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from importlib.resources import files

import pytest

from reports import published
from reports.main_table import TableOptions, main_table
from reports.render_markdown import markdown
from reports.table import Table

NAMES = {"Random": "Random", "FULL": "FULL"}


def printed() -> list[dict[str, str]]:
    text = (files("reports") / "published" / "mmssr.csv").read_text()
    return list(csv.DictReader(text.splitlines()))


@pytest.fixture(scope="module")
def table() -> Table:
    rows, suite = published.load("mmssr")
    return main_table(rows, suite, TableOptions(order=tuple(dict.fromkeys(r.method for r in rows))))


def lines(text: str) -> Iterator[tuple[str, list[str]]]:
    """(section, cells) of every row of the Markdown tables in `text`."""
    section = ""
    for line in text.splitlines():
        cells = [c.strip() for c in line.strip("|").split(" | ")]
        if not line.startswith("| ") or cells[0] in ("Method", ":---"):
            continue
        if not any(cells[1:]):
            section = cells[0].strip("*")
        else:
            yield section, cells


def test_every_cell_reads_back(table: Table) -> None:
    expected: dict[tuple[str, str], list[dict[str, str]]] = {}
    for r in printed():
        expected.setdefault((r["budget"], r["method"]), []).append(r)
    found = {(section, cells[0]): cells[1:] for section, cells in lines(markdown(table))}
    assert list(found) == list(expected)
    bold = underlined = 0
    for key, cells in found.items():
        for cell, r in zip(cells, expected[key], strict=False):
            assert re.sub(r"[*]|</?u>", "", cell) == f"{float(r['score']):.2f}"
            assert ("**" in cell) == (r["marked_best"] == "1"), (key, cell)
            assert ("<u>" in cell) == (r["marked_beats_random"] == "1"), (key, cell)
            bold, underlined = bold + ("**" in cell), underlined + ("<u>" in cell)
        count, rel = cells[-2:]
        first = expected[key][0]
        wanted = f"{first['reported_beats_k']}/{first['reported_beats_n']}" if first["reported_beats_k"] else "-"
        assert count == wanted
        assert float(rel) == pytest.approx(float(first["reported_rel_full"]), abs=0.0101)
    assert (len(found), bold, underlined) == (28, 30, 69)
