"""Tidy rows: what they refuse, and that every format gives back what was put in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from report_example import example

from harness.benchmarks import TABLE10
from harness.errors import HarnessError
from reports.grid import grids
from reports.rows import ScoreRow, read_cells, read_scores, write_cells, write_scores

ROWS, CELLS = example()


def row(**changes: object) -> ScoreRow:
    given = {"method": "mmssr", "budget": "5%", "backbone": "tiny", "seed": 0, "benchmark": "mme", "value": 1.0}
    return ScoreRow(**{**given, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet"])
def test_scores_come_back(tmp_path: Path, suffix: str) -> None:
    write_scores(ROWS, tmp_path / f"rows{suffix}")
    assert read_scores(tmp_path / f"rows{suffix}") == ROWS


def test_cells_come_back(tmp_path: Path) -> None:
    write_cells(CELLS, tmp_path / "cells.json")
    assert read_cells(tmp_path / "cells.json") == CELLS


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"\.json, \.csv or \.parquet"):
        write_scores(ROWS, tmp_path / "rows.xlsx")


@pytest.mark.parametrize(
    "changes",
    [{"value": None}, {"value": float("nan")}, {"status": "failed"}, {"status": "fine"}, {"source": "?"}],
)
def test_status_and_value_must_agree(changes: dict[str, object]) -> None:
    with pytest.raises(HarnessError, match="mmssr/5%/tiny/s0 on mme"):
        row(**changes)


def test_two_scores_for_one_run_are_refused() -> None:
    with pytest.raises(HarnessError, match="two rows"):
        grids([row(), row(value=2.0)], TABLE10)


def test_grid_does_not_depend_on_the_order_of_rows() -> None:
    forward, backward = grids(ROWS, TABLE10), grids(ROWS[::-1], TABLE10)
    assert [g.backbone for g in forward] == ["tiny", "tiny_b"]
    for a, b in zip(forward, backward, strict=True):
        assert [(g.method, g.budget, g.seeds) for g in a.groups] == [
            (g.method, g.budget, g.seeds) for g in b.groups
        ]
        for g, h in zip(a.groups, b.groups, strict=True):
            np.testing.assert_array_equal(g.values, h.values)
    assert forward[0].budgets[0][0].method == "random"
    assert [b[0].budget for b in forward[0].budgets] == ["5%", "10%", "30%"]


def test_counts_sort_as_numbers() -> None:
    rows = [row(budget=f"{n}n", n_selected=n) for n in (1000, 200, 30)]
    assert [b[0].budget for b in grids(rows, TABLE10)[0].budgets] == ["30n", "200n", "1000n"]
