"""Running stages in this process: claim, work, commit, and a record of every attempt."""

from __future__ import annotations

import logging
import os
import resource
import time
import traceback
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from harness.errors import HarnessError
from harness.leases import Lease
from harness.provenance import provenance
from harness.stages.context import Facts, StageContext, runner
from harness.store import Attempt, StageDir, Store
from harness.types import Cost, Stage

log = logging.getLogger(__name__)

Outcome = Literal["done", "failed", "busy"]
TAIL_LINES = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One or several stages that share a process, in the order they are to be done."""

    name: str
    stages: tuple[Stage, ...]
    threads: int = 1
    device: str = "cpu"
    gpus: int = 0
    env: dict[str, str] = field(default_factory=dict)


def run_job(store: Store, job: Job, before: Callable[[StageDir], None] = lambda _: None) -> dict[str, Outcome]:
    """Do a job's stages one after another; one that fails does not take the others down.

    `before` is called with the directory of each stage before it starts.
    """
    shared: dict[Hashable, Any] = {}
    outcomes: dict[str, Outcome] = {}
    for stage in job.stages:
        before(store.at(stage))
        outcomes[stage.label] = run_stage(store, stage, job, shared)
    return outcomes


def run_stage(store: Store, stage: Stage, job: Job, shared: dict[Hashable, Any]) -> Outcome:
    """Do one stage unless it is done, or someone else is doing it (`busy`)."""
    directory = store.at(stage)
    directory.begin(stage)
    lease = Lease.take(directory.path)
    if lease is None:
        return "busy"
    with lease:
        if directory.done():
            return "done"
        close_interrupted(directory)
        context = StageContext(
            stage=stage, store=store, directory=directory, threads=job.threads, device=job.device, shared=shared
        )
        return _attempt(context, lease, job)


def _attempt(context: StageContext, lease: Lease, job: Job) -> Outcome:
    stage, directory = context.stage, context.directory
    meter = Meter(gpus=job.gpus)
    attempt = Attempt(
        number=len(directory.attempts()) + 1,
        outcome="started",
        host=lease.owner.host,
        pid=lease.owner.pid,
        started=time.time(),
        gpus=job.gpus,
    )
    directory.write_attempt(attempt)
    directory.fresh_out()
    log.info("%s starts", stage.label)
    try:
        facts: Facts = runner(stage.kind)(context)
    except HarnessError as e:
        return _failed(directory, attempt, meter, "user", str(e))
    except Exception as e:
        log.exception("%s failed", stage.label)
        kind = "oom" if _is_oom(e) else "error"
        last = traceback.extract_tb(e.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        return _failed(directory, attempt, meter, kind, f"{type(e).__name__}: {e} ({where})")
    if lease.lost():
        return _failed(directory, attempt, meter, "preempted", "another process took the stage over")
    directory.write_attempt(replace(attempt, outcome="done", cost=meter.cost()))
    directory.commit(stage, facts, provenance())
    log.info("%s done in %.1f s", stage.label, meter.cost().wall_s)
    return "done"


def _failed(directory: StageDir, attempt: Attempt, meter: Meter, kind: str, message: str) -> Outcome:
    log.error("failed: %s", message)
    done = replace(
        attempt, outcome="failed", kind=kind, message=message, cost=meter.cost(), log_tail=log_tail(directory.log)
    )
    directory.write_attempt(done)
    return "failed"


def _is_oom(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)


def close_interrupted(directory: StageDir) -> None:
    """Turn attempts that ended without a word into `killed` ones, charged until their last sign of life."""
    claims = sorted(directory.path.glob("claim-*.json"))
    beats = [p.stat().st_mtime for p in claims[:-1]]
    for attempt in directory.attempts():
        if attempt.outcome == "started":
            beat = max((b for b in beats if b >= attempt.started), default=attempt.started)
            wall = beat - attempt.started
            cost = Cost(wall_s=wall, gpu_s=wall * attempt.gpus, attempts=1)
            directory.write_attempt(
                replace(attempt, outcome="failed", kind="killed", message="the process was ended", cost=cost)
            )


def log_tail(path: Path) -> str:
    """The last lines of a stage's log."""
    if not path.exists():
        return ""
    with path.open("rb") as f:
        f.seek(max(0, path.stat().st_size - 16_384))
        return "\n".join(f.read().decode(errors="replace").splitlines()[-TAIL_LINES:])


class Meter:
    """Measures what this process uses from now on."""

    def __init__(self, gpus: int) -> None:
        self.gpus = gpus
        self.start = time.monotonic()
        self.cpu = self._cpu()

    @staticmethod
    def _cpu() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    def cost(self) -> Cost:
        wall = time.monotonic() - self.start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return Cost(
            wall_s=round(wall, 3),
            cpu_s=round(self._cpu() - self.cpu, 3),
            gpu_s=round(wall * self.gpus, 3),
            attempts=1,
            peak_rss_gb=round(peak, 3),
        )
