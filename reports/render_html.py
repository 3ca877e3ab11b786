"""Tables as HTML: marks as elements and signs, other views of a score as data attributes."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from reports.table import Block, Column, Row, Table, TableCell, signed


def table_html(table: Table) -> str:
    """A fragment: one `<table>` per block, then caption, notes and footnotes; reads well without style or script.

    Score cells carry `data-raw`, `data-rel` and `data-margin`, the texts of the three views.
    """
    parts = [line for block in table.blocks for line in _block(block, table)]
    parts.extend(f'<p class="note">{escape(n)}</p>' for n in (table.caption, *table.notes, *table.footnotes) if n)
    return "\n".join(parts)


def _block(block: Block, table: Table) -> Iterator[str]:
    yield '<div class="scroll"><table class="scores">'
    yield f"<caption>{escape(block.title)}</caption>"
    heads = "".join(f'<th scope="col" data-kind="{c.kind}">{escape(c.title)}</th>' for c in table.columns)
    yield f'<thead><tr><th scope="col">{escape(table.corner)}</th>{heads}</tr></thead>'
    span = len(table.columns) + 1
    for section in block.sections:
        title = f"<span>{escape(section.title)}</span>"
        yield f'<tbody><tr class="section"><th scope="rowgroup" colspan="{span}">{title}</th></tr>'
        for row in section.rows:
            pairs = zip(row.cells, table.columns, strict=True)
            cells = "".join(_cell(cell, row, column) for cell, column in pairs)
            yield f'<tr class="{row.role}"><th scope="row">{escape(row.title)}</th>{cells}</tr>'
        yield "</tbody>"
    yield "</table></div>"


def _cell(cell: TableCell, row: Row, column: Column) -> str:
    text = f"<span>{escape(cell.plain)}</span>"
    if "above_random" in cell.marks:
        text = f"<u>{text}</u>"
    if "best" in cell.marks:
        text = f"<b>{text}</b>"
    text += f"<sup>{cell.suffix}</sup>" if cell.suffix else ""
    if cell.spread and Table.shows_spread(row, column):
        text += f"<small>±{cell.spread}</small>"
    return f"<td{_attributes(cell, column)}>{text}</td>"


def _attributes(cell: TableCell, column: Column) -> str:
    found = {"class": "" if cell.status in ("ok", "external") else cell.status, "title": _title(cell)}
    if column.kind == "score" and cell.value is not None:
        found["data-raw"] = cell.plain
        found["data-rel"] = "" if cell.rel is None else f"{cell.rel:.1f}"
        found["data-margin"] = "" if cell.margin is None else signed(cell.margin)
    if cell.value is not None:
        found["data-sort"] = f"{cell.value:.6f}"
    return "".join(f' {name}="{escape(value)}"' for name, value in found.items() if value)


def _title(cell: TableCell) -> str:
    if cell.value is None or cell.note:
        return cell.note or cell.status
    parts = [f"{cell.value:.4f}"]
    if cell.sd is not None:
        parts.append(f"SD {cell.sd:.4f} over {cell.n} runs")
    if cell.rel is not None:
        parts.append(f"{cell.rel:.2f}% of full")
    if cell.margin is not None:
        parts.append(f"{cell.margin:+.2f} REL points over random")
    return ", ".join(parts)
