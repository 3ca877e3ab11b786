"""How long a report of 1,000 cells on 14 benchmarks takes, beside the same summaries in plain pandas.

    python -m tests.bench.report_speed

The pandas side computes /FULL and >Rand alone; ours adds spreads, tests, ranks and curves to them, and the whole
report writes tables, figures and page. Last line: JSON; both sides must agree on the numbers.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from harness.benchmarks import LMMS14
from harness.keys import seed64
from reports.build import ReportMeta, build_report, summarise_report
from reports.rows import ScoreRow

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from report_example import Study, example

STUDY = Study(
    suite=LMMS14,
    methods=("random", *(f"m{i}" for i in range(9))),
    budgets=("1%", "5%", "10%", "30%", "50%"),
    seeds=10,
    failed=(),
    hole="",
)
META = ReportMeta(title="1,000 cells")


T = TypeVar("T")


def pandas_summaries(rows: list[ScoreRow]) -> pd.DataFrame:
    """/FULL and >Rand by backbone, budget and method; rows with holes would need more than this."""
    frame = pd.DataFrame([dataclasses.asdict(r) for r in rows])
    scores = frame[frame.method != "full"]
    full = frame[frame.method == "full"].groupby(["backbone", "benchmark"]).value.mean().rename("full")
    means = (
        scores.groupby(["backbone", "budget", "method", "benchmark"]).value.mean().rename("score").reset_index()
    )
    random = means[means.method == "random"].set_index(["backbone", "budget", "benchmark"]).score.rename("random")
    means = means.join(full, on=["backbone", "benchmark"]).join(random, on=["backbone", "budget", "benchmark"])
    means["rel"] = 100 * means.score / means.full
    means["wins"] = means.score > means.random
    return means.groupby(["backbone", "budget", "method"]).agg(rel=("rel", "mean"), wins=("wins", "sum"))


def best_of(n: int, work: Callable[[], T]) -> tuple[float, T]:
    """Shortest of `n` times in seconds, and the result."""
    times = []
    for _ in range(n):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return min(times), result


def main() -> None:
    rows, cells = example(STUDY)
    rng = np.random.default_rng(seed64("shuffle"))
    rows = [rows[i] for i in rng.permutation(len(rows))]
    plain_s, plain = best_of(3, lambda: pandas_summaries(rows))
    ours_s, report = best_of(3, lambda: summarise_report(rows, cells, LMMS14, META))
    with tempfile.TemporaryDirectory() as out:
        build_s, _ = best_of(2, lambda: build_report(rows, cells, LMMS14, Path(out), META))
    for m in (m for s in report.summaries for m in s.methods if m.vs_random):
        expected = plain.loc[m.group.backbone, m.group.budget, m.group.method]
        assert abs(m.rel - expected.rel) < 1e-9
        assert m.vs_random.beats.wins == expected.wins
    print(
        json.dumps(
            {
                "cells": len(cells),
                "benchmarks": len(LMMS14.benchmarks),
                "summaries_s": round(ours_s, 3),
                "report_s": round(build_s, 3),
                "pandas_s": round(plain_s, 3),
                "summaries_over_pandas": round(ours_s / plain_s, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
