"""Spherical k-means that gives the same clusters whatever the order of rows, the size of blocks, or the
device.

Three things make it so. Rows are float16 of length at most one, so that sums of them in float64 are exact and
have no order. Rows that are almost as near to another centroid are compared again in float64, so that
rounding in a large product of matrices decides nothing. And whatever takes the first of several takes it in
an order the caller gives.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

Rows = npt.NDArray[np.float16]
"""(n, d), of length at most one; may be memory-mapped, is read in blocks."""
Ints = npt.NDArray[np.int64]

ELEMENTS: Final = 2**26
"""Numbers in the largest temporary: similarities of a block, or the block itself."""
MARGIN: Final = 1e-5
"""Similarities closer than this are compared again: several times the rounding of float32 products."""
ON_CENTROID: Final = 1e-6
"""A row whose cosine with its centroid lacks less than this of 1 makes no new cluster."""
TIE: Final = 1e-12
"""Exact similarities closer than this are equal; the lower cluster wins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clusters:
    """Rows in clusters, of which none is empty; their numbers do not depend on the order of the rows."""

    labels: npt.NDArray[np.int32]
    """Cluster of each row, (n,); -1 for rows that were left out."""
    centroids: npt.NDArray[np.float32]
    """(k, d), unit length."""
    reseeded: int
    """How often an empty cluster was given a row to start from again."""
    dropped: int
    """Clusters asked for and empty at the end: there are no so many different rows."""

    @property
    def sizes(self) -> Ints:
        """Rows in each cluster, (k,)."""
        return np.bincount(self.labels[self.labels >= 0], minlength=len(self.centroids)).astype(np.int64)


def spherical_kmeans(rows: Rows, k: int, order: Ints, *, iterations: int = 50, per_cluster: int = 256) -> Clusters:
    """Cluster the rows at positions `order` into at most `k` clusters by inner product.

    The first k rows of `order` are the first centroids; centroids are fitted to the first `k * per_cluster` of it
    (as faiss does, by default with 256), and then every row goes to its nearest. Empty clusters start again from
    the rows furthest from their centroid. Ends early when no row changes its cluster.
    """
    import torch

    k = min(k, len(order))
    out = np.full(len(rows), -1, dtype=np.int32)
    if not k:
        centroids = np.empty((0, rows.shape[1]), dtype=np.float32)
        return Clusters(labels=out, centroids=centroids, reseeded=0, dropped=0)
    work = _Work.on(rows, order[: k * per_cluster])
    start = torch.from_numpy(rows[order[:k]]).to(work.device).double()
    fitted, reseeded = _fitted(work, _unit(start, start), iterations)
    work = _Work.on(rows, order)
    used, labels = torch.unique(work.assign(fitted), return_inverse=True)
    out[work.members] = labels.cpu().numpy()
    centroids = fitted[used].float().cpu().numpy()
    return Clusters(labels=out, centroids=centroids, reseeded=reseeded, dropped=k - len(used))


def nearest(rows: Rows, centroids: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """The cluster of each row, (n,): the largest inner product, the lower number among equals."""
    import torch

    work = _Work.on(rows, np.arange(len(rows)))
    wanted = torch.from_numpy(centroids).to(work.device).double()
    found: npt.NDArray[np.int32] = work.assign(wanted).int().cpu().numpy()
    return found


def _fitted(work: _Work, centroids: Tensor, iterations: int) -> tuple[Tensor, int]:
    """Centroids, (k, d) in float64, after at most so many iterations, and how many clusters started again."""
    import torch

    before: Tensor | None = None
    reseeded = 0
    for i in range(iterations):
        labels = work.assign(centroids)
        if before is not None and torch.equal(labels, before):
            log.info("k-means: %d clusters settled after %d iterations", len(centroids), i)
            break
        before, centroids = labels, _unit(work.sums(labels, len(centroids)), centroids)
        empty = torch.nonzero(torch.bincount(labels, minlength=len(centroids)) == 0)[:, 0]
        if len(empty):
            far = work.furthest(labels, centroids, len(empty))
            centroids[empty[: len(far)]] = far
            reseeded += len(far)
            before = None if len(far) else labels
    return centroids, reseeded


def _unit(sums: Tensor, otherwise: Tensor) -> Tensor:
    """Rows scaled to length one and rounded to float32, in float64; a zero row is taken from `otherwise`."""
    import torch

    lengths = sums.norm(dim=1, keepdim=True)
    return torch.where(lengths > 0, (sums / lengths).float().double(), otherwise)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """Some rows of a large table, and passes over them in blocks."""

    rows: Rows
    members: Ints
    """Positions of the rows, ascending, so that they are read in the order they lie on disk."""
    priority: Ints
    """Which of the members comes first among equals: the lowest."""
    device: str

    @classmethod
    def on(cls, rows: Rows, order: Ints) -> _Work:
        """Work on the rows at positions `order`, on a GPU where there is one."""
        import torch

        priority = np.argsort(order, kind="stable")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(rows=rows, members=order[priority], priority=priority, device=device)

    def assign(self, centroids: Tensor) -> Tensor:
        """Nearest centroid of each member, int64."""
        import torch

        coarse = centroids.float()
        return torch.cat([_nearest(block, coarse, centroids) for _, block in self._blocks(len(centroids))])

    def sums(self, labels: Tensor, k: int) -> Tensor:
        """Sum of the members of each cluster, (k, d) in float64; exact, so that their order does not matter."""
        import torch

        sums = torch.zeros((k, self.rows.shape[1]), dtype=torch.float64, device=self.device)
        for at, block in self._blocks(1):
            sums.index_add_(0, labels[at], block.double())
        return sums

    def furthest(self, labels: Tensor, centroids: Tensor, most: int) -> Tensor:
        """Different rows least like their own centroid, (most or fewer, d), unit length; none that lies on it."""
        import torch

        parts = [cosines(block, centroids[labels[at]]) for at, block in self._blocks(1)]
        # Beyond eleven decimals a cosine is rounding, which depends on how its sum is split.
        cosine = torch.cat(parts).round(decimals=11).cpu().numpy()
        far: dict[bytes, npt.NDArray[np.float16]] = {}
        for i in np.lexsort((self.priority, cosine))[: int((cosine < 1 - ON_CENTROID).sum())]:
            row = np.asarray(self.rows[self.members[i]])
            far.setdefault(row.tobytes(), row)
            if len(far) == most:
                break
        picked = np.array(list(far.values()), dtype=np.float16).reshape(len(far), self.rows.shape[1])
        made = torch.from_numpy(picked).to(self.device).double()
        return _unit(made, made)

    def _blocks(self, columns: int) -> Iterator[tuple[slice, Tensor]]:
        """Members in float32, as many at a time as keep (block, columns) and (block, d) within `ELEMENTS`."""
        import torch

        size = max(1, ELEMENTS // max(columns, self.rows.shape[1]))
        for start in range(0, len(self.members), size):
            at = slice(start, min(start + size, len(self.members)))
            yield at, torch.from_numpy(self.rows[self.members[at]]).to(self.device).float()


def cosines(block: Tensor, centroids: Tensor) -> Tensor:
    """Cosine of each row (b, d) with the centroid beside it, float64; 1 for a row of zeros."""
    rows = block.double()
    made: Tensor = ((rows * centroids).sum(dim=1) / rows.norm(dim=1)).nan_to_num(1.0)
    return made


def _nearest(block: Tensor, coarse: Tensor, centroids: Tensor) -> Tensor:
    """Nearest centroid of each row of a block (b, d), int64; `coarse` is `centroids` in float32."""
    import torch

    likeness = block @ coarse.T
    best, labels = likeness.max(dim=1)
    close = likeness >= (best - MARGIN)[:, None]
    contested = torch.nonzero(close.sum(dim=1) > 1)[:, 0]
    if len(contested):
        labels[contested] = _settled(block[contested], close[contested], centroids)
    return labels


def _settled(block: Tensor, close: Tensor, centroids: Tensor) -> Tensor:
    """Nearest of the candidates `close`, (b, k), by inner products in float64; the lower number among equals."""
    import torch

    row, cluster = torch.nonzero(close, as_tuple=True)
    pairs = zip(*(torch.split(t, max(1, ELEMENTS // 8 // block.shape[1])) for t in (row, cluster)), strict=True)
    exact = torch.cat([(block[r].double() * centroids[c]).sum(dim=1) for r, c in pairs])
    best = torch.full((len(block),), -torch.inf, dtype=torch.float64, device=block.device)
    best.scatter_reduce_(0, row, exact, "amax")
    wins = exact >= best[row] - TIE
    labels = torch.full((len(block),), len(centroids), dtype=torch.int64, device=block.device)
    return labels.scatter_reduce_(0, row[wins], cluster[wins], "amin")
