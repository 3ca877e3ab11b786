"""What identifies one benchmark run, worked out without loading the evaluator."""

from __future__ import annotations

import functools
from importlib import metadata
from pathlib import Path

from harness.benchmarks import Benchmark
from harness.cells import EvalSettings
from harness.errors import HarnessError
from harness.keys import tree_digest
from harness.types import EvalSpec


@functools.cache
def engine() -> str:
    """`lmms-eval` and its installed version, which lmms-eval itself does not report."""
    return f"lmms-eval {metadata.version('lmms-eval')}"


@functools.lru_cache(maxsize=32)
def _folder_digest(path: str) -> str:
    folder = Path(path)
    if not folder.is_dir():
        raise HarnessError(f"there is no task folder {path}: give a folder with lmms-eval task files.")
    return tree_digest(folder)


def eval_spec(benchmark: Benchmark, protocol: str, settings: EvalSettings) -> EvalSpec:
    """The identity of a benchmark run under some settings.

    Raises HarnessError where the benchmark's task folder does not exist.
    """
    local = benchmark.include_path
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
