"""Costs as a table of the common model, and as tidy CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence

from reports.cost import CostLine, Device
from reports.main_table import ROLES, method_title
from reports.table import DASH, Block, Column, Row, Section, Table, TableCell

_COLUMNS = (
    ("n", "cells"),
    ("select", "select"),
    ("select_shared", "shared"),
    ("train", "train"),
    ("eval", "eval"),
    ("total", "total"),
    ("total_shared", "shared"),
    ("saved", "saved"),
    ("break_even", "pays off"),
    ("equal_compute_budget", "random buys"),
    ("equal_compute_lead", "Δ to that"),
)


def cost_table(lines: Sequence[CostLine], device: Device, titles: Mapping[str, str]) -> Table:
    """A block per backbone, a section per budget: what a cell costs, in full and shared, and what that buys."""
    blocks: dict[str, dict[str, list[Row]]] = {}
    for line in lines:
        blocks.setdefault(line.backbone, {}).setdefault(line.budget, []).append(_row(line, titles))
    return Table(
        columns=tuple(Column(key=key, title=title, kind="summary") for key, title in _COLUMNS),
        blocks=tuple(
            Block(
                title=backbone,
                sections=tuple(Section(title=budget, rows=tuple(rows)) for budget, rows in sections.items()),
            )
            for backbone, sections in blocks.items()
        ),
        caption=f"Cost of a cell in {device} time, means over the finished cells of a line.",
        notes=(
            "Cells: finished ones, of how many where some are not; a line without one is left out. "
            "Select: every stage the selection rests on, warm-ups included, in full; shared: each divided by the "
            "cells that use it. Total: selection, training and evaluation, in full and shared.",
            "Saved: of the full run's training, the whole selection paid by one training. Pays off: trainings "
            "that must share the selection. Random buys: the budget random reaches with the selection's time; Δ: "
            "/FULL less random's there.",
        ),
    )


def _row(line: CostLine, titles: Mapping[str, str]) -> Row:
    shown = {"n": cells_of(line)}
    shown |= {
        name: duration(getattr(line, name))
        for name in ("select", "select_shared", "train", "eval", "total", "total_shared")
    }
    pays = line.break_even is not None and line.select > 0
    buys = line.equal_compute_budget is not None and line.select > 0
    shown |= {
        "saved": DASH if line.saved is None else f"{100 * line.saved:.0f}%",
        "break_even": str(math.ceil(line.break_even or 0)) if pays else DASH,
        "equal_compute_budget": f"{100 * (line.equal_compute_budget or 0):.1f}%" if buys else DASH,
        "equal_compute_lead": DASH if line.equal_compute_lead is None else f"{line.equal_compute_lead:+.2f}",
    }
    return Row(
        label=method_title(line.method, titles),
        cells=tuple(TableCell(value=getattr(line, key), text=shown[key]) for key, _ in _COLUMNS),
        role=ROLES.get(line.method, "method"),
        n=line.n,
    )


def cells_of(line: CostLine) -> str:
    """The number of cells that a line's means are over, and of how many where some are not finished."""
    return str(line.n) if line.n == line.planned else f"{line.n}/{line.planned}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: `4.2 s`, `50 s`, `3 min`, `2.5 h`."""
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def cost_csv(lines: Sequence[CostLine], device: Device) -> str:
    """One line per method, budget and backbone; device-seconds with all their digits, empty where not defined."""
    out = io.StringIO()
    names = [f.name for f in dataclasses.fields(CostLine)]
    writer = csv.DictWriter(out, [*names, "device"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**dataclasses.asdict(line), "device": device} for line in lines)
    return out.getvalue()
