"""One call of lmms-eval for one benchmark, in process and alone."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.evaluation.environment import isolated
from harness.evaluation.reading import Sample
from harness.evaluation.tasks import task_manager
from harness.types import EvalSpec, Json

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineResult:
    """What lmms-eval reported."""

    metrics: Mapping[str, Any]
    """`results[task]`: values by `metric,filter`."""
    samples: Mapping[str, Sequence[Sample]]
    """Logged items by task; several tasks where the benchmark is a group."""
    sizes: Mapping[str, int]
    """Documents of each task, before any limit."""


def run_task(model: Any, spec: EvalSpec, scratch: Path, *, predict_only: bool = False) -> EngineResult:
    """Run the task of `spec` through `simple_evaluate` with a loaded lmms-eval model.

    Whatever the task writes lands in `scratch`. With `predict_only` answers are collected and not scored.
    Raises HarnessError where the task or its data cannot be found; failures of the model are passed on.
    """
    from lmms_eval import evaluator
    from tenacity import RetryError

    scratch = scratch.resolve()
    folder = str(Path(spec.include_path).resolve()) if spec.include_path else ""
    with isolated(scratch, local_data=bool(folder)):
        manager = task_manager(spec.task, folder, scratch)
        try:
            raw = evaluator.simple_evaluate(
                model=model,
                tasks=[spec.task],
                task_manager=manager,
                batch_size=spec.batch_size,
                limit=spec.limit,
                gen_kwargs=_argument_string(spec.generation),
                bootstrap_iters=0,  # the intervals in the report come from the samples
                predict_only=predict_only,
                process_docs_parallel=1,  # some scorers draw from the global random state
                cli_args=_cli_arguments(scratch),
            )
        except RetryError as e:
            cause = e.last_attempt.exception()
            raise HarnessError(
                f"task {spec.task} failed in its own data or code ({type(cause).__name__}: {cause}). Offline, the "
                "data must be in the Hugging Face cache (SIEVEBENCH_ONLINE=1 fetches it once); for a task of "
                "your own look at its YAML file and utils.py."
            ) from cause
    return EngineResult(
        metrics=raw["results"][spec.task],
        samples={name: rows for name, rows in raw["samples"].items() if rows},
        sizes={name: sizes["original"] for name, sizes in raw["n-samples"].items()},
    )


def _argument_string(generation: Mapping[str, Json]) -> str | None:
    """lmms-eval takes overrides of generation arguments as `name=value,...`."""
    return ",".join(f"{name}={value}" for name, value in sorted(generation.items())) or None


def _cli_arguments(scratch: Path) -> argparse.Namespace:
    """What lmms-eval looks up in its command line: without it, images are decoded again for scoring."""
    return argparse.Namespace(process_with_media=False, output_path=str(scratch), reasoning_tags=None)
