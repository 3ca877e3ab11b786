"""`wandb sync` against a stand-in server on the loopback interface: what arrives, and what the guard catches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.store import Store
from harness.tracking import Tracking
from harness.tracking.apart import PushError, push_apart
from harness.tracking.push import all_pushed, push
from harness.tracking.sweep_runs import sweep_runs
from harness.tracking.sync import sync
from harness.tracking.wandb_file import lost_files, unsent
from tests.unit.tracking_support import STEPS, finished_store
from tests.wandb_server import Server, wandb_server

pytestmark = pytest.mark.e2e

WANDB = Tracking(name="wandb", project="proj", mode="offline")
KEEP = ("select/length/10%/s0", "train/length/10%/tiny/s0", "report/small")
"""Runs that are synced here: one of each kind, because wandb 0.25 takes two seconds a run."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("HOME", str(tmp_path))
        yield server


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with three offline runs."""
    store = finished_store(tmp_path, ("10%",))
    kept = [run for run in sweep_runs(store, "small") if run.name in KEEP]
    monkeypatch.setattr("harness.tracking.push.sweep_runs", lambda store, name: kept)
    assert push(store, "small", WANDB).waiting == 3
    return store


def test_a_sync_uploads_everything_once(server: Server, store: Store) -> None:
    ids = {run.name: run.id for run in sweep_runs(store, "small")}
    train, report = ids["train/length/10%/tiny/s0"], ids["report/small"]
    assert sync(store, WANDB) == 3
    heads = {v["name"]: v for v in server.variables("UpsertBucket") if v["groupName"]}
    assert set(heads) == {ids[name] for name in KEEP}
    assert heads[train]["displayName"] == "train/length/10%/tiny/s0"
    assert heads[train]["jobType"] == "train"
    assert json.loads(heads[train]["config"])["method"]["value"] == "length"
    assert [row["train/loss"] for row in server.history(train) if "train/loss" in row] == [5.0, 4.0, 3.0, 2.5]
    assert len(server.history(train)) == STEPS
    assert "report/main" in server.history(report)[0]

    uploaded = {path.rsplit("/", 1)[-1]: body for path, body in server.uploads.items()}
    assert uploaded["ids.parquet"].startswith(b"PAR1")
    assert b"<svg" in uploaded["index.html"]
    assert "model.safetensors" not in uploaded
    main = next(body for name, body in uploaded.items() if name.startswith("main_"))
    assert "length" in main.decode()
    kinds = [v["artifactTypeName"] for v in server.variables("CreateArtifact")]
    assert {"subset", "model", "report"} < set(kinds)
    assert len(server.variables("CommitArtifact")) == len(kinds)

    assert unsent(store.root / "wandb") == []
    assert all(pushed.uploaded for pushed in all_pushed(store.root))
    assert sync(store, WANDB) == 0
    assert push(store, "small", WANDB).written == 0


def test_what_the_server_refuses_is_an_error_that_can_be_repaired(server: Server, store: Store) -> None:
    """`wandb sync` itself says 'done.', exits with 0 and marks the runs as synced."""
    server.refuse = "CommitArtifact"
    with pytest.raises(HarnessError, match=r"3 runs were not uploaded for sure.*says '"):
        sync(store, WANDB)
    assert len(unsent(store.root / "wandb")) == 3
    assert not any(pushed.uploaded for pushed in all_pushed(store.root))
    assert any(list(lost_files(run)) for run in unsent(store.root / "wandb"))  # W&B deletes as it tries
    assert push(store, "small", WANDB).written > 0
    assert not any(list(lost_files(run)) for run in unsent(store.root / "wandb"))


def test_files_that_are_gone_are_noticed_before_anything_is_sent(server: Server, store: Store) -> None:
    made = next((store.root / "wandb" / "made").glob("*/ids.parquet"))
    made.unlink()
    with pytest.raises(HarnessError, match=r"1 files that 1 runs refer to are gone, the first is .*ids\.parquet"):
        sync(store, WANDB)
    assert server.operations == []
    assert push(store, "small", WANDB).written == 1
    assert made.is_file()


def test_without_an_account_nothing_is_uploaded(
    server: Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(HarnessError, match="API key"):
        sync(store, WANDB)
    assert server.operations == []
    assert len(unsent(store.root / "wandb")) == 3


def test_an_online_push_uploads_everything_once(server: Server, tmp_path: Path) -> None:
    store = finished_store(tmp_path, ("10%",), baselines=False)
    online = Tracking(name="wandb", project="proj", mode="online")
    done = push_apart(store, "small", online)
    assert (done.written, done.mode, done.note, done.waiting) == (4, "online", "", 0)
    ids = {run.name: run.id for run in sweep_runs(store, "small")}
    assert {v["name"] for v in server.variables("UpsertBucket")} == set(ids.values())
    losses = [row.get("train/loss") for row in server.history(ids["train/length/10%/tiny/s0"])]
    assert losses == [5.0, 4.0, None, 3.0, 2.5]
    uploaded = {path.rsplit("/", 1)[-1] for path in server.uploads}
    assert {"ids.parquet", "index.html", "samples.parquet", "main.table.json"} <= uploaded
    assert "model.safetensors" not in uploaded
    sent = len(server.operations)
    assert push_apart(store, "small", online).unchanged == 4
    assert push_apart(store, "small", WANDB).unchanged == 4
    assert len(server.operations) == sent


def test_an_online_push_that_is_refused_is_not_taken_for_done(server: Server, tmp_path: Path) -> None:
    """W&B itself would write one line to its log and call the run finished."""
    server.refuse = "CommitArtifact"
    store = finished_store(tmp_path, ("10%",), baselines=False)
    with pytest.raises(PushError, match=r"W&B failed \(ValueError: .*refused"):
        push_apart(store, "small", Tracking(name="wandb", mode="online"))
    assert all_pushed(store.root) == []


def test_nothing_to_do_needs_no_server(tmp_path: Path) -> None:
    assert sync(Store(tmp_path).create(), WANDB) == 0
