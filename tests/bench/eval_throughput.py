"""Evaluation of one checkpoint: our batched model against lmms-eval's `llava_hf`, on the same items in one run.

    python -m tests.bench.eval_throughput [--checkpoint DIR] [--device cpu] [--limit N] [--batch-size 8]

Without a checkpoint it takes miniworld's tiny backbone with random weights. The last line is one JSON object;
`speedup` is the stock time divided by ours. Times hold prompt building, generation and scoring, not the loading of
the model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from harness.evaluation.environment import prepare_environment

prepare_environment()

import torch  # noqa: E402

from harness.benchmarks import Benchmark  # noqa: E402
from harness.evalspec import engine  # noqa: E402
from harness.evaluation.adapter import SieveLlavaOv  # noqa: E402
from harness.evaluation.checkpoint import load_checkpoint  # noqa: E402
from harness.evaluation.engine import EngineResult, run_task  # noqa: E402
from harness.miniworld.architecture import build_untrained  # noqa: E402
from harness.miniworld.suite import ensure_suite, mini_suite  # noqa: E402
from harness.types import EvalSpec  # noqa: E402

TASKS = ("mini_choice", "mini_chart", "mini_free")


def spec_of(benchmark: Benchmark, args: argparse.Namespace, batch_size: int) -> EvalSpec:
    return EvalSpec(
        benchmark=benchmark.name,
        task=benchmark.task,
        task_digest="bench",
        protocol="bench",
        engine=engine(),
        batch_size=batch_size,
        dtype=args.dtype,
        limit=args.limit,
        include_path=benchmark.include_path,
    )


def timed(make: Callable[[], Any], spec: EvalSpec, scratch: Path) -> tuple[float, EngineResult]:
    """Seconds of one run, the making of the model left out."""
    model = make()
    start = time.perf_counter()
    result = run_task(model, spec, scratch)
    return time.perf_counter() - start, result


def texts(result: EngineResult) -> list[str]:
    return [str(s["resps"][0]) for rows in result.samples.values() for s in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(args, Path(folder))))


def measure(args: argparse.Namespace, folder: Path) -> dict[str, float | int | str]:
    """Run both ways over the same tasks, in turns, and compare medians."""
    from lmms_eval.models.chat.llava_hf import LlavaHf

    path = args.checkpoint or folder / "tiny"
    if args.checkpoint is None:
        build_untrained("tiny", path, seed=0)
    suite = mini_suite(str(ensure_suite(folder / "world")))
    checkpoint = load_checkpoint(path, device=args.device, dtype=args.dtype, attention="sdpa")
    workers = args.threads - 1 if args.device == "cpu" else max(1, args.threads - 1)

    def ours() -> SieveLlavaOv:
        journal = Path(tempfile.mkdtemp(dir=folder)) / "answers.jsonl"  # nothing is found in it
        return SieveLlavaOv.of(
            checkpoint,
            batch_size=args.batch_size,
            workers=workers,
            journal=journal,
            progress=lambda done, total: None,
        )

    def stock() -> LlavaHf:
        return LlavaHf(
            pretrained=str(path),
            device=args.device,
            device_map=args.device,
            dtype=args.dtype,
            attn_implementation="sdpa",
            batch_size=1,
        )

    seconds: dict[str, list[float]] = {"ours": [], "stock": []}
    same = total = 0
    for turn in range(args.repeats + 1):  # the first is to warm up: Arrow copies, lazy imports, kernels
        spent = {"ours": 0.0, "stock": 0.0}
        for name in TASKS:
            benchmark = suite[name]
            ours_s, answers = timed(ours, spec_of(benchmark, args, args.batch_size), folder / "ours")
            stock_s, expected = timed(stock, spec_of(benchmark, args, 1), folder / "stock")
            spent = {"ours": spent["ours"] + ours_s, "stock": spent["stock"] + stock_s}
            if turn == 0:
                pairs = list(zip(texts(answers), texts(expected), strict=True))
                same, total = same + sum(a == b for a, b in pairs), total + len(pairs)
        if turn > 0:
            for way, value in spent.items():
                seconds[way].append(value)
    ours_s, stock_s = median(seconds["ours"]), median(seconds["stock"])
    return {
        "bench": "eval_throughput",
        "device": args.device,
        "batch_size": args.batch_size,
        "threads": args.threads,
        "items": total,
        "ours_items_per_s": round(total / ours_s, 2),
        "stock_items_per_s": round(total / stock_s, 2),
        "speedup": round(stock_s / ours_s, 3),
        "same_answers": round(same / total, 4),
    }


if __name__ == "__main__":
    main()
