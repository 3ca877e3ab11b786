"""Real handwritten digits: scikit-learn's bundled scans of 8 x 8 pixels, cut into disjoint splits."""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_SHARES: Final = {"pool": (0, 1, 2), "tune": (3,), "report": (4,)}


@functools.cache
def _scans() -> tuple[npt.NDArray[np.uint8], tuple[int, ...]]:
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    return (data.images * 255 / 16).astype(np.uint8), tuple(int(x) for x in data.target)


def labels() -> tuple[int, ...]:
    """What each scan shows."""
    return _scans()[1]


def scan(index: int) -> npt.NDArray[np.uint8]:
    """One scan, shape (8, 8), ink bright."""
    return np.asarray(_scans()[0][index])


@functools.cache
def scans_of(split: str) -> tuple[int, ...]:
    """Numbers of the scans of one split; three fifths belong to the pool."""
    return tuple(i for i in range(len(labels())) if i % 5 in _SHARES[split])
