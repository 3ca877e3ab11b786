"""One table model for all renderers: what a cell says, apart from how a format writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from reports.rows import Status

Mark = Literal["best", "above_random", "significant", "dagger"]
Kind = Literal["score", "count", "summary"]
Role = Literal["random", "method", "full"]

DASH: Final = "\N{EM DASH}"
DAGGER: Final = "\N{DAGGER}"


def signed(value: float, decimals: int = 1) -> str:
    """A difference with its sign; what rounds to nothing is `0.0`, not `-0.0`."""
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text


def counted(n: int, noun: str) -> str:
    """`1 benchmark`, `2 benchmarks`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableCell:
    """A number with its spread and marks, or a text in its place.

    `sd` is the SD over `n` runs; `rel` and `margin` are the same score in percent of full and as REL points over
    random, for views that switch between them.
    """

    value: float | None = None
    sd: float | None = None
    n: int | None = None
    decimals: int = 2
    marks: frozenset[Mark] = frozenset()
    status: Status = "ok"
    text: str | None = None
    note: str = ""
    """Longer explanation, shown where a format has room for it."""
    rel: float | None = None
    margin: float | None = None

    @property
    def plain(self) -> str:
        """The text or the rounded value; an em dash where there is neither."""
        if self.text is not None:
            return self.text
        return DASH if self.value is None else f"{self.value:.{self.decimals}f}"

    @property
    def spread(self) -> str:
        """The rounded SD, empty where it is not known."""
        return "" if self.sd is None or self.value is None else f"{self.sd:.{self.decimals}f}"

    @property
    def suffix(self) -> str:
        """`*` and dagger, in this order, as far as the cell has them."""
        star = "*" if "significant" in self.marks else ""
        return star + (DAGGER if "dagger" in self.marks else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    key: str
    title: str
    kind: Kind = "score"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line: a label and one cell per column; `n` is the number of runs behind it."""

    label: str
    cells: tuple[TableCell, ...]
    role: Role = "method"
    n: int = 1
    dagger: bool = False

    @property
    def title(self) -> str:
        return self.label + (DAGGER if self.dagger else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Rows under one heading: a budget, or the full run."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Sections of one backbone."""

    title: str
    sections: tuple[Section, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table with its caption (what it shows), notes (how to read it) and footnotes (what is wrong with it)."""

    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]
    caption: str = ""
    notes: tuple[str, ...] = ()
    footnotes: tuple[str, ...] = ()
    corner: str = "Method"
    counts_runs: bool = True
    """Whether the rows are means over runs, so that their `n` is worth writing down."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(f"row {row.label} has {len(row.cells)} cells for {len(self.columns)} columns")

    @staticmethod
    def shows_spread(row: Row, column: Column) -> bool:
        """Whether a format short of room prints the SD: in summaries, and for random (the noise to beat)."""
        return column.kind == "summary" or row.role == "random"

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(row for block in self.blocks for section in block.sections for row in section.rows)
