"""From an engine result to checked rows and the reported score."""

from __future__ import annotations

from collections.abc import Mapping

from harness.benchmarks import Benchmark
from harness.evaluation.engine import EngineResult
from harness.evaluation.journal import Answer
from harness.evaluation.recompute import score_items
from harness.evaluation.results import Row, make_rows, make_score, ordered_samples
from harness.evaluation.validate import reported_value
from harness.types import BenchmarkScore


def score_run(
    benchmark: Benchmark, result: EngineResult, answers: Mapping[tuple[str, int], Answer]
) -> tuple[list[Row], BenchmarkScore]:
    """Score every item, recompute the engine's value from the items, and report it.

    Raises InvalidRun where the two values differ.
    """
    items = score_items(benchmark, [sample for _, sample in ordered_samples(result)])
    value = reported_value(benchmark, result.metrics, items)
    rows = make_rows(benchmark, result, answers, items)
    return rows, make_score(benchmark, value, rows)
