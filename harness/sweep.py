"""A sweep from beginning to end: cells, baselines, plan, run. Everything a user interface needs to call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.cell_command import cell_command
from harness.cells import Cell, with_baselines
from harness.config import RunSettings
from harness.errors import HarnessError, unknown_name
from harness.estimate import Estimate, Where, estimate, total
from harness.executors import LocalExecutor, local_slots, visible_gpus
from harness.history import read_history
from harness.keys import digest, plain
from harness.plan import CellPlan, Plan, make_plan
from harness.registry import loadable_selectors
from harness.schedule import RunResult, Scheduler, Watcher
from harness.store import Store
from harness.types import Stage

KIND_ORDER = ("lessons", "features", "score", "select", "train", "evaluate", "judge")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A planned sweep."""

    name: str
    plan: Plan
    store: Store
    settings: RunSettings
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KindCount:
    """How much of one kind of stage a plan has, and what is left of it."""

    kind: str
    total: int
    done: int
    estimate: Estimate
    """Of what is left, all of it together."""
    passes: tuple[tuple[str, Estimate], ...] = ()
    """Label and estimate of every feature pass that is left."""


def plan_sweep(cells: Sequence[Cell], settings: RunSettings, command: str, *, baselines: bool) -> Sweep:
    """Canonicalise, deduplicate, add baselines where asked for, and write down what the sweep is.

    Raises HarnessError for cells that a table could not tell apart.
    """
    store = Store(settings.store)
    if baselines:
        wanted = with_baselines(
            list(cells), full_trials=settings.full_trials, random_trials=settings.random_trials
        )
    else:
        wanted = with_baselines(list(cells), full_trials=0, random_trials=0)
    _refuse_namesakes(wanted)
    plan = make_plan(wanted, shard=settings.shard, processes=settings.pass_processes)
    name = settings.name or f"sweep-{digest([c.key for c in plan.cells])[:8]}"
    sweep = Sweep(name=name, plan=plan, store=store, settings=settings, command=command)
    store.write_sweep(name, sweep_json(sweep))
    return sweep


def _refuse_namesakes(cells: Sequence[Cell]) -> None:
    """Rows of a table are a method, a budget, a backbone and a seed: nothing else may be swept over."""
    named: dict[str, Cell] = {}
    for cell in cells:
        other = named.setdefault(cell.label, cell)
        if other is not cell:
            settings = " and ".join(_differing(other, cell))
            raise HarnessError(
                f"this sweep has two cells {cell.label} that differ in {settings}, and no table could tell them "
                "apart: run one sweep for each value, with a name of its own (name=...)."
            )


def _differing(one: Cell, other: Cell) -> list[str]:
    """The settings in which two cells differ, as a command line names them."""
    found = [] if one.pool.digest == other.pool.digest else ["pool"]
    for part in ("selector", "backbone", "recipe", "suite", "evaluation"):
        a, b = plain(getattr(one, part)), plain(getattr(other, part))
        assert isinstance(a, dict)
        assert isinstance(b, dict)
        inner = [f"{part}.{k}" for k in sorted({*a, *b}) if a.get(k) != b.get(k)]
        found += inner if part in ("recipe", "evaluation") else [part] if inner else []
    return found


def sweep_json(sweep: Sweep) -> dict[str, Any]:
    """What a sweep asked for, enough to report it without planning again."""
    suites = {digest(c.cell.suite): plain(c.cell.suite) for c in sweep.plan.cells}
    return {
        "name": sweep.name,
        "command": sweep.command,
        "titles": printed_titles([c.cell for c in sweep.plan.cells], sweep.settings.titles),
        "suites": list(suites.values()),
        "cells": [_cell_json(sweep, c) for c in sweep.plan.cells],
    }


def printed_titles(cells: Sequence[Cell], titles: Mapping[str, str]) -> dict[str, str]:
    """Titles by method, of titles by method or by selector.

    Selectors that the sweep does not have may have one, too. Raises HarnessError for a title that several methods
    would have, and for a name that is neither a method here nor a selector anywhere.
    """
    methods = {cell.method: cell.selector.name for cell in cells}
    found = {m: titles.get(m, titles.get(name, "")) for m, name in methods.items()}
    by_title: dict[str, list[str]] = {}
    for method, title in found.items():
        by_title.setdefault((title or method).casefold(), []).append(method)
    for named in by_title.values():
        if len(named) > 1:
            raise HarnessError(
                f"titles: {' and '.join(named)} would have the same title in tables: give each one of its own."
            )
    known = {*methods, *methods.values(), *loadable_selectors()}
    for name in titles:
        if name not in known:
            raise unknown_name("titles: method", name, sorted(known))
    return {method: title for method, title in found.items() if title}


def _cell_json(sweep: Sweep, planned: CellPlan) -> dict[str, Any]:
    plan, cell = sweep.plan, planned.cell
    size = cell.budget.size(cell.pool.n)
    return {
        "key": planned.key,
        "label": cell.label,
        "method": cell.method,
        "budget": cell.budget.label,
        "budget_fraction": float(cell.budget.fraction) if cell.budget.fraction else size / cell.pool.n,
        "n_selected": size,
        "backbone": cell.backbone.name,
        "seed": cell.seed,
        "baseline": cell.baseline,
        "pool": cell.pool.digest,
        "command": cell_command(cell, sweep.settings.store),
        "select": planned.select,
        "train": planned.train,
        "scores": dict(planned.scores),
        "stages": [{"key": k, "kind": plan.stages[k].kind, "label": plan.stages[k].label} for k in planned.stages],
    }


def counts(sweep: Sweep) -> list[KindCount]:
    """Stages of the plan by kind, with an estimate of what is left."""
    left = {k: s for k, s in sweep.plan.stages.items() if not sweep.store.at(s).done()}
    estimates = estimates_of(sweep, left)
    kinds: dict[str, list[str]] = {}
    for key, stage in sweep.plan.stages.items():
        kinds.setdefault(stage.kind, []).append(key)
    return [
        KindCount(
            kind=kind,
            total=len(kinds[kind]),
            done=sum(key not in left for key in kinds[kind]),
            estimate=total([estimates[key] for key in kinds[kind] if key in left]),
            passes=tuple((left[key].label, estimates[key]) for key in kinds[kind] if key in left)
            if kind == "features"
            else (),
        )
        for kind in KIND_ORDER
        if kind in kinds
    ]


def estimates_of(sweep: Sweep, stages: Mapping[str, Stage]) -> dict[str, Estimate]:
    """What some stages of a sweep will take on the devices a run would use."""
    if not stages:
        return {}
    history = read_history(sweep.store, {s.kind for s in stages.values()})
    history.plan(sweep.plan.stages)
    where = Where(gpu=bool(visible_gpus()), threads=sweep.settings.threads)
    return {key: estimate(stage, history, where, sweep.plan.stages) for key, stage in stages.items()}


def run_sweep(sweep: Sweep, watcher: Watcher) -> RunResult:
    """Run what is not done; starts no process where nothing is left to do."""
    settings = sweep.settings
    slots = settings.slots or local_slots(settings.threads)
    executor = LocalExecutor(sweep.store, slots=slots, threads=settings.threads, gpus=visible_gpus())
    scheduler = Scheduler(
        plan=sweep.plan, store=sweep.store, executor=executor, watcher=watcher, mode=settings.mode
    )
    try:
        return scheduler.run()
    finally:
        executor.close()
