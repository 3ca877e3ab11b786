"""Scoring stored answers with a benchmark's judge, apart from generating them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from harness.benchmarks import Benchmark
from harness.errors import HarnessError
from harness.evaluation.engine import run_task
from harness.evaluation.environment import prepare_environment
from harness.evaluation.journal import Answer
from harness.evaluation.reading import Item
from harness.evaluation.recompute import recomputed
from harness.evaluation.results import SAMPLES, SCORE, Row, make_score, read_rows, write_rows, write_score
from harness.evaluation.scoring import score_run
from harness.evaluation.validate import check_items
from harness.types import BenchmarkScore, EvalSpec

RULES = "rules:"

Rule = Callable[[str, str], float | None]
"""`rule(answer, target)` gives a score in [0, 1], or None where it cannot tell."""


def judge(spec: EvalSpec, benchmark: Benchmark, answers: Path, out: Path, partial: Path) -> BenchmarkScore:
    """Score the answers in `answers/samples.parquet` with `benchmark.judge`.

    `rules:MODULE:FUNCTION` is a Python function; `PROVIDER[:MODEL]` is one of lmms-eval's judge clients, asked
    by the task's official scorer over the replayed answers. Writes scored `samples.parquet` and `score.json` to
    `out`; replies are cached in `partial`. Raises HarnessError while any answer is not judged: that is never
    counted as 0.
    """
    prepare_environment()
    if benchmark.judge is None:
        raise HarnessError(f"benchmark {benchmark.name} names no judge: its rules have scored it already.")
    stored = read_rows(answers / SAMPLES)
    if benchmark.judge.startswith(RULES):
        rows, score = _by_rules(benchmark, benchmark.judge.removeprefix(RULES), stored)
    else:
        rows, score = _by_model(spec, benchmark, benchmark.judge, stored, partial)
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / SAMPLES, rows)
    write_score(out / SCORE, score, replace(spec, judge=benchmark.judge), rows, {})
    return score


def _by_rules(benchmark: Benchmark, name: str, stored: list[Row]) -> tuple[list[Row], BenchmarkScore]:
    rule = load_rule(name)
    rows = [replace(row, score=rule(row.answer, row.target)) for row in stored]
    _check_judged(benchmark, sum(r.score is None for r in rows), len(rows))
    items = [Item(score=r.score or 0.0, group=r.group, stratum=r.stratum) for r in rows]
    return rows, make_score(benchmark, recomputed(benchmark, items), rows)


def load_rule(name: str) -> Rule:
    """The function `MODULE:FUNCTION`; raises HarnessError where there is none."""
    module, _, function = name.partition(":")
    try:
        rule = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as e:
        raise HarnessError(f"judge rules:{name} cannot be loaded ({e}): write rules:MODULE:FUNCTION.") from None
    if not callable(rule):
        raise HarnessError(f"judge rules:{name} is not a function: write rules:MODULE:FUNCTION.")
    return rule  # type: ignore[no-any-return]


def _by_model(
    spec: EvalSpec, benchmark: Benchmark, name: str, stored: list[Row], partial: Path
) -> tuple[list[Row], BenchmarkScore]:
    from harness.evaluation.judge_server import JudgeUnavailable, judged_by, lmms_eval_judge
    from harness.evaluation.replay import SieveReplay

    client = lmms_eval_judge(name, partial / "judge.jsonl")
    model = SieveReplay.of(stored_answers(stored))
    try:
        with judged_by(client):
            result = run_task(model, spec, partial / "engine")
    except JudgeUnavailable as e:
        raise HarnessError(
            f"benchmark {benchmark.name} is not judged: {e}. Replies so far are kept; run again."
        ) from e
    _check_judged(benchmark, len(client.empty), len(stored))
    check_items(benchmark, result, spec.limit)
    return score_run(benchmark, result, model.answers)


def stored_answers(rows: list[Row]) -> list[Answer]:
    """The answers that rows hold, under the doc_ids of their own task."""
    first: dict[str, int] = {}
    for row in rows:
        first[row.task] = min(first.get(row.task, row.doc_id), row.doc_id)
    return [
        Answer(
            task=row.task,
            doc_id=row.doc_id - first[row.task],
            input=row.input,
            text=row.answer,
            tokens=row.output_tokens,
            truncated=row.truncated,
        )
        for row in rows
    ]


def _check_judged(benchmark: Benchmark, failed: int, total: int) -> None:
    if failed:
        raise HarnessError(
            f"benchmark {benchmark.name}: {failed} of {total} answers could not be judged, so there is no score. "
            "The judgements made are kept; run it again."
        )
