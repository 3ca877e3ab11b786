"""What a tracker is told of a sweep, without any tracker: ids, names, configurations, curves, tables."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import HarnessError
from harness.store import Store
from harness.tracking import Tracking, track
from harness.tracking.content import NAME_LENGTH, RunContent, artifact_name
from harness.tracking.reading import curve, entropy
from harness.tracking.settings import MODES
from harness.tracking.sweep_runs import sweep_runs
from reports.records import read_sweep
from tests.unit.tracking_support import STEPS, N, finished_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return finished_store(tmp_path_factory.mktemp("tracking"))


@pytest.fixture(scope="module")
def runs(store: Store) -> list[RunContent]:
    return sweep_runs(store, "small")


def named(runs: list[RunContent], name: str) -> RunContent:
    (found,) = [r for r in runs if r.name == name]
    return found


def test_every_stage_and_cell_has_one_run_and_the_report_comes_last(runs: list[RunContent]) -> None:
    jobs = [r.job for r in runs]
    assert {j: jobs.count(j) for j in jobs} == {"select": 7, "train": 7, "eval": 7, "report": 1}
    assert jobs[-1] == "report"
    assert len({r.id for r in runs}) == len(runs)
    assert {r.group for r in runs} == {"small"}
    for r in runs:
        assert re.fullmatch(rf"{r.job}-[0-9a-f]{{12}}", r.id)


def test_the_same_store_always_tells_the_same(store: Store, runs: list[RunContent]) -> None:
    again = sweep_runs(store, "small")
    assert [(r.id, r.digest) for r in again] == [(r.id, r.digest) for r in runs]


def test_ids_depend_on_meaning_and_not_on_the_folder(runs: list[RunContent], tmp_path: Path) -> None:
    elsewhere = sweep_runs(finished_store(tmp_path), "small")
    assert [r.id for r in elsewhere] == [r.id for r in runs]


def test_another_sweep_over_the_same_stages_has_runs_of_its_own(store: Store, runs: list[RunContent]) -> None:
    """A run of W&B has one group, so a shared baseline is shown once in each."""
    store.write_sweep("twin", store.sweep("small") | {"name": "twin"})
    try:
        twin = sweep_runs(store, "twin")
    finally:
        (store.root / "sweeps" / "twin.json").unlink()
    assert [r.name for r in twin[:-1]] == [r.name for r in runs[:-1]]
    assert not {r.id for r in twin} & {r.id for r in runs}


def test_all_jobs_have_the_same_configuration_keys(runs: list[RunContent]) -> None:
    keys = {frozenset(r.config) for r in runs if r.job != "report"}
    assert len(keys) == 1
    config = named(runs, "eval/length/10%/tiny/s0").config
    assert config["method"] == "length"
    assert config["budget_fraction"] == 0.1
    assert config["n_selected"] == N // 10
    assert config["method_params"]["tie"] == "hash"
    assert config["recipe"]["global_batch"] == 8
    assert config["backbone_revision"] == "r1"
    assert config["suite"] == "two"


def test_the_machine_is_not_named(runs: list[RunContent]) -> None:
    assert "secret-host" not in json.dumps([r.as_json() for r in runs])


def test_lineage_names_artifacts_that_exist_with_their_digests(runs: list[RunContent]) -> None:
    made = {(a.name, a.digest): r.job for r in runs for a in r.artifacts}
    for r in runs:
        for source in r.config.get("inputs", {}).values():
            assert (source["name"], source["digest"]) in made
    assert set(named(runs, "eval/length/10%/tiny/s0").config["inputs"]) == {"subset", "model"}
    assert set(named(runs, "train/length/10%/tiny/s0").config["inputs"]) == {"subset"}


def test_a_curve_has_every_step_and_a_gap_where_the_loss_was_not_finite(runs: list[RunContent]) -> None:
    history = named(runs, "train/length/10%/tiny/s0").history
    assert [row["train/step"] for row in history] == list(range(STEPS))
    assert [row.get("train/loss") for row in history] == [5.0, 4.0, None, 3.0, 2.5]
    assert [row["train/samples_seen"] for row in history] == [8, 16, 24, 32, 40]
    assert history[0]["train/lr/vision"] == 1e-4
    assert "train/batch" not in history[0]


def test_no_log_is_no_curve(tmp_path: Path) -> None:
    assert list(curve(tmp_path / "none.jsonl")) == []


def test_scores_are_those_of_the_store_and_relative_to_the_full_run(store: Store, runs: list[RunContent]) -> None:
    rows = {(s.method, s.budget, s.seed, s.benchmark): s.value for s in read_sweep(store, "small").scores}
    summary = named(runs, "eval/length/30%/tiny/s0").summary
    ratios = []
    for benchmark in ("mme", "ai2d"):
        mine, full = rows["length", "30%", 0, benchmark], rows["full", "100%", 0, benchmark]
        assert mine is not None
        assert full is not None
        assert summary[f"eval/{benchmark}/score"] == mine
        assert summary[f"eval/{benchmark}/rel_full"] == pytest.approx(100 * mine / full)
        ratios.append(100 * mine / full)
    assert summary["summary/rel_full"] == pytest.approx(sum(ratios) / 2)
    assert named(runs, "eval/full/100%/tiny/s0").summary["summary/rel_full"] == pytest.approx(100)


def test_a_selection_says_what_it_is_made_of(store: Store, runs: list[RunContent]) -> None:
    summary = named(runs, "select/length/30%/s0").summary
    assert summary["select/n"] == 30
    assert summary["select/source_entropy"] == pytest.approx(math.log(2))
    assert summary["select/gpu_hours"] == pytest.approx(0.01)
    assert 0 <= float(str(summary["select/overlap_random"])) <= 1
    assert named(runs, "select/random/30%/s0").summary["select/overlap_random"] is None


def test_the_report_has_the_tables_that_have_rows(runs: list[RunContent]) -> None:
    tables = runs[-1].tables
    assert set(tables) == {f"report/{t}" for t in ("main", "long", "vs_random", "per_benchmark", "curves", "cost")}
    main = tables["report/main"]
    assert main.columns[:6] == ("backbone", "budget", "budget_fraction", "method", "n_runs", "mme")
    assert [row[3] for row in main.rows] == ["random", "length", "random", "length", "full"]
    assert len(tables["report/long"].rows) == 7 * 2
    compared = tables["report/vs_random"]
    assert [row[:4] for row in compared.rows] == [("tiny", "10%", 0.1, "length"), ("tiny", "30%", 0.3, "length")]
    assert all(row[compared.columns.index("verdict")] for row in compared.rows)


def test_what_is_missing_is_told_and_gives_the_report_another_id(runs: list[RunContent], tmp_path: Path) -> None:
    holed = finished_store(tmp_path)
    cell = next(c for c in holed.sweep("small")["cells"] if c["label"] == "length/10%/tiny/s0")
    holed.by_key("evaluate", cell["scores"]["mme"]).forget()
    found = sweep_runs(holed, "small")
    missing = found[-1].tables["report/missing"]
    assert missing.rows[0][:2] == ("length/10%/tiny/s0", "pending")
    assert found[-1].id != runs[-1].id
    partial = named(found, "eval/length/10%/tiny/s0")
    assert partial.id == named(runs, "eval/length/10%/tiny/s0").id
    assert "eval/ai2d/score" in partial.summary
    assert "eval/mme/score" not in partial.summary
    assert "summary/rel_full" not in partial.summary


def test_tables_hold_no_nan_and_one_type_a_column(runs: list[RunContent]) -> None:
    for name, table in runs[-1].tables.items():
        for column, values in zip(table.columns, zip(*table.rows, strict=True), strict=True):
            kinds = {float if type(v) is int else type(v) for v in values if v is not None}
            assert len(kinds) <= 1, (name, column)
            assert not any(isinstance(v, float) and not math.isfinite(v) for v in values)


@given(st.text(max_size=300), st.text("0123456789abcdef", min_size=64, max_size=64))
def test_every_label_makes_a_name_that_wandb_takes(label: str, key: str) -> None:
    name = artifact_name("checkpoint", label, key)
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", name)
    assert len(name) <= NAME_LENGTH
    assert name.endswith(key[:12])


def test_entropy_of_nothing_is_nothing() -> None:
    assert entropy({}) == 0
    assert entropy({"a": 3, "b": 3, "c": 0}) == pytest.approx(math.log(2))


def test_jsonl_is_one_line_a_run_and_the_same_bytes_again(store: Store, runs: list[RunContent]) -> None:
    said = track(store, "small", Tracking(name="jsonl"))
    path = store.root / "tracking" / "small.jsonl"
    assert said == f"Tracked: {path}"
    before = path.read_bytes()
    lines = [json.loads(line) for line in before.splitlines()]
    assert [line["id"] for line in lines] == [r.id for r in runs]
    assert lines[-1]["tables"]["report/main"]["rows"][0][3] == "random"
    track(store, "small", Tracking(name="jsonl"))
    assert path.read_bytes() == before


def test_no_tracker_says_and_writes_nothing(store: Store) -> None:
    assert track(store, "small", Tracking()) == ""
    assert not (store.root / "wandb").exists()


def test_a_tracker_that_fails_is_a_sentence(store: Store, tmp_path: Path) -> None:
    assert track(store, "nowhere", Tracking(name="jsonl")).startswith("warning: sweep 'nowhere' was not pushed")
    blocked = finished_store(tmp_path)
    (blocked.root / "tracking").write_text("a file where the folder should be")
    said = track(blocked, "small", Tracking(name="jsonl"))
    assert said.startswith("warning: sweep 'small' was not pushed to jsonl, its results are complete")
    assert "\n" not in said


@pytest.mark.parametrize(("chosen", "variable", "mode"), [
    ("", "", "offline"),
    ("", "online", "online"),
    ("", "dryrun", "offline"),
    ("", "disabled", "disabled"),
    ("offline", "online", "offline"),
])  # fmt: skip
def test_the_mode_is_ours_then_the_variables_then_offline(
    chosen: str, variable: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", variable)
    assert Tracking(name="wandb", mode=chosen).resolved_mode() == mode


def test_a_wrong_name_or_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HarnessError, match="Did you mean 'wandb'"):
        Tracking(name="wanbd")
    with pytest.raises(HarnessError, match="offline, online"):
        Tracking(mode="shared")
    monkeypatch.setenv("WANDB_MODE", "shared")
    with pytest.raises(HarnessError, match="shared"):
        Tracking().resolved_mode()
    assert set(MODES) == {"offline", "online"}


def test_importing_tracking_is_light() -> None:
    heavy = {"wandb", "torch", "hydra", "scipy", "pandas", "matplotlib", "pyarrow"}
    code = f"import sys, harness.tracking; print(*{heavy!r} & {{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.split() == []
