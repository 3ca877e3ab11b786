"""Carrying out a plan: what is done stays, what can start starts, what fails takes down only what needs it."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from harness.executors import Ended, Executor
from harness.keys import stage_key
from harness.plan import Plan
from harness.store import Attempt, StageDir, Status, Store
from harness.types import Json, Stage
from harness.worker import Job

log = logging.getLogger(__name__)

Mode = Literal["cached", "retry", "force", "read_only"]
MODES: tuple[Mode, ...] = ("cached", "retry", "force", "read_only")

TRIES: Mapping[str, int] = {"killed": 3, "preempted": 3, "oom": 4, "error": 1, "user": 1}
"""How often a stage is tried in one run, by class of its failure."""

SAME_FAILURE_LIMIT = 5
"""The same message from this many stages stops the sweep: the next ones would only repeat it."""

POLL_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a stage has no result."""

    stage: Stage
    kind: str
    """A failure class, or `blocked` (an input failed) or `stopped` (the sweep was ended)."""
    message: str
    log_tail: str = ""
    cause: str = ""
    """Key of the stage whose failure this follows from."""


@dataclass(slots=True, kw_only=True)
class RunResult:
    """How a plan went: keys that were done before, keys done now, and failures by key."""

    cached: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    failures: dict[str, Failure] = field(default_factory=dict)

    @property
    def roots(self) -> list[Failure]:
        """The failures that are not merely consequences."""
        return [f for f in self.failures.values() if f.kind not in ("blocked", "stopped")]


class Watcher(Protocol):
    """Told what happens; shows it."""

    def started(self, job: Job) -> None: ...

    def ended(self, stage: Stage, outcome: str, message: str) -> None: ...

    def tick(self) -> None: ...


@dataclass(slots=True, kw_only=True)
class Scheduler:
    """One run of a plan against a store."""

    plan: Plan
    store: Store
    executor: Executor
    watcher: Watcher
    mode: Mode = "cached"
    result: RunResult = field(default_factory=RunResult)
    _waiting: set[str] = field(default_factory=set)
    _running: set[str] = field(default_factory=set)
    _foreign: set[str] = field(default_factory=set)
    """Claimed by another process: waited for."""
    _tries: Counter[str] = field(default_factory=Counter)
    _messages: Counter[str] = field(default_factory=Counter)

    def run(self) -> RunResult:
        """Do everything that is not done, until nothing more can be."""
        self._look()
        try:
            while self._waiting or self._running or self._foreign:
                self._visit_foreign()
                self._start_ready()
                if not (self._running or self._foreign):
                    break  # what is left waits for failures, and has been marked so
                for ended in self.executor.poll(POLL_S):
                    self._settle(ended)
                self.watcher.tick()
        except BaseException:
            self.executor.cancel()
            raise
        return self.result

    def _look(self) -> None:
        """Sort stages into done before and to do, as the mode says."""
        status = {key: self.store.at(stage).status() for key, stage in self.plan.stages.items()}
        if self.mode == "force":
            for stage in self.plan.stages.values():
                self.store.at(stage).forget()
            self._waiting = set(self.plan.stages)
            return
        self.result.cached = {k for k, s in status.items() if s == "done"}
        todo = set(self.plan.stages) - self.result.cached
        if self.mode == "read_only":
            for key in todo:
                self._fail(key, "stopped", "mode=read_only runs nothing")
        elif self.mode == "retry":
            self._waiting = self._only_failures(todo, status)
        else:
            self._waiting = todo

    def _only_failures(self, todo: set[str], status: Mapping[str, Status]) -> set[str]:
        chosen: set[str] = set()
        for key in self.plan.stages:  # in plan order, so that inputs come first
            if key not in todo:
                continue
            inputs = self.plan.stages[key].inputs.values()
            if status[key] in ("failed", "interrupted") or any(k in chosen for k in inputs):
                chosen.add(key)
            else:
                self._fail(key, "stopped", "mode=retry runs only what failed before")
        return chosen

    def _start_ready(self) -> None:
        if not self._waiting:
            return
        for job in self._ready_jobs():
            if not self.executor.free(job):
                continue  # a job of another kind may find room
            keys = {stage_key(s) for s in job.stages}
            self._waiting -= keys
            self._running |= keys
            self._tries.update(keys)
            self.executor.submit(job)
            self.watcher.started(job)

    def _ready_jobs(self) -> list[Job]:
        """Jobs whose inputs are there: benchmarks of one checkpoint share one, everything else stands alone."""
        finished = self.result.cached | self.result.done
        groups: dict[str, list[Stage]] = {}
        for key, stage in self.plan.stages.items():
            if key not in self._waiting or not all(k in finished for k in stage.inputs.values()):
                continue
            group = stage.inputs["train.checkpoint"] if stage.kind == "evaluate" else key
            groups.setdefault(group, []).append(stage)
        jobs = [Job(name=_job_name(stages), stages=tuple(stages)) for stages in groups.values()]
        return sorted(jobs, key=_precedence)

    def _settle(self, ended: Ended) -> None:
        for stage in ended.job.stages:
            key = stage_key(stage)
            self._running.discard(key)
            directory = self.store.at(stage)
            if directory.done():
                self.result.done.add(key)
                self.watcher.ended(stage, "done", "")
            elif directory.status() == "running":
                self._foreign.add(key)
            else:
                self._retry_or_fail(key, stage, directory, ended.exit)

    def _visit_foreign(self) -> None:
        """Look after stages that another process has claimed: done, still at it, or given up."""
        for key in sorted(self._foreign):
            directory = self.store.at(self.plan.stages[key])
            if directory.done():
                self.result.done.add(key)
            elif directory.status() == "running":
                continue
            else:
                self._waiting.add(key)
            self._foreign.discard(key)

    def _retry_or_fail(self, key: str, stage: Stage, directory: StageDir, exit_code: int) -> None:
        attempt = last_attempt(directory, exit_code)
        again = smaller(stage) if attempt.kind == "oom" else stage
        if again is not None and self._tries[key] < TRIES.get(attempt.kind, 1):
            log.warning("%s: %s; trying again", stage.label, attempt.message)
            self.plan.stages[key] = again
            self._waiting.add(key)
            return
        self._fail(key, attempt.kind, attempt.message, attempt.log_tail)
        self.watcher.ended(stage, "failed", attempt.message)
        self._messages[attempt.message] += 1
        if self._messages[attempt.message] >= SAME_FAILURE_LIMIT:
            for other in sorted(self._waiting):
                self._fail(other, "stopped", f"the sweep was stopped: the same failure {SAME_FAILURE_LIMIT} times")

    def _fail(self, key: str, kind: str, message: str, tail: str = "") -> None:
        """Record a failure, and with it everything that needs the stage."""
        self.result.failures[key] = Failure(stage=self.plan.stages[key], kind=kind, message=message, log_tail=tail)
        self._waiting.discard(key)
        queue = deque([key])
        while queue:
            cause = queue.popleft()
            for other, stage in self.plan.stages.items():
                if cause in stage.inputs.values() and other not in self.result.failures:
                    why = f"needs {self.plan.stages[cause].label}, which failed"
                    self.result.failures[other] = Failure(stage=stage, kind="blocked", message=why, cause=key)
                    self._waiting.discard(other)
                    queue.append(other)


_URGENCY: Mapping[str, int] = {
    "select": 0,
    "score": 0,
    "lessons": 0,
    "features": 1,
    "train": 2,
    "evaluate": 3,
    "judge": 4,
}


def _precedence(job: Job) -> tuple[int, int]:
    """Order of starting: cheap stages that others wait for, then the longest trainings."""
    first = job.stages[0]
    return _URGENCY[first.kind], -int(str(first.settings.get("samples", 0)))


def _job_name(stages: list[Stage]) -> str:
    first = stages[0].label
    return first if len(stages) == 1 else f"{first.rsplit('/', 1)[0]}/{len(stages)} benchmarks"


def last_attempt(directory: StageDir, exit_code: int) -> Attempt:
    """How a stage that is not done ended: its own word, or that its process was ended from outside."""
    attempts = directory.attempts()
    if attempts and attempts[-1].outcome == "failed":
        return attempts[-1]
    what = f"by signal {-exit_code}" if exit_code < 0 else f"with exit status {exit_code}"
    return Attempt(
        number=len(attempts),
        outcome="failed",
        kind="killed",
        message=f"its process ended {what}, see {directory.log}",
    )


def smaller(stage: Stage) -> Stage | None:
    """The same stage with half the work in memory at a time (its key does not change); None if it cannot be."""
    run = stage.settings.get("run")
    if not isinstance(run, dict) or run["pack_tokens"] == 1:
        return None
    less: dict[str, Json] = {k: max(1, int(str(run[k])) // 2) for k in ("pack_tokens", "pack_tiles")}
    return replace(stage, settings={**stage.settings, "run": {**run, **less}})
