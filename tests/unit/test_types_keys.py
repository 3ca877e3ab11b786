"""Budgets and keys: one meaning, one value."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import HarnessError
from harness.keys import canonical, digest, mix64, plain, seeded_order, stage_key, uid_hash64
from harness.types import NOT_IN_KEY, OMIT_DEFAULT, Budget, Stage, TrainSpec


def test_spellings_of_one_budget_are_one_value() -> None:
    assert len({Budget.parse(x) for x in ("0.1", "0.10", "1e-1", "10%", " 10 %", 0.1)}) == 1
    assert Budget.parse("10%").label == "10%"
    assert Budget.parse("0.005").label == "0.5%"
    assert Budget.parse("200n").label == "200n"


@pytest.mark.parametrize(
    "text", ["5", "0", "-0.1", "1.5", "abc", "0n", "-3n", "1/0", "nan", "inf", "", "150%", "2.5n"]
)
def test_budgets_that_mean_nothing_are_refused_with_a_hint(text: str) -> None:
    with pytest.raises(HarnessError) as e:
        Budget.parse(text)
    assert text in str(e.value) or "(0, 1]" in str(e.value)


def test_five_is_refused_as_ambiguous() -> None:
    with pytest.raises(HarnessError, match=r"0\.05 or 5%"):
        Budget.parse("5")


@given(st.integers(1, 100), st.integers(100, 3_000_000))
def test_percent_budgets_floor_exactly(percent: int, n: int) -> None:
    assert Budget.parse(f"{percent}%").size(n) == percent * n // 100
    assert Budget.parse(f"{percent / 100}").size(n) == percent * n // 100


@given(st.fractions(Fraction(1, 10_000), 1))
def test_labels_parse_back(fraction: Fraction) -> None:
    if fraction > 0:
        budget = Budget(fraction=fraction)
        assert Budget.parse(budget.label) == budget


def test_a_budget_that_keeps_nothing_of_a_small_pool_is_refused() -> None:
    with pytest.raises(HarnessError, match="keeps 0 of 9"):
        Budget.parse("0.1").size(9)
    with pytest.raises(HarnessError, match="keeps 10 of 9"):
        Budget.parse("10n").size(9)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), JSON))
def test_key_ignores_dict_order_and_int_float_spelling(value: dict[str, object]) -> None:
    shuffled = dict(reversed(list(value.items())))
    assert digest(value) == digest(shuffled)


def test_whole_floats_and_ints_are_one_value_but_true_is_not_one() -> None:
    assert canonical({"a": 1.0}) == canonical({"a": 1})
    assert canonical({"a": True}) != canonical({"a": 1})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_cannot_be_part_of_a_key(bad: float) -> None:
    with pytest.raises(ValueError, match="cannot be part of a key"):
        canonical({"a": bad})


def test_things_without_a_canonical_form_are_refused() -> None:
    with pytest.raises(TypeError):
        canonical({"a": object()})


def test_fields_outside_the_key_do_not_change_it() -> None:
    a, b = TrainSpec(), TrainSpec(pack_tokens=99, pack_tiles=3, zero_stage=2, checkpoint_every=7)
    assert digest(a) == digest(b)
    assert digest(a) != digest(TrainSpec(seed=1))
    assert digest(a) != digest(TrainSpec(learning_rate=2e-5))


def test_a_field_added_later_leaves_old_keys_alone() -> None:
    @dataclasses.dataclass(frozen=True)
    class Old:
        a: int = 1

    @dataclasses.dataclass(frozen=True)
    class New:
        a: int = 1
        b: int = dataclasses.field(default=2, metadata=OMIT_DEFAULT)
        path: str = dataclasses.field(default="", metadata=NOT_IN_KEY)

    assert plain(Old()) == plain(New(path="x"))
    assert plain(Old()) != plain(New(b=3))


def test_stage_key_says_what_it_means_and_not_how_it_is_run() -> None:
    stage = Stage(kind="select", version=1, params={"budget": "5%"}, inputs={"score.scores": "ab"})
    same = dataclasses.replace(stage, settings={"pool_path": "elsewhere"}, label="other")
    assert stage_key(stage) == stage_key(same)
    for change in ({"kind": "score"}, {"version": 2}, {"params": {"budget": "6%"}}, {"inputs": {}}):
        assert stage_key(stage) != stage_key(dataclasses.replace(stage, **change))  # type: ignore[arg-type]


def test_keys_are_stable_across_releases() -> None:
    """A change here makes every stored result of every user unreachable."""
    stage = Stage(kind="select", version=1, params={"budget": "5%", "x": 0.5}, inputs={"score.scores": "ab"})
    assert stage_key(stage) == "549478d383fa04a460a6a327130ecbfd4872316d5d4e9ac2c7bc109654e87618"
    assert uid_hash64("tabmwp_33_mc") == 18430482484569734526
    assert mix64(np.array([1, 2, 3], dtype=np.uint64), 7).tolist() == [
        13647215125184110592,
        7134611160154358618,
        7958955049054603978,
    ]


@given(n=st.integers(0, 70), seed=st.integers(0, 2**64 - 1), kept=st.sampled_from((64, 61, 3, 1)))
def test_a_seeded_order_is_a_stable_sort_of_the_hashes(n: int, seed: int, kept: int) -> None:
    """Whatever the hashes: equal ones stay in place, and ones that differ in their low bits only are sorted."""
    rng = np.random.default_rng(n)
    hashes = rng.integers(0, 2**64, n, dtype=np.uint64) >> np.uint64(64 - kept)
    with mock.patch("harness.keys.mix64", lambda values, seed: values):
        np.testing.assert_array_equal(seeded_order(hashes, seed), np.argsort(hashes, kind="stable"))
    np.testing.assert_array_equal(seeded_order(hashes, seed), np.argsort(mix64(hashes, seed), kind="stable"))


def test_mix64_is_a_random_looking_order() -> None:
    values = np.array([uid_hash64(f"u{i}") for i in range(4000)], dtype=np.uint64)
    kept = np.zeros(4000)
    for seed in range(200):
        kept[np.argsort(mix64(values, seed))[:400]] += 1
    # Inclusion counts are binomial(200, 0.1): mean 20, sd 4.2.
    assert abs(kept.mean() - 20) < 1e-9
    assert 3.9 < kept.std() < 4.6
