"""Running benchmarks on one checkpoint that is loaded once."""

from __future__ import annotations

from pathlib import Path

import torch

from harness.benchmarks import Benchmark
from harness.evaluation.answering import Progress
from harness.evaluation.checkpoint import load_checkpoint
from harness.evaluation.engine import run_task
from harness.evaluation.environment import prepare_environment
from harness.evaluation.results import SAMPLES, SCORE, make_rows, write_rows, write_score
from harness.evaluation.scoring import score_run
from harness.evaluation.validate import check_items
from harness.types import BenchmarkScore, EvalSpec


def _silent(done: int, total: int) -> None:
    """Progress that nobody watches."""


class EvalSession:
    """A checkpoint in memory, on which benchmarks are run one after another."""

    def __init__(
        self, checkpoint: Path, *, device: str, dtype: str, attention: str, batch_size: int, threads: int
    ) -> None:
        """Load the checkpoint folder; `threads` are the CPU threads this process may use."""
        prepare_environment()
        torch.set_num_threads(threads)
        self._checkpoint = load_checkpoint(checkpoint, device=device, dtype=dtype, attention=attention)
        self._batch_size = batch_size
        # On a CPU the model needs the threads itself; beside a GPU there is always one to spare.
        self._workers = threads - 1 if device == "cpu" else max(1, threads - 1)

    def run(
        self, spec: EvalSpec, benchmark: Benchmark, out: Path, partial: Path, progress: Progress = _silent
    ) -> BenchmarkScore | None:
        """Answer and score one benchmark; None where a judge has to give the score.

        `out` receives `samples.parquet` and `score.json`; `partial` keeps the answers given so far, with which
        an interrupted run goes on. Raises InvalidRun where lmms-eval's result is not whole.
        """
        from harness.evaluation.adapter import SieveLlavaOv

        partial = partial.resolve()  # lmms-eval runs in a folder of its own
        model = SieveLlavaOv.of(
            self._checkpoint,
            batch_size=self._batch_size,
            workers=self._workers,
            journal=partial / "answers.jsonl",
            progress=progress,
        )
        judged = benchmark.judge is not None
        result = run_task(model, spec, partial / "engine", predict_only=judged)
        check_items(benchmark, result, spec.limit)
        rows, score = (
            (make_rows(benchmark, result, model.answers, None), None)
            if judged
            else score_run(benchmark, result, model.answers)
        )
        out.mkdir(parents=True, exist_ok=True)
        write_rows(out / SAMPLES, rows)
        write_score(out / SCORE, score, spec, rows, {} if judged else result.metrics)
        return score
