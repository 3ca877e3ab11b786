"""What the harness itself costs: starting a stage, and walking through a sweep that is done.

`python -m tests.bench.overhead` runs a small real sweep twice on one slot. The last line is one JSON object:

`cells`, `stages`
`replay_s`             the second run, which computes nothing
`stage_start_s`        from handing a train stage to its fork server until its first optimiser step begins,
                       DeepSpeed's start included; the median after the first
`first_stage_start_s`  the same while the server still imports its libraries
"""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.benchmarks import Suite
from harness.cells import Cell
from harness.config import RunSettings
from harness.files import read_json
from harness.miniworld import ensure_pool, ensure_suite, mini_suite, weights_dir
from harness.models import backbone
from harness.pool import open_pool
from harness.registry import selector_spec
from harness.store import Store
from harness.sweep import Sweep, plan_sweep, run_sweep
from harness.types import Budget, Stage, TrainSpec
from harness.worker import Job

RECIPE = TrainSpec(
    global_batch=8, learning_rate=5e-4, dtype="float32", max_length=512, gradient_checkpointing=False
)


@dataclass(slots=True)
class Stopwatch:
    """A watcher that times how long train stages take to their first step."""

    store: Store
    starts: list[float] = field(default_factory=list)

    def started(self, job: Job) -> None:
        if job.stages[0].kind == "train":
            threading.Thread(target=self._wait, args=(job.stages[0], time.time()), daemon=True).start()

    def _wait(self, stage: Stage, submitted: float) -> None:
        path = self.store.at(stage).path / "progress.json"
        while not ((said := read_json(path)) and said["done"] >= 1):
            time.sleep(0.005)
        self.starts.append(said["time"] - submitted)

    def ended(self, stage: Stage, outcome: str, message: str) -> None:
        assert outcome == "done", message

    def tick(self) -> None: ...


def sweep(root: Path, seeds: int) -> Sweep:
    """Random at 10 % of a small miniworld, for some seeds, evaluated on one benchmark."""
    suite = mini_suite(str(ensure_suite(root / "world")))
    one = Cell(
        pool=open_pool(ensure_pool(1000, 0, root / "world")),
        selector=selector_spec("random", {}),
        budget=Budget.parse("10%"),
        backbone=backbone("tiny", str(weights_dir("tiny"))),
        recipe=RECIPE,
        suite=Suite(name="one", protocol="mini", benchmarks=suite.benchmarks[:1]),
    )
    cells = [replace(one, seed=i) for i in range(seeds)]
    settings = RunSettings(
        store=root,
        name="overhead",
        report="",
        mode="cached",
        dry_run=False,
        full_trials=0,
        random_trials=0,
        executor="local",
        slots=1,
        threads=1,
        shard=4096,
    )
    return plan_sweep(cells, settings, "bench", baselines=False)


def first_step_seconds(store: Store) -> float:
    """What an optimiser step itself takes, to be left out of the starting time."""
    logs = list(store.root.glob("train/*/out/train_log.jsonl"))
    return statistics.median(json.loads(p.read_text().splitlines()[0])["seconds"] for p in logs)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        planned = sweep(Path(folder), seeds=5)
        watch = Stopwatch(planned.store)
        result = run_sweep(planned, watch)
        assert not result.failures
        step = first_step_seconds(planned.store)
        start = time.perf_counter()
        again = sweep(Path(folder), seeds=5)
        assert not run_sweep(again, watch).done
        figures = {
            "cells": len(again.plan.cells),
            "stages": len(again.plan.stages),
            "replay_s": round(time.perf_counter() - start, 3),
            "first_stage_start_s": round(watch.starts[0] - step, 3),
            "stage_start_s": round(statistics.median(watch.starts[1:]) - step, 3),
        }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
