"""Proof that a benchmark run is whole, from what it produced and never from how it ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.benchmarks import Benchmark
from harness.evaluation.engine import EngineResult
from harness.evaluation.reading import Item, Sample
from harness.evaluation.recompute import TOLERANCE, recomputed


class InvalidRun(Exception):
    """A run that ended without an error and yet did not produce what it should."""


def check_items(benchmark: Benchmark, result: EngineResult, limit: int | None) -> None:
    """Every document of every task answered exactly once, with a token count.

    Raises InvalidRun saying which are missing, doubled or silent.
    """
    if not result.samples:
        raise InvalidRun(f"{benchmark.name}: the engine logged no items")
    for task, samples in result.samples.items():
        expected = min(limit or result.sizes[task], result.sizes[task])
        ids = [int(s["doc_id"]) for s in samples]
        if sorted(ids) != list(range(expected)):
            raise InvalidRun(f"{task}: {_difference(ids, expected)}")
        silent = [s["doc_id"] for s in samples if not _counted(s)]
        if silent:
            raise InvalidRun(f"{task}: {len(silent)} answers without a token count, first doc_id {silent[0]}")
    total = sum(map(len, result.samples.values()))
    if benchmark.n_items and limit is None and total != benchmark.n_items:
        raise InvalidRun(
            f"{benchmark.name}: {total} items were run, the benchmark has {benchmark.n_items}; its data changed"
        )


def _difference(ids: Sequence[int], expected: int) -> str:
    missing = sorted(set(range(expected)) - set(ids))
    doubled = sorted({i for i in ids if ids.count(i) > 1})
    parts = [f"{len(ids)} items logged, {expected} expected"]
    if missing:
        parts.append(f"{len(missing)} missing, first doc_id {missing[0]}")
    if doubled:
        parts.append(f"{len(doubled)} logged twice, first doc_id {doubled[0]} (more than one filter?)")
    return "; ".join(parts)


def _counted(sample: Sample) -> bool:
    counts = sample.get("token_counts") or [None]
    return all(c is not None and c.get("output_tokens") is not None for c in counts)


def reported_value(benchmark: Benchmark, metrics: Mapping[str, Any], items: Sequence[Item]) -> float:
    """The engine's value, which must be there, be finite and follow from the items.

    Raises InvalidRun where it does not. On the engine's scale; several metric keys are summed, and a key may be
    absent only where a limit left its part of the benchmark without items.
    """
    again = recomputed(benchmark, items)
    present = [metrics[m] for m in benchmark.metrics if m in metrics]
    if not present:
        raise InvalidRun(f"{benchmark.name}: no metric {' or '.join(benchmark.metrics)} among {sorted(metrics)}")
    # MathVista reports an exact zero as null.
    values = [0.0 if v is None and again == 0 else v for v in present]
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
        raise InvalidRun(
            f"{benchmark.name}: the engine reports {dict(zip(benchmark.metrics, present, strict=False))}"
        )
    value = float(sum(values))
    if not math.isclose(value, again, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        raise InvalidRun(
            f"{benchmark.name}: the engine reports {value}, its {len(items)} items give {again}; items were lost, "
            "doubled or scored by another rule than recompute says"
        )
    return value
