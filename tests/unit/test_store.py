"""The store: leases, manifests, attempts, and what survives a dead process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from harness.errors import HarnessError
from harness.files import read_json, write_atomic
from harness.leases import MISSED_S, Lease, Owner, holder
from harness.store import Attempt, StageDir, Store, stage_from_json, stage_json
from harness.types import Cost, Stage
from harness.worker import close_interrupted

STAGE = Stage(kind="select", version=1, params={"n": 3}, settings={"pool_path": "p"}, label="x/select")


@pytest.fixture
def directory(tmp_path: Path) -> StageDir:
    found = Store(tmp_path).at(STAGE)
    found.begin(STAGE)
    return found


def dead_owner() -> Owner:
    """A process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    owner = replace(Owner.me(), pid=process.pid, started=psutil.Process(process.pid).create_time())
    process.wait()
    return owner


def claim(directory: StageDir, owner: Owner, number: int = 1) -> Path:
    path = directory.path / f"claim-{number:04d}.json"
    path.write_text(json.dumps(asdict(owner)))
    return path


def test_spec_is_written_first_and_reads_back(directory: StageDir) -> None:
    raw = read_json(directory.path / "spec.json")
    assert raw is not None
    assert stage_from_json(raw) == STAGE
    assert stage_json(STAGE)["key"] == directory.key


def test_only_one_process_holds_a_stage(directory: StageDir) -> None:
    with Lease.take(directory.path) or pytest.fail("free stage not claimed"):
        assert directory.status() == "running"
        assert Lease.take(directory.path) is None
    again = Lease.take(directory.path)
    assert again is not None


def test_a_dead_owner_is_followed_at_once(directory: StageDir) -> None:
    claim(directory, dead_owner())
    assert holder(directory.path) is None
    lease = Lease.take(directory.path)
    assert lease is not None
    assert lease.path.name == "claim-0002.json"


def test_a_process_number_used_again_is_not_the_owner(directory: StageDir) -> None:
    claim(directory, replace(Owner.me(), started=1.0))
    assert holder(directory.path) is None


def test_an_owner_elsewhere_lives_until_it_is_silent(directory: StageDir) -> None:
    path = claim(directory, replace(Owner.me(), boot="another machine"))
    assert holder(directory.path) is not None
    silent = time.time() - MISSED_S - 1
    os.utime(path, (silent, silent))
    assert holder(directory.path) is None


def test_racing_takers_of_a_dead_stage_give_one_winner(directory: StageDir) -> None:
    claim(directory, dead_owner())
    # A winner lives until all have tried: after its end, a late one would rightly follow it.
    code = (
        "import sys, time; from pathlib import Path; from harness.leases import Lease\n"
        "while time.time() < float(sys.argv[2]): pass\n"
        "lease = Lease.take(Path(sys.argv[1])); print(lease is not None, flush=True); sys.stdin.read()"
    )
    start = str(time.time() + 2.0)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(directory.path), start], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(6)
    ]
    won = [p.stdout.readline().strip() == b"True" for p in racers if p.stdout is not None]
    for p in racers:
        p.communicate()
    assert sum(won) == 1


def test_an_owner_that_was_replaced_notices(directory: StageDir) -> None:
    lease = Lease.take(directory.path)
    assert lease is not None
    assert not lease.lost()
    claim(directory, Owner.me(), number=2)
    assert lease.lost()


def test_complete_means_the_manifest_exists(directory: StageDir) -> None:
    (directory.fresh_out() / "a.txt").write_text("hello")
    (directory.partial / "journal").write_text("x")
    assert directory.status() == "missing"
    directory.write_attempt(Attempt(number=1, outcome="done", cost=Cost(wall_s=2, attempts=1)))
    manifest = directory.commit(STAGE, {"n": 3}, {})
    assert directory.status() == "done"
    assert list(manifest.outputs) == ["a.txt"]
    assert directory.manifest() == manifest
    assert manifest.cost.wall_s == 2
    assert not directory.partial.exists()


def test_a_recomputation_with_another_result_is_reported(directory: StageDir) -> None:
    for text, conflicts in (("one", 0), ("one", 0), ("two", 1)):
        (directory.fresh_out() / "a.txt").write_text(text)
        directory.commit(STAGE, {}, {})
        assert len(directory.conflicts()) == conflicts
        directory.forget()
    report = read_json(directory.conflicts()[0])
    assert report is not None
    assert report["differs"] == ["a.txt"]


def test_a_killed_attempt_is_closed_and_charged_until_its_last_beat(directory: StageDir) -> None:
    owner = dead_owner()
    path = claim(directory, owner)
    os.utime(path, (1010, 1010))
    directory.write_attempt(Attempt(number=1, outcome="started", started=1000))
    assert directory.status() == "interrupted"
    lease = Lease.take(directory.path)
    assert lease is not None
    close_interrupted(directory)
    (attempt,) = directory.attempts()
    assert attempt.outcome == "failed"
    assert attempt.kind == "killed"
    assert attempt.cost.wall_s == 10
    assert directory.cost() == Cost(wall_s=10, attempts=1)


def test_a_killed_attempt_pays_for_its_gpus(directory: StageDir) -> None:
    os.utime(claim(directory, dead_owner()), (1010, 1010))
    directory.write_attempt(Attempt(number=1, outcome="started", started=1000, gpus=4))
    lease = Lease.take(directory.path)
    assert lease is not None
    close_interrupted(directory)
    assert directory.cost() == Cost(wall_s=10, gpu_s=40, attempts=1)


def test_an_unwritable_store_is_one_sentence(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(HarnessError, match=r"cannot be written .*set store=DIR"):
        Store(blocked / "runs").create()


def test_an_unknown_sweep_names_the_known_ones(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_sweep("demo", {"cells": []})
    with pytest.raises(HarnessError, match=r"no sweep 'dem'. It has: demo"):
        store.sweep("dem")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
