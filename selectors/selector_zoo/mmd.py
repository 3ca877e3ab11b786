"""Gaussian kernels of a cluster's members, and the order in which greedy selection by maximum mean
discrepancy takes them (COINCIDE, arXiv 2406.10995).

Everything is float64. Inner products of float16 rows of length at most one are exact in it, so equal members
have equal rows of the kernel, and ties are ties on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float16]
"""(n, d), of length at most one."""
Floats = npt.NDArray[np.float64]

TIE: Final = 1e-12
"""Criteria closer than this are equal; the first member wins."""
KEPT: Final = 8000
"""A kernel of more members than this (512 MB) is computed again column by column."""
BLOCK: Final = 1024
"""Members that are in memory as float64 at once, where the kernel is not kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """`exp(-|x - y|^2 / (2 sigma^2))` between the members of one cluster."""

    rows: Rows
    sigma: float
    matrix: Floats | None
    """(n, n), where it is small enough to keep."""

    @classmethod
    def of(cls, rows: Rows, sigma: float, kept: int = KEPT) -> Kernel:
        """The kernel of rows (n, d)."""
        matrix = gaussian(rows, rows, sigma) if len(rows) <= kept else None
        return cls(rows=rows, sigma=sigma, matrix=matrix)

    def row_means(self) -> Floats:
        """Mean of each row, diagonal included, (n,)."""
        if self.matrix is not None:
            return np.asarray(self.matrix.mean(axis=1))
        return np.concatenate([self._columns(block).mean(axis=0) for block in blocks(self.rows)])

    def column(self, i: int) -> Floats:
        """Kernel of every member with member i, (n,)."""
        if self.matrix is not None:
            return np.asarray(self.matrix[i])
        return np.asarray(self._columns(self.rows[i : i + 1])[:, 0])

    def _columns(self, others: Rows) -> Floats:
        return np.concatenate([gaussian(block, others, self.sigma) for block in blocks(self.rows)])


def blocks(rows: Rows) -> list[Rows]:
    """Rows in parts of no more than `BLOCK`."""
    return np.array_split(rows, -(-len(rows) // BLOCK))


def gaussian(a: Rows, b: Rows, sigma: float) -> Floats:
    """Gaussian kernel of rows (n, d) and (m, d); (n, m)."""
    x = a.astype(np.float64)
    y = x if b is a else b.astype(np.float64)
    squares = np.einsum("ij,ij->i", x, x)[:, None] + np.einsum("ij,ij->i", y, y)
    distance = np.maximum(squares - 2 * (x @ y.T), 0)
    return np.asarray(np.exp(-distance / (2 * sigma**2)))


def greedy_order(kernel: Kernel, means: Floats) -> npt.NDArray[np.int32]:
    """Place of each member, (n,), in the greedy order whose every prefix S keeps MMD^2 to the cluster smallest.

    The next member c minimises `mean(K) + mean(K[S+c, S+c]) - 2 mean(K[:, S+c])`; as all K[c, c] are 1, that is
    where `sum(K[S, c]) / (|S| + 1) - mean(K[:, c])` is smallest, which needs one addition of a column a step.
    """
    place = np.full(len(means), -1, dtype=np.int32)
    taken = np.zeros(len(means))
    crossed = np.zeros(len(means))
    for step in range(len(means)):
        criterion = crossed / (step + 1) - means + taken
        chosen = int(np.argmax(criterion <= criterion.min() + TIE))
        place[chosen] = step
        taken[chosen] = np.inf
        crossed += kernel.column(chosen)
    return place


def density(means: Floats, *, distinct: bool = False) -> float:
    """Mean of a kernel from the means of its rows; 1 for a single member.

    `distinct` leaves out the pairs of a member with itself, as the paper's formula does and its code does not.
    """
    n = len(means)
    whole = float(means.mean())
    return (n * whole - 1) / (n - 1) if distinct and n > 1 else whole
