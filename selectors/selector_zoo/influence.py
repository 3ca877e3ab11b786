"""Influence: how well the gradients of samples agree with those of target tasks, at the speed of the disk.

The mean over a task's gradients of their products with a sample's is the product with their mean: the means first,
then each sample is read once and leaves one number a task.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from harness.errors import HarnessError
from selector_zoo.passes.forward import ahead

ROWS: Final = 128
"""Samples a thread has in memory at a time; larger blocks leave the cache and are slower."""
THREADS: Final = 2
"""Threads that each read, widen and multiply blocks of their own, so that reading and computing overlap."""
AHEAD: Final = 2**27
"""Bytes that the kernel fetches before they are read: blocks of two threads are no sequence that it would see."""

Floats = npt.NDArray[np.float64]
Fill = Callable[[int, npt.NDArray[Any]], None]
"""Fills an array with rows from a given one on."""


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

    In float32, far more precise than float16 gradients are. All blocks are of one size, the last one filled up, so
    the number of threads does not show in the result, nor, but for a library's last bits, the place of a sample.
    """
    import torch

    n, width = gradients.shape
    wanted = torch.from_numpy(targets.astype(np.float32))
    out = np.empty((n, len(targets)), dtype=np.float32)
    own = _Block(width, gradients.dtype)

    def multiply(start: int) -> None:
        stop = min(start + ROWS, n)
        fill(start, own.stored[: stop - start])
        out[start:stop] = (wanted @ own.widened().T).T[: stop - start].numpy()

    with _reading(gradients) as fill, _one_thread_each():
        for _ in ahead(multiply, range(0, n, ROWS), THREADS):
            pass
    return out


class _Block(threading.local):
    """A thread's own rows, as stored and as float32; to ask for new memory costs more than to fill it."""

    def __init__(self, width: int, dtype: np.dtype[Any]) -> None:
        import torch

        self.stored = np.zeros((ROWS, width), dtype)
        self._stored, self._wide = torch.from_numpy(self.stored), torch.zeros(ROWS, width)

    def widened(self) -> Any:
        """By torch, which has the processor do it; numpy takes twenty times as long for float16."""
        return self._wide.copy_(self._stored)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Keep torch from threads of its own: ours have the processors."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _blocks(rows: npt.NDArray[Any]) -> Iterator[tuple[int, Floats]]:
    """(Start, float64 rows) from first to last."""
    with _reading(rows) as fill:
        for start in range(0, len(rows), ROWS):
            block = np.empty((min(ROWS, len(rows) - start), *rows.shape[1:]), rows.dtype)
            fill(start, block)
            yield start, block.astype(np.float64)


@contextmanager
def _reading(rows: npt.NDArray[Any]) -> Iterator[Fill]:
    """How to have some rows; those of a memory-mapped file by reads, which fill no memory with pages of it."""
    owner: Any = rows.base  # of a slice of a mapped array it is the array, whose offset the slice shares wrongly
    if not (isinstance(rows, np.memmap) and isinstance(owner, mmap.mmap) and rows.flags.c_contiguous):
        yield lambda start, into: np.copyto(into, rows[start : start + len(into)])
        return
    name, offset, stride = str(rows.filename), rows.offset, rows.strides[0]
    with open(name, "rb", buffering=0) as file:

        def fill(start: int, into: npt.NDArray[Any]) -> None:
            at = offset + start * stride
            os.posix_fadvise(file.fileno(), at + AHEAD, into.nbytes, os.POSIX_FADV_WILLNEED)
            if os.preadv(file.fileno(), [into.data], at) != into.nbytes:
                raise HarnessError(
                    f"{name} ends before row {start + len(into)} of {len(rows)}: run its pass again."
                )

        yield fill
