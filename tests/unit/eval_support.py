"""A random LLaVA-OneVision, a small local benchmark and shorthand for running it."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from harness.benchmarks import Benchmark
from harness.evalspec import engine
from harness.types import EvalSpec

os.environ.setdefault("SIEVEBENCH_CACHE", tempfile.mkdtemp(prefix="sievebench-tests-"))

YAML = """\
task: {name}
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: items.parquet}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
process_results: !function utils.score
metric_list: [{{metric: hit, aggregation: mean, higher_is_better: true}}]
generation_kwargs: {{max_new_tokens: 6, temperature: 0, top_p: 1.0, num_beams: 1, do_sample: false}}
metadata: {{version: 1.0}}
"""
UTILS = """\
def visual(doc):
    return [doc["image"].convert("RGB")]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def score(doc, results):
    return {"hit": float(len(results[0]) % 2 == doc["answer"] % 2)}
"""


def picture(seed: int, height: int = 48, width: int = 48) -> Image.Image:
    """Noise: a random model tells any two such pictures apart."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@functools.cache
def tiny_checkpoint() -> Path:
    """A folder with miniworld's smallest backbone and random weights, made once."""
    from harness.miniworld.architecture import build_untrained

    folder = Path(tempfile.mkdtemp(prefix="sievebench-tiny-"))
    build_untrained("tiny", folder, seed=5)
    return folder


def write_task(folder: Path, n: int = 12, name: str = "local_odd") -> Benchmark:
    """A local benchmark of n items, two to a cluster, and the task files it needs."""
    import datasets

    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(YAML.format(name=name))
    (folder / "utils.py").write_text(UTILS)
    rows = [
        {
            "image": picture(i, 40 + 7 * (i % 5), 48 + 9 * (i % 4)),
            "question": "what is the colour of the circle" + " on the left" * (i % 6) + "?",
            "answer": i,
            "scene": i // 2,
        }
        for i in range(n)
    ]
    data = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    data.to_parquet(str(folder / "items.parquet"))
    return Benchmark(
        name="odd",
        title="Odd",
        task=name,
        metrics=("hit,none",),
        item_score="hit",
        cluster="scene",
        n_items=n,
        include_path=str(folder),
    )


def spec_of(benchmark: Benchmark, *, batch_size: int = 4, limit: int | None = None) -> EvalSpec:
    """The EvalSpec under which tests run a benchmark."""
    return EvalSpec(
        benchmark=benchmark.name,
        task=benchmark.task,
        task_digest="test",
        protocol="test",
        engine=engine(),
        batch_size=batch_size,
        limit=limit,
        generation=benchmark.generation,
        include_path=benchmark.include_path,
    )
