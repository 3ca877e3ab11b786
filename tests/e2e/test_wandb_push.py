"""Pushing to the real wandb, offline: what is on disk afterwards, and what a second push does."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from harness.errors import HarnessError
from harness.pool import open_pool
from harness.store import Store
from harness.tracking import Tracking, track
from harness.tracking.push import PushResult, push
from harness.tracking.sweep_runs import sweep_runs
from harness.tracking.wandb_file import payloads, read_records
from tests.unit.tracking_support import STEPS, finished_store
from tests.wandb_offline import OfflineRun, read_run, read_runs

pytestmark = pytest.mark.e2e

WANDB = Tracking(name="wandb", project="proj", mode="offline")
ONE_BUDGET = ("10%",)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return finished_store(tmp_path_factory.mktemp("push"), ONE_BUDGET)


@pytest.fixture(scope="module")
def pushed(store: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, OfflineRun]:
    """The store pushed once, with everything of W&B's environment pointing elsewhere."""
    home = tmp_path_factory.mktemp("home")
    foreign = {"HOME": str(home), "WANDB_DIR": str(home), "WANDB_RUN_ID": "theirs", "WANDB_TAGS": "theirs"}
    before = dict(os.environ)
    os.environ |= foreign
    try:
        assert push(store, "small", WANDB) == PushResult(written=13, unchanged=0, mode="offline", waiting=13)
        assert {k: os.environ[k] for k in foreign} == foreign
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert list(home.rglob("*wandb*")) == []
    return read_runs(store.root)


def test_every_run_is_there_under_its_own_id(store: Store, pushed: dict[str, OfflineRun]) -> None:
    told = {r.name: r for r in sweep_runs(store, "small")}
    assert set(pushed) == set(told)
    for name, run in pushed.items():
        assert run.head.run_id == told[name].id
        assert run.head.run_group == "small"
        assert run.head.project == "proj"
        assert run.head.job_type == told[name].job
        assert tuple(sorted(run.head.tags)) == tuple(sorted(told[name].tags))
        assert run.finished


def test_the_configuration_is_there_and_this_machine_is_not(store: Store, pushed: dict[str, OfflineRun]) -> None:
    run = pushed["train/length/10%/tiny/s0"]
    assert run.config["recipe"]["global_batch"] == 8
    assert run.config["method"] == "length"
    assert run.head.host == ""
    assert not (run.folder / "files" / "wandb-metadata.json").exists()
    assert not (run.folder / "files" / "requirements.txt").exists()


def test_the_curve_is_drawn_over_the_steps_of_training(pushed: dict[str, OfflineRun]) -> None:
    run = pushed["train/length/10%/tiny/s0"]
    assert [row["train/step"] for row in run.history] == list(range(STEPS))
    assert [row.get("train/loss") for row in run.history] == [5.0, 4.0, None, 3.0, 2.5]
    assert run.steps["train/loss"] == "train/step"
    assert run.summary["train/final_loss"] == 2.5


def test_summaries_are_what_was_told(store: Store, pushed: dict[str, OfflineRun]) -> None:
    for told in sweep_runs(store, "small"):
        summary = pushed[told.name].summary
        assert {k: summary[k] for k in told.summary} == dict(told.summary)


def test_tables_are_written_whole_and_without_nan(store: Store, pushed: dict[str, OfflineRun]) -> None:
    told = sweep_runs(store, "small")[-1]
    run = pushed[told.name]
    assert {"report/main", "report/long", "report/vs_random", "report/per_benchmark", "report/cost"} <= set(
        told.tables
    )
    for key, table in told.tables.items():
        written = run.table(key)
        assert tuple(written["columns"]) == table.columns
        assert [tuple(row) for row in written["data"]] == [tuple(row) for row in table.rows]
        assert not any(isinstance(v, float) and math.isnan(v) for row in written["data"] for v in row)
    page = run.folder / "files" / run.summary["report/page"]["path"]
    assert "<svg" in page.read_text()


def test_a_subset_has_its_ids(store: Store, pushed: dict[str, OfflineRun]) -> None:
    run = pushed["select/length/10%/s0"]
    (artifact,) = run.artifacts.values()
    assert artifact.type == "subset"
    assert "latest" in artifact.aliases
    files = {e.path: Path(e.local_path) for e in artifact.manifest.contents}
    assert set(files) == {"ids.parquet", "positions.npy", "card.json", "selection.json"}
    ids = pq.read_table(files["ids.parquet"]).to_pydict()
    assert ids["position"] == np.load(files["positions.npy"]).tolist()
    uids = open_pool(store.root.parent / "pool").uids()
    assert ids["uid"] == [uids[i] for i in ids["position"]]


def test_answers_are_taken_from_the_store_and_not_copied(store: Store, pushed: dict[str, OfflineRun]) -> None:
    (artifact,) = pushed["eval/length/10%/tiny/s0"].artifacts.values()
    files = {e.path: Path(e.local_path) for e in artifact.manifest.contents}
    assert set(files) == {f"{b}/{f}" for b in ("mme", "ai2d") for f in ("score.json", "samples.parquet")}
    assert all(p.is_relative_to(store.root / "evaluate") for p in files.values())


def test_a_checkpoint_is_referred_to(store: Store, pushed: dict[str, OfflineRun]) -> None:
    run = pushed["train/length/10%/tiny/s0"]
    (artifact,) = run.artifacts.values()
    (entry,) = artifact.manifest.contents
    assert entry.local_path == ""
    assert entry.ref.startswith(store.root.as_uri())
    assert entry.ref.endswith("out/model/model.safetensors")


def test_the_report_is_an_artifact(pushed: dict[str, OfflineRun]) -> None:
    run = pushed["report/small"]
    (artifact,) = [a for a in run.artifacts.values() if a.type == "report"]
    names = {e.path for e in artifact.manifest.contents}
    assert {"index.html", "table.tex", "table.md", "table.csv", "report.json", "long.parquet"} <= names


def test_nothing_of_the_store_is_changed(store: Store, pushed: dict[str, OfflineRun]) -> None:
    assert {p.name for p in store.root.iterdir()} == {
        "features", "score", "select", "train", "evaluate", "sweeps", "wandb",
    }  # fmt: skip


def test_our_reader_reads_what_wandbs_own_does(pushed: dict[str, OfflineRun]) -> None:
    datastore = pytest.importorskip("wandb.sdk.internal.datastore")  # gone in later versions
    for run in pushed.values():
        (file,) = run.folder.glob("run-*.wandb")
        theirs = datastore.DataStore()
        theirs.open_for_scan(str(file))
        expected = list(iter(theirs.scan_data, None))
        assert list(payloads(file)) == expected


@pytest.mark.parametrize("cut", [1, 100, 5000])
def test_a_torn_file_is_read_up_to_the_tear(pushed: dict[str, OfflineRun], tmp_path: Path, cut: int) -> None:
    (file,) = pushed["report/small"].folder.glob("run-*.wandb")
    whole = list(payloads(file))
    torn = tmp_path / "torn.wandb"
    torn.write_bytes(file.read_bytes()[:-cut])
    assert list(payloads(torn)) == whole[: len(list(payloads(torn)))]
    assert len(list(read_records(torn))) < len(whole)
    with pytest.raises(ValueError, match=r"not a \.wandb file"):
        list(payloads(Path(__file__)))


def test_a_second_push_writes_nothing(store: Store, pushed: dict[str, OfflineRun]) -> None:
    before = sorted(p.name for p in (store.root / "wandb").glob("offline-run-*"))
    assert push(store, "small", WANDB) == PushResult(written=0, unchanged=13, mode="offline", waiting=13)
    assert sorted(p.name for p in (store.root / "wandb").glob("offline-run-*")) == before


def test_another_project_is_another_place(tmp_path: Path) -> None:
    store = finished_store(tmp_path, ONE_BUDGET)
    push(store, "small", WANDB)
    assert push(store, "small", Tracking(name="wandb", project="other")).written == 13
    assert {run.head.project for run in read_runs(store.root).values()} == {"other"}


def test_only_what_changed_is_written_again_in_the_place_of_the_old(tmp_path: Path) -> None:
    store = finished_store(tmp_path, ONE_BUDGET)
    push(store, "small", WANDB)
    before = {name: run.folder for name, run in read_runs(store.root).items()}
    cell = next(c for c in store.sweep("small")["cells"] if c["label"] == "length/10%/tiny/s0")
    store.by_key("evaluate", cell["scores"]["mme"]).forget()
    assert push(store, "small", WANDB) == PushResult(written=2, unchanged=11, mode="offline", waiting=13)
    after = {name: run.folder for name, run in read_runs(store.root).items()}
    assert {n for n in after if after[n] != before[n]} == {"eval/length/10%/tiny/s0", "report/small"}
    assert "report/missing" in read_run(after["report/small"]).summary


def test_a_run_whose_files_are_gone_is_written_again(tmp_path: Path) -> None:
    store = finished_store(tmp_path, ONE_BUDGET)
    push(store, "small", WANDB)
    staged = next((store.root / "wandb" / "data" / "artifacts" / "staging").iterdir())
    staged.unlink()
    assert push(store, "small", WANDB).written == 1
    assert push(store, "small", WANDB, force=True).written == 13


def test_disabled_writes_and_remembers_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    store = finished_store(tmp_path, ONE_BUDGET)
    assert push(store, "small", Tracking(name="wandb")).mode == "disabled"
    assert not list((store.root / "wandb").glob("*run-*"))
    assert not (store.root / "wandb" / "pushed").exists()


@pytest.mark.parametrize("key", ["", "0" * 40], ids=["no account", "no server"])
def test_online_that_fails_falls_back_to_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    store = finished_store(tmp_path, ONE_BUDGET)
    said = track(store, "small", Tracking(name="wandb", mode="online"))
    assert said.startswith("warning: W&B failed (")
    assert "The runs were written offline. W&B: 13 runs written (offline)" in said
    assert len(read_runs(store.root)) == 13


def test_a_table_too_long_for_wandb_is_left_to_the_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("harness.tracking.wandb_run.TABLE_ROWS", 6)
    store = finished_store(tmp_path, ONE_BUDGET)
    push(store, "small", WANDB)
    run = read_runs(store.root)["report/small"]
    assert "report/long" not in run.summary
    assert "report/long has 8 rows" in caplog.text
    (artifact,) = [a for a in run.artifacts.values() if a.type == "report"]
    (long,) = [e for e in artifact.manifest.contents if e.path == "long.parquet"]
    assert pq.read_table(long.local_path).num_rows == 8
    assert "report/main" in run.summary


def test_a_project_name_that_wandb_refuses_is_a_sentence(store: Store) -> None:
    said = track(store, "small", Tracking(name="wandb", project="a/b"))
    assert said.startswith("warning: sweep 'small' was not pushed to wandb")
    assert "\n" not in said


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    """W&B itself would write to the system's temporary folder and say nothing."""
    store = finished_store(tmp_path, ONE_BUDGET)
    (store.root / "wandb").write_text("a file where the folder should be")
    with pytest.raises(HarnessError, match="cannot be written"):
        push(store, "small", WANDB)
    assert "cannot be written" in track(store, "small", WANDB)


def test_a_missing_wandb_is_a_sentence(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "run 'pip install wandb'" in track(store, "small", WANDB)


def test_a_push_that_takes_too_long_is_stopped(store: Store) -> None:
    said = track(store, "small", Tracking(name="wandb", mode="offline", timeout_s=0.1))
    assert "did not finish within 0.1 s" in said


KILLED = """
import sys
import psutil
from harness.store import Store
from harness.tracking import Tracking, push

write_run, seen = push.write_run, []

def killing(content, target):
    if len(seen) == 3:
        (service,) = [c for c in psutil.Process().children() if "wandb-core" in c.name()]
        service.kill()
        service.wait(10)
    seen.append(content.id)
    return write_run(content, target)

push.write_run = killing
push.push(Store(sys.argv[1]), "small", Tracking(name="wandb", project="proj", mode="offline"))
"""


def test_a_push_whose_service_is_killed_goes_on_the_next_time(tmp_path: Path) -> None:
    store = finished_store(tmp_path, ONE_BUDGET)
    command = [sys.executable, "-c", KILLED, str(store.root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode != 0
    assert "ConnectionResetError" in done.stderr
    assert len(list((store.root / "wandb" / "pushed").iterdir())) == 3
    assert push(store, "small", WANDB).written == 13 - 3
