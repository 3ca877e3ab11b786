"""Figures: budget curves and the forest of differences to random, as SVG for pages and PDF for papers."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from reports.main_table import method_title
from reports.rows import FULL, RANDOM
from reports.statistics import LEVEL
from reports.summary import BackboneSummary, MethodSummary

# Okabe and Ito's colours, without the yellow that white paper swallows.
_COLOURS: Final = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS: Final = "osD^vPX*h<>d"
_LINES: Final = ("-", "--", "-.", (0, (1, 1)))
_GREY: Final = "#808080"
_STYLE: Final[Mapping[str, Any]] = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@contextmanager
def styled() -> Iterator[None]:
    with mpl.rc_context():
        mpl.rcParams.update(mpl.rcParamsDefault)
        mpl.rcParams.update(_STYLE)
        yield


def budget_curves(summary: BackboneSummary, titles: Mapping[str, str]) -> Figure | None:
    """REL over the budget (log axis), the random band of one SD, and the full run's line; None without curves."""
    drawn = [c for c in summary.curves if c.curve.values.size]
    if not drawn or max(c.curve.values.size for c in drawn) < 2:
        return None
    with styled():
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.axhline(100, color="#000000", lw=0.8, ls=":")
        _random_band(axes, summary)
        others = [c for c in drawn if c.method != RANDOM]
        for i, c in enumerate(others):
            axes.plot(
                100 * c.curve.budgets,
                c.curve.values,
                color=_COLOURS[i % len(_COLOURS)],
                marker=_MARKERS[i % len(_MARKERS)],
                ls=_LINES[(i // len(_COLOURS)) % len(_LINES)],
                ms=5,
                lw=1.5,
                label=method_title(c.method, titles),
            )
        for c in drawn:
            if c.method == RANDOM:
                axes.plot(
                    100 * c.curve.budgets, c.curve.values, color=_GREY, marker="o", ms=4, lw=2, label="Random"
                )
        _budget_axis(axes, sorted({float(b) for c in drawn for b in c.curve.budgets}))
        axes.set_ylabel("% of full run (/FULL)")
        axes.annotate("FULL", (1, 100), (4, 0), ("axes fraction", "data"), "offset points", va="center")
        axes.legend(*_by_height(axes), loc="center left", bbox_to_anchor=(1.06, 0.5))
    return figure


def _random_band(axes: Any, summary: BackboneSummary) -> None:
    points = [
        (m.group.budget_fraction, m.rel, m.rel_sd)
        for m in summary.methods
        if m.group.method == RANDOM and m.group.budget_fraction and m.rel is not None and m.rel_sd is not None
    ]
    if points:
        x, y, sd = np.array(points, dtype=np.float64).T
        axes.fill_between(100 * x, y - sd, y + sd, color=_GREY, alpha=0.25, lw=0)


def _budget_axis(axes: Any, budgets: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_xticks([100 * b for b in budgets], [f"{100 * b:.4g}%" for b in budgets])
    axes.minorticks_off()
    axes.set_xlabel("budget (share of the pool, log scale)")


def _by_height(axes: Any) -> tuple[list[Any], list[str]]:
    """Legend entries in the order in which the lines end."""
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(handles)), key=lambda i: -float(handles[i].get_ydata()[-1]))
    return [handles[i] for i in order], [labels[i] for i in order]


def forest(summary: BackboneSummary, titles: Mapping[str, str], smallest: float) -> Figure | None:
    """Difference to random in REL points with 95 % intervals, one panel per budget; None without comparisons."""
    panels = [[m for m in methods if m.vs_random and m.vs_random.comparison] for methods in summary.budgets]
    panels = [p for p in panels if p]
    names = list(dict.fromkeys(m.group.method for p in panels for m in p if m.group.method not in (RANDOM, FULL)))
    if not names:
        return None
    with styled():
        height = 1.1 + 0.26 * len(names)
        figure = Figure(figsize=(7.2, height), layout="constrained")
        grid = figure.subplots(1, len(panels), sharey=True, sharex=True, squeeze=False)[0]
        for axes, panel in zip(grid, panels, strict=True):
            axes.axvspan(-smallest, smallest, color=_GREY, alpha=0.15, lw=0)
            axes.axvline(0, color="#000000", lw=0.8)
            for m in panel:
                _forest_point(axes, m, names.index(m.group.method))
            axes.set_title(panel[0].group.budget, fontsize=9)
        grid[0].set_yticks(range(len(names)), [method_title(n, titles) for n in names])
        grid[0].invert_yaxis()
        figure.supxlabel("REL points over random (95% interval; filled: significant after Holm)", fontsize=9)
    return figure


def _forest_point(axes: Any, m: MethodSummary, y: int) -> None:
    assert m.vs_random is not None
    assert m.vs_random.comparison is not None
    c = m.vs_random.comparison
    sure = c.p_holm is not None and c.p_holm < LEVEL
    colour = _GREY if not sure else _COLOURS[1] if c.delta > 0 else _COLOURS[0]
    if c.low is not None and c.high is not None:
        axes.plot([c.low, c.high], [y, y], color=colour, lw=1.8)
    axes.plot([c.delta], [y], "o", ms=6, color=colour, markerfacecolor=colour if sure else "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A drawn figure: its caption, file stem, SVG text and PDF bytes, the same for the same numbers."""

    caption: str
    backbone: str
    svg: str
    pdf: bytes

    @property
    def stem(self) -> str:
        name = f"{self.caption.lower().replace(' ', '_')}-{self.backbone}"
        return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)

    @property
    def inline(self) -> str:
        """The figure as an SVG element that takes ink and blue from the page around it."""
        text = self.svg[self.svg.index("<svg") :]
        text = text.replace("#000000", "currentColor").replace("#0072b2", "var(--blue, #0072b2)")
        text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
        used = set(re.findall(r"#([\w.-]+)", text))
        text = re.sub(r' id="([^"]+)"', lambda m: m.group() if m.group(1) in used else "", text)
        label = escape(f"{self.caption}, {self.backbone}")
        return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{label}"', text, count=1)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write the SVG and the PDF to `folder`; returns the two files."""
        svg, pdf = folder / f"{self.stem}.svg", folder / f"{self.stem}.pdf"
        svg.write_text(self.svg)
        pdf.write_bytes(self.pdf)
        return svg, pdf


def draw(summary: BackboneSummary, titles: Mapping[str, str], smallest: float) -> list[Drawing]:
    """Every figure of one backbone that has something to show."""
    found = {
        "Budget curves": budget_curves(summary, titles),
        "Difference to random": forest(summary, titles, smallest),
    }
    return [_drawing(figure, name, summary.grid.backbone) for name, figure in found.items() if figure is not None]


def _drawing(figure: Figure, caption: str, backbone: str) -> Drawing:
    """Render without dates; the salt keeps the ids of several figures on one page apart."""
    svg, pdf = io.StringIO(), io.BytesIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": f"{caption} {backbone}"}):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    return Drawing(caption=caption, backbone=backbone, svg=svg.getvalue(), pdf=pdf.getvalue())
