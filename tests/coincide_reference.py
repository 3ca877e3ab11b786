"""COINCIDE (arXiv 2406.10995) written down as plainly as its description, to set the fast one against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def nearest(rows: Array, centroids: Array) -> list[int]:
    """One row at a time; the first of the nearest."""
    out = []
    for row in rows.astype(np.float64):
        products = (row * centroids.astype(np.float64)).sum(axis=1)
        out.append(int(np.flatnonzero(products >= products.max() - 1e-12)[0]))
    return out


def unit(rows: Array) -> Array:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def kmeans(rows: Array, order: Sequence[int], k: int, iterations: int) -> tuple[list[int], Array]:
    """Labels and centroids by Lloyd's algorithm, for data in which no cluster runs empty."""
    centroids = unit(rows[list(order[:k])].astype(np.float64))
    for _ in range(iterations):
        labels = np.array(nearest(rows, centroids))
        assert len(set(labels.tolist())) == k
        centroids = unit(np.array([rows[labels == c].astype(np.float64).sum(axis=0) for c in range(k)]))
    return nearest(rows, centroids), centroids


def transferability(centroids: Array, *, released: bool, mask: float = 0.9) -> list[float]:
    """Cluster by cluster, and one other at a time."""
    parts = (centroids[:, centroids.shape[1] // 2 :] if released else centroids).astype(np.float64)
    parts = parts / np.linalg.norm(parts, axis=1, keepdims=True)
    means = []
    for i, part in enumerate(parts):
        cosines = [float(part @ other) for j, other in enumerate(parts) if released or j != i]
        counted = [c for c in cosines if c <= mask] if released else cosines
        means.append(sum(counted) / len(counted) if counted else 0.0)
    return means


def kernel(rows: Array, sigma: float) -> Array:
    """Gaussian kernel of every pair."""
    x = rows.astype(np.float64)
    return np.array([np.exp(-((x - a) ** 2).sum(axis=1) / (2 * sigma**2)) for a in x])


def greedy(k: Array) -> list[int]:
    """The next member is the one with which the discrepancy is smallest; the first among equals."""
    taken: list[int] = []
    while len(taken) < len(k):
        discrepancy = {}
        for c in set(range(len(k))) - set(taken):
            s = [*taken, c]
            discrepancy[c] = k.mean() + k[np.ix_(s, s)].mean() - 2 * k[:, s].mean()
        least = min(discrepancy.values())
        taken.append(min(c for c, value in discrepancy.items() if value <= least + 1e-13))
    return taken


def budgets(share: Sequence[float], sizes: Sequence[int], n: int, temperature: float) -> list[int]:
    """Cluster by cluster, the softmax written out each time; again for what rounding leaves."""
    taken = [0] * len(sizes)
    while sum(taken) < n:
        left = n - sum(taken)
        waiting = [i for i in range(len(sizes)) if taken[i] < sizes[i]]
        waiting.sort(key=lambda i: (-share[i], i))
        while waiting:
            top = share[waiting[0]]
            weights = [math.exp((share[i] - top) / temperature) for i in waiting]
            first = waiting.pop(0)
            take = min(round(left * weights[0] / sum(weights)), sizes[first] - taken[first])
            taken[first] += take
            left -= take
    return taken


def keep(
    rows: Array,
    labels: Sequence[int],
    centroids: Array,
    ties: Sequence[int],
    n: int,
    *,
    released: bool = True,
    temperature: float = 0.1,
    sigma: float = 1.0,
) -> set[int]:
    """The samples kept of clustered rows; those labelled -1 are none of them."""
    share, order = [], []
    for c, transfer in enumerate(transferability(centroids, released=released)):
        members = sorted((i for i, label in enumerate(labels) if label == c), key=lambda i: ties[i])
        k, m = kernel(rows[members], sigma), len(members)
        dense = float(k.mean()) if released or m == 1 else float((k.sum() - m) / (m * (m - 1)))
        share.append(transfer / dense)
        order.append([members[i] for i in greedy(k)])
    counts = budgets(share, [len(o) for o in order], n, temperature)
    return {i for members, count in zip(order, counts, strict=True) for i in members[:count]}
