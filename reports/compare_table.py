"""A comparison as the table every renderer knows, and as JSON."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import Any, Final

from harness.types import Json
from reports.compare import POOL, Comparison, Measure
from reports.table import Block, Column, Row, Section, Table, TableCell

SCHEMA: Final = 1
_NAMES_WIDTH: Final = 64
"""Characters that names of subsets may take in the head of a table; beyond them they become letters."""
_MOST: Final = 12
"""Sources with lines of their own; the rest are added up."""


def compare_table(comparison: Comparison) -> Table:
    """Sections for overlap, its expectation and every chapter; a column for each subset and the pool."""
    names = _short(comparison.names)
    lettered = names != comparison.names
    rows = tuple(f"{a} {b}" if lettered else b for a, b in zip(names, comparison.names, strict=True))
    o = comparison.overlap
    sections = [
        _square("Overlap (Jaccard)", rows, o.jaccard, 3),
        _square("Overlap expected at random", rows, o.expected, 3),
        _square("Overlap beyond that, in SDs", rows, o.surprise, 1),
    ]
    if len(rows) == 1:
        sections = []
    sections += [
        Section(title=c.title, rows=tuple(_row(m) for m in _cut(c.measures, c.title == "% by source")))
        for c in comparison.chapters
    ]
    titles = (*names, POOL)
    keys = (*comparison.names, POOL)
    return Table(
        columns=tuple(Column(key=k, title=t, kind="count") for k, t in zip(keys, titles, strict=True)),
        blocks=(Block(title=comparison.pool.name, sections=tuple(sections)),),
        corner="",
        counts_runs=False,
        caption=f"Selections of {comparison.pool.name} ({comparison.pool.n:,} samples).",
        notes=_notes(comparison),
        footnotes=(*_unknown(comparison), *_unfinished(comparison)),
    )


def _short(names: Sequence[str]) -> tuple[str, ...]:
    fits = sum(map(len, names)) <= _NAMES_WIDTH
    return tuple(names) if fits else tuple(_letter(i) for i in range(len(names)))


def _letter(i: int) -> str:
    letters = string.ascii_uppercase
    return letters[i % 26] * (1 + i // 26)


def _square(title: str, names: Sequence[str], values: Any, decimals: int) -> Section:
    """A square array; its diagonal says nothing."""
    rows = [
        Measure(
            name=name,
            values=(*(None if i == j or math.isnan(v) else float(v) for j, v in enumerate(line)), None),
            decimals=decimals,
        )
        for i, (name, line) in enumerate(zip(names, values, strict=True))
    ]
    return Section(title=title, rows=tuple(_row(m) for m in rows))


def _row(measure: Measure) -> Row:
    cells = tuple(TableCell(value=v, decimals=measure.decimals) for v in measure.values)
    return Row(label=measure.name, cells=cells)


def _cut(measures: Sequence[Measure], many: bool) -> list[Measure]:
    """The measures, those of the smaller sources added up."""
    sources, rest = list(measures[:-2]), list(measures[-2:])
    if not many or len(sources) <= _MOST + 1:
        return list(measures)
    columns = zip(*(m.values for m in sources[_MOST:]), strict=True)
    sums = tuple(sum(v for v in column if v is not None) for column in columns)
    return [*sources[:_MOST], Measure(name=f"{len(sources) - _MOST} others", values=sums), *rest]


def _notes(comparison: Comparison) -> tuple[str, ...]:
    notes = [
        "Jaccard: samples in both, divided by samples in either. Expected: its mean over independent random "
        "subsets of the same sizes (hypergeometric).",
        "Effective sources: equal shares with the same entropy. To move: share of samples to exchange for the "
        "pool's mix of sources (total variation).",
    ]
    if comparison.chapter("% by style"):
        notes.append("Style: of the first exchange, by rules on its form; no styler was asked.")
    if comparison.chapter("Near-duplicates"):
        notes.append(
            "Near-duplicates: samples that could go with one left of each family; a family has equal words, and "
            f"pictures whose difference hashes (Krawetz 2013) differ in at most {comparison.distance} of 64 bits."
        )
    return tuple(notes)


def _unknown(comparison: Comparison) -> list[str]:
    return [
        f"{s.name}: {len(s.unknown)} of its ids are not in the pool and are left out, for example "
        f"{', '.join(s.unknown[:3])}."
        for s in comparison.subsets
        if s.unknown
    ]


def _unfinished(comparison: Comparison) -> list[str]:
    names = [name for s in comparison.subsets for name in s.unfinished]
    return [f"Not finished and left out: {', '.join(names)}."] if names else []


def compare_json(comparison: Comparison) -> dict[str, Json]:
    """The comparison with all sources and all unknown ids; arrays follow the order of `subsets`, then the pool."""
    o = comparison.overlap
    return {
        "schema": SCHEMA,
        "pool": {"name": comparison.pool.name, "digest": comparison.pool.digest, "n": comparison.pool.n},
        "subsets": [
            {
                "name": s.name,
                "origin": s.origin,
                "n": len(s.positions),
                "unknown": list(s.unknown),
                "repeated": s.repeated,
            }
            for s in comparison.subsets
        ],
        "unfinished": [name for s in comparison.subsets for name in s.unfinished],
        "overlap": {
            "shared": o.shared.tolist(),
            "jaccard": o.jaccard.tolist(),
            "expected": o.expected.tolist(),
            "surprise": [[None if math.isnan(v) else v for v in row] for row in o.surprise.tolist()],
        },
        "chapters": {c.title: {m.name: list(m.values) for m in c.measures} for c in comparison.chapters},
        "distance": comparison.distance,
    }
