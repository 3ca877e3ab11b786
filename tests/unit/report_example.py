"""A made-up study for tests and timings: seeded random numbers with planted effects, results of nothing real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.benchmarks import TABLE10, Suite
from harness.keys import seed64
from harness.types import Budget, Cost
from reports.rows import CellRow, Part, ScoreRow, StageUse, Status

EFFECTS = {"random": 0.0, "mmssr": 3.0, "coincide": 0.6, "length": -1.5, "clip_score": -3.0}
"""REL points over random that the example plants."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Size of the example and what goes wrong in it."""

    suite: Suite = TABLE10
    methods: Sequence[str] = tuple(EFFECTS)
    budgets: Sequence[str] = ("5%", "10%", "30%")
    backbones: Sequence[str] = ("tiny", "tiny_b")
    seeds: int = 3
    noise: float = 0.5
    """SD over runs, in REL points, shared by all benchmarks; each benchmark adds as much of its own."""
    failed: tuple[str, ...] = ("coincide/30%/tiny_b/s2",)
    hole: str = "clip_score/10%/tiny_b/s1"
    """A run without its last benchmark."""


def example(study: Study | None = None) -> tuple[list[ScoreRow], list[CellRow]]:
    """Score rows and cell rows of the study, always the same ones."""
    study = study or Study()
    runs = [("full", "100%", b, s) for b in study.backbones for s in range(min(study.seeds, 3))]
    runs += [
        (m, budget, b, s)
        for b in study.backbones
        for budget in study.budgets
        for m in study.methods
        for s in range(study.seeds)
    ]
    rows = [row for run in runs for row in _scores(study, *run)]
    return rows, [_cell(study, *run) for run in runs]


def _scores(study: Study, method: str, budget: str, backbone: str, seed: int) -> list[ScoreRow]:
    rng = np.random.default_rng(seed64(method, budget, backbone, seed))
    share = float(Budget.parse(budget).fraction or 0)
    level = 100 + 8 * np.log10(share) + (0 if method == "full" else EFFECTS.get(method, 0.0))
    rel = level + study.noise * (rng.normal() + rng.normal(size=len(study.suite.benchmarks)))
    name = f"{method}/{budget}/{backbone}/s{seed}"
    out = []
    for j, b in enumerate(study.suite.benchmarks):
        status: Status = "ok"
        if name in study.failed:
            status = "failed"
        elif name == study.hole and j == len(study.suite.benchmarks) - 1:
            status = "missing"
        top = b.minimum + (b.maximum - b.minimum) * (0.55 + 0.03 * j)
        out.append(
            ScoreRow(
                method=method,
                budget=budget,
                budget_fraction=share,
                n_selected=int(share * 6000),
                backbone=backbone,
                seed=seed,
                benchmark=b.name,
                value=round(float(top * rel[j] / 100), 4) if status == "ok" else None,
                n_items=b.n_items,
                status=status,
            )
        )
    return out


def _cell(study: Study, method: str, budget: str, backbone: str, seed: int) -> CellRow:
    share = float(Budget.parse(budget).fraction or 0)
    name = f"{method}/{budget}/{backbone}/s{seed}"
    failed = name in study.failed
    seconds: dict[Part, float] = {
        "select": 0.0 if method in ("random", "full") else 40.0 + len(method),
        "train": 300 * share + 5,
        "eval": 12.0,
    }
    keys: dict[Part, str] = {"select": f"{method}", "train": f"train/{name}", "eval": f"eval/{name}"}
    return CellRow(
        method=method,
        budget=budget,
        budget_fraction=share,
        n_selected=int(share * 6000),
        backbone=backbone,
        seed=seed,
        status="failed" if failed else "missing" if name == study.hole else "ok",
        stages=tuple(
            StageUse(part=p, key=keys[p], label=f"{p} {name}", cost=Cost(wall_s=s, cpu_s=2 * s, attempts=1))
            for p, s in seconds.items()
            if s > 0 and not (failed and p == "eval")
        ),
        failure="train: loss is not finite at step 12" if failed else "",
        command=f"python -m harness selector={method} budget={budget} backbone={backbone} seed={seed}",
    )
