"""Selection algorithms written down as plainly as their descriptions, to set the fast ones against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def mmssr(
    scores: Sequence[Sequence[float]],
    labels: Sequence[Sequence[str]],
    ties: Sequence[int],
    n: int,
    *,
    threshold: float = 0.0,
    strict_score: bool = False,
    released: bool = False,
) -> list[int]:
    """Positions in the order they are taken; `scores` is (capabilities, samples), `labels` the buckets of each."""
    chosen: list[int] = []
    pool = set(range(len(labels)))
    caps = list(range(len(scores)))
    while len(chosen) < n and caps:
        share = max((n - len(chosen)) // len(caps), 1)
        dead = []
        for c in caps:
            if len(chosen) >= n:
                break
            candidates = [i for i in pool if scores[c][i] > threshold]  # NaN is above nothing
            if not candidates:
                dead.append(c)
                continue
            taken = mmssr_fill(
                candidates,
                scores[c],
                labels,
                ties,
                min(share, n - len(chosen)),
                strict_score=strict_score,
                released=released,
            )
            chosen += taken
            pool -= set(taken)
        caps = [c for c in caps if c not in dead]
    return chosen


def mmssr_fill(
    candidates: Sequence[int],
    score: Sequence[float],
    labels: Sequence[Sequence[str]],
    ties: Sequence[int],
    wanted: int,
    *,
    strict_score: bool = False,
    released: bool = False,
) -> list[int]:
    """What one capability takes of its candidates."""
    order = sorted(candidates, key=lambda i: (-score[i], ties[i]))
    buckets: dict[str, list[int]] = {}
    for place in range(max(len(row) for row in labels)):
        for i in order:
            if place < len(labels[i]):
                buckets.setdefault(labels[i][place], []).append(i)
    if strict_score:
        buckets = {k: sorted(v, key=order.index) for k, v in buckets.items()}
    quota = max(wanted // len(buckets), 1)
    debt = 0
    taken: list[int] = []
    for _, bucket in sorted(buckets.items(), key=lambda item: (len(item[1]), item[0])):
        if len(taken) >= wanted:
            break
        free = [i for i in bucket if i not in taken]
        room = len(free) if released else wanted - len(taken)
        take = min(quota + debt, len(free), room)
        debt = max(quota + debt - len(free), 0)
        taken += free[:take]
    return taken


def band(score: Sequence[float], ties: Sequence[int], n: int, which: str) -> set[int]:
    """The samples of a band of a score; those without one last, by tie."""
    known = [i for i in range(len(score)) if not math.isnan(score[i])]
    unknown = sorted((i for i in range(len(score)) if math.isnan(score[i])), key=lambda i: ties[i])
    rising = sorted(known, key=lambda i: (score[i], ties[i]))
    falling = sorted(known, key=lambda i: (-score[i], ties[i]))
    size = min(n, len(known))
    start = len(known) // 2 - size // 2
    kept = {"top": falling[:size], "bottom": rising[:size], "middle": rising[start : start + size]}[which]
    return {*kept, *unknown[: n - size]}


def diverse(
    score: Sequence[float], ties: Sequence[int], rows: np.ndarray[Any, Any], n: int, threshold: float
) -> list[int]:
    """The best first, but none too near to one kept before; then the best of those, then those without a score."""
    unit = rows.astype(np.float64)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-300)
    missing = [i for i in range(len(score)) if math.isnan(score[i]) or np.isnan(unit[i]).any()]
    judged = sorted((i for i in range(len(score)) if i not in missing), key=lambda i: (-score[i], ties[i]))
    kept: list[int] = []
    refused: list[int] = []
    for i in judged:
        near = any(float((unit[i] * unit[j]).sum()) > threshold for j in kept)
        (refused if near else kept).append(i)
    return [*kept, *refused, *sorted(missing, key=lambda i: ties[i])][:n]
