"""The evaluate and judge stages: one benchmark of one checkpoint."""

from __future__ import annotations

from typing import Any

from harness.benchmarks import Benchmark
from harness.stages.context import Facts, StageContext
from harness.types import BenchmarkScore, EvalSpec


def run_evaluate(context: StageContext) -> Facts:
    """Answer and score a benchmark's items; the model stays loaded for the job's next benchmark."""
    from harness.evaluation.journal import read_answers

    spec, benchmark = _read(context)
    session = _session(context, spec)
    kept = len(read_answers(context.partial / "answers.jsonl"))
    score = session.run(spec, benchmark, context.out, context.partial, context.progress)
    return _facts(score) | {"n_resumed": kept}


def _session(context: StageContext, spec: EvalSpec) -> Any:
    from harness.evaluation.session import EvalSession

    checkpoint = context.input("train.checkpoint") / "model"
    identity = ("session", str(checkpoint), spec.batch_size, spec.dtype, spec.attention)
    if identity not in context.shared:
        context.shared[identity] = EvalSession(
            checkpoint,
            device=context.device,
            dtype=spec.dtype,
            attention=spec.attention,
            batch_size=spec.batch_size,
            threads=context.threads,
        )
    return context.shared[identity]


def _read(context: StageContext) -> tuple[EvalSpec, Benchmark]:
    raw, entry = context.stage.params["eval"], context.stage.settings["benchmark"]
    assert isinstance(raw, dict)
    assert isinstance(entry, dict)
    spec = EvalSpec(**raw, include_path=str(context.stage.settings["include_path"]))  # type: ignore[arg-type]
    fields = entry | {"metrics": tuple(entry["metrics"])}  # type: ignore[arg-type]
    return spec, Benchmark(**fields)  # type: ignore[arg-type]


def _facts(score: BenchmarkScore | None) -> Facts:
    if score is None:  # answers only: a judge gives the number
        return {}
    return {"value": score.value, "n": score.n, "n_invalid": score.n_invalid, "metric": score.metric}


def run_judge(context: StageContext) -> Facts:
    """Score stored answers with the benchmark's judge."""
    from harness.evaluation.judge import judge

    spec, benchmark = _read(context)
    answers = context.input("evaluate.answers")
    return _facts(judge(spec, benchmark, answers, context.out, context.partial))
