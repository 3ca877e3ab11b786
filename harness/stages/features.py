"""The features stage: a pass over a pool in fixed shards, each kept when it is done."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.format import open_memmap

from harness.api import FeaturePass, PassContext
from harness.files import write_atomic, write_json
from harness.pool import Pool, open_pool
from harness.registry import configured, feature_pass
from harness.stages.context import Facts, StageContext

Shard = dict[str, npt.NDArray[Any]]
REASON = "failure"
"""Column of failure reasons within a shard."""


def run_features(context: StageContext) -> Facts:
    """Compute the missing shards, then join all of them into one memory-mappable file a column."""
    pool = open_pool(str(context.stage.settings["pool_path"]))
    size = int(str(context.stage.settings["shard"]))
    shards = [(start, min(start + size, pool.n)) for start in range(0, pool.n, size)]
    files = [context.partial / f"shard-{start:09d}.npz" for start, _ in shards]
    resumed = sum(f.exists() for f in files)
    feature = None
    for i, ((start, stop), file) in enumerate(zip(shards, files, strict=True)):
        context.progress(i, len(shards), "shards")
        if not file.exists():
            feature = feature or _opened(context)
            _write_shard(file, *feature.run(pool, start, stop), rows=stop - start)
    failures = _join(files, pool, context.out)
    return {"shards": len(shards), "shards_resumed": resumed, "failures": dict(failures)}


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


def _write_shard(file: Path, columns: Shard, reasons: list[str], *, rows: int) -> None:
    """Keep one shard, after checking that every column has a row a sample."""
    for name, values in columns.items():
        if len(values) != rows:
            raise ValueError(f"column {name} has {len(values)} rows for {rows} samples")
    if len(reasons) != rows:
        raise ValueError(f"{len(reasons)} failure reasons for {rows} samples")
    buffer = io.BytesIO()
    np.savez(buffer, **{REASON: np.asarray(reasons, dtype=np.str_)}, **columns)  # type: ignore[arg-type]
    write_atomic(file, buffer.getvalue())


def _join(files: list[Path], pool: Pool, out: Path) -> Counter[str]:
    """Write `out/<column>.npy` and the failures; only one shard is in memory at a time."""
    targets: dict[str, npt.NDArray[Any]] = {}
    failures: Counter[str] = Counter()
    failed: list[dict[str, Any]] = []
    at = 0
    for file in files:
        with np.load(file) as shard:
            reasons = shard[REASON]
            for name in shard.files:
                if name == REASON:
                    continue
                values = shard[name]
                if name not in targets:
                    shape = (pool.n, *values.shape[1:])
                    targets[name] = open_memmap(out / f"{name}.npy", mode="w+", dtype=values.dtype, shape=shape)
                targets[name][at : at + len(values)] = values
        for i in np.flatnonzero(reasons != ""):
            failures[str(reasons[i]).split(":")[0]] += 1
            failed.append({"position": at + int(i), "reason": str(reasons[i])})
        at += len(reasons)
    for array in targets.values():
        array.flush()  # type: ignore[attr-defined]
    write_json(out / "failures.json", failed)
    return failures


def read_columns(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """The columns of a finished pass, memory-mapped read-only."""
    return {p.stem: np.load(p, mmap_mode="r") for p in sorted(folder.glob("*.npy"))}
