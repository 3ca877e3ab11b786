"""Keeping the best of what is not too alike: Deita's filter (arXiv 2312.15685), with most comparisons cut short.

One by one, a sample is kept unless its cosine similarity to one kept before exceeds a threshold. Here candidates
come in blocks, and are first compared by sketches: their parts along a few directions, and how far they are from
those. With unit vectors x and y, parts x' and y', and distances r and s, Cauchy and Schwarz give
`x.y <= x'.y' + r s`, a product of vectors an eighth as long or less. Only where that does not rule a pair out is
it compared in full, next to the threshold in float64: what is kept is what one by one keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from harness.keys import seed64
from harness.types import Json

Floats = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int32]
BLOCK: Final = 2048
"""Candidates compared at a time."""
NEAR: Final = 1e-5
"""Half-width of the band round the threshold in which float32 is not trusted."""
SLACK: Final = 1e-3
"""What a bound may lack by rounding: sketches are kept as float16, whose products are off by half of this."""
SAMPLES: Final = 1024
"""Embeddings that directions are fitted to, and as many others they are tried on."""
PARTS: Final = (32, 16, 8, 4)
"""Shares of an embedding's numbers, as divisors, that may do as a sketch."""
RARE: Final = 1e-4
"""Share of pairs that a sketch may leave to be compared in full for nothing."""
PAIRS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Sketch:
    """Short vectors whose products are never smaller than those of the long ones."""

    directions: Floats | None = None
    """(d, m), orthonormal columns; None where the vectors themselves are used."""

    @classmethod
    def of(cls, rows: npt.NDArray[Any], order: Positions, threshold: float) -> Self:
        """The shortest that rules out nearly all unlike pairs of a sample; none for few rows, or if none does."""
        if len(order) < 16 * SAMPLES:
            return cls()
        some = order[np.linspace(0, len(order) - 1, 2 * SAMPLES).astype(np.int64)]
        tried = unit(rows[some[1::2]])
        unlike = ~alike(tried, tried, threshold)
        # The directions that leave the least of the vectors over: the leading ones of their second moments.
        directions = np.linalg.svd(unit(rows[some[::2]]), full_matrices=False)[2].T
        for part in PARTS:
            made = cls(np.ascontiguousarray(directions[:, : max(1, rows.shape[1] // part)]))
            short = made(tried)
            if np.count_nonzero(unlike & (short @ short.T > threshold - SLACK)) <= RARE * unlike.size:
                return made
        return cls()

    def width(self, d: int) -> int:
        """Numbers of a sketch of d numbers."""
        return d if self.directions is None else self.directions.shape[1] + 1

    def __call__(self, units: Floats) -> Floats:
        """Sketches of rows (n, d) of length one or zero, (n, m + 1)."""
        if self.directions is None:
            return units
        along = units @ self.directions
        missing = _squares(units) - _squares(along)
        # A little more than nothing: a distance that rounding made smaller would not be a bound.
        rest = np.sqrt(np.maximum(missing, 0) + 1e-6)
        return np.column_stack([along, rest]).astype(np.float32)


def diverse(
    rows: npt.NDArray[Any],
    order: Positions,
    n: int,
    threshold: float,
    block: int = BLOCK,
    sketch: Sketch | None = None,
) -> tuple[Positions, Positions]:
    """Go through positions of embeddings (N, d) in `order`, at most until `n` are kept.

    Returns those kept and those refused, each in order. A vector of zeros is like nothing.
    """
    sketch = sketch or Sketch.of(rows, order, threshold)
    kept = np.empty(min(n, len(order)), dtype=np.int32)
    sketches = np.empty((len(kept), sketch.width(rows.shape[1])), dtype=np.float16)
    refused: list[Positions] = [np.empty(0, dtype=np.int32)]
    size = 0
    for at in range(0, len(order), block):
        if size >= n:
            break
        positions = order[at : at + block]
        units = unit(rows[positions])
        short = sketch(units)
        free = np.ones(len(positions), dtype=np.bool_)
        for start in range(0, size, block):
            before = slice(start, min(start + block, size))
            left = np.flatnonzero(free)
            close = short[left] @ sketches[before].astype(np.float32).T > threshold - SLACK
            here, there = np.flatnonzero(close.any(axis=1)), np.flatnonzero(close.any(axis=0))
            if len(here):
                near = alike(units[left[here]], unit(rows[kept[before][there]]), threshold)
                free[left[here]] = ~near.any(axis=1)
        accept_in_turn(units, short, free, threshold)
        accepted = np.flatnonzero(free)[: n - size]
        kept[size : size + len(accepted)] = positions[accepted]
        sketches[size : size + len(accepted)] = short[accepted]
        size += len(accepted)
        seen = len(positions) if size < n else int(accepted[-1]) + 1
        refused.append(positions[:seen][~free[:seen]])
    return kept[:size], np.concatenate(refused)


def accept_in_turn(units: Floats, short: Floats, free: npt.NDArray[np.bool_], threshold: float) -> None:
    """Strike from `free` whatever is too like one of the free before it, in place; `short` are the sketches."""
    left = np.flatnonzero(free)
    close = short[left] @ short[left].T > threshold - SLACK
    np.fill_diagonal(close, False)
    some = left[close.any(axis=1)]
    near = alike(units[some], units[some], threshold)
    for i in range(len(some)):
        if free[some[i]]:
            free[some[i + 1 :][near[i, i + 1 :]]] = False


def alike(a: Floats, b: Floats, threshold: float) -> npt.NDArray[np.bool_]:
    """Which of a (m, d) are more similar than the threshold to which of b (k, d); all of length one or zero."""
    cosine = a @ b.T
    above: npt.NDArray[np.bool_] = cosine > threshold
    i, j = np.nonzero(np.abs(cosine - threshold) <= NEAR)
    for at in range(0, len(i), BLOCK):
        some = slice(at, at + BLOCK)
        exact = (a[i[some]].astype(np.float64) * b[j[some]]).sum(axis=1)
        above[i[some], j[some]] = exact > threshold
    return above


def _squares(rows: Floats) -> npt.NDArray[np.float64]:
    """Squared lengths, (n,)."""
    return np.asarray(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))


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
