"""The nine rows of `sweep=demo_mmssr` on a small pool: every selection for real, and one cell to its end."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from harness.plan import Plan
from harness.schedule import RunResult
from harness.sweep import Sweep
from tests.bench.picks import Truth
from tests.selections import carry_out, failures, part_of, planned

pytestmark = pytest.mark.e2e

ROWS = ["random", "ppl_mid", "ppl_si", "deita", "clip_score", "e5v", "coincide", "icons", "mmssr"]
N = 300
SMALL = [f"pool.miniworld={N}", "suite.only=[mini_short]", "evaluation.limit=8"]
TEACHING = ["selector.teaching.global_batch=4", "selector.teaching.learning_rate=1e-3"]
SMALLER = {"mmssr_mini": ["selector.lessons=12", "selector.zeros=all", *TEACHING]}
"""What of a row's own settings would take long, or teaches nothing in so few steps, for this test alone."""
FILLED_UP = "mmssr"
"""The row whose budget may not fill by itself: its scorer was taught next to nothing."""
THIN = ("deita", "coincide")
"""Rows that promise to keep few copies of one original."""
TRAINED = "deita"
"""The row that is also trained and evaluated, at the smaller budget."""


@dataclass(frozen=True, slots=True)
class Ran:
    """The selections of the sweep, carried out."""

    sweep: Sweep
    wanted: Plan
    first: RunResult


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    sweep = planned(tmp_path_factory.mktemp("store"), SMALL, SMALLER)
    keys = [c.select for c in sweep.plan.cells]
    keys += [k for c in sweep.plan.cells if c.cell.label.startswith(TRAINED) for k in c.scores.values()][:1]
    wanted = part_of(sweep, keys)
    result = carry_out(sweep, wanted)
    assert not result.failures, failures(result)
    return Ran(sweep, wanted, result)


def card(ran: Ran, key: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((ran.sweep.store.by_key("select", key).out / "card.json").read_text())
    return read


def test_the_sweep_has_the_nine_rows_of_the_table(ran: Ran) -> None:
    asked = [c.cell.selector.name for c in ran.sweep.plan.cells if not c.cell.baseline]
    assert asked == [row for row in ROWS for _ in range(2)]


def test_the_command_of_a_cell_has_its_settings(ran: Ran) -> None:
    commands = {c["label"]: c["command"] for c in ran.sweep.store.sweep("demo_mmssr")["cells"]}
    (label,) = (c for c in commands if c.startswith("mmssr") and "/5%/" in c)
    given = shlex.split(commands[label])
    settings = ["selector.lessons=12", "selector.prompts=miniworld", "selector.scorer=trained"]
    assert [a for a in given if a.startswith("selector.")][:3] == settings
    (teaching,) = (a for a in given if a.startswith("selector.teaching="))
    assert teaching.replace(" ", "") == "selector.teaching={global_batch:4,learning_rate:0.001}"


def test_every_selection_has_a_card_and_exactly_its_budget(ran: Ran) -> None:
    for cell_plan in ran.sweep.plan.cells:
        n = cell_plan.cell.budget.size(N)
        said = card(ran, cell_plan.select)
        kept = np.load(ran.sweep.store.by_key("select", cell_plan.select).out / "positions.npy")
        assert said["n"] == len(np.unique(kept)) == n, cell_plan.cell.label
        assert said["of"] == N
        assert sum(said["by_source"].values()) == n


def test_no_two_rows_keep_the_same_samples(ran: Ran) -> None:
    asked = [c for c in ran.sweep.plan.cells if not c.cell.baseline]
    kept = {
        tuple(sorted(np.load(ran.sweep.store.by_key("select", c.select).out / "positions.npy"))) for c in asked
    }
    assert len(kept) == 2 * len(ROWS)


def test_every_selector_had_something_to_say_of_nearly_every_sample(ran: Ran) -> None:
    """Passes that failed would show as samples without a score, or as filling up."""
    for cell_plan in ran.sweep.plan.cells:
        said = card(ran, cell_plan.select)
        assert said.get("n_nan", 0) < N / 20, cell_plan.cell.label
        if cell_plan.cell.selector.name != FILLED_UP:
            assert said.get("n_topup", 0) == 0, cell_plan.cell.label


def test_who_promises_to_thin_out_copies_does(ran: Ran) -> None:
    """Deita's threshold and the size of COINCIDE's clusters belong to the shipped backbone and this world."""
    asked = [c for c in ran.sweep.plan.cells if not c.cell.baseline and c.cell.budget.label == "30%"]
    truth = Truth.of(asked[0].cell.pool)
    copied = np.isin(truth.family, truth.family[truth.defect == "duplicate"])

    def copies(select: str) -> float:
        kept = np.load(ran.sweep.store.by_key("select", select).out / "positions.npy")
        return float(np.unique(truth.family[kept][copied[kept]], return_counts=True)[1].mean())

    by_row = {c.cell.selector.name: copies(c.select) for c in asked}
    assert all(by_row[name] < by_row["random"] for name in THIN), by_row


def test_one_cell_was_trained_and_evaluated(ran: Ran) -> None:
    kinds = {ran.wanted.stages[k].kind for k in ran.first.done}
    assert kinds == {"lessons", "features", "score", "select", "train", "evaluate"}


def test_a_second_run_computes_nothing(ran: Ran) -> None:
    again = carry_out(ran.sweep, ran.wanted)
    assert again.cached == set(ran.wanted.stages)
    assert not again.done
