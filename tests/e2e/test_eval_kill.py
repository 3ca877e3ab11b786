"""Evaluation in processes of its own: killed and resumed, and through lmms-eval's command line."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from eval_support import spec_of, tiny_checkpoint, write_task

from harness.benchmarks import Benchmark
from harness.evaluation.results import SAMPLES, SCORE
from harness.evaluation.session import EvalSession

pytestmark = pytest.mark.e2e

RUN = """
import json, sys
from pathlib import Path
from harness.benchmarks import Benchmark
from harness.evaluation.session import EvalSession
from harness.types import EvalSpec

checkpoint, spec, entry, out, partial = sys.argv[1:]
entry = json.loads(entry)
benchmark = Benchmark(**(entry | {"metrics": tuple(entry["metrics"])}))
session = EvalSession(Path(checkpoint), device="cpu", dtype="float32", attention="sdpa", batch_size=2, threads=1)
session.run(EvalSpec(**json.loads(spec)), benchmark, Path(out), Path(partial))
"""
"""A process that evaluates and nothing else; it is there to be killed."""


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    return write_task(tmp_path_factory.mktemp("task"), n=80)


def evaluate(benchmark: Benchmark, out: Path, partial: Path) -> None:
    """The same evaluation in this process."""
    session = EvalSession(
        tiny_checkpoint(), device="cpu", dtype="float32", attention="sdpa", batch_size=2, threads=1
    )
    session.run(spec_of(benchmark, batch_size=2), benchmark, out, partial)


def start(benchmark: Benchmark, out: Path, partial: Path) -> subprocess.Popen[bytes]:
    spec = json.dumps(dataclasses.asdict(spec_of(benchmark, batch_size=2)))
    entry = json.dumps(dataclasses.asdict(benchmark))
    command = [sys.executable, "-c", RUN, str(tiny_checkpoint()), spec, entry, str(out), str(partial)]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_a_killed_evaluation_resumes_to_the_same_bytes(benchmark: Benchmark, tmp_path: Path) -> None:
    whole, cut, partial = tmp_path / "whole", tmp_path / "cut", tmp_path / "partial"
    evaluate(benchmark, whole, tmp_path / "other")
    journal = partial / "answers.jsonl"
    process = start(benchmark, cut, partial)
    while process.poll() is None and not (journal.exists() and journal.stat().st_size > 0):
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert 0 < journal.read_bytes().count(b"\n") < 80, "killed in the middle"
    assert not cut.exists()
    evaluate(benchmark, cut, partial)
    for name in (SAMPLES, SCORE):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_lmms_eval_command_line_gives_the_same_score(benchmark: Benchmark, tmp_path: Path) -> None:
    evaluate(benchmark, tmp_path / "ours", tmp_path / "partial")
    command = [sys.executable, "-m", "lmms_eval", "--model", "sieve_llava_ov", "--device", "cpu"]
    command += ["--model_args", f"pretrained={tiny_checkpoint()},dtype=float32", "--batch_size", "2"]
    command += ["--tasks", benchmark.task, "--include_path", benchmark.include_path]
    command += ["--output_path", str(tmp_path / "cli"), "--log_samples", "--verbosity", "DEBUG"]
    # Training in this process may have left its ranks in the environment; lmms-eval would join them.
    alone = {
        k: v for k, v in os.environ.items() if not k.endswith("RANK") and not k.startswith(("WORLD_", "MASTER_"))
    }
    environment = {**alone, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    results = list((tmp_path / "cli").rglob("*_results.json"))
    assert len(results) == 1, done.stdout[-2000:] + done.stderr[-2000:]
    value = json.loads(results[0].read_text())["results"][benchmark.task]["hit,none"]
    assert 100 * value == pytest.approx(json.loads((tmp_path / "ours" / SCORE).read_text())["value"])
