"""The report as one HTML page: no network, readable without JavaScript, in the dark and on paper."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reports.cost import device, total_seconds
from reports.cost_table import cells_of, duration
from reports.main_table import method_title
from reports.render_html import table_html
from reports.summary import BackboneSummary, MethodSummary
from reports.table import DASH, counted, signed
from reports.verdicts import sentences

if TYPE_CHECKING:
    from reports.build import Report
    from reports.figures import Drawing

_MIME: Final = {".md": "text/markdown", ".tex": "application/x-tex", ".csv": "text/csv"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatCell:
    """A margin over random: its text, and how strongly and in which direction it is coloured."""

    text: str
    strength: float = 0.0
    """-1 (far below random) to 1 (far above)."""
    title: str = ""


def page(report: Report, drawings: Sequence[Drawing], downloads: Mapping[str, str]) -> str:
    """The whole page; `downloads` (file name to text) are embedded as links."""
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            report=report,
            meta=report.meta,
            table=Markup(table_html(report.table)),
            blocks=[_block(s, report, drawings) for s in report.summaries],
            costs=report.costs,
            cells_of=cells_of,
            device=device(report.cells),
            cost_total=total_seconds(report.cells),
            title_of=lambda name: method_title(name, report.meta.titles),
            downloads={name: _data_uri(name, text) for name, text in downloads.items()},
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("reports", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["counted"] = counted
    environment.filters["number"] = _number
    environment.filters["p"] = _p
    environment.filters["seconds"] = duration
    return environment


def _block(summary: BackboneSummary, report: Report, drawings: Sequence[Drawing]) -> dict[str, object]:
    """What the template shows of one backbone."""
    return {
        "name": summary.grid.backbone,
        "sentences": sentences(summary, report.meta.titles),
        "figures": [(d.caption, Markup(d.inline)) for d in drawings if d.backbone == summary.grid.backbone],
        "heat": [(ms[0].group.budget, rows) for ms in summary.budgets if (rows := _heat(ms, summary, report))],
        "compared": [m for m in summary.methods if m.vs_random and m.vs_random.comparison],
        "curves": [c for c in summary.curves if c.area is not None],
    }


def _heat(
    methods: tuple[MethodSummary, ...], summary: BackboneSummary, report: Report
) -> list[tuple[str, list[HeatCell]]]:
    scale = _heat_scale(summary)
    titles = [b.title for b in report.suite.benchmarks]
    return [
        (
            method_title(m.group.method, report.meta.titles),
            [_heat_cell(m, j, title, scale) for j, title in enumerate(titles)],
        )
        for m in methods
        if m.vs_random
    ]


def _heat_scale(summary: BackboneSummary) -> float:
    """Margin (REL points) at full colour: nearly all margins of the backbone lie within it."""
    margins = [np.abs(m.vs_random.margins) for m in summary.methods if m.vs_random]
    known = np.concatenate(margins) if margins else np.array([])
    known = known[np.isfinite(known)]
    return max(1.0, float(np.quantile(known, 0.95))) if known.size else 1.0


def _heat_cell(m: MethodSummary, j: int, benchmark: str, scale: float) -> HeatCell:
    assert m.vs_random is not None
    v = m.vs_random
    margin, p = float(v.margins[j]), float(v.benchmark_p[j])
    if not np.isfinite(margin):
        return HeatCell(text=DASH, title=f"{benchmark}: no result")
    known = f", 95% interval {v.benchmark_low[j]:+.2f} to {v.benchmark_high[j]:+.2f}, p {p:.3f} after Holm"
    return HeatCell(
        text=signed(margin) + ("*" if p < 0.05 else ""),
        strength=max(-1.0, min(1.0, margin / scale)),
        title=f"{benchmark}: {margin:+.2f} REL points" + (known if np.isfinite(p) else ""),
    )


def _number(value: float | None, form: str = ".2f") -> str:
    return DASH if value is None or not np.isfinite(value) else format(value, form)


def _p(value: float | None) -> str:
    return "<.001" if value is not None and value < 0.001 else _number(value, ".3f")


def _data_uri(name: str, text: str) -> str:
    mime = _MIME[Path(name).suffix]
    return f"data:{mime};charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"
