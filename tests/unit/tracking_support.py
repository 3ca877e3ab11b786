"""A finished sweep without its hours of training: real cells and plan, made-up outputs in a real store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness.benchmarks import LMMS14, Suite
from harness.cells import Cell, with_baselines
from harness.config import RunSettings
from harness.files import write_json
from harness.keys import seed64, stage_key
from harness.plan import Plan, make_plan
from harness.registry import selector_spec
from harness.store import Attempt, StageDir, Store
from harness.sweep import Sweep, sweep_json
from harness.types import Backbone, Budget, Cost, Json, Stage, TrainSpec
from tests.support import write_pool

STEPS = 5
N = 100
"""Samples of the pool."""


def cells(folder: Path, budgets: Sequence[str], *, baselines: bool) -> list[Cell]:
    """`length` at some budgets, and its baselines: the full run and two draws of random at each budget."""
    cell = Cell(
        pool=write_pool(folder / "pool", N),
        selector=selector_spec("length", {}),
        budget=Budget.parse("10%"),
        backbone=Backbone(name="tiny", path="nowhere", revision="r1", processor="p1"),
        recipe=TrainSpec(global_batch=8),
        suite=Suite(name="two", protocol="p", benchmarks=LMMS14.benchmarks[6:8]),
    )
    asked = [replace(cell, budget=Budget.parse(b)) for b in budgets]
    return with_baselines(asked, full_trials=1, random_trials=2) if baselines else asked


def finished_store(folder: Path, budgets: Sequence[str] = ("10%", "30%"), *, baselines: bool = True) -> Store:
    """A store in which every stage of the sweep `small` is done."""
    store = Store(folder / "store").create()
    plan = make_plan(cells(folder, budgets, baselines=baselines))
    write_sweep(store, plan, "small")
    fill(store, plan)
    return store


def write_sweep(store: Store, plan: Plan, name: str) -> None:
    """Write down what a plan asks for, as planning it in a run would."""
    settings = RunSettings(
        store=store.root,
        name=name,
        report="",
        mode="cached",
        dry_run=False,
        full_trials=1,
        random_trials=2,
        executor="local",
        slots=1,
        threads=1,
        shard=64,
    )
    sweep = Sweep(name=name, plan=plan, store=store, settings=settings, command="python -m harness -m")
    store.write_sweep(name, sweep_json(sweep))


def fill(store: Store, plan: Plan) -> None:
    """Complete every stage of a plan."""
    for stage in plan.stages.values():
        finish(store, stage)


def finish(store: Store, stage: Stage) -> StageDir:
    """Complete one stage with outputs that depend on its key alone."""
    directory = store.at(stage)
    directory.begin(stage)
    out = directory.fresh_out()
    rng = np.random.default_rng(seed64(stage_key(stage)))
    facts = {"select": _select, "train": _train, "evaluate": _evaluate}.get(stage.kind, _column)(stage, out, rng)
    cost = Cost(wall_s=2.0, cpu_s=3.0, gpu_s=36.0, attempts=1, peak_rss_gb=0.5)
    directory.write_attempt(Attempt(number=1, outcome="done", cost=cost))
    directory.commit(stage, facts, {"code": {"commit": "c0ffee"}, "python": "3.11", "machine": "secret-host"})
    return directory


def _column(stage: Stage, out: Path, rng: np.random.Generator) -> dict[str, Json]:
    np.save(out / "score.npy", rng.random(N))
    return {}


def _select(stage: Stage, out: Path, rng: np.random.Generator) -> dict[str, Json]:
    n = Budget.parse(str(stage.params["budget"])).size(N)
    sources = {"charts": n // 2, "text": n - n // 2}
    np.save(out / "positions.npy", rng.permutation(N)[:n].astype(np.int32))
    write_json(out / "card.json", {"n": n, "by_source": sources, "mean": {"n_turns": 2.0}})
    write_json(out / "selection.json", {"pool": stage.params["pool"], "n": n, "of": N})
    return {"n": n, "n_topup": 0, "n_nan": 0}


def _train(stage: Stage, out: Path, rng: np.random.Generator) -> dict[str, Json]:
    (out / "model").mkdir()
    (out / "model" / "model.safetensors").write_bytes(rng.bytes(64))
    losses = [5.0, 4.0, float("nan"), 3.0, 2.5]
    rows = [
        {"step": i, "loss": loss, "lr": {"rest": 1e-3, "vision": 1e-4}, "samples": 8, "batch": "00ff"}
        for i, loss in enumerate(losses)
    ]
    (out / "train_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"steps": STEPS, "final_loss": losses[-1]}


def _evaluate(stage: Stage, out: Path, rng: np.random.Generator) -> dict[str, Json]:
    value = float(rng.uniform(40, 60))
    write_json(out / "score.json", {"value": value, "n": 12})
    pq.write_table(pa.table({"doc_id": list(range(12)), "score": rng.random(12)}), out / "samples.parquet")
    return {"value": value, "n": 12, "n_invalid": 1, "metric": "m"}
