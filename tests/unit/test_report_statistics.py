"""Tests against random: equal to scipy where it has the test, honest where it has not (by simulation)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from reports.statistics import (
    Comparison,
    compare,
    compare_all,
    contrast,
    holm,
    holm_by_benchmark,
    improvement_probability,
    permutation_p,
    planned_runs,
    runs_needed,
    verdict,
)

A = np.array([93.2, 92.6, 94.1])
B = np.array([89.3, 90.1, 88.2, 89.9, 89.0])
numbers = st.lists(st.integers(-999, 999), min_size=2, max_size=5, unique=True).map(lambda x: np.array(x) / 10)


@given(numbers, numbers)
def test_welch_is_scipys(a: np.ndarray, b: np.ndarray) -> None:
    c, expected = contrast(a, b), stats.ttest_ind(a, b, equal_var=False)
    interval = expected.confidence_interval()
    assert [c.delta, c.p, c.low, c.high] == pytest.approx(
        [a.mean() - b.mean(), expected.pvalue, interval.low, interval.high], rel=1e-6, abs=1e-9
    )


@given(st.lists(st.integers(0, 50), min_size=1, max_size=4), st.lists(st.integers(0, 50), min_size=1, max_size=5))
def test_permutation_is_scipys(a: list[int], b: list[int]) -> None:
    def difference(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return np.abs(x.mean(axis=axis) - y.mean(axis=axis))

    x, y = np.array(a, dtype=float), np.array(b, dtype=float)
    if len(a) + len(b) < 3:
        return
    args = {"permutation_type": "independent", "alternative": "greater", "n_resamples": np.inf, "vectorized": True}
    # scipy wants two observations a side; a repeated single one would be another test.
    if min(len(a), len(b)) > 1:
        expected = stats.permutation_test((x, y), difference, **args).pvalue
        assert permutation_p(x, y) == pytest.approx(expected)
    assert 1 / math.comb(len(a) + len(b), len(a)) <= (permutation_p(x, y) or 0) <= 1


def test_large_permutations_are_drawn_and_repeatable() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(1.0, 1, 15), rng.normal(0, 1, 15)
    p = permutation_p(a, b)
    assert p == permutation_p(a, b)
    assert p == pytest.approx(stats.ttest_ind(a, b).pvalue, abs=0.01)


def test_holm_by_hand() -> None:
    p = np.array([0.01, np.nan, 0.04, 0.03])
    np.testing.assert_allclose(holm(p), [0.03, np.nan, 0.06, 0.06])


def test_one_run_is_judged_by_the_prediction_interval() -> None:
    random = np.array([89.0, 90.0, 91.0])
    half = stats.t.ppf(0.975, 2) * math.sqrt(1 + 1 / 3)
    c = compare(np.array([90.0 + half]), random)
    assert c.test == "prediction"
    assert c.p == pytest.approx(0.05)
    assert c.low == pytest.approx(0, abs=1e-9)


def test_without_spread_there_is_no_test() -> None:
    for a, b in ((A, np.array([90.0])), (np.array([1.0]), np.array([2.0])), (np.ones(3), np.ones(3))):
        c = compare(a, b)
        assert (c.test, c.p, c.low) == ("none", None, None)


def comparison(delta: float, half: float | None, n: int = 3, m: int = 5) -> Comparison:
    return Comparison(
        delta=delta,
        low=None if half is None else delta - half,
        high=None if half is None else delta + half,
        test="none" if half is None else "welch",
        n=n,
        n_reference=m,
        p=None,
        p_permutation=None,
    )


@pytest.mark.parametrize(
    ("c", "p", "word"),
    [
        (comparison(2.0, 1.0), 0.01, "better"),
        (comparison(0.5, 0.3), 0.01, "better (small)"),
        (comparison(-0.5, 0.3), 0.01, "worse"),
        (comparison(0.1, 0.5), 0.7, "equivalent"),
        (comparison(0.1, 3.0), 0.7, "inconclusive"),
        (comparison(0.1, 3.0, n=1, m=3), 0.7, "underpowered"),
        (comparison(5.0, None), None, "underpowered"),
    ],
)
def test_verdict_words(c: Comparison, p: float | None, word: str) -> None:
    assert verdict(c, p, smallest=1.0) == word


def test_family_is_adjusted_and_dunnett_agrees_with_scipy() -> None:
    family = {"good": A, "same": B[:3] + 0.1, "single": np.array([90.0])}
    found = compare_all(family, B)
    assert found["good"].verdict == "better"
    assert found["same"].verdict in ("inconclusive", "equivalent")
    assert found["single"].p_dunnett is None
    for c in found.values():
        assert c.p is not None
        assert c.p_holm is not None
        assert c.p <= c.p_holm
    expected = stats.dunnett(A, B[:3] + 0.1, control=B, rng=np.random.default_rng(1)).pvalue
    assert [found["good"].p_dunnett, found["same"].p_dunnett] == pytest.approx(expected, abs=2e-3)
    assert compare_all(family, B) == found


def test_probability_of_improvement_is_mann_whitneys() -> None:
    expected = stats.mannwhitneyu(A, B).statistic / (A.size * B.size)
    assert improvement_probability(A[:, None], B[:, None]) == pytest.approx(expected)
    assert improvement_probability(B[:, None], B[:, None]) == 0.5


def test_planner_agrees_with_the_tables() -> None:
    # Two-sided 5 %, power 0.8: 17 a side for one SD, 64 for half of one (Cohen's tables).
    assert (runs_needed(1.0, 1.0), runs_needed(1.0, 0.5)) == (17, 64)
    assert runs_needed(1.0, 1e-6) is None
    assert planned_runs([np.array([1.0])], 1.0) is None
    assert planned_runs([A, B], 0.8) == runs_needed(math.sqrt((2 * A.var(ddof=1) + 4 * B.var(ddof=1)) / 6), 0.8)


def correlated(rng: np.random.Generator, shape: tuple[int, ...], rho: float) -> np.ndarray:
    """Run noise of unit variance over benchmarks (last axis) with correlation `rho` between them."""
    shared = rng.normal(size=(*shape[:-1], 1))
    return math.sqrt(rho) * shared + math.sqrt(1 - rho) * rng.normal(size=shape)


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_interval_on_run_means_covers(n: int, rho: float) -> None:
    rng = np.random.default_rng(n)
    a, b = (correlated(rng, (n, 4000, 14), rho).mean(axis=-1) for _ in range(2))
    c = contrast(a, b)
    assert 0.93 <= float(((c.low <= 0) & (c.high >= 0)).mean()) <= 0.97


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_prediction_interval_covers(rho: float) -> None:
    rng = np.random.default_rng(7)
    a, b = (correlated(rng, (n, 4000, 14), rho).mean(axis=-1) for n in (1, 3))
    c = contrast(a, b)
    assert 0.93 <= float(((c.low <= 0) & (c.high >= 0)).mean()) <= 0.97


@pytest.mark.parametrize(
    ("n", "k", "rho", "expected"), [(10, 8, 0.0, 0.054), (10, 8, 0.5, 0.27), (14, 11, 0.5, 0.27)]
)
def test_counts_alone_are_no_evidence(n: int, k: int, rho: float, expected: float) -> None:
    rng = np.random.default_rng(3)
    run, random = correlated(rng, (20_000, n), rho), correlated(rng, (20_000, 3, n), rho).mean(axis=1)
    assert float(((run > random).sum(axis=1) >= k).mean()) == pytest.approx(expected, abs=0.02)


def test_no_benchmark_is_found_by_luck_too_often() -> None:
    rng = np.random.default_rng(5)
    found = [
        bool((holm_by_benchmark(correlated(rng, (3, 14), 0.3), correlated(rng, (5, 14), 0.3))[1] < 0.05).any())
        for _ in range(600)
    ]
    assert np.mean(found) < 0.08


def test_planted_effect_is_found() -> None:
    rng = np.random.default_rng(9)
    words = [
        compare_all({"m": 3.0 + rng.normal(size=5), "null": rng.normal(size=5)}, rng.normal(size=5))
        for _ in range(100)
    ]
    assert sum(w["m"].verdict == "better" for w in words) > 90
    assert sum(w["null"].verdict in ("better", "better (small)", "worse") for w in words) < 12
