"""Columns of millions of rows, some rows at a time: a float64 copy of a whole one would not fit in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

ROWS: Final = 1 << 16


def blocks(n: int, rows: int = ROWS) -> Iterator[slice]:
    """Slices that cover `n` rows in order, the last one shorter."""
    return (slice(at, min(n, at + rows)) for at in range(0, n, rows))
