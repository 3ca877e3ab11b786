"""Keeping the best of what is not too alike: Deita's filter (arXiv 2312.15685), in blocks.

One by one, a sample is kept unless its cosine similarity to one kept before exceeds a threshold. In blocks the
comparisons are matrix products: a block against everything kept, then its survivors against each other in order.
What is kept is the same. Similarities next to the threshold are computed again in float64, so that the choice
does not hang on how a processor adds up.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from harness.keys import seed64
from harness.types import Json

Positions = npt.NDArray[np.int32]
BLOCK: Final = 2048
"""Candidates compared at a time."""
NEAR: Final = 1e-5
"""Half-width of the band round the threshold in which float32 is not trusted."""
PAIRS: Final = 10_000


def diverse(
    rows: npt.NDArray[Any], order: Positions, n: int, threshold: float, block: int = BLOCK
) -> tuple[Positions, Positions]:
    """Go through positions of embeddings (N, d) in `order`, at most until `n` are kept.

    Returns those kept and those refused, each in order. A vector of zeros is like nothing.
    """
    kept = np.empty((min(n, len(order)), rows.shape[1]), dtype=rows.dtype)
    chosen: list[Positions] = []
    refused: list[Positions] = []
    size = 0
    for at in range(0, len(order), block):
        if size >= n:
            break
        positions = order[at : at + block]
        found = rows[positions]
        units = unit(found)
        free = np.ones(len(positions), dtype=np.bool_)
        for start in range(0, size, block):
            left = np.flatnonzero(free)
            free[left] = ~alike(units[left], unit(kept[start : min(start + block, size)]), threshold).any(axis=1)
        accept_in_turn(units, free, threshold)
        accepted = np.flatnonzero(free)[: n - size]
        kept[size : size + len(accepted)] = found[accepted]
        size += len(accepted)
        seen = len(positions) if size < n else int(accepted[-1]) + 1
        chosen.append(positions[accepted])
        refused.append(positions[:seen][~free[:seen]])
    nothing = np.empty(0, dtype=np.int32)
    return np.concatenate([nothing, *chosen]), np.concatenate([nothing, *refused])


def accept_in_turn(units: npt.NDArray[np.float32], free: npt.NDArray[np.bool_], threshold: float) -> None:
    """Strike from `free` whatever is too like one of the free before it, in place."""
    left = np.flatnonzero(free)
    near = alike(units[left], units[left], threshold)
    for i in range(len(left)):
        if free[left[i]]:
            free[left[i + 1 :][near[i, i + 1 :]]] = False


def alike(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[np.bool_]:
    """Which of a (m, d) are more similar than the threshold to which of b (k, d); all of length one or zero."""
    cosine = a @ b.T
    above: npt.NDArray[np.bool_] = cosine > threshold
    i, j = np.nonzero(np.abs(cosine - threshold) <= NEAR)
    for at in range(0, len(i), BLOCK):
        some = slice(at, at + BLOCK)
        exact = (a[i[some]].astype(np.float64) * b[j[some]]).sum(axis=1)
        above[i[some], j[some]] = exact > threshold
    return above


def unit(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Rows scaled to length one, float32; zeros stay zeros."""
    wide = rows.astype(np.float32)
    length = np.sqrt((wide.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    return (wide / np.where(length > 0, length, 1)).astype(np.float32)


def cosine_quantiles(rows: npt.NDArray[Any], positions: Positions, seed: int) -> dict[str, Json]:
    """Quantiles of the similarity of random pairs, by which a threshold can be judged."""
    if len(positions) < 2:
        return {}
    rng = np.random.default_rng(seed64("cosine_quantiles", seed))
    first = rng.integers(0, len(positions), PAIRS)
    second = (first + rng.integers(1, len(positions), PAIRS)) % len(positions)
    cosines = np.concatenate(
        [
            (unit(rows[positions[first[at : at + BLOCK]]]) * unit(rows[positions[second[at : at + BLOCK]]])).sum(
                axis=1
            )
            for at in range(0, PAIRS, BLOCK)
        ]
    )
    return {f"{q:g}": round(float(np.quantile(cosines, q)), 4) for q in (0.05, 0.25, 0.5, 0.75, 0.95)}
