"""Tables for a terminal: bold and underlined on a TTY, signs in a pipe; denser where the width asks for it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from reports.table import Block, Column, Row, Table, TableCell

Indices = Sequence[int]

_STYLES: Final = {"best": "bold", "above_random": "underline"}
_ROLE_STYLES: Final = {"random": "cyan", "full": "dim", "method": ""}
_KEY: Final = "Without colours: + underlined, ^ bold and underlined, ~ bold alone."


@dataclass(frozen=True, slots=True)
class Density:
    """What is given up to fit a width."""

    decimals: int = 2
    title: int = 99
    signs: bool = True
    spread: bool = True
    """Also print the spread over trials of every score, not only that of the summary."""


_DENSITIES: Final = (
    Density(),
    Density(decimals=1),
    Density(spread=False),
    Density(decimals=1, spread=False),
    Density(1, 6, spread=False),
    Density(1, 5, signs=False, spread=False),
)


def print_table(table: Table, console: Console) -> None:
    """Print every block, the caption and the notes to `console`; without colours marks become signs."""
    plain = console.no_color or not console.is_terminal
    for block in table.blocks:
        if block.title:
            console.print(Text(block.title, style="bold"))
        for grid in _fitting(table, block, plain, console, range(len(table.columns))):
            console.print(grid)
    marked = any(cell.marks for row in table.rows for cell in row.cells)
    for text in (table.caption, *table.notes, _KEY if plain and marked else "", *table.footnotes):
        if text:
            console.print(Text(text, style="dim"))


def terminal(table: Table, width: int = 120, color: bool = False) -> str:
    """The table as text of at most `width` columns; without `color` there are no escape codes."""
    out = io.StringIO()
    print_table(table, Console(file=out, width=width, force_terminal=color, no_color=not color, highlight=False))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _fitting(table: Table, block: Block, plain: bool, console: Console, columns: Indices) -> Iterator[RichTable]:
    """The least dense form that fits the console; where none does, the columns are split in two."""
    unlimited = console.options.update(width=10_000)
    for density in _DENSITIES:
        grid = _grid(table, block, plain, density, columns)
        if console.measure(grid, options=unlimited).maximum <= console.width or len(columns) == 1:
            yield grid
            return
    half = (len(columns) + 1) // 2
    yield from _fitting(table, block, plain, console, columns[:half])
    yield from _fitting(table, block, plain, console, columns[half:])


def _grid(table: Table, block: Block, plain: bool, density: Density, columns: Indices) -> RichTable:
    grid = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    grid.add_column(table.corner, no_wrap=True)
    for column in (table.columns[i] for i in columns):
        title = column.title if len(column.title) <= density.title + 1 else column.title[: density.title] + "."
        grid.add_column(Text(title), justify="right", no_wrap=True)
    for section in block.sections:
        grid.add_section()
        grid.add_row(Text(section.title, style="bold italic"))
        for row in section.rows:
            label = Text(f"  {row.title}", style=_ROLE_STYLES[row.role])
            cells = ((row.cells[i], table.columns[i]) for i in columns)
            grid.add_row(label, *(_cell(cell, row, column, plain, density) for cell, column in cells))
    return grid


def _cell(cell: TableCell, row: Row, column: Column, plain: bool, density: Density) -> Text:
    style = " ".join(_STYLES[m] for m in sorted(cell.marks) if m in _STYLES)
    number = column.kind == "score" and cell.value is not None
    shown = f"{cell.value:.{density.decimals}f}" if number else cell.plain
    text = Text(shown, style=style or _ROLE_STYLES[row.role])
    text.append((_sign(cell) if plain and density.signs else "") + cell.suffix)
    if cell.spread and column.kind == "summary":
        text.append(f" ±{cell.spread}", style="dim")
    elif cell.sd is not None and density.spread:
        text.append(f"±{cell.sd:.{density.decimals}f}", style="dim")
    return text


def _sign(cell: TableCell) -> str:
    best, above = "best" in cell.marks, "above_random" in cell.marks
    return "^" if best and above else "~" if best else "+" if above else ""
