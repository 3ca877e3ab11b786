"""The features stage: a pass over a pool in fixed shards, each kept when it is done, by one process or several."""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.format import open_memmap

from harness.api import FeaturePass, PassContext
from harness.estimate import Where, estimate, say
from harness.files import read_json, write_atomic, write_json
from harness.forkserver import die_with_parent
from harness.history import read_history
from harness.pool import Pool, open_pool
from harness.registry import configured, feature_pass
from harness.stages.context import Facts, StageContext
from harness.store import stage_from_json
from harness.types import Json, Stage

log = logging.getLogger(__name__)

Columns = dict[str, npt.NDArray[Any]]
Shard = tuple[int, int, Path]
"""First position, the one after the last, and the file it is kept in."""
REASON = "failure"
"""Column of failure reasons within a shard."""
TRUNCATED = "truncated"
"""A column that says which samples were cut to a length."""
SECONDS = "seconds taken"
"""Column of one number within a shard: how long it took. It is kept there because a pass may be interrupted."""


@dataclass(slots=True, kw_only=True)
class Joined:
    """What the shards of a finished pass say besides their columns."""

    failures: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    """How long each shard took, as far as it says so."""
    truncated: int = 0
    """Samples that were cut to a length, where the pass has a column of that name."""


def run_features(context: StageContext) -> Facts:
    """Compute the missing shards, then join all of them into one memory-mappable file a column."""
    pool = open_pool(str(context.stage.settings["pool_path"]))
    size = int(str(context.stage.settings["shard"]))
    processes = int(str(context.stage.settings.get("processes", 1)))
    shards = [
        (start, min(start + size, pool.n), context.partial / f"shard-{start:09d}.npz")
        for start in range(0, pool.n, size)
    ]
    missing = [shard for shard in shards if not shard[2].exists()]
    resumed = len(shards) - len(missing)
    announce(context, pool.n, len(shards), resumed)
    worker = _Worker(context=context, pool=pool)
    opening = 0.0
    if min(processes, len(missing)) > 1:
        opening = _side_by_side(worker, missing, processes, len(shards))
        missing = [shard for shard in missing if not shard[2].exists()]
    for done, shard in enumerate(missing, len(shards) - len(missing)):
        context.progress(done, len(shards), "shards")
        opening = max(opening, worker.compute(shard))
    joined = _join([file for _, _, file in shards], pool, context.out)
    return {
        "samples": pool.n,
        "shards": len(shards),
        "shards_resumed": resumed,
        "failures": dict(joined.failures),
        **({"truncated": joined.truncated} if joined.truncated else {}),
        "device": context.device,
        "processes": min(processes, len(shards)),
        **_measured(joined, opening),
    }


@dataclass(slots=True, kw_only=True)
class _Worker:
    """A process's pass, opened when it computes its first shard."""

    context: StageContext
    pool: Pool
    feature: FeaturePass | None = None

    def compute(self, shard: Shard) -> float:
        """Compute and keep a shard; seconds that opening the pass took, 0 where it was open."""
        start, stop, file = shard
        before, opening = time.perf_counter(), 0.0
        if self.feature is None:
            self.feature = _opened(self.context)
            opening = time.perf_counter() - before
        columns, reasons = self.feature.run(self.pool, start, stop)
        seconds = time.perf_counter() - before - opening
        _write_shard(file, columns, reasons, rows=stop - start, seconds=seconds)
        return opening


_of_this_process: _Worker | None = None
"""Set in the processes that `_side_by_side` forks, and only there."""


def _side_by_side(worker: _Worker, missing: Sequence[Shard], processes: int, total: int) -> float:
    """Compute shards in forked processes, each taking the next when it is done; the longest opening in seconds.

    `total` is the number of all shards. Where a process is lost, so are the others, and shards stay missing.
    """
    opening, fork = 0.0, get_context("fork")
    begin = (worker, fork.Value("i", 0))
    forked = ProcessPoolExecutor(min(processes, len(missing)), mp_context=fork, initializer=_begin, initargs=begin)
    try:
        futures = [forked.submit(_compute, shard) for shard in missing]
        for done, future in enumerate(as_completed(futures)):
            worker.context.progress(total - len(missing) + done, total, "shards")
            opening = max(opening, future.result())
    except BrokenProcessPool:
        log.warning("a process of the pass was ended from outside: this one does what is left")
    finally:
        forked.shutdown(cancel_futures=True)
    return opening


def _begin(worker: _Worker, begun: Any) -> None:
    """Take one of the GPUs that the processes share; `begun` counts the processes."""
    global _of_this_process
    die_with_parent()
    _of_this_process = worker
    with begun.get_lock():
        number, begun.value = begun.value, begun.value + 1
    if gpus := os.environ.get("CUDA_VISIBLE_DEVICES"):
        own = gpus.split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = own[number % len(own)]


def _compute(shard: Shard) -> float:
    assert _of_this_process is not None
    return _of_this_process.compute(shard)


def announce(context: StageContext, samples: int, shards: int, resumed: int) -> None:
    """Say in the stage's log what is to be done, and what it is estimated to take."""
    stage = context.stage
    needed = {key: s for name, key in stage.inputs.items() if (s := _input_stage(context, name))}
    where = Where(gpu=context.device.startswith("cuda"), threads=context.threads)
    history = read_history(context.store, {stage.kind})
    history.plan(needed)
    log.info(
        "%s: %d samples in %d shards, %d of them there already; all of it: %s",
        stage.label,
        samples,
        shards,
        resumed,
        say(estimate(stage, history, where, needed)),
    )


def _input_stage(context: StageContext, name: str) -> Stage | None:
    raw = read_json(context.store.input(context.stage, name).path / "spec.json")
    return stage_from_json(raw) if raw else None


def _measured(joined: Joined, opening: float) -> dict[str, Json]:
    """Seconds to load the model, of all shards and of the slowest; memory at its peak where a GPU was used."""
    facts: dict[str, Json] = {
        "open_s": round(opening, 6),
        "shards_s": round(sum(joined.seconds), 6),
        "slowest_shard_s": round(max(joined.seconds, default=0.0), 6),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        facts["peak_gpu_gb"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
    return facts


def _opened(context: StageContext) -> FeaturePass:
    params = context.stage.params
    config = params["config"]
    assert isinstance(config, dict)
    plugin = feature_pass(str(params["pass"]))
    made: FeaturePass = plugin.cls(configured(plugin.cls, config), _pass_context(context))
    made.open()
    return made


def _pass_context(context: StageContext) -> PassContext:
    """The model of a pass: a folder as it was resolved, or what a train stage left."""
    if "train.model" not in context.stage.inputs:
        return PassContext(model_path=str(context.stage.settings["model_path"]), device=context.device)
    trained = context.input("train.model")
    adapter = trained / "adapter"
    return PassContext(
        model_path=str(trained / "model"),
        device=context.device,
        adapter_path=str(adapter) if adapter.is_dir() else "",
    )


def _write_shard(file: Path, columns: Columns, reasons: list[str], *, rows: int, seconds: float) -> None:
    """Keep one shard, after checking that every column has a row a sample."""
    for name, values in columns.items():
        if len(values) != rows:
            raise ValueError(f"column {name} has {len(values)} rows for {rows} samples")
    if len(reasons) != rows:
        raise ValueError(f"{len(reasons)} failure reasons for {rows} samples")
    buffer = io.BytesIO()
    told = {REASON: np.asarray(reasons, dtype=np.str_), SECONDS: np.asarray(seconds)}
    np.savez(buffer, **told, **columns)  # type: ignore[arg-type]
    write_atomic(file, buffer.getvalue())


def _join(files: list[Path], pool: Pool, out: Path) -> Joined:
    """Write `out/<column>.npy` and the failures; only one shard is in memory at a time."""
    targets: dict[str, npt.NDArray[Any]] = {}
    joined = Joined()
    failed: list[dict[str, Any]] = []
    at = 0
    for file in files:
        with np.load(file) as shard:
            reasons = shard[REASON]
            joined.seconds += [float(shard[SECONDS])] if SECONDS in shard.files else []
            for name in shard.files:
                if name in (REASON, SECONDS):
                    continue
                values = shard[name]
                if name not in targets:
                    shape = (pool.n, *values.shape[1:])
                    targets[name] = open_memmap(out / f"{name}.npy", mode="w+", dtype=values.dtype, shape=shape)
                targets[name][at : at + len(values)] = values
                if name == TRUNCATED:
                    joined.truncated += int(np.count_nonzero(values))
        for i in np.flatnonzero(reasons != ""):
            joined.failures[str(reasons[i]).split(":")[0]] += 1
            failed.append({"position": at + int(i), "reason": str(reasons[i])})
        at += len(reasons)
    for array in targets.values():
        array.flush()  # type: ignore[attr-defined]
    write_json(out / "failures.json", failed)
    return joined


def read_columns(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """The columns of a finished pass, memory-mapped read-only."""
    return {p.stem: np.load(p, mmap_mode="r") for p in sorted(folder.glob("*.npy"))}
