"""The heat map of a comparison: what selections share, and which sources they prefer."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from reports.compare import Comparison
from reports.figures import styled

_MOST: Final = 14
"""Sources drawn, the pool's largest."""
_DOUBLINGS: Final = 2.0
"""Doublings (or halvings) of a share at full colour."""


def heat_map(comparison: Comparison) -> Figure:
    """Left: Jaccard of each pair, with what random subsets would share in brackets; right: shares by source."""
    names = list(comparison.names)
    sources = [m for m in _source_measures(comparison) if m[0]][:_MOST]
    panel, margins = max(3.1, 0.65 * len(names)), 2.2 + 0.08 * max(map(len, names))
    with styled():
        size = (2 * panel + margins, 1.8 + 0.4 * max(len(names), len(sources)))
        figure = Figure(figsize=size, layout="constrained")
        left, right = figure.subplots(1, 2)
        _overlap(left, comparison, names)
        _sources(right, sources, names)
    return figure


def _overlap(axes: Any, comparison: Comparison, names: list[str]) -> None:
    o = comparison.overlap
    # One scale for all comparisons; the root, because overlaps are small.
    shown = np.sqrt(o.jaccard)
    np.fill_diagonal(shown, np.nan)
    axes.imshow(shown, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i in range(len(names)):
        for j in range(len(names)):
            text = (
                f"{len(comparison.subsets[i].positions):,}"
                if i == j
                else f"{o.jaccard[i, j]:.2f}\n({o.expected[i, j]:.2f})"
            )
            _write(axes, i, j, text, dark=i != j and shown[i, j] > 0.6)
    _label(axes, names, names)
    axes.set_title("Jaccard of each pair\n(in brackets: expected at random)", fontsize=9)


def _source_measures(comparison: Comparison) -> list[tuple[str, npt.NDArray[np.float64]]]:
    chapter = comparison.chapter("% by source")
    assert chapter is not None
    return [(m.name, np.array(m.values, dtype=np.float64)) for m in chapter.measures[:-2]]


def _sources(axes: Any, sources: list[tuple[str, npt.NDArray[np.float64]]], names: list[str]) -> None:
    """Coloured by how often a share doubles or halves the pool's."""
    shares = np.stack([values for _, values in sources])
    with np.errstate(divide="ignore"):
        doublings = np.clip(np.log2(shares[:, :-1] / shares[:, -1:]), -_DOUBLINGS, _DOUBLINGS)
    axes.imshow(doublings, cmap="PuOr_r", vmin=-_DOUBLINGS, vmax=_DOUBLINGS, aspect="auto")
    for i in range(len(sources)):
        for j in range(len(names)):
            _write(axes, i, j, f"{shares[i, j]:.1f}", dark=abs(doublings[i, j]) > 0.65 * _DOUBLINGS)
    _label(axes, [f"{name}  {values[-1]:.1f}" for name, values in sources], names)
    axes.set_title(
        "% by source, the pool's beside its name\n(orange: more than the pool, violet: less)", fontsize=9
    )


def _write(axes: Any, i: int, j: int, text: str, *, dark: bool) -> None:
    axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")


def _label(axes: Any, rows: list[str], columns: list[str]) -> None:
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def write_heat_map(comparison: Comparison, folder: Path) -> tuple[Path, Path]:
    """Write `overlap.svg` and `overlap.png`, the same bytes for the same comparison; returns the two."""
    figure = heat_map(comparison)
    svg, png = folder / "overlap.svg", folder / "overlap.png"
    drawn = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "compare", "svg.fonttype": "none"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
        figure.savefig(png, dpi=150, metadata={"Software": None}, facecolor="white")
    svg.write_text(drawn.getvalue())
    return svg, png
