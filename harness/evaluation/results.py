"""What is kept of a benchmark run: one row an item and the score, nothing that differs between equal runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from harness.benchmarks import Benchmark
from harness.evaluation.engine import EngineResult
from harness.evaluation.journal import Answer
from harness.evaluation.reading import Item, Sample
from harness.files import write_json
from harness.types import BenchmarkScore, EvalSpec, Json

SCHEMA: Final = pa.schema(
    [
        ("doc_id", pa.int32()),
        ("task", pa.string()),
        ("cluster", pa.string()),
        ("group", pa.string()),
        ("stratum", pa.string()),
        ("input", pa.string()),
        ("target", pa.string()),
        ("answer", pa.string()),
        ("score", pa.float64()),
        ("parsed", pa.bool_()),
        ("output_tokens", pa.int32()),
        ("truncated", pa.bool_()),
    ]
)
"""`samples.parquet`, sorted by `doc_id`, which counts through all tasks of a group.

`cluster` is the unit to resample (dependent items share it), `group` what the metric scores together, `stratum`
the part that is averaged by itself; `input` is the sha256 of prompt, pixels and generation settings; `score` is
null until judged.
"""

SAMPLES: Final = "samples.parquet"
SCORE: Final = "score.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One item of `samples.parquet`."""

    doc_id: int
    task: str
    cluster: str
    group: str
    stratum: str
    input: str
    target: str
    answer: str
    score: float | None
    parsed: bool
    output_tokens: int
    truncated: bool


def ordered_samples(result: EngineResult) -> list[tuple[str, Sample]]:
    """All items with their task, by task and doc_id."""
    return [
        (task, sample)
        for task in sorted(result.samples)
        for sample in sorted(result.samples[task], key=lambda s: int(s["doc_id"]))
    ]


def make_rows(
    benchmark: Benchmark,
    result: EngineResult,
    answers: Mapping[tuple[str, int], Answer],
    items: Sequence[Item] | None,
) -> list[Row]:
    """Rows in the order of `ordered_samples`; `items` is None for answers that are not scored yet."""
    samples = ordered_samples(result)
    offsets = _offsets(result)
    scored: Sequence[Item | None] = [None] * len(samples) if items is None else items
    rows = []
    for (task, sample), item in zip(samples, scored, strict=True):
        doc_id = int(sample["doc_id"])
        answer = answers[task, doc_id]
        rows.append(
            Row(
                doc_id=offsets[task] + doc_id,
                task=task,
                cluster=_cluster(benchmark, sample, item, offsets[task] + doc_id),
                group="" if item is None else item.group,
                stratum=_stratum(item, task, len(offsets)),
                input=answer.input,
                target=str(sample["target"]),
                answer=answer.text,
                score=None if item is None else item.score,
                parsed=bool(answer.text.strip()) and (item is None or item.parsed),
                output_tokens=answer.tokens,
                truncated=answer.truncated,
            )
        )
    return rows


def _offsets(result: EngineResult) -> dict[str, int]:
    offsets, start = {}, 0
    for task in sorted(result.samples):
        offsets[task] = start
        start += result.sizes[task]
    return offsets


def _cluster(benchmark: Benchmark, sample: Sample, item: Item | None, doc_id: int) -> str:
    """The document's column where the benchmark names one, else what is scored together, else the item itself."""
    if benchmark.cluster:
        return str(sample["doc"][benchmark.cluster])
    return item.group if item is not None and item.group else str(doc_id)


def _stratum(item: Item | None, task: str, n_tasks: int) -> str:
    if item is not None and item.stratum:
        return item.stratum
    return task if n_tasks > 1 else ""


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write `samples.parquet`; equal rows give equal bytes."""
    table = pa.Table.from_pylist([dataclasses.asdict(r) for r in rows], schema=SCHEMA)
    pq.write_table(table, path, compression="zstd")


def read_rows(path: Path) -> list[Row]:
    """The rows of a `samples.parquet`."""
    return [Row(**raw) for raw in pq.read_table(path).to_pylist()]


def make_score(benchmark: Benchmark, value: float, rows: Sequence[Row]) -> BenchmarkScore:
    """The reported score; `value` is on the engine's scale."""
    return BenchmarkScore(
        benchmark=benchmark.name,
        metric="+".join(benchmark.metrics),
        value=value * benchmark.scale,
        n=len(rows),
        n_invalid=sum(not r.parsed for r in rows),
    )


def write_score(
    path: Path,
    score: BenchmarkScore | None,
    spec: EvalSpec,
    rows: Sequence[Row],
    metrics: Mapping[str, Any],
) -> None:
    """Write `score.json`: the score, what it was obtained with, and every raw metric of the engine."""
    n = len(rows)
    facts: dict[str, Json] = {
        "benchmark": spec.benchmark,
        "task": spec.task,
        "protocol": spec.protocol,
        "engine": spec.engine,
        "backend": spec.backend,
        "attention": spec.attention,
        "batch_size": spec.batch_size,
        "dtype": spec.dtype,
        "limit": spec.limit,
        "judge": spec.judge,
        "n": n,
        "parse_rate": sum(r.parsed for r in rows) / n,
        "truncation_rate": sum(r.truncated for r in rows) / n,
        "mean_output_tokens": math.fsum(r.output_tokens for r in rows) / n,
        "raw": {k: float(v) for k, v in sorted(metrics.items()) if _is_number(v)},
    }
    if score is not None:
        facts |= dataclasses.asdict(score)
    write_json(path, facts)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
