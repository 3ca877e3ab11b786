"""`coincide` against worked examples of its definition, and against a plain reading of the whole of it."""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from selector_zoo import coincide
from selector_zoo.coincide import (
    Coincide,
    CoincideConfig,
    budgets,
    centroid_cosine,
    cluster_count,
    imbalance,
    imbalanced,
    members_of,
    transferability,
)
from selector_zoo.mmd import Kernel

from harness.api import Pool
from harness.errors import HarnessError
from harness.keys import mix64
from harness.registry import configured
from tests import coincide_reference as plain
from tests.support import write_pool

N = 60
Features = dict[str, dict[str, npt.NDArray[Any]]]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return write_pool(tmp_path_factory.mktemp("pool") / "pool", N)


def made(**settings: Any) -> Coincide:
    return Coincide(configured(Coincide, settings))


def features(seed: int = 0, *, failed: tuple[int, ...] = (), copies: int = 1, d: int = 8) -> Features:
    """Activations of N samples in four loose groups; some are copies, some failed."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(4, d))[rng.integers(0, 4, N)] + 0.5 * rng.normal(size=(N, d))
    rows = np.repeat(rows, copies, axis=0)[:N]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[list(failed)] = np.nan
    n_text = np.where(np.isnan(rows[:, 0]), -1, 5).astype(np.int32)
    return {"activations": {"feature": rows.astype(np.float16), "n_text": n_text}}


def kept(chosen: Coincide, pool: Pool, columns: Features, n: int, seed: int = 0) -> list[int]:
    scores = chosen.score(pool, columns)
    return [int(i) for i in chosen.select(pool, scores, columns, n, seed).positions]


def text_centroids(*rows: tuple[float, float]) -> npt.NDArray[np.float32]:
    """Centroids with these text halves, and image halves that would change everything."""
    text = np.array(rows, dtype=np.float32)
    return np.concatenate([np.arange(text.size, dtype=np.float32).reshape(text.shape) + 1, text], axis=1)


def test_transferability_by_hand() -> None:
    """Released: of the text halves, those above 0.9 left out."""
    three = [(1.0, 0.0), (0.6, 0.8), (0.0, 1.0)]
    found = transferability(text_centroids(*three), CoincideConfig())
    assert found.tolist() == pytest.approx([0.3, 0.7, 0.4], abs=1e-6)
    near = (0.995, math.sqrt(1 - 0.995**2))
    found = transferability(text_centroids(*three, near), CoincideConfig())
    wanted = [0.3, 0.6922999791, 0.2999583073, 0.3883874296]
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)
    assert transferability(text_centroids((1, 0), (2, 0)), CoincideConfig()).tolist() == [0.0, 0.0]


def test_transferability_as_written_is_of_the_whole_and_of_all_others() -> None:
    rows = np.array([[1, 0, 0, 0], [0.8, 0, 0.6, 0], [0, 0, 0, 1]], dtype=np.float32)
    found = transferability(rows, CoincideConfig(variant="paper"))
    assert found.tolist() == pytest.approx([0.4, 0.4, 0.0], abs=1e-7)
    assert transferability(rows[:1], CoincideConfig(variant="paper")).tolist() == [0.0]


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_transferability_in_blocks_is_the_same(variant: str) -> None:
    rows = np.random.default_rng(0).normal(size=(37, 12)).astype(np.float32)
    config = CoincideConfig(variant=variant, mask=0.5)
    whole = transferability(rows, config)
    assert transferability(rows, config, rows=5).tolist() == pytest.approx(whole.tolist(), abs=1e-15)
    wanted = plain.transferability(rows, released=variant == "released", mask=0.5)
    assert whole.tolist() == pytest.approx(wanted, abs=1e-12)


def shares(share: list[float], sizes: list[int], n: int) -> list[int]:
    return budgets(np.array(share), np.array(sizes), n, 0.1)[0].tolist()


def test_budgets_by_hand() -> None:
    assert shares([0.3, 0.2, 0.1], [2, 5, 10], 10) == [2, 5, 3]
    assert shares([0.11, 0.10], [10, 1], 8) == [7, 1]
    assert budgets(np.array([0.11, 0.10]), np.array([10, 1]), 8, 0.1)[1] == 2
    assert shares([0.5], [4], 4) == [4]
    assert shares([0.2] * 6, [9] * 6, 3) == [0, 1, 0, 1, 0, 1]  # halves go to the even number
    assert shares([], [], 0) == []


@given(st.data())
def test_budgets_are_those_of_the_plain_rule(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=9))
    # Quarters of the temperature: many equal shares, and products far from a half where they are not.
    share = [data.draw(st.integers(-8, 8)) / 40 for _ in sizes]
    n = data.draw(st.integers(0, sum(sizes)))
    found = shares(share, sizes, n)
    assert sum(found) == n
    assert all(0 <= f <= s for f, s in zip(found, sizes, strict=True))
    assert found == plain.budgets(share, sizes, n, 0.1)


@pytest.mark.parametrize("seed", range(3))
def test_rounding_of_another_machine_changes_no_choice(pool: Pool, seed: int) -> None:
    """Sums in another order differ by 1e-15 or so; clusters of equal share must keep their turns."""
    chosen, columns = made(clusters=6), features(seed)
    scores = chosen.score(pool, columns)
    same = np.full(N, 0.25)
    even = {**scores, "transferability": same, "density": np.ones(N)}
    noise = np.random.default_rng(seed).uniform(-1e-14, 1e-14, N)[scores["cluster"]]
    other = {**even, "transferability": same + noise}
    for n in (5, 17, 30):
        first, second = (chosen.select(pool, s, columns, n, seed).positions.tolist() for s in (even, other))
        assert first == second


def test_budgets_do_not_depend_on_the_numbers_of_clusters() -> None:
    rng = np.random.default_rng(4)
    share, sizes = rng.normal(size=30), rng.integers(1, 20, 30)
    order = rng.permutation(30)
    found, _ = budgets(share, sizes, 123, 0.1)
    assert budgets(share[order], sizes[order], 123, 0.1)[0].tolist() == found[order].tolist()


def test_enormous_shares_do_not_overflow() -> None:
    found, _ = budgets(np.array([500.0, -500.0, 499.9]), np.array([3, 9, 4]), 9, 0.1)
    assert found.tolist() == [3, 2, 4]


@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("clusters", [1, 5, 20])
def test_choices_are_those_of_the_plain_method(pool: Pool, variant: str, copies: int, clusters: int) -> None:
    chosen = made(variant=variant, clusters=clusters)
    columns = features(clusters, copies=copies)
    scores = chosen.score(pool, columns)
    labels = scores["cluster"].tolist()
    rows = columns["activations"]["feature"].astype(np.float64)
    ties = mix64(pool.column("uid_hash64"), 1234).tolist()
    for n in (1, 17, 40, N):
        found = chosen.select(pool, scores, columns, n, 0).positions.tolist()
        wanted = plain.keep(rows, labels, fixpoint(rows, labels), ties, n, released=variant == "released")
        assert set(found) == wanted
        assert len(found) == n


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_clusters_too_large_to_keep_their_kernel_are_scored_the_same(
    monkeypatch: pytest.MonkeyPatch, pool: Pool, variant: str
) -> None:
    columns, chosen = features(7, copies=2), made(clusters=3, variant=variant)
    wanted = chosen.score(pool, columns)
    monkeypatch.setattr(Kernel, "of", partial(Kernel.of, kept=5))
    found = chosen.score(pool, columns)
    assert max(np.bincount(wanted["cluster"])) > 5
    assert {name: values.tolist() for name, values in found.items()} == {
        name: values.tolist() for name, values in wanted.items()
    }


def fixpoint(rows: npt.NDArray[np.float64], labels: list[int]) -> npt.NDArray[np.float32]:
    """The centroids of settled clusters, from the rows they hold."""
    sums = np.array([rows[np.array(labels) == k].sum(axis=0) for k in range(max(labels) + 1)])
    return (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float32)


def test_samples_that_failed_only_fill_up(pool: Pool) -> None:
    columns = features(failed=(4, 20, 33))
    chosen = made(clusters=5)
    scores = chosen.score(pool, columns)
    for name, missing in (("cluster", -1), ("rank", -1)):
        assert np.flatnonzero(scores[name] == missing).tolist() == [4, 20, 33]
    for name in ("transferability", "density"):
        assert np.flatnonzero(np.isnan(scores[name])).tolist() == [4, 20, 33]
    within = chosen.select(pool, scores, columns, N - 3, 0)
    assert not {4, 20, 33} & set(within.positions.tolist())
    assert (within.card["n_nan"], within.card["n_topup"]) == (3, 0)
    beyond = chosen.select(pool, scores, columns, N - 1, 0)
    assert beyond.card["n_topup"] == 2
    assert len({4, 20, 33} & set(beyond.positions.tolist())) == 2
    assert len(set(beyond.positions.tolist())) == N - 1


def test_a_pool_of_failures_is_filled_up(pool: Pool) -> None:
    assert len(set(kept(made(), pool, features(failed=tuple(range(N))), 7))) == 7


def test_identical_samples_are_one_cluster(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    columns = features(copies=N)
    chosen = made(clusters=6)
    scores = chosen.score(pool, columns)
    assert set(scores["cluster"].tolist()) == {0}
    assert scores["density"].tolist() == [1.0] * N
    assert "stayed empty" in caplog.text
    order = np.argsort(scores["rank"])
    tie = mix64(pool.column("uid_hash64"), 1234)
    assert order.tolist() == np.argsort(tie).tolist()
    assert len(set(kept(chosen, pool, columns, 11))) == 11


def test_more_of_a_cluster_that_transfers_and_is_diverse(pool: Pool) -> None:
    columns = features(3)
    chosen = made(clusters=4)
    scores = chosen.score(pool, columns)
    share = scores["transferability"] / scores["density"]
    counts = np.bincount(scores["cluster"][kept(chosen, pool, columns, 20)], minlength=4)
    sizes = np.bincount(scores["cluster"])
    best = int(scores["cluster"][np.argmax(share)])
    assert counts[best] == max(counts) or counts[best] == sizes[best]
    assert (scores["transferability"] <= 0.9).all()
    assert ((scores["density"] > math.exp(-2)) & (scores["density"] <= 1)).all()


@pytest.mark.parametrize("rule", ["mmd", "centroid", "random"])
def test_other_rules_within_a_cluster(pool: Pool, rule: str) -> None:
    columns = features(5)
    scores = made(clusters=3, inside=rule).score(pool, columns)
    rows = columns["activations"]["feature"].astype(np.float64)
    tie = mix64(pool.column("uid_hash64"), 1234)
    for k, members in enumerate(members_of(scores["cluster"], np.arange(N))):
        places = scores["rank"][members]
        assert sorted(places.tolist()) == list(range(len(members)))
        centroid = fixpoint(rows, scores["cluster"].tolist())[k]
        if rule == "centroid":
            assert (np.diff((rows[members] @ centroid)[np.argsort(places)]) <= 1e-9).all()
        if rule == "random":
            assert (np.diff(tie[members][np.argsort(places)].astype(float)) >= 0).all()


def test_as_many_clusters_as_in_the_release() -> None:
    assert cluster_count(CoincideConfig(), 665_000) == 10_000
    assert cluster_count(CoincideConfig(), 2_600_000) == 39_098
    assert cluster_count(CoincideConfig(clusters=10_000), 2_600_000) == 10_000
    assert cluster_count(CoincideConfig(), 20) == 1


def test_imbalance_by_hand() -> None:
    assert imbalance(np.array([5, 5, 5])) == 1.0
    assert imbalance(np.array([3, 1])) == pytest.approx(1.25)
    assert imbalance(np.array([], dtype=np.int64)) == 0.0
    assert imbalanced(np.array([2] + [0] * 48)) == ""
    assert imbalanced(np.array([2] + [0] * 49)) == "the imbalance of 50 clusters is 50"


def test_mean_cosine_of_centroids_by_hand() -> None:
    rows = np.array([[1, 0], [0.6, 0.8], [0, 1]], dtype=np.float32)
    assert centroid_cosine(rows) == pytest.approx((0.6 + 0.8 + 0) / 3, abs=1e-7)
    assert centroid_cosine(rows[:1]) == centroid_cosine(rows[:0]) == 0.0
    assert centroid_cosine(rows[[1, 1]]) == pytest.approx(1, abs=1e-7)


def test_centroids_that_are_all_alike_are_refused(pool: Pool) -> None:
    rows = np.ones((N, 8)) + 0.01 * np.random.default_rng(0).normal(size=(N, 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    columns = {"activations": {"feature": rows.astype(np.float16), "n_text": np.full(N, 5, dtype=np.int32)}}
    with pytest.raises(HarnessError, match=r"5 centroids .* model 'warm' are all alike .* set another `model`"):
        made(clusters=5, model="warm").score(pool, columns)
    assert set(made(clusters=1).score(pool, columns)["cluster"].tolist()) == {0}


def test_the_card_tells_about_clusters(pool: Pool) -> None:
    columns = features(1)
    chosen = made(clusters=4)
    card = chosen.select(pool, chosen.score(pool, columns), columns, 3, 0).card
    assert card["variant"] == "released"
    assert card["n_clusters"] == 4
    assert card["n_clusters_unused"] in range(4)
    assert card["imbalance"] >= 1
    assert -1 / 3 <= card["centroid_cosine"] < 1
    assert (card["reseeded"], card["dropped"]) == (0, 0)
    assert "warning" not in card
    assert "reference model" in str(chosen.uncertain)


def test_the_card_tells_of_clusters_that_stayed_empty(pool: Pool) -> None:
    columns, chosen = features(copies=N // 3), made(clusters=6)
    scores = chosen.score(pool, columns)
    card = chosen.select(pool, scores, columns, 3, 0).card
    assert (card["n_clusters"], card["dropped"]) == (3, 3)
    assert card["reseeded"] >= 0
    assert all(isinstance(card[name], int) for name in ("reseeded", "dropped"))


def test_very_unequal_clusters_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    columns, chosen = features(1), made(clusters=4)
    with caplog.at_level(logging.WARNING):
        scores = chosen.score(pool, columns)
        assert "imbalance" not in caplog.text
        monkeypatch.setattr(coincide, "IMBALANCED", 1.0)
        scores = chosen.score(pool, columns)
    assert "the imbalance of 4 clusters is 1" in caplog.text
    card = chosen.select(pool, scores, columns, 3, 0).card
    assert str(card["warning"]).startswith("the imbalance of 4 clusters is")


def test_scores_stored_before_the_card_told_of_clusters_still_select(pool: Pool) -> None:
    columns, chosen = features(1), made(clusters=4)
    scores = chosen.score(pool, columns)
    old = {name: scores[name] for name in ("cluster", "rank", "transferability", "density")}
    wanted, found = (chosen.select(pool, some, columns, 9, 0) for some in (scores, old))
    assert found.positions.tolist() == wanted.positions.tolist()
    assert "dropped" not in found.card


def test_the_pass_gets_what_was_set() -> None:
    (ref,) = made(layers=(1, 2), view="tiles", max_length=99, model="warm").needs()
    assert (ref.name, ref.model) == ("activations", "warm")
    assert ref.config == {"layers": [1, 2], "view": "tiles", "max_length": 99}


@pytest.mark.parametrize(
    "settings",
    [
        {"variant": "fixed"},
        {"inside": "first"},
        {"temperature": 0.0},
        {"clusters": -1},
        {"iterations": 0},
        {"mask": 5.0},
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(HarnessError, match=next(iter(settings))):
        CoincideConfig(**settings)


def test_columns_may_be_memory_mapped(pool: Pool, tmp_path: Path) -> None:
    columns = features(2, failed=(8,))
    for name, values in columns["activations"].items():
        np.save(tmp_path / f"{name}.npy", values)
    mapped = {"activations": {p.stem: np.load(p, mmap_mode="r") for p in tmp_path.glob("*.npy")}}
    assert kept(made(clusters=4), pool, mapped, 25) == kept(made(clusters=4), pool, columns, 25)
