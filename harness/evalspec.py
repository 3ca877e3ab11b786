"""What identifies one benchmark run, worked out without loading the evaluator."""

from __future__ import annotations

import functools
from importlib import metadata
from pathlib import Path

from harness.benchmarks import Benchmark
from harness.cells import EvalSettings
from harness.evaluation.local import check_local_task
from harness.keys import tree_digest
from harness.types import EvalSpec


@functools.cache
def engine() -> str:
    """`lmms-eval` and its installed version, which lmms-eval itself does not report."""
    return f"lmms-eval {metadata.version('lmms-eval')}"


@functools.lru_cache(maxsize=32)
def _folder_digest(path: str) -> str:
    return tree_digest(Path(path))


@functools.lru_cache(maxsize=1024)
def _check(path: str, task: str) -> None:
    """Look once for what a task names: a hole found now is not found after training."""
    check_local_task(path, task)


def eval_spec(benchmark: Benchmark, protocol: str, settings: EvalSettings) -> EvalSpec:
    """The identity of a benchmark run under some settings.

    Raises HarnessError where the benchmark's task folder does not exist, or its task or data are not in it.
    """
    local = benchmark.include_path
    if local:
        _check(local, benchmark.task)  # also before the folder is read for its digest
    return EvalSpec(
        benchmark=benchmark.name,
        task=benchmark.task,
        task_digest=_folder_digest(local) if local else engine(),
        protocol=protocol,
        engine=engine(),
        batch_size=settings.batch_size,
        dtype=settings.dtype,
        backend=settings.backend,
        attention=settings.attention,
        limit=settings.limit,
        generation=benchmark.generation,
        judge=benchmark.judge,
        include_path=local,
    )
