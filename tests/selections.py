"""The selections of `sweep=demo_mmssr` without the trainings after them."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from harness.config import cell_of, register_schemas, settings_of
from harness.executors import LocalExecutor
from harness.plan import Plan
from harness.schedule import RunResult, Scheduler
from harness.store import Store
from harness.sweep import Sweep, plan_sweep
from harness.types import Stage
from harness.worker import Job

SWEEP = "demo_mmssr"


class Quiet:
    """A watcher that says nothing."""

    def started(self, job: Job) -> None: ...

    def ended(self, stage: Stage, outcome: str, message: str) -> None: ...

    def tick(self) -> None: ...


def planned(store: Path, settings: Sequence[str], rows: Mapping[str, Sequence[str]] | None = None) -> Sweep:
    """The sweep as Hydra's sweeper makes it of its file, with other settings, and some of single rows."""
    importlib.import_module("hydra_plugins.sievebench").register()
    register_schemas()
    jobs = _jobs([f"sweep={SWEEP}", f"store={store}", *settings], rows or {})
    Store(store).create()
    return plan_sweep([cell_of(cfg) for cfg in jobs], settings_of(jobs[0]), "tests.selections", baselines=True)


def _jobs(given: list[str], rows: Mapping[str, Sequence[str]]) -> list[DictConfig]:
    with initialize_config_module("harness.conf", version_base="1.3"):
        swept = [setting for setting in given if not setting.startswith("selector.")]  # those are of the rows
        params = compose("config", swept, return_hydra_config=True).hydra.sweeper.params
        return [
            compose("config", [*given, f"selector={row}", f"budget={budget}", *rows.get(row, [])])
            for row in params.selector.split(",")
            for budget in params.budget.split(",")
        ]


def part_of(sweep: Sweep, keys: Iterable[str]) -> Plan:
    """Some stages of a sweep and all they need."""
    return Plan(stages={k: sweep.plan.stages[k] for k in sweep.plan.ancestors(keys)})


def carry_out(sweep: Sweep, plan: Plan, slots: int = 1) -> RunResult:
    """Run a part of a sweep, for real."""
    executor = LocalExecutor(sweep.store, slots=slots, threads=1, gpus=[])
    try:
        return Scheduler(plan=plan, store=sweep.store, executor=executor, watcher=Quiet()).run()
    finally:
        executor.close()


def failures(result: RunResult) -> list[str]:
    """What went wrong, with the ends of the logs."""
    return [f"{f.stage.label}: {f.message}\n{f.log_tail}" for f in result.roots]
