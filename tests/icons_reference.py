"""ICONS written down as plainly as its description, to set the fast one against."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def influences(
    gradients: Sequence[Sequence[float]], targets: Sequence[Sequence[float]], tasks: Sequence[str]
) -> dict[str, list[float]]:
    """Of every sample on every task: the mean over the task's samples of the products, its largest part's."""
    parts: dict[str, list[list[float]]] = {}
    for row, part in zip(targets, tasks, strict=True):
        if not math.isnan(row[0]):
            parts.setdefault(part, []).append(list(row))
    found: dict[str, list[float]] = {}
    for part, rows in parts.items():
        mine = [
            math.fsum(math.fsum(a * b for a, b in zip(sample, row, strict=True)) for row in rows) / len(rows)
            for sample in gradients
        ]
        task = part.split("/")[0]
        found[task] = [max(pair) for pair in zip(found.get(task, mine), mine, strict=True)]
    return found


def votes(influence: Sequence[Sequence[float]], percent: float) -> list[float]:
    """Votes of tasks, (tasks, samples), by numpy's percentile; NaN where a sample has no influence."""
    total = np.zeros(len(influence[0]))
    for column in np.array(influence, dtype=np.float64):
        threshold = np.percentile(column[~np.isnan(column)], 100 - percent)
        total += np.where(np.isnan(column), np.nan, column >= threshold - 1e-12)
    return [float(v) for v in total]


def keep(votes: Sequence[float], ties: Sequence[int], n: int) -> list[int]:
    """The n with the most votes, equal ones by their tie number, those without votes to count last."""
    worth = [-math.inf if math.isnan(v) else v for v in votes]
    return sorted(range(len(votes)), key=lambda i: (-worth[i], ties[i]))[:n]
