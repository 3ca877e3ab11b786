"""Summaries obey their definitions, and holes never become numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.benchmarks import TABLE10, Benchmark, Suite
from reports import metrics
from reports.curves import Curve, at_budget, crossing, random_equivalent
from reports.rows import ScoreRow
from reports.summary import BackboneSummary, summarise

UP = np.full(4, True)
scores = st.lists(st.floats(1, 1000), min_size=4, max_size=4).map(np.array)


@given(scores, scores, st.floats(0.01, 100))
def test_rel_does_not_know_the_scale(s: np.ndarray, full: np.ndarray, factor: float) -> None:
    scale = np.array([factor, 1, 1, 1])
    assert metrics.rel_full(s * scale, full * scale, UP) == pytest.approx(metrics.rel_full(s, full, UP))


@given(scores, scores, st.permutations(range(4)))
def test_rel_does_not_know_the_order(s: np.ndarray, full: np.ndarray, order: list[int]) -> None:
    assert metrics.rel_full(s[order], full[order], UP) == pytest.approx(metrics.rel_full(s, full, UP))


@given(scores, scores, st.integers(0, 3), st.floats(0.5, 10), st.booleans())
def test_better_scores_give_more(s: np.ndarray, full: np.ndarray, j: int, step: float, up: bool) -> None:
    higher = np.full(4, up)
    better = s.copy()
    better[j] += step if up else -min(step, s[j] / 2)
    before, after = metrics.rel_full(s, full, higher), metrics.rel_full(better, full, higher)
    assert before is not None
    assert after is not None
    assert after > before
    count = metrics.beats(better, s, higher)
    assert count == metrics.Count(wins=1, ties=3, losses=0)


def test_full_is_a_hundred_in_both_directions() -> None:
    higher = np.array([True, False, True, False])
    full = np.array([3.0, 4.0, 5.0, 6.0])
    assert metrics.rel_full(full, full, higher) == 100.0
    np.testing.assert_allclose(metrics.relative(full * 2, full, higher), [200, 50, 200, 50])


@pytest.mark.parametrize("bad", [np.nan, 0.0, -1.0])
def test_a_ratio_without_a_denominator_is_no_number(bad: float) -> None:
    assert metrics.rel_full(np.ones(4), np.array([1, 1, 1, bad]), UP) is None


def test_a_hole_removes_averages_but_not_counts() -> None:
    s, reference = np.array([2.0, np.nan, 1.0, 1.0]), np.ones(4)
    assert metrics.rel_full(s, reference, UP) is None
    assert metrics.averages(metrics.relative(s, reference, UP)) is None
    assert str(metrics.beats(s, reference, UP)) == "1/3"
    assert metrics.beats(np.full(4, np.nan), reference, UP) is None


def test_incomplete_methods_are_not_ranked() -> None:
    table = np.array([[1.0, 2.0], [np.nan, 9.0], [3.0, 2.0]])
    first, second, third = metrics.rankings(table, np.array([True, True]))
    assert second is None
    assert first is not None
    assert third is not None
    assert (first.mean_rank, third.mean_rank) == (1.75, 1.25)
    assert (first.win_rate, third.win_rate) == (0.25, 0.75)


def test_gap_is_undefined_when_random_is_as_good_as_full() -> None:
    assert metrics.gap_closed(98.0, 96.0) == pytest.approx(0.5)
    assert metrics.gap_closed(99.8, 99.5) is None


def test_the_suite_is_part_of_the_version() -> None:
    b = TABLE10.benchmarks
    shorter = Suite(name="table10", protocol=TABLE10.protocol, benchmarks=b[:9])
    retitled = Suite(
        name="other", protocol=TABLE10.protocol, benchmarks=(dataclasses.replace(b[0], title="X"), *b[1:])
    )
    version = metrics.metric_version(metrics.REL_FULL, TABLE10)
    assert version.startswith("rel_full@v1+")
    assert metrics.metric_version(metrics.REL_FULL, shorter) != version
    assert metrics.metric_version(metrics.REL_FULL, retitled) == version


def test_curves_are_not_extrapolated() -> None:
    curve = Curve.of({0.1: 90.0, 0.05: 80.0, 0.3: None})
    assert str(crossing(curve, 75)) == "<=5.0%"
    assert str(crossing(curve, 95)) == ">10.0%"
    middle = crossing(curve, 85)
    assert middle is not None
    assert middle.budget == pytest.approx(np.sqrt(0.05 * 0.1))
    assert at_budget(curve, 0.2) is None
    assert at_budget(curve, middle.budget) == pytest.approx(85)
    assert crossing(Curve.of({}), 50) is None
    assert random_equivalent(Curve.of({}), 50) is None


TWO = Suite(
    name="two",
    protocol="test",
    benchmarks=tuple(
        Benchmark(name=n, title=n, task=n, metrics=("m",), higher_is_better=n == "up") for n in ("up", "down")
    ),
)


def study(*runs: tuple[str, int, float | None, float | None]) -> BackboneSummary:
    rows = [
        ScoreRow(
            method=method,
            budget="100%" if method == "full" else "10%",
            budget_fraction=1.0 if method == "full" else 0.1,
            backbone="b",
            seed=seed,
            benchmark=name,
            value=value,
            status="missing" if value is None else "ok",
        )
        for method, seed, *values in runs
        for name, value in zip(("up", "down"), values, strict=True)
    ]
    (summary,) = summarise(rows, TWO)
    return summary


def test_runs_with_holes_are_left_out_of_rel_and_said_to_be() -> None:
    s = study(("full", 0, 50.0, 10.0), ("random", 0, 40.0, 20.0), ("random", 1, 50.0, None), ("m", 0, 45.0, None))
    random, m = s.find("random", "10%"), s.find("m", "10%")
    assert random is not None
    assert m is not None
    assert random.rel == pytest.approx((80 + 50) / 2)
    assert random.group.n_trials == 1
    assert random.scores[0] == 45.0
    assert m.rel is None
    assert m.vs_random is not None
    assert str(m.vs_random.beats) == "0/1"
    assert m.vs_random.comparison is None


def test_lower_is_better_counts_downwards() -> None:
    s = study(("full", 0, 50.0, 10.0), ("random", 0, 40.0, 20.0), ("m", 0, 41.0, 16.0))
    m = s.find("m", "10%")
    assert m is not None
    assert m.vs_random is not None
    assert str(m.vs_random.beats) == "2/2"
    np.testing.assert_allclose(m.vs_random.margins, [2.0, 12.5])


def test_without_full_or_random_there_is_nothing_relative() -> None:
    m = study(("random", 0, 40.0, 20.0), ("m", 0, 41.0, 16.0)).find("m", "10%")
    assert m is not None
    assert m.rel is None
    assert m.vs_random is not None
    assert str(m.vs_random.beats) == "2/2"
    alone = study(("full", 0, 50.0, 10.0), ("m", 0, 41.0, 16.0)).find("m", "10%")
    assert alone is not None
    assert alone.rel is not None
    assert alone.vs_random is None
