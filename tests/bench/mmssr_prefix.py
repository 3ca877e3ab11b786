"""Fifteen questions about a sample: the prompt encoded once and shared, against fifteen prompts of their own.

    python -m tests.bench.mmssr_prefix [--model DIR] [--device cpu] [--samples N] [--pool DIR]

Without a model it takes miniworld's tiny backbone with random weights, without a pool miniworld's. Both ways put
the same tokens to the same model with the same batching, decode the same number of tokens, and take turns; the
last line is one JSON object. `speedup` is the time of the fifteen divided by that of the shared one (medians; on a
CPU the process's CPU time, so that others on the machine do not count), `tokens_ratio` the same of prompt tokens.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from selector_zoo.passes.mmssr import MmssrConfig, MmssrPass, asking
from selector_zoo.passes.mmssr_model import Sample
from selector_zoo.passes.mmssr_questions import tree

from harness.api import PassContext
from harness.pool import Pool, open_pool

NEW_TOKENS = 2
"""Tokens decoded of each answer: what a score takes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--pool", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(args, Path(folder))))


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both ways over the same samples, in turns, and the medians of their seconds."""
    from harness.miniworld import ensure_pool
    from harness.miniworld.architecture import build_untrained

    path = args.model or folder / "tiny"
    if args.model is None:
        build_untrained("tiny", path, seed=0)
    config = MmssrConfig(**asking("own"), max_new_tokens=NEW_TOKENS)
    feature = MmssrPass(config, PassContext(model_path=str(path), device=args.device))
    feature.open()
    pool = open_pool(args.pool or ensure_pool(400, 0, folder / "world"))
    shared = samples_of(feature, pool, args.samples)
    single = [
        replace(sample, asked=tree([sample.asked.prompt(i)]))
        for sample in shared
        for i in range(len(sample.asked.leaves))
    ]
    seconds: dict[str, list[float]] = {"shared": [], "alone": []}
    for _ in range(args.repeats + 1):  # the first is to warm up
        answers, took = timed(feature, shared)
        seconds["shared"].append(took)
        each, took = timed(feature, single)
        seconds["alone"].append(took)
        told = [text for texts in answers for text in texts]
        same = np.mean([a == b[0] for a, b in zip(told, each, strict=True)])
    once, apart = (median(seconds[name][1:]) for name in ("shared", "alone"))
    tokens = {name: sum(s.asked.tokens for s in given) for name, given in (("shared", shared), ("alone", single))}
    return {
        "benchmark": "mmssr_prefix",
        "samples": len(shared),
        "questions": len(shared[0].asked.leaves),
        "device": args.device,
        "same_answers": float(same),
        "shared_s": round(once, 3),
        "alone_s": round(apart, 3),
        "tokens_ratio": round(tokens["alone"] / tokens["shared"], 2),
        "speedup": round(apart / once, 2),
    }


def samples_of(feature: MmssrPass, pool: Pool, n: int) -> list[Sample]:
    """The first samples of a pool, ready for the model."""
    records = [pool.record(i) for i in range(n)]
    asked = {i: feature._ask(pool, i, record) for i, record in enumerate(records)}
    found, failed = feature._decode(pool, records, asked, list(range(n)))
    assert not failed
    return list(found.values())


def timed(feature: MmssrPass, samples: list[Sample]) -> tuple[list[list[str]], float]:
    """Answers to all samples, in batches as the pass makes them, and the seconds that took."""
    batches = feature._batches(dict(enumerate(s.asked for s in samples)))
    answers: dict[int, list[str]] = {}
    clock = time.process_time if feature.context.device == "cpu" else time.perf_counter
    start = clock()
    for rows in batches:
        answers |= zip(rows, feature._answerer([samples[i] for i in rows]), strict=True)
    return [answers[i] for i in range(len(samples))], clock() - start


if __name__ == "__main__":
    main()
