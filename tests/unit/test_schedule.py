"""The scheduler on real stages and real processes: order, isolation, retries, modes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.executors import LocalExecutor
from harness.keys import plain, stage_key
from harness.plan import Plan
from harness.pool import Pool
from harness.registry import register_file, selector_spec
from harness.schedule import Mode, RunResult, Scheduler
from harness.store import Store, stage_json
from harness.types import Json, SelectorSpec, Stage
from harness.worker import Job
from tests.support import write_pool

SELECTOR = '''
import os, time
from dataclasses import dataclass
from pathlib import Path
import numpy as np
from harness.api import Selection, Selector
from harness.errors import HarnessError

@dataclass(frozen=True)
class Config:
    do: str = "work"
    mark: str = ""

class Trouble(Selector):
    """Keeps the first n, after doing what it is told."""
    name = "trouble"
    version = 1
    Config = Config

    def select(self, pool, scores, features, n, seed):
        with open(self.config.mark, "a") as f:
            f.write("x")
        if self.config.do == "user":
            raise HarnessError("the pool is too sour: sweeten it.")
        if self.config.do == "crash":
            raise ZeroDivisionError("by nought")
        if self.config.do == "die" and len(Path(self.config.mark).read_text()) == 1:
            os.kill(os.getpid(), 9)
        if self.config.do == "always_die":
            os.kill(os.getpid(), 9)
        if self.config.do == "slow":
            time.sleep(3)
        kept = n - 1 if self.config.do == "short" else n
        return Selection(positions=np.arange(kept, dtype=np.int32))
'''


class Quiet:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []

    def started(self, job: Job) -> None:
        self.log.append(("start", job.name))

    def ended(self, stage: Stage, outcome: str, message: str) -> None:
        self.log.append((outcome, stage.label))

    def tick(self) -> None: ...


class Bench:
    """A store, a pool and an executor to run plans of select stages with."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store(root / "store").create()
        self.pool: Pool = write_pool(root / "pool", 20)
        file = root / "trouble.py"
        file.write_text(SELECTOR)
        register_file(file)
        self.watcher = Quiet()

    def spec(self, do: str, name: str) -> SelectorSpec:
        return selector_spec("trouble", {"do": do, "mark": str(self.root / f"{name}.mark")})

    def stage(self, do: str, name: str, inputs: dict[str, str] | None = None) -> Stage:
        return Stage(
            kind="select",
            version=1,
            params={
                "selector": plain(self.spec(do, name)),
                "pool": self.pool.digest,
                "budget": "50%",
                "seed": 0,
                "name": name,
            },
            inputs=inputs or {},
            settings={"pool_path": self.pool.path, "selector_path": self.spec(do, name).path},
            label=name,
        )

    def runs(self, name: str) -> int:
        mark = self.root / f"{name}.mark"
        return len(mark.read_text()) if mark.exists() else 0

    def run(self, plan: Plan, mode: Mode = "cached", slots: int = 2) -> RunResult:
        executor = LocalExecutor(self.store, slots=slots)
        try:
            return Scheduler(plan=plan, store=self.store, executor=executor, watcher=self.watcher, mode=mode).run()
        finally:
            executor.close()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_inputs_come_first_and_nothing_runs_twice(bench: Bench) -> None:
    plan = Plan()
    first = plan.add(bench.stage("work", "first"))
    second = plan.add(bench.stage("work", "second", {"select.a": first}))
    third = plan.add(bench.stage("work", "third", {"select.a": first, "select.b": second}))
    result = bench.run(plan)
    assert result.done == {first, second, third}
    starts = [name for event, name in bench.watcher.log if event == "start"]
    assert starts == ["first", "second", "third"]
    again = bench.run(plan)
    assert again.cached == {first, second, third}
    assert not again.done
    assert bench.runs("first") == 1


def test_a_failure_takes_down_only_what_needs_it(bench: Bench) -> None:
    plan = Plan()
    bad = plan.add(bench.stage("user", "bad"))
    after = plan.add(bench.stage("work", "after", {"select.a": bad}))
    later = plan.add(bench.stage("work", "later", {"select.a": after}))
    fine = plan.add(bench.stage("work", "fine"))
    result = bench.run(plan)
    assert result.done == {fine}
    assert result.failures[bad].message == "the pool is too sour: sweeten it."
    assert result.failures[bad].kind == "user"
    assert result.failures[after].kind == "blocked"
    assert result.failures[after].message == "needs bad, which failed"
    assert result.failures[later].message == "needs after, which failed"
    assert [f.stage.label for f in result.roots] == ["bad"]


def test_a_crash_keeps_its_traceback_and_is_not_repeated(bench: Bench) -> None:
    plan = Plan()
    key = plan.add(bench.stage("crash", "crash"))
    result = bench.run(plan)
    failure = result.failures[key]
    assert failure.kind == "error"
    assert failure.message == "ZeroDivisionError: by nought (trouble.py:26)"
    assert "Traceback" in failure.log_tail
    assert bench.runs("crash") == 1


def test_a_selector_that_misses_its_budget_fails(bench: Bench) -> None:
    plan = Plan()
    key = plan.add(bench.stage("short", "short"))
    assert "kept 9 samples; the budget is exactly 10" in bench.run(plan).failures[key].message


def test_a_killed_stage_runs_again_and_charges_both_attempts(bench: Bench) -> None:
    plan = Plan()
    key = plan.add(bench.stage("die", "die"))
    result = bench.run(plan)
    assert result.done == {key}
    attempts = bench.store.at(plan.stages[key]).attempts()
    assert [a.outcome for a in attempts] == ["failed", "done"]
    assert attempts[0].kind == "killed"


def test_a_stage_that_always_dies_is_given_up(bench: Bench) -> None:
    plan = Plan()
    key = plan.add(bench.stage("always_die", "dies"))
    failure = bench.run(plan).failures[key]
    assert failure.kind == "killed"
    assert "signal 9" in failure.message
    assert bench.runs("dies") == 3


def test_the_same_failure_again_and_again_stops_the_sweep(bench: Bench) -> None:
    plan = Plan()
    for i in range(12):
        plan.add(bench.stage("user", f"bad{i}"))
    result = bench.run(plan, slots=1)
    kinds = [f.kind for f in result.failures.values()]
    assert len(kinds) == 12
    assert kinds.count("user") == 5
    assert kinds.count("stopped") == 7


def test_modes(bench: Bench) -> None:
    plan = Plan()
    ok = plan.add(bench.stage("work", "ok"))
    bad = plan.add(bench.stage("user", "bad"))
    bench.run(plan)
    new = plan.add(bench.stage("work", "new"))

    looked = bench.run(plan, mode="read_only")
    assert looked.cached == {ok}
    assert set(looked.failures) == {bad, new}
    retried = bench.run(plan, mode="retry")
    assert bench.runs("bad") == 2
    assert retried.failures[new].kind == "stopped"
    assert bench.runs("new") == 0
    bench.run(plan, mode="cached")
    assert (bench.runs("bad"), bench.runs("new"), bench.runs("ok")) == (3, 1, 1)
    forced = bench.run(plan, mode="force")
    assert forced.done == {ok, new}
    assert (bench.runs("bad"), bench.runs("new"), bench.runs("ok")) == (4, 2, 2)


def test_slots_are_used_side_by_side(bench: Bench) -> None:
    plan = Plan()
    for i in range(2):
        plan.add(bench.stage("slow", f"slow{i}"))
    bench.run(plan, slots=2)
    attempts = [bench.store.at(stage).attempts()[-1] for stage in plan.stages.values()]
    assert max(a.started for a in attempts) < min(a.started + a.cost.wall_s for a in attempts)


def test_a_stage_claimed_elsewhere_is_waited_for_and_then_taken(bench: Bench) -> None:
    plan = Plan()
    key = plan.add(bench.stage("work", "shared"))
    folder = bench.store.at(plan.stages[key])
    folder.begin(plan.stages[key])
    hold = (
        "import sys, time; from pathlib import Path; from harness.leases import Lease\n"
        "with Lease.take(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", hold, str(folder.path)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline().strip() == b"held"
    timer = subprocess.Popen([sys.executable, "-c", f"import time, os; time.sleep(2); os.kill({other.pid}, 9)"])
    start = time.monotonic()
    result = bench.run(plan)
    assert result.done == {key}
    assert time.monotonic() - start > 1.0
    timer.wait()
    other.wait()


def test_jobs_die_with_the_scheduler(bench: Bench) -> None:
    """kill -9 of the scheduling process ends the fork server and its jobs."""
    stage = bench.stage("slow", "orphan")
    code = f"""
import sys; sys.path.insert(0, {str(Path.cwd())!r})
from pathlib import Path
from harness.executors import LocalExecutor
from harness.registry import register_file
from harness.store import Store, stage_from_json
from harness.worker import Job
import json
executor = LocalExecutor(Store({str(bench.store.root)!r}), slots=1)
stage = stage_from_json(json.loads(sys.stdin.read()))
executor.submit(Job(name="orphan", stages=(stage,)))
print("ok", flush=True)
executor.poll(60)
"""
    scheduler = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert scheduler.stdin is not None
    scheduler.stdin.write(json.dumps(stage_json(stage)))
    scheduler.stdin.close()
    directory = bench.store.at(stage)
    deadline = time.monotonic() + 20
    while bench.runs("orphan") == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert directory.status() == "running"
    pid = directory.attempts()[-1].pid
    scheduler.send_signal(signal.SIGKILL)
    scheduler.wait()
    deadline = time.monotonic() + 5
    while directory.status() == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert directory.status() == "interrupted"
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    plan = Plan()
    assert bench.run(plan_of(plan, stage)).done == {stage_key(stage)}


def plan_of(plan: Plan, stage: Stage) -> Plan:
    plan.add(stage)
    return plan


class Recorder:
    """Takes the place of a fork server: keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)


def job(kind: str, **params: Json) -> Job:
    return Job(name=kind, stages=(Stage(kind=kind, version=1, params={"of": kind, **params}, label=kind),))


def test_gpus_go_to_what_computes_on_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One job a GPU, and beside them what needs none, in slots; who has no GPU sees none."""
    server = Recorder()
    monkeypatch.setattr(LocalExecutor, "_server", lambda *_: server)
    executor = LocalExecutor(Store(tmp_path).create(), slots=2, gpus=[4, 7])
    wanted = [
        job("train"),
        job("select"),
        job("features", **{"pass": "clip"}),
        job("features", **{"pass": "tokens"}),
    ]
    for one in wanted:
        assert executor.free(one)
        executor.submit(one)
    given = [(m["env"]["CUDA_VISIBLE_DEVICES"], m["job"]["device"], m["job"]["gpus"]) for m in server.sent]
    assert given == [("4", "cuda", 1), ("", "cpu", 0), ("7", "cuda", 1), ("", "cpu", 0)]
    assert [executor.free(job(kind)) for kind in ("evaluate", "score", "lessons", "judge")] == [False] * 4


def test_a_pass_of_several_processes_has_the_gpus_that_are_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Recorder()
    monkeypatch.setattr(LocalExecutor, "_server", lambda *_: server)
    executor = LocalExecutor(Store(tmp_path).create(), slots=2, gpus=[0, 1, 4, 7])
    shared = job("features", **{"pass": "clip"})
    shared = replace(shared, stages=tuple(replace(s, settings={"processes": 3}) for s in shared.stages))
    for one in (job("train"), shared):
        assert executor.free(one)
        executor.submit(one)
    assert not executor.free(shared)
    given = [(m["env"]["CUDA_VISIBLE_DEVICES"], m["job"]["gpus"]) for m in server.sent]
    assert given == [("0", 1), ("1,4,7", 3)]


def test_without_gpus_all_share_the_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Recorder()
    monkeypatch.setattr(LocalExecutor, "_server", lambda *_: server)
    executor = LocalExecutor(Store(tmp_path).create(), slots=2)
    for one in (job("train"), job("select")):
        assert executor.free(one)
        executor.submit(one)
    assert not executor.free(job("select"))
    assert all("CUDA_VISIBLE_DEVICES" not in m["env"] and m["job"]["device"] == "cpu" for m in server.sent)


def test_a_full_executor_still_takes_what_fits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that finds no room does not keep others from theirs."""
    plan = Plan()
    keys = [plan.add(bench.stage("work", name)) for name in ("barred", "other")]
    room = LocalExecutor.free
    monkeypatch.setattr(LocalExecutor, "free", lambda self, job: job.name != "barred" and room(self, job))
    executor = LocalExecutor(bench.store, slots=1)
    scheduler = Scheduler(plan=plan, store=bench.store, executor=executor, watcher=bench.watcher)
    scheduler._look()
    try:
        scheduler._start_ready()
        assert bench.watcher.log == [("start", "other")]
        assert scheduler._waiting == {keys[0]}
    finally:
        executor.cancel()
        executor.close()
