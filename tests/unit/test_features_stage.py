"""The features stage: what it says before it starts, and what it measures of itself."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from harness import registry
from harness.api import FeaturePass
from harness.errors import HarnessError
from harness.keys import stage_key
from harness.pool import Pool, open_pool
from harness.registry import Plugin
from harness.stages import features as stage_module
from harness.stages.features import read_columns
from harness.store import Store
from harness.types import Json, Stage
from harness.worker import Job, run_stage
from tests.support import write_pool

N, SHARD = 40, 16


class Words(FeaturePass):
    """Counts words; every seventh sample fails."""

    name = "words"
    version = 1
    Config = registry.feature_pass("tokens").cls.Config
    identity = "none"
    broken_from = N
    """Shards from here on raise, as if someone had pulled a plug."""

    def run(self, pool: Pool, start: int, stop: int) -> tuple[dict[str, Any], list[str]]:
        if start >= self.broken_from:
            raise HarnessError("no more")
        reasons = ["odd: it is one" if i % 7 == 6 else "" for i in range(start, stop)]
        return {"n": pool.column("n_words")[start:stop].copy()}, reasons


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    plugin = Plugin(name="words", distribution="t", cls=Words)
    known = registry.feature_pass
    for module in ("harness.stages.features", "harness.estimate"):
        monkeypatch.setattr(f"{module}.feature_pass", lambda name: plugin if name == "words" else known(name))
    pool = write_pool(tmp_path / "pool", N)
    params: dict[str, Json] = {"pass": "words", "config": {}, "pool": pool.digest}
    settings: dict[str, Json] = {"pool_path": pool.path, "model_path": "", "shard": SHARD}
    return Stage(kind="features", version=1, params=params, settings=settings, label="words/small")


def run(store: Store, stage: Stage) -> str:
    return run_stage(store, stage, Job(name="features", stages=(stage,)), {})


def facts(store: Store, stage: Stage) -> dict[str, Any]:
    manifest = store.at(stage).manifest()
    assert manifest is not None
    return dict(manifest.facts)


def test_a_pass_measures_itself(tmp_path: Path, stage: Stage) -> None:
    store = Store(tmp_path / "store").create()
    assert run(store, stage) == "done"
    found = facts(store, stage)
    assert (found["samples"], found["shards"], found["shards_resumed"]) == (N, 3, 0)
    assert (found["device"], found["processes"]) == ("cpu", 1)
    assert found["failures"] == {"odd": 5}
    assert 0 < found["slowest_shard_s"] <= found["shards_s"] <= store.at(stage).cost().wall_s + 0.01
    columns = read_columns(store.at(stage).out)
    assert list(columns) == ["n"]
    assert len(json.loads((store.at(stage).out / "failures.json").read_text())) == 5


def test_what_an_interrupted_attempt_took_is_counted(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store").create()
    clock = iter(np.arange(0, 1000, 2.0))
    monkeypatch.setattr(stage_module.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(Words, "broken_from", SHARD)
    assert run(store, stage) == "failed"
    monkeypatch.setattr(Words, "broken_from", N)
    assert run(store, stage) == "done"
    found = facts(store, stage)
    assert found["shards_resumed"] == 1
    assert found["shards_s"] >= 6  # three shards of two seconds, though the last attempt computed but two
    assert store.at(stage).cost().attempts == 2


def test_the_log_says_what_is_coming(tmp_path: Path, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path / "store").create()
    with caplog.at_level(logging.INFO, "harness.stages.features"):
        run(store, stage)
    (first,) = [r.getMessage() for r in caplog.records if r.name == "harness.stages.features"]
    assert (
        first == "words/small: 40 samples in 3 shards, 0 of them there already; all of it: not yet measured here"
    )
    caplog.clear()
    other = Stage(
        kind="features", version=1, params={**stage.params, "pool": "q"}, settings=stage.settings, label="again"
    )
    with caplog.at_level(logging.INFO, "harness.stages.features"):
        run(store, other)
    assert "as measured here" in caplog.text


def test_shards_of_before_times_were_kept_still_join(tmp_path: Path, stage: Stage) -> None:
    store = Store(tmp_path / "store").create()
    partial = store.at(stage).partial
    partial.mkdir(parents=True)
    np.savez(partial / f"shard-{0:09d}.npz", n=np.zeros(SHARD, np.int32), failure=np.array([""] * SHARD))
    assert run(store, stage) == "done"
    assert facts(store, stage)["shards_resumed"] == 1
    assert read_columns(store.at(stage).out)["n"][:SHARD].tolist() == [0] * SHARD


class Slow(Words):
    """Counts words slowly, and notes who counted what."""

    def run(self, pool: Pool, start: int, stop: int) -> tuple[dict[str, Any], list[str]]:
        (Path(pool.path) / f"by-{os.getpid()}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        time.sleep(0.15)
        if (Path(pool.path) / "stumble").exists() and start == SHARD:
            (Path(pool.path) / "stumble").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(pool, start, stop)


def who(stage: Stage) -> set[int]:
    """Processes that computed a shard."""
    return {int(f.name[3:]) for f in Path(str(stage.settings["pool_path"])).glob("by-*")}


@pytest.fixture
def shared(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """The same stage, its shards small, shared by two processes."""
    plugin = Plugin(name="words", distribution="t", cls=Slow)
    monkeypatch.setattr("harness.stages.features.feature_pass", lambda name: plugin)
    return replace(stage, settings={**stage.settings, "shard": 4, "processes": 2})


def test_two_processes_compute_what_one_does(tmp_path: Path, stage: Stage, shared: Stage) -> None:
    one, two = (Store(tmp_path / name).create() for name in ("one", "two"))
    assert run(one, replace(shared, settings={**shared.settings, "processes": 1})) == "done"
    assert who(shared) == {os.getpid()}
    assert run(two, shared) == "done"
    assert len(who(shared) - {os.getpid()}) == 2
    assert outputs(one, stage) == outputs(two, stage)
    assert facts(two, stage)["shards_s"] >= 10 * 0.15
    assert facts(two, stage)["processes"] == 2


def test_processes_of_a_pass_take_a_gpu_each(
    tmp_path: Path, shared: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert run(Store(tmp_path / "store").create(), shared) == "done"
    seen = [f.read_text() for f in Path(str(shared.settings["pool_path"])).glob("by-*")]
    assert sorted(seen) == ["4", "7"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,7"


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def outputs(store: Store, stage: Stage) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(store.at(stage).out.iterdir())}


def test_what_a_lost_process_leaves_is_done_by_the_first(tmp_path: Path, stage: Stage, shared: Stage) -> None:
    store, whole = (Store(tmp_path / name).create() for name in ("store", "whole"))
    (Path(str(stage.settings["pool_path"])) / "stumble").touch()
    lost = replace(shared, settings={**shared.settings, "shard": SHARD})
    assert run(store, lost) == "done"
    assert os.getpid() in who(stage)
    assert run(whole, stage) == "done"
    assert outputs(store, stage) == outputs(whole, stage)


def test_an_error_in_any_process_is_the_stages(
    tmp_path: Path, shared: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Words, "broken_from", 8)
    store = Store(tmp_path / "store").create()
    assert run(store, shared) == "failed"
    (attempt,) = store.at(shared).attempts()
    assert (attempt.kind, attempt.message) == ("user", "no more")


def test_killed_between_shards_both_processes_end_and_the_next_run_goes_on(
    tmp_path: Path, stage: Stage, shared: Stage
) -> None:
    store, whole = (Store(tmp_path / name).create() for name in ("store", "whole"))
    process = get_context("fork").Process(target=run, args=(store, shared))
    process.start()
    deadline = time.monotonic() + 60
    while len(list(store.at(shared).partial.glob("shard-*.npz"))) < 3:
        assert time.monotonic() < deadline
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    counting = who(shared)
    assert len(counting) == 2
    while any(alive(pid) for pid in counting):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert run(store, shared) == "done"
    assert 3 <= facts(store, shared)["shards_resumed"] < 10
    assert run(whole, stage) == "done"
    assert outputs(store, shared) == outputs(whole, stage)


def test_a_card_counts_what_passes_could_not_read_or_had_to_cut(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Words.run

    def cutting(self: Words, pool: Pool, start: int, stop: int) -> tuple[dict[str, Any], list[str]]:
        columns, reasons = plain(self, pool, start, stop)
        return columns | {"truncated": np.arange(start, stop) % 3 == 0}, reasons

    monkeypatch.setattr(Words, "run", cutting)
    store = Store(tmp_path / "store").create()
    assert run(store, stage) == "done"
    selector: dict[str, Json] = {"name": "random", "distribution": "sievebench", "version": 1, "config": {}}
    select = Stage(
        kind="select",
        version=1,
        params={"selector": selector, "budget": "30%", "seed": 0},
        inputs={"features.words": stage_key(stage)},
        settings={"pool_path": stage.settings["pool_path"], "selector_path": ""},
        label="random/30%/select",
    )
    assert run(store, select) == "done"
    card = json.loads((store.at(select).out / "card.json").read_text())
    assert card["failed"] == {"words": {"odd": 5}}
    assert card["truncated"] == {"words": 14}
    assert (card["n"], card["n_nan"], card["n_topup"], card["n_truncated"]) == (12, 0, 0, 0)
    pool = open_pool(str(stage.settings["pool_path"]))
    kept = [pool.record(int(i)) for i in np.load(store.at(select).out / "positions.npy")]
    assert card["by_source"] == {s: sum(r.source == s for r in kept) for s in sorted({r.source for r in kept})}
    assert card["mean"]["n_turns"] == pytest.approx(sum(len(r.conversations) for r in kept) / 12, abs=1e-4)
    assert card["mean"]["n_images"] == pytest.approx(sum(len(r.images) for r in kept) / 12, abs=1e-4)
    assert card["distinct_images"] <= 12
