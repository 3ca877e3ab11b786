"""Gaussian kernels of a cluster's members, and the order in which greedy selection by maximum mean
discrepancy takes them (COINCIDE, arXiv 2406.10995).

Everything is float64. Inner products of float16 rows of length at most one are exact in it, so equal members
have equal rows of the kernel, and ties are ties on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float16]
"""(n, d), of length at most one."""
Floats = npt.NDArray[np.float64]

TIE: Final = 1e-12
"""Criteria closer than this are equal; the first member wins."""
KEPT: Final = 8000
"""A kernel of more members than this (512 MB) is not kept; its columns are computed when they are needed."""
HELD: Final = 2**28
"""Numbers in columns that are held until they are needed (2 GB: what computing the largest kept kernel takes)."""
AHEAD: Final = 64
"""Columns computed at once: of a single one, most is the conversion of all members to float64."""
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
        return np.concatenate([self.columns(block).mean(axis=1) for block in blocks(self.rows)])

    def column(self, i: int) -> Floats:
        """Kernel of every member with member i, (n,)."""
        if self.matrix is not None:
            return np.asarray(self.matrix[i])
        return np.asarray(self.columns(self.rows[i : i + 1])[0])

    def columns(self, some: Rows) -> Floats:
        """Kernel of some members' rows (m, d) with every member, (m, n)."""
        return np.concatenate([gaussian(some, block, self.sigma) for block in blocks(self.rows)], axis=1)


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


@dataclass(slots=True, kw_only=True)
class _Columns:
    """Columns of a kernel, each asked for once; where it is not kept, likely ones are computed ahead."""

    kernel: Kernel
    most: int
    """Columns that may be held."""
    held: dict[int, Floats] = field(default_factory=dict)

    def take(self, chosen: int, criterion: Floats) -> Floats:
        """Column of the chosen member, (n,); the smaller the `criterion` of another, the likelier it is next."""
        if self.kernel.matrix is not None:
            return self.kernel.column(chosen)
        if chosen not in self.held:
            likely = np.argsort(criterion, kind="stable")[: np.isfinite(criterion).sum()].tolist()
            self._hold([chosen, *(i for i in likely if i != chosen)])
        return self.held.pop(chosen)

    def _hold(self, likely: list[int]) -> None:
        """Hold columns of the first members of `likely`, at the cost of its last where there is no room."""
        wanted = [i for i in likely[: self.most] if i not in self.held][:AHEAD]
        for i in [i for i in likely if i in self.held][self.most - len(wanted) :]:
            del self.held[i]
        for i, column in zip(wanted, self.kernel.columns(self.kernel.rows[wanted]), strict=True):
            self.held[i] = column.copy()  # lest one that is held keeps all that were computed with it in memory


def greedy_order(kernel: Kernel, means: Floats, held: int = HELD) -> npt.NDArray[np.int32]:
    """Place of each member, (n,), in the greedy order whose every prefix S keeps MMD^2 to the cluster smallest.

    The next member c minimises `mean(K) + mean(K[S+c, S+c]) - 2 mean(K[:, S+c])`; as all K[c, c] are 1, that is
    where `sum(K[S, c]) / (|S| + 1) - mean(K[:, c])` is smallest, which needs one addition of a column a step.
    Of a kernel that is not kept at most `held` numbers are in memory, or a column; the fewer, the longer it takes.
    """
    columns = _Columns(kernel=kernel, most=max(1, held // max(len(means), 1)))
    place = np.full(len(means), -1, dtype=np.int32)
    taken = np.zeros(len(means))
    crossed = np.zeros(len(means))
    for step in range(len(means)):
        criterion = crossed / (step + 1) - means + taken
        chosen = int(np.argmax(criterion <= criterion.min() + TIE))
        place[chosen] = step
        crossed += columns.take(chosen, criterion)
        taken[chosen] = np.inf
    return place


def density(means: Floats, *, distinct: bool = False) -> float:
    """Mean of a kernel from the means of its rows; 1 for a single member.

    `distinct` leaves out the pairs of a member with itself, as the paper's formula does and its code does not.
    """
    n = len(means)
    whole = float(means.mean())
    return (n * whole - 1) / (n - 1) if distinct and n > 1 else whole
