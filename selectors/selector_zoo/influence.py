"""Influence: how well the gradients of samples agree with those of target tasks, at the speed of the disk.

The mean over a task's gradients of their products with a sample's is the product with their mean: the means first,
then each sample is read once and leaves one number a task.
"""

from __future__ import annotations

import mmap
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from selector_zoo.passes.forward import ahead

ROWS: Final = 256
"""Samples a thread has in memory at a time; larger blocks leave the cache and are slower."""
THREADS: Final = 2
"""Threads that each read, widen and multiply blocks of their own, so that reading and computing overlap."""

Floats = npt.NDArray[np.float64]


def task_means(
    gradients: npt.NDArray[Any], tasks: npt.NDArray[Any], count: int, lengths: npt.NDArray[Any] | None = None
) -> Floats:
    """Mean gradient of each task, (count, width), of rows (n, width) that belong to tasks (n,) in [0, count).

    `lengths` (n,) undo the scaling of rows to length one. Rows that are NaN do not count; a task without others is
    NaN.
    """
    sums = np.zeros((count, gradients.shape[1]))
    used = np.zeros(count, dtype=np.int64)
    for start, block in _blocks(gradients):
        valid = ~np.isnan(block[:, 0])
        here = np.asarray(tasks[start : start + len(block)])
        if lengths is not None:
            block *= np.asarray(lengths[start : start + len(block)], dtype=np.float64)[:, None]
        for task in np.unique(here[valid]):
            rows = valid & (here == task)
            sums[task] += block[rows].sum(axis=0)
            used[task] += int(rows.sum())
    with np.errstate(invalid="ignore"):
        return sums / used[:, None]


def influence(gradients: npt.NDArray[Any], targets: Floats) -> npt.NDArray[np.float32]:
    """Products of every sample's gradient, (n, width), with every target's, (t, width); float32 (n, t).

    In float64, rounded at the end: neither the place of a sample nor the number of threads shows in the result.
    """
    out = np.empty((len(gradients), len(targets)), dtype=np.float32)

    def multiply(start: int) -> None:
        out[start : start + ROWS] = _widened(gradients, start) @ targets.T

    with threadpool_limits(1, user_api="blas"):
        for _ in ahead(multiply, range(0, len(gradients), ROWS), THREADS):
            pass
    return out


def _blocks(rows: npt.NDArray[Any]) -> Any:
    """(Start, float64 rows) from first to last; the next is read while one is worked on."""
    starts = range(0, len(rows), ROWS)
    return zip(starts, ahead(lambda start: _widened(rows, start), starts, 1), strict=True)


def _widened(rows: npt.NDArray[Any], start: int) -> Floats:
    return _read(rows, start, min(start + ROWS, len(rows))).astype(np.float64)


def _read(rows: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
    """Some rows; those of a memory-mapped file through a read, which fills no memory with pages of it."""
    owner: Any = rows.base  # of a slice of a mapped array it is the array, whose offset the slice shares wrongly
    if not (isinstance(rows, np.memmap) and isinstance(owner, mmap.mmap) and rows.flags.c_contiguous):
        return np.asarray(rows[start:stop])
    offset = rows.offset + start * rows.strides[0]
    count = (stop - start) * rows[0].size
    return np.fromfile(str(rows.filename), rows.dtype, count, offset=offset).reshape(-1, *rows.shape[1:])
