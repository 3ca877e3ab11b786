"""Summaries as plain JSON, with names a reader of the file can do without the code for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from harness.benchmarks import Suite
from harness.types import Json
from reports.cost import CellCost, CostLine, cell_cost, device, sharers, total, total_seconds
from reports.curves import Crossing, Curve
from reports.metrics import BEATS_RANDOM, REL_FULL, Count, metric_version
from reports.rows import CellRow
from reports.summary import BackboneSummary, MethodSummary, VsRandom


def as_json(summaries: Sequence[BackboneSummary], suite: Suite) -> dict[str, Json]:
    """Suite, metric versions and, per backbone, every method at every budget and every curve."""
    return {
        "suite": {"name": suite.name, "benchmarks": [b.name for b in suite.benchmarks]},
        "metrics": {m.partition("@")[0]: metric_version(m, suite) for m in (REL_FULL, BEATS_RANDOM)},
        "backbones": [
            {
                "backbone": s.grid.backbone,
                "methods": [_method(m, suite) for m in s.methods],
                "curves": [_plain(c) for c in s.curves],
            }
            for s in summaries
        ],
    }


def cost_json(cells: Sequence[CellRow], lines: Iterable[CostLine]) -> Json:
    """Totals over distinct stages, what every cell cost, and means per cell of every line of the cost table."""
    users = sharers(cells)
    return {
        "device": device(cells),
        "total": {part: _plain(cost) for part, cost in total(cells).items()},
        "total_device_s": {part: _plain(seconds) for part, seconds in total_seconds(cells).items()},
        "cells": {c.name: _cell_cost(cell_cost(c, users)) for c in cells if c.stages},
        "methods": [_plain(line) for line in lines],
    }


def _cell_cost(cost: CellCost) -> dict[str, Json]:
    return {f.name: _plain(getattr(cost, f.name)) for f in dataclasses.fields(cost)} | {
        "full": cost.full,
        "shared": cost.shared,
    }


def _method(m: MethodSummary, suite: Suite) -> Json:
    g = m.group
    return {
        "method": g.method,
        "budget": g.budget,
        "budget_fraction": g.budget_fraction,
        "n_selected": g.n_selected,
        "runs": [
            {"seed": seed, "status": list(status), "values": _plain(values)}
            for seed, status, values in zip(g.seeds, g.status, g.values, strict=True)
        ],
        "trials": g.n_trials,
        "scores": {b.name: _plain(v) for b, v in zip(suite.benchmarks, m.scores, strict=True)},
        "relative": {b.name: _plain(v) for b, v in zip(suite.benchmarks, m.relative, strict=True)},
        "rel_full": m.rel,
        "rel_full_sd": m.rel_sd,
        "averages": _plain(m.averages),
        "ranking": _plain(m.ranking),
        "vs_random": _vs_random(m.vs_random) if m.vs_random else None,
    }


def _vs_random(v: VsRandom) -> Json:
    better, worse = v.significant
    return {
        **{f.name: _plain(getattr(v, f.name)) for f in dataclasses.fields(v)},
        "significantly_better": better,
        "significantly_worse": worse,
    }


def _plain(value: Any) -> Json:
    """JSON of numbers, arrays and dataclasses; what is not a number becomes null."""
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, Count | Crossing):
        return str(value)
    if isinstance(value, Curve):
        return [[_plain(b), _plain(v)] for b, v in zip(value.budgets, value.values, strict=True)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "shape") and value.shape:
        return [_plain(v) for v in value]
    number = float(value)
    return number if math.isfinite(number) else None
