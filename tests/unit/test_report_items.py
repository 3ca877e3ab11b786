"""Item-level tests: the textbook cases, coverage with clusters, and repeatability."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from harness.errors import HarnessError
from reports.items import Bootstrap, ItemScores, bootstrap, paired


def test_without_clusters_it_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 200)), rng.normal(size=(2, 200))
    found = paired(a, b, np.arange(200))
    expected = stats.ttest_rel(a.mean(axis=0), b.mean(axis=0))
    interval = expected.confidence_interval()
    assert found is not None
    assert [found.p, found.low, found.high] == pytest.approx([expected.pvalue, interval.low, interval.high])
    assert found.se == pytest.approx(found.se_independent)


def test_duplicated_items_do_not_count_twice() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(1, 100)), rng.normal(size=(1, 100))
    once = paired(a, b, np.arange(100))
    twice = paired(np.repeat(a, 2, axis=1), np.repeat(b, 2, axis=1), np.repeat(np.arange(100), 2))
    assert once is not None
    assert twice is not None
    assert twice.se == pytest.approx(once.se)
    assert twice.se_independent < 0.8 * once.se


def test_one_cluster_says_nothing() -> None:
    assert paired(np.ones((1, 5)), np.zeros((1, 5)), np.zeros(5)) is None


def test_clustered_interval_covers() -> None:
    rng, clusters = np.random.default_rng(2), np.repeat(np.arange(40), 4)
    hits = 0
    for _ in range(600):
        shared = np.repeat(rng.normal(size=40), 4)
        found = paired((shared + rng.normal(size=160))[None], np.zeros((1, 160)), clusters)
        assert found is not None
        hits += found.low <= 0 <= found.high
    assert 0.93 <= hits / 600 <= 0.97


def scores(rng: np.random.Generator, runs: int, lift: float, strata: bool = False) -> ItemScores:
    item = rng.uniform(0.3, 0.7, 300)
    draw = [(rng.random((n, 300)) < item + d).astype(float) for n, d in ((runs, lift), (runs, 0.0), (1, 0.2))]
    return ItemScores(
        method=draw[0],
        random=draw[1],
        full=draw[2],
        clusters=np.arange(300) // 2,
        strata=np.arange(300) // 150 if strata else None,
    )


def test_bootstrap_centres_on_the_scores() -> None:
    b = scores(np.random.default_rng(3), runs=3, lift=0.1)
    found = bootstrap([b], replicates=500)
    assert found.scope == "items only"
    assert found.method.mean() == pytest.approx(100 * b.method.mean() / b.full.mean(), abs=1.0)
    low, high = Bootstrap.interval(found.delta)
    assert low < 100 * (b.method.mean() - b.random.mean()) / b.full.mean() < high


def test_strata_are_added() -> None:
    one = scores(np.random.default_rng(4), runs=1, lift=0.0, strata=True)
    found = bootstrap([one], replicates=300)
    parts = [one.method[:, one.strata == s].mean() for s in (0, 1)]
    total = [one.full[:, one.strata == s].mean() for s in (0, 1)]
    assert found.method.mean() == pytest.approx(100 * sum(parts) / sum(total), abs=1.5)


def test_same_seed_same_interval_and_runs_widen_it() -> None:
    rng = np.random.default_rng(5)
    few, many = [scores(rng, 4, 0.0)], [scores(rng, 6, 0.0)]
    np.testing.assert_array_equal(bootstrap(few, 50).delta, bootstrap(few, 50).delta)
    assert not np.array_equal(bootstrap(few, 50).delta, bootstrap(few, 50, seed=1).delta)
    assert bootstrap(many, 50).runs_resampled


def test_shapes_must_agree() -> None:
    with pytest.raises(HarnessError, match="must agree"):
        ItemScores(method=np.ones((1, 3)), random=np.ones((1, 4)), full=np.ones((1, 3)), clusters=np.arange(3))
