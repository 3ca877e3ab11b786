"""`random_stratified`, `el2n` and `ppl_mid` against worked examples of their definitions."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from selector_zoo.bands import keep_band
from selector_zoo.shares import largest_remainder, place_in_group

from harness.api import Pool, Selector
from harness.errors import HarnessError
from harness.keys import plain
from harness.registry import configured, feature_pass, selector, selector_spec
from tests.support import write_pool


def make(name: str, **settings: Any) -> Selector:
    plugin = selector(name)
    made: Selector = plugin.cls(configured(plugin.cls, settings))
    return made


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return write_pool(tmp_path_factory.mktemp("pool") / "pool", 50)


def kept(made: Selector, pool: Pool, columns: dict[str, Any], n: int, seed: int = 0) -> list[int]:
    features = {"forward": columns}
    scores = made.score(pool, features) or {}
    return [int(i) for i in made.select(pool, scores, features, n, seed).positions]


def ranks(n_pool: int, n: int, path: Path) -> list[int]:
    """Which ascending ranks the middle band keeps."""
    pool = write_pool(path, n_pool)
    order = np.random.default_rng(0).permutation(n_pool)
    score = np.empty(n_pool)
    score[order] = np.arange(n_pool)
    return sorted(int(score[i]) for i in keep_band(pool, score, n, 0, band="middle").positions)


def test_the_middle_is_the_published_slice(tmp_path: Path) -> None:
    assert ranks(10, 3, tmp_path / "a") == [4, 5, 6]
    assert ranks(10, 4, tmp_path / "b") == [3, 4, 5, 6]
    assert ranks(11, 3, tmp_path / "c") == [4, 5, 6]
    assert ranks(11, 11, tmp_path / "d") == list(range(11))


def test_as_many_are_left_out_below_as_above(pool: Pool) -> None:
    score = np.random.default_rng(1).permutation(50).astype(float)
    before: set[int] = set()
    for n in range(1, 51):
        chosen = keep_band(pool, score, n, 0, band="middle").positions.tolist()
        values = sorted(score[chosen])
        assert values == list(range(50 // 2 - n // 2, 50 // 2 - n // 2 + n))
        assert int(values[0]) - int(49 - values[-1]) in (0, 1)
        assert before < set(chosen)
        before = set(chosen)


def test_only_the_order_of_scores_matters(pool: Pool) -> None:
    score = np.random.default_rng(2).normal(size=50)
    for band in ("top", "middle", "bottom"):
        plain = keep_band(pool, score, 20, 3, band=band).positions
        assert plain.tolist() == keep_band(pool, np.exp(3 * score), 20, 3, band=band).positions.tolist()


def test_samples_without_a_score_only_fill_up(pool: Pool) -> None:
    score = np.arange(50.0)
    score[[3, 20, 21, 22, 49]] = np.nan
    for band, best in (("top", 48), ("middle", 26), ("bottom", 0)):
        chosen = keep_band(pool, score, 45, 0, band=band)
        assert not np.isnan(score[chosen.positions]).any()
        assert chosen.positions[0] == best
        assert chosen.card == {"n_nan": 5, "n_topup": 0, "scope": "global"}
        topped = keep_band(pool, score, 47, 0, band=band)
        assert topped.card["n_topup"] == 2
        assert topped.positions[:45].tolist() == chosen.positions.tolist()
    assert sorted(keep_band(pool, np.full(50, np.nan), 50, 0, band="middle").positions) == list(range(50))


def test_a_range_of_quantiles_is_kept_from_its_middle_outwards(pool: Pool) -> None:
    score = np.random.default_rng(4).permutation(50).astype(float)

    def values(n: int, band: str) -> list[int]:
        return sorted(int(score[i]) for i in keep_band(pool, score, n, 0, band=band).positions)

    assert values(15, "0.2-0.5") == list(range(10, 25))
    assert values(3, "0.2-0.5") == [16, 17, 18]
    assert values(50, "0.2-0.5") == list(range(50))
    assert values(20, "0-1") == values(20, "middle")
    assert keep_band(pool, score, 15, 0, band="0.2-0.5").card["n_topup"] == 0
    assert keep_band(pool, score, 18, 0, band="0.2-0.5").card["n_topup"] == 3
    score[score < 10] = np.nan  # 40 are left, so ranks 8 to 19 of them
    assert values(12, "0.2-0.5") == list(range(18, 30))


def test_a_band_of_each_source_keeps_the_mixture(pool: Pool) -> None:
    score = np.random.default_rng(5).normal(size=50)
    sources = np.asarray(pool.sources())
    for band in ("top", "middle", "bottom", "0.2-0.5"):
        chosen = keep_band(pool, score, 25, 0, band=band, scope="source").positions
        assert sorted(by_source(pool, chosen).values()) == [8, 8, 9]
        for source, n in by_source(pool, chosen).items():
            ascending = np.flatnonzero(sources == source)[np.argsort(score[sources == source])]
            size = len(ascending)
            if band.startswith("0"):
                continue  # rounding within a range is the other test's
            first = {"top": size - n, "bottom": 0, "middle": size // 2 - n // 2}[band]
            assert set(ascending[first : first + n]) == {i for i in chosen if sources[i] == source}


@given(st.integers(1, 50), st.integers(0, 10**6), st.sampled_from(("top", "middle", "bottom", "0.1-0.55")))
def test_a_band_of_each_source_is_that_of_a_pool_of_its_own(pool: Pool, n: int, seed: int, band: str) -> None:
    """Scores with many ties and a third unknown, against one ranking a source."""
    rng = np.random.default_rng(seed)
    score = np.where(rng.random(50) < 0.3, np.nan, rng.integers(0, 5, 50).astype(float))
    sources = np.asarray(pool.sources())
    names = sorted(set(sources))
    known = ~np.isnan(score)
    chosen = keep_band(pool, score, n, 3, band=band, scope="source")
    kept = chosen.positions.tolist()
    assert len(set(kept)) == n
    share = largest_remainder(
        np.array([(known & (sources == s)).sum() for s in names]), min(n, int(known.sum())), names
    )
    for source, quota in zip(names, share.tolist(), strict=True):
        alone = keep_band(pool, np.where(sources == source, score, np.nan), quota, 3, band=band).positions
        assert {i for i in kept if sources[i] == source and known[i]} == set(alone.tolist())
    assert not known[kept[int(known.sum()) :]].any()
    assert known[kept].sum() == min(n, known.sum())
    assert chosen.card["n_nan"] == (~known).sum()


def test_only_one_ranking_of_all_is_nested() -> None:
    for name in ("el2n", "ppl_mid", "ppl_si", "clip_score", "e5v"):
        assert make(name).nested
        assert not make(name, scope="source").nested
    assert not make("e5v", mode="cluster").nested
    assert not make("random", nested=False).nested


def test_settings_added_later_change_no_key_by_their_default() -> None:
    assert "scope" not in selector_spec("ppl_mid", {}).config
    assert "views" not in selector_spec("icons", {"views": "checkpoint"}).config
    assert selector_spec("ppl_mid", {"scope": "source"}).config["scope"] == "source"
    forward = feature_pass("forward").cls
    assert plain(configured(forward, {"views": "checkpoint"})) == plain(configured(forward, {}))
    assert plain(configured(forward, {"views": "single"})) != plain(configured(forward, {}))


def test_perplexity_is_a_mean_over_tokens_not_over_turns(tmp_path: Path) -> None:
    """Turns [1, 3] and [2] have mean 2; a longer turn counts for more."""
    pool = write_pool(tmp_path / "pool", 4)
    columns = {
        "nll_sum_ans": np.array([6.0, 9.0, np.nan, 1.0], dtype=np.float32),
        "n_tok_ans": np.array([3, 3, 0, 1], dtype=np.int32),
        "nll_sum_sft": np.array([8.0, 1.0, 3.0, 30.0], dtype=np.float32),
        "n_tok_sft": np.array([8, 8, 8, 8], dtype=np.int32),
    }
    scores = make("ppl_mid").score(pool, {"forward": columns})
    assert scores is not None
    np.testing.assert_allclose(scores["score"], [2.0, 3.0, np.nan, 1.0])
    assert kept(make("ppl_mid"), pool, columns, 1) == [0]
    assert kept(make("ppl_mid"), pool, columns, 2) == [0, 3]
    assert kept(make("ppl_mid"), pool, columns, 4)[-1] == 2
    assert kept(make("ppl_mid", band="top"), pool, columns, 1) == [1]
    assert kept(make("ppl_mid", band="bottom"), pool, columns, 1) == [3]
    assert kept(make("ppl_mid", mask="sft", band="top"), pool, columns, 1) == [3]


def test_el2n_keeps_the_largest_errors(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", 5)
    error = np.array([0.3, 1.2, np.nan, 0.7, 1.2], dtype=np.float32)
    columns = {"el2n_mean_ans": error, "el2n_mean_sft": error[::-1]}
    assert kept(make("el2n", tie="index"), pool, columns, 3) == [1, 4, 3]
    assert kept(make("el2n", band="bottom"), pool, columns, 2) == [0, 3]
    assert kept(make("el2n", band="middle", tie="index"), pool, columns, 2) == [1, 3]
    assert kept(make("el2n", mask="sft", tie="index"), pool, columns, 2) == [0, 3]
    assert kept(make("el2n"), pool, columns, 5)[-1] == 2
    ties = {tuple(kept(make("el2n"), pool, columns, 1, seed)) for seed in range(20)}
    assert ties == {(1,), (4,)}


def test_selectors_ask_for_the_model_and_the_length_they_are_given() -> None:
    assert make("el2n").needs()[0].model == "warm"
    assert make("ppl_mid").needs()[0].model == "mid"
    (ref,) = make("el2n", model="some/folder", max_length=512).needs()
    assert (ref.name, ref.model) == ("forward", "some/folder")
    assert ref.config == {"max_length": 512, "views": "checkpoint"}
    assert make("ppl_si", model="some/folder", max_length=512).needs() == (ref,)


def test_one_forward_of_the_backbone_serves_perplexity_and_deita() -> None:
    assert make("ppl_mid").needs()[0] == replace(make("deita").needs()[-1], alias="")


def test_shares_are_rounded_by_largest_remainder() -> None:
    """Sources of 5, 3 and 2 at n=4: shares 2.0, 1.2, 0.8."""
    assert largest_remainder(np.array([5, 3, 2]), 4, ["a", "b", "c"]).tolist() == [2, 1, 1]
    assert largest_remainder(np.array([1, 1, 1]), 2, ["b", "c", "a"]).tolist() == [1, 0, 1]
    assert largest_remainder(np.array([3]), 2, ["a"]).tolist() == [2]


@given(st.lists(st.integers(1, 10**8), min_size=1, max_size=12), st.fractions(0, 1))
def test_shares_are_exact_and_within_one_of_proportion(sizes: list[int], share: Any) -> None:
    n = int(sum(sizes) * share)
    names = [f"{i:02}" for i in range(len(sizes))]
    quota = largest_remainder(np.array(sizes, dtype=np.int64), n, names)
    assert quota.sum() == n
    for size, q in zip(sizes, quota.tolist(), strict=True):
        assert 0 <= q <= size
        assert abs(q - size * n / sum(sizes)) < 1 + 1e-6


def test_places_count_within_groups() -> None:
    group = np.array([2, 0, 2, 2, 1, 0])
    assert place_in_group(group).tolist() == [0, 0, 1, 2, 0, 1]
    assert place_in_group(np.array([5])).tolist() == [0]


def by_source(pool: Pool, positions: npt.NDArray[Any]) -> dict[str, int]:
    return dict(Counter(pool.sources()[positions].tolist()))


def test_stratified_keeps_the_mixture_and_draws_uniformly_within(pool: Pool) -> None:
    assert by_source(pool, np.arange(50)) == {"charts": 17, "shapes": 17, "text": 16}
    made = make("random_stratified")
    counts = np.zeros(50)
    for seed in range(400):
        chosen = made.select(pool, {}, {}, 25, seed).positions
        assert sorted(by_source(pool, chosen).values()) == [8, 8, 9]
        assert by_source(pool, chosen)["charts"] == 9  # equal remainders go by name
        counts[chosen] += 1
    expected = np.array([{"charts": 9 / 17, "shapes": 8 / 17, "text": 8 / 16}[s] for s in pool.sources()]) * 400
    assert np.abs(counts - expected).max() < 5 * np.sqrt(400 * 0.25)
    assert not selector("random_stratified").cls.nested


@pytest.mark.parametrize(
    ("name", "settings", "hint"),
    [
        ("el2n", {"mask": "answer"}, "ans, sft"),
        ("el2n", {"band": "mid"}, "top, middle, bottom"),
        ("ppl_mid", {"band": "low"}, "top, middle, bottom"),
        ("ppl_mid", {"band": "0.5-0.2"}, "lower to a higher"),
        ("ppl_mid", {"scope": "style"}, "global, source"),
        ("clip_score", {"scope": "style"}, "global, source"),
        ("e5v", {"scope": "source", "mode": "cluster"}, "similarity"),
        ("ppl_mid", {"tie": "random"}, "hash, index"),
        ("random_stratified", {"by": "source"}, "not known"),
    ],
)
def test_settings_that_mean_nothing_are_refused(name: str, settings: dict[str, Any], hint: str) -> None:
    with pytest.raises(HarnessError, match=hint):
        make(name, **settings)
