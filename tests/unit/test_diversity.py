"""Sketches bound similarities, and the filter keeps with them what it keeps without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from selector_zoo import diversity
from selector_zoo.diversity import SLACK, Sketch, cosine_quantiles, diverse, unit

from tests import selector_references as plain

WIDE = 256
Rows = npt.NDArray[np.float16]


def loose(rng: np.random.Generator, n: int) -> Rows:
    """Groups of a few that are nearly the same, in no direction more than in another."""
    return (
        rng.normal(size=(n // 4 + 1, WIDE))[rng.integers(0, n // 4 + 1, n)] + 0.3 * rng.normal(size=(n, WIDE))
    ).astype(np.float16)


def narrow(rng: np.random.Generator, n: int) -> Rows:
    """All near one direction, as the states of language models are, and a few others that matter."""
    strong = np.concatenate([np.full(30, 2.0), np.full(WIDE - 30, 0.2)])
    return (rng.normal(size=(n, WIDE)) * strong + 14 * np.eye(WIDE)[-1]).astype(np.float16)


def odd(rng: np.random.Generator, n: int) -> Rows:
    """Copies, zeros, opposites, and vectors that lie wholly in the sketch or wholly beside it."""
    rows = rng.normal(size=(n, WIDE)).astype(np.float16)
    rows[::5] = rows[0]
    rows[1::7] = 0
    rows[2::7] = -rows[0]
    rows[3::9, 4:] = 0
    rows[4::9, :4] = 0
    return rows


KINDS: list[Callable[[np.random.Generator, int], Rows]] = [loose, narrow, odd]


@pytest.mark.parametrize("make", KINDS)
def test_a_sketch_never_underrates_a_similarity(make: Callable[[np.random.Generator, int], Rows]) -> None:
    rng = np.random.default_rng(0)
    units = unit(make(rng, 300))
    for directions in (np.eye(WIDE)[:, :4], np.linalg.qr(rng.normal(size=(WIDE, 16)))[0]):
        short = Sketch(directions.astype(np.float32))(units)
        assert short.shape == (300, directions.shape[1] + 1)
        bound = short @ short.astype(np.float16).astype(np.float32).T
        assert (bound >= units @ units.T - SLACK).all()


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("threshold", [-0.2, 0.5, 0.9])
def test_the_filter_keeps_the_same_with_sketches(
    make: Callable[[np.random.Generator, int], Rows], threshold: float
) -> None:
    rng = np.random.default_rng(1)
    size = 160
    rows, order = make(rng, size), rng.permutation(size).astype(np.int32)
    score = np.empty(size)
    score[order] = -np.arange(size)
    for directions in (np.eye(WIDE)[:, :4], np.linalg.qr(rng.normal(size=(WIDE, 16)))[0]):
        for n in (30, size):
            kept, refused = diverse(rows, order, n, threshold, 37, Sketch(directions.astype(np.float32)))
            wanted = plain.diverse(score.tolist(), range(size), unit(rows), n, threshold)
            assert [*kept, *refused][: len(wanted)] == wanted if len(kept) < n else kept.tolist() == wanted


@pytest.mark.parametrize(("make", "most"), [(loose, WIDE // 4), (narrow, WIDE // 8)])
def test_a_sketch_is_as_short_as_the_sample_allows(
    make: Callable[[np.random.Generator, int], Rows], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diversity, "SAMPLES", 64)
    rng = np.random.default_rng(2)
    order = np.arange(2000, dtype=np.int32)
    assert Sketch.of(make(rng, 2000), order, 0.9).width(WIDE) <= most + 1
    assert Sketch.of(make(rng, 2000), order[:500], 0.9).directions is None
    # Where directions take turns none of them tells enough.
    assert Sketch.of(np.eye(WIDE, dtype=np.float16)[order % WIDE], order, 0.05).directions is None


def test_the_quantiles_are_those_of_all_pairs_of_two() -> None:
    seed = 3
    rows = loose(np.random.default_rng(seed), 500)[:, :6]
    some = np.arange(100, 500)
    likeness = unit(rows[some]) @ unit(rows[some]).T
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    pairs = np.quantile(likeness[~np.eye(len(some), dtype=bool)], levels)
    told: Any = cosine_quantiles(rows, some.astype(np.int32), seed)
    assert [float(level) for level in told] == levels
    assert list(told.values()) == pytest.approx(pairs.tolist(), abs=0.03)
    assert cosine_quantiles(rows, some[:1].astype(np.int32), seed) == {}
