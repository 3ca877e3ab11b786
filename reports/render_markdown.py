"""Tables as GitHub-flavoured Markdown: bold as `**x**`, underline as `<u>x</u>`, spread as `<sub>±x</sub>`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from reports.table import Block, Column, Row, Table, TableCell

_SPECIAL: Final = re.compile(r"([\\|*_<>`\[\]])")


def markdown(table: Table) -> str:
    """The whole table: caption, one pipe table per block, notes and footnotes."""
    parts = [escape(table.caption)] if table.caption else []
    for block in table.blocks:
        if len(table.blocks) > 1:
            parts.append(f"### {escape(block.title)}")
        parts.append("\n".join(_lines(block, table)))
    parts.extend(escape(note) for note in (*table.notes, *table.footnotes))
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Text with every character that Markdown gives a meaning taken literally."""
    return _SPECIAL.sub(r"\\\1", text)


def _lines(block: Block, table: Table) -> Iterator[str]:
    yield _line([escape(table.corner), *(escape(c.title) for c in table.columns)])
    yield _line([":---", *("---:" for _ in table.columns)])
    for section in block.sections:
        yield _line([f"**{escape(section.title)}**", *("" for _ in table.columns)])
        for row in section.rows:
            cells = zip(row.cells, table.columns, strict=True)
            yield _line([escape(row.title), *(_cell(cell, row, column) for cell, column in cells)])


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(cell: TableCell, row: Row, column: Column) -> str:
    text = escape(cell.plain)
    if "above_random" in cell.marks:
        text = f"<u>{text}</u>"
    if "best" in cell.marks:
        text = f"**{text}**"
    text += cell.suffix.replace("*", r"\*")
    if cell.spread and Table.shows_spread(row, column):
        text += f" <sub>±{cell.spread}</sub>"
    return text
