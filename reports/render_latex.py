"""Tables as LaTeX for a paper: booktabs only, everything escaped in one place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from reports.table import DAGGER, DASH, Block, Column, Row, Table, TableCell

WIDE: Final = 12
"""Number of columns above which a smaller type is needed on a page."""

_ESCAPES: Final = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "%": r"\%",
        "&": r"\&",
        "_": r"\_",
        "#": r"\#",
        "$": r"\$",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        ">": r"\textgreater{}",
        "<": r"\textless{}",
        "|": r"\textbar{}",
        DASH: "---",
        DAGGER: r"\textdagger{}",
        "±": r"$\pm$",
        "×": r"$\times$",
    }
)


def escape(text: str) -> str:
    """Text with every character that LaTeX gives a meaning taken literally."""
    return text.translate(_ESCAPES)


def latex(table: Table) -> str:
    r"""A `table*` float per block; the preamble needs `\usepackage{booktabs}` alone."""
    floats = ["\n".join(_float(block, table)) for block in table.blocks]
    return "% Needs \\usepackage{booktabs}.\n" + "\n\n".join(floats) + "\n"


def _float(block: Block, table: Table) -> Iterator[str]:
    title = f"{escape(block.title)}. " if block.title else ""
    yield r"\begin{table*}[t]"
    size = r"\scriptsize" if len(table.columns) > WIDE else r"\footnotesize"
    yield rf"\centering{size}\setlength{{\tabcolsep}}{{3pt}}"
    yield rf"\caption{{{title}{escape(table.caption)}}}"
    yield rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}"
    yield r"\toprule"
    yield _line([escape(table.corner), *(escape(c.title) for c in table.columns)])
    for section in block.sections:
        yield r"\midrule"
        yield rf"\multicolumn{{{len(table.columns) + 1}}}{{c}}{{\textit{{{escape(section.title)}}}}} \\"
        yield r"\midrule"
        for row in section.rows:
            cells = zip(row.cells, table.columns, strict=True)
            yield _line([escape(row.title), *(_cell(cell, row, column) for cell, column in cells)])
    yield r"\bottomrule"
    yield r"\end{tabular}"
    for note in (*table.notes, *table.footnotes):
        yield rf"\par\smallskip\parbox{{0.95\textwidth}}{{\scriptsize {escape(note)}}}"
    yield r"\end{table*}"


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(cell: TableCell, row: Row, column: Column) -> str:
    text = escape(cell.plain)
    if "above_random" in cell.marks:
        text = rf"\underline{{{text}}}"
    if "best" in cell.marks:
        text = rf"\textbf{{{text}}}"
    if cell.suffix:
        text += rf"\textsuperscript{{{escape(cell.suffix)}}}"
    if cell.spread and Table.shows_spread(row, column):
        text += rf"{{\tiny$\pm${cell.spread}}}"
    return text
