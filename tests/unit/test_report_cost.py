"""Costs: device-seconds, who pays for what, and the tables that say so."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from harness.benchmarks import LMMS14, Suite
from harness.keys import plain
from harness.store import Attempt, Store
from harness.types import Cost, Stage
from reports.cost import cell_cost, cost_lines, device, device_seconds, sharers, total, total_seconds
from reports.cost_table import cost_csv, cost_table, duration
from reports.export import cost_json
from reports.records import read_sweep, stage_use
from reports.render import render
from reports.rows import CellRow, Part, StageUse


def use(part: Part, key: str, wall: float, gpu: float = 0.0) -> StageUse:
    return StageUse(part=part, key=key, cost=Cost(wall_s=wall, gpu_s=gpu, attempts=1, peak_rss_gb=wall / 10))


def cell(method: str, seed: int, *stages: StageUse) -> CellRow:
    fraction = 1.0 if method == "full" else 0.1
    return CellRow(
        method=method, budget=f"{fraction:.0%}", budget_fraction=fraction, backbone="b", seed=seed, stages=stages
    )


PASS, WARM = use("select", "pass", 60), use("select", "warm", 30)
CELLS = [
    cell("icons", 0, PASS, WARM, use("train", "t0", 20), use("eval", "e0", 5)),
    cell("icons", 1, PASS, WARM, use("train", "t1", 22), use("eval", "e1", 7)),
    cell("random", 0, use("train", "warm", 30), use("eval", "e2", 6)),
    cell("full", 0, use("train", "t2", 200), use("eval", "e3", 6)),
]


def test_a_device_second_is_a_second_of_what_was_held() -> None:
    alone = StageUse(part="select", key="k", cost=Cost(wall_s=10, cpu_s=35))
    assert device_seconds(alone) == 10
    assert device_seconds(replace(alone, processes=4)) == 40
    on_gpu = replace(alone, cost=Cost(wall_s=10, cpu_s=35, gpu_s=10))
    assert device_seconds(replace(on_gpu, processes=4)) == 10  # four processes share the one GPU


def test_cpu_seconds_are_called_so() -> None:
    gpu = cell("x", 0, use("train", "g", 5, 5))
    assert device(CELLS) == "CPU-device"
    assert device([gpu]) == "GPU"
    assert device([gpu, *CELLS]) == "GPU and CPU-device"
    assert device([]) == "CPU-device"


def test_a_cell_in_full_and_shared() -> None:
    found = cell_cost(CELLS[0], sharers(CELLS))
    assert (found.select, found.train, found.eval, found.full) == (90, 20, 5, 115)
    assert found.select_shared == pytest.approx(60 / 2 + 30 / 3)  # the warm-up is the random cell's training too
    assert found.shared == pytest.approx(40 + 20 + 5)
    assert found.peak_rss_gb == 6


def test_shared_costs_of_all_cells_are_what_was_spent() -> None:
    users = sharers(CELLS)
    spent = sum(total_seconds(CELLS).values())
    assert sum(cell_cost(c, users).shared for c in CELLS) == pytest.approx(spent)
    assert spent == 60 + 30 + 20 + 22 + 200 + 5 + 7 + 6 + 6


def test_a_training_that_warms_others_up_is_a_training_in_the_total() -> None:
    for cells in (CELLS, CELLS[::-1]):
        assert total_seconds(cells) == {"select": 60, "train": 272, "eval": 24}
        assert total(cells)["train"].wall_s == 272


def test_mixed_devices_are_added_stage_by_stage() -> None:
    mixed = cell("x", 0, use("select", "s", 8), use("select", "g", 5, 20))
    assert total_seconds([mixed])["select"] == 28
    assert cell_cost(mixed, sharers([mixed])).select == 28


def test_lines_are_means_and_compare_with_the_full_run() -> None:
    lines = {line.method: line for line in cost_lines(CELLS, [])}
    icons = lines["icons"]
    assert (icons.n, icons.select, icons.select_shared, icons.train, icons.eval) == (2, 90, 40, 21, 6)
    assert (icons.total, icons.total_shared) == (117, 67)
    assert icons.saved == pytest.approx(1 - 111 / 200)
    assert icons.equal_compute_budget == pytest.approx(0.1 + 90 / 200)
    assert lines["random"].total_shared == pytest.approx(30 / 3 + 6)
    assert lines["full"].saved is None


def test_means_are_over_finished_cells_and_count_them() -> None:
    half = replace(cell("icons", 2, PASS, use("train", "t3", 3)), status="failed")
    waiting = replace(cell("icons", 3), status="pending")
    cells = [*CELLS, half, waiting]
    icons = next(line for line in cost_lines(cells, []) if line.method == "icons")
    assert (icons.n, icons.planned, icons.train, icons.eval) == (2, 4, 21, 6)
    assert icons.saved == pytest.approx(1 - 111 / 200)
    assert "| ICONS | 2/4 | 90 s |" in render(cost_table(cost_lines(cells, []), "GPU", {"icons": "ICONS"}), "md")
    assert total_seconds(cells)["train"] == 275


def test_an_unfinished_full_run_is_compared_with_by_nobody() -> None:
    broken = replace(cell("full", 0, use("train", "t2", 10)), status="failed")
    lines = cost_lines([*CELLS[:3], broken], [])
    assert [line.method for line in lines] == ["random", "icons"]
    assert {(line.saved, line.break_even, line.equal_compute_budget) for line in lines} == {(None, None, None)}


def test_nothing_spent_is_no_line() -> None:
    assert cost_lines([cell("icons", 0, use("train", "t0", 0)), replace(CELLS[0], status="pending")], []) == []


def test_the_table_says_what_its_seconds_are() -> None:
    text = render(cost_table(cost_lines(CELLS, []), "CPU-device", {"icons": "ICONS"}), "md")
    assert "Cost of a cell in CPU-device time" in text
    assert "| ICONS | 2 | 90 s | 40 s | 21 s | 6 s | 117 s | 67 s | 44% | 1 | 55.0% | — |" in text
    assert "| FULL | 1 | 0 s | 0 s | 3 min |" in text
    for form in ("terminal", "tex", "html", "csv"):
        assert "ICONS" in render(cost_table(cost_lines(CELLS, []), "GPU", {"icons": "ICONS"}), form)  # type: ignore[arg-type]


def test_csv_keeps_the_digits() -> None:
    lines = cost_lines(CELLS, [])
    rows = list(csv.DictReader(io.StringIO(cost_csv(lines, "GPU"))))
    assert [r["method"] for r in rows] == [line.method for line in lines]
    assert {r["device"] for r in rows} == {"GPU"}
    icons = next(r for r in rows if r["method"] == "icons")
    assert float(icons["select_shared"]) == 40
    assert icons["equal_compute_lead"] == ""
    assert set(asdict(lines[0])) < set(icons)


def test_json_has_every_cell() -> None:
    found = json.loads(json.dumps(cost_json(CELLS, cost_lines(CELLS, [])), allow_nan=False))
    assert found["device"] == "CPU-device"
    assert found["cells"]["icons/10%/b/s0"]["select_shared"] == pytest.approx(40)
    assert found["cells"]["icons/10%/b/s0"]["full"] == 115
    assert found["total_device_s"] == {"select": 60, "train": 272, "eval": 24}


def test_short_times_keep_two_digits() -> None:
    assert [duration(s) for s in (0.0, 0.123, 9.94, 12.3, 150, 9000)] == [
        "0 s", "0.12 s", "9.9 s", "12 s", "2 min", "2.5 h",
    ]  # fmt: skip


@pytest.mark.parametrize("said", [{}, {"processes": 2}])
def test_processes_of_a_pass_are_read_off_its_result_or_else_its_settings(
    tmp_path: Path, said: dict[str, int]
) -> None:
    store = Store(tmp_path).create()
    stage = Stage(kind="features", version=1, params={}, settings={"processes": 4})
    directory = store.at(stage)
    directory.begin(stage)
    cell = {"select": "s", "train": "t"}
    listed = {"key": directory.key, "kind": "features", "label": "pass"}
    assert stage_use(store, cell, listed).processes == 4
    directory.fresh_out()
    directory.commit(stage, said, {})
    assert stage_use(store, cell, listed).processes == said.get("processes", 4)


@pytest.mark.parametrize("kind", ["train", "lessons", "features", "something new"])
def test_what_a_selection_rests_on_is_its_cost(tmp_path: Path, kind: str) -> None:
    """A training other than the cell's own is a warm-up; kinds that reports do not know serve the selection."""
    store = Store(tmp_path).create()
    stages = {
        name: Stage(kind=k, version=1, params={"of": name}, label=name)
        for name, k in {"before": kind, "select": "select", "train": "train"}.items()
    }
    for seconds, stage in enumerate(stages.values(), 1):
        store.at(stage).begin(stage)
        cost = Cost(wall_s=seconds, attempts=1)
        store.at(stage).write_attempt(Attempt(number=1, outcome="done", cost=cost))
    keys = {name: store.at(stage).key for name, stage in stages.items()}
    row: dict[str, Any] = {
        "method": "icons", "budget": "10%", "budget_fraction": 0.1, "n_selected": 1, "backbone": "b", "seed": 0,
        "select": keys["select"], "train": keys["train"],
        "stages": [{"key": keys[n], "kind": s.kind, "label": n} for n, s in stages.items()],
    }  # fmt: skip
    suite = Suite(name="one", protocol="p", benchmarks=LMMS14.benchmarks[:1])
    row["scores"] = {suite.benchmarks[0].name: "0" * 64}
    store.write_sweep("one", {"suites": [plain(suite)], "cells": [row]})
    (found,) = read_sweep(store, "one").cells
    assert {s.label: s.part for s in found.stages} == {"before": "select", "select": "select", "train": "train"}
    assert cell_cost(found, sharers([found])).select == 3
