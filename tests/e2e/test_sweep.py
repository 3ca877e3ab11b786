"""A sweep as a user runs it: plan, baselines, table, report, and the verbs that look at it."""

from __future__ import annotations

import csv
import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.files import read_json
from harness.store import Store
from tests.e2e.runs import REPORT_FILES, run, sievebench, stages

pytestmark = pytest.mark.e2e

BROKEN = '''
"""A selector that does not work."""
from dataclasses import dataclass
from harness.api import Selector

@dataclass(frozen=True)
class Config:
    """Nothing to set."""

class Broken(Selector):
    """Divides by nought."""
    name = "broken"
    version = 1
    Config = Config

    def select(self, pool, scores, features, n, seed):
        return 1 / 0
'''


@dataclass(frozen=True, slots=True)
class Ran:
    """A finished sweep with one selector that fails."""

    store: Path
    arguments: list[str]
    output: str

    @property
    def report(self) -> Path:
        return self.store / "reports" / "small"


@pytest.fixture(scope="module")
def ran(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    store = tmp_path_factory.mktemp("store")
    broken = store.parent / "broken.py"
    broken.write_text(BROKEN)
    arguments = [
        "-m",
        "name=small",
        f"store={store}",
        f"selector=random,length,clip_score,{broken}",
        "budget=0.1,10%",
        f"backbone.path={models / 'tiny'}",
        "pool.miniworld=400",
        "suite.only=[mini_short,mini_ocr]",
    ]
    return Ran(store, arguments, run(*arguments, expect=1))


def test_the_plan_is_printed_before_anything_runs(ran: Ran) -> None:
    assert "Sweep small: 7 cells (4 asked for, 3 baselines added)" in ran.output
    assert ran.output.index("to do") < ran.output.index("done;")


def test_two_spellings_of_a_budget_were_one_cell(ran: Ran) -> None:
    cells = Store(ran.store).sweep("small")["cells"]
    assert sorted(c["label"] for c in cells) == [
        "broken/10%/tiny/s0",
        "clip_score/10%/tiny/s0",
        "full/100%/tiny/s0",
        "length/10%/tiny/s0",
        "random/10%/tiny/s0",
        "random/10%/tiny/s1",
        "random/10%/tiny/s2",
    ]
    assert [c["n_selected"] for c in cells if c["method"] == "length"] == [40]


def test_a_failure_is_isolated_and_named(ran: Ran) -> None:
    assert "failed: broken/10%/s0/select: ZeroDivisionError: division by zero (broken.py:17)" in ran.output
    assert "sievebench: broken/10%/tiny/s0 has no result." in ran.output
    done = [d for d in stages(ran.store, "evaluate") if d.done()]
    assert len(done) == 6 * 2


def test_the_table_has_every_method_and_its_baselines(ran: Ran) -> None:
    for word in ("Random", "length", "clip_score", "FULL", ">Rand", "/FULL"):
        assert word in ran.output
    for name in (*REPORT_FILES, "report.json", "index.html"):
        assert (ran.report / name).stat().st_size > 100
    rows = list(csv.reader((ran.report / "table.csv").open()))
    assert len(rows) >= 5
    assert "broken.py:17" in (ran.report / "index.html").read_text()


def test_the_number_in_the_table_is_the_one_in_the_store(ran: Ran) -> None:
    cells = Store(ran.store).sweep("small")["cells"]
    (full,) = [c for c in cells if c["method"] == "full"]
    manifest = Store(ran.store).by_key("evaluate", full["scores"]["mini_short"]).manifest()
    assert manifest is not None
    assert manifest.facts["n"] == 120
    shown = f"{float(str(manifest.facts['value'])):.2f}"
    (line,) = [x for x in (ran.report / "table.md").read_text().splitlines() if x.startswith("| FULL")]
    assert shown in line


def test_running_again_computes_only_what_failed(ran: Ran) -> None:
    before = {d.path: len(d.attempts()) for d in Store(ran.store).stages()}
    start = time.monotonic()
    run(*ran.arguments, expect=1)
    assert time.monotonic() - start < 30
    after = {d.path: len(d.attempts()) for d in Store(ran.store).stages()}
    again = [p for p in before if after[p] != before[p]]
    assert [p.parent.name for p in again] == ["select"]


def test_one_cell_of_it_is_there_already(ran: Ran, models: Path) -> None:
    arguments = [a for a in ran.arguments if a.split("=")[0] in ("backbone.path", "pool.miniworld", "store")]
    output = run(
        *arguments, "suite.only=[mini_short,mini_ocr]", "selector=length", "budget=1e-1", "mode=read_only"
    )
    assert "no baselines are added" in output
    assert "length" in output


def test_status_lists_the_failure_with_its_log(ran: Ran) -> None:
    said = sievebench("status", "small", "--store", str(ran.store), expect=1)
    assert "failed: broken/10%/s0/select" in said
    assert "return 1 / 0" in said


def test_explain_tells_what_a_stage_means_and_cost(ran: Ran) -> None:
    said = sievebench("explain", "length/10%/tiny/s0/train", "--store", str(ran.store))
    for word in ("learning_rate", "attempt 1: done", "select.selection", "model.safetensors"):
        assert word in said
    assert "length/10%/s0/select" in sievebench("explain", "length/10%/s0/select", "--store", str(ran.store))


def test_report_verb_writes_the_same_tables(ran: Ran, tmp_path: Path) -> None:
    said = sievebench("report", "--store", str(ran.store), "--format", "md", "--out", str(tmp_path / "r"), "small")
    assert "| length |" in said
    for name in REPORT_FILES:
        assert (tmp_path / "r" / name).read_bytes() == (ran.report / name).read_bytes()


def test_every_selection_has_its_card(ran: Ran) -> None:
    for directory in stages(ran.store, "select"):
        if directory.done():
            card = read_json(directory.out / "card.json")
            assert card is not None
            assert sum(card["by_source"].values()) == card["n"]


def test_costs_are_charged(ran: Ran) -> None:
    numbers = json.loads((ran.report / "report.json").read_text())
    assert "cost" in numbers
    assert all(d.cost().wall_s > 0 for d in stages(ran.store, "train"))
