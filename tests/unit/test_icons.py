"""ICONS against worked examples, against a plain reading of it, and on gradients that lie on disk."""

from __future__ import annotations

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from selector_zoo import influence as streaming
from selector_zoo import warm_ups
from selector_zoo.icons import AGGREGATES, Icons, IconsConfig, mean_rank, votes
from selector_zoo.influence import influence, task_means

from harness.api import Pool
from harness.errors import HarnessError
from harness.keys import mix64
from harness.types import TrainSpec
from tests import icons_reference as plain
from tests.support import raw_record, write_pool

N = 60
WORKED = np.array([range(10), range(9, -1, -1), (0, 0, 0, 0, 5, 5, 0, 0, 9, 1)], dtype=np.float32).T


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return write_pool(tmp_path_factory.mktemp("pool") / "pool", N)


def made(**given: Any) -> Icons:
    return Icons(IconsConfig(**given))


def unit(n: int, width: int = 64, seed: int = 0) -> dict[str, np.ndarray]:
    """Columns of the gradients pass: rows of length one in float16, one in ten missing, some alike."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, width)) + np.repeat(rng.normal(size=(-(-n // 7), width)), 7, axis=0)[:n]
    rows[n // 2 : n // 2 + n // 6] = rows[0]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[rng.random(n) < 0.1] = np.nan
    lengths = rng.gamma(2, size=n).astype(np.float32)
    return {"gradient": rows.astype(np.float16), "norm": lengths, "norm_projected": lengths}


def select(icons: Icons, pool: Pool, values: np.ndarray, n: int, seed: int = 0) -> Any:
    return icons.select(pool, {"influence": values}, {}, n, seed)


def test_votes_by_hand() -> None:
    """Three tasks over ten samples, each voting for a fifth: thresholds 7.2, 7.2 and 5."""
    assert votes(WORKED, Fraction(1, 5)).tolist() == [1, 1, 0, 0, 1, 1, 0, 0, 2, 1]
    assert votes(WORKED, Fraction(1)).tolist() == [3] * 10
    assert votes(np.zeros((4, 2)), Fraction(1, 4)).tolist() == [2] * 4


def test_the_most_votes_are_kept_and_ties_are_told(tmp_path: Path) -> None:
    ten = write_pool(tmp_path / "ten", 10)
    found = select(made(tie="index"), ten, WORKED, 2)
    assert found.positions.tolist() == [8, 0]
    assert {k: found.card[k] for k in ("cut", "tied_at_cut", "kept_at_cut", "votes", "tasks", "n_topup")} == {
        "cut": 1.0,
        "tied_at_cut": 5,
        "kept_at_cut": 1,
        "votes": {"2": 1, "1": 1},
        "tasks": 3,
        "n_topup": 0,
    }
    second = {int(select(made(), ten, WORKED, 2, seed).positions[1]) for seed in range(40)}
    assert second == {0, 1, 4, 5, 9}
    # Mean ranks: sample 4 and 5 are in the middle of two tasks and nearly best in the third.
    by_rank = mean_rank(WORKED, Fraction(1, 5))
    assert by_rank[4] == pytest.approx((0.4 + 0.5 + 0.7) / 3)
    assert select(made(tie="mean_rank"), ten, WORKED, 3).positions[0] == 8
    assert set(select(made(tie="mean_rank"), ten, WORKED, 3).positions[1:].tolist()) < {4, 5, 9}
    fixed = select(made(tie="index", percent=20.0), ten, WORKED, 6)
    assert fixed.positions.tolist() == [8, 0, 1, 4, 5, 9]
    assert fixed.card["votes"] == {"2": 1, "1": 5}


def test_other_ways_of_counting_by_hand() -> None:
    values = np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 4.0]], dtype=np.float32)
    expected = {
        "mean": [0.5, 0.5, 2.25],
        "max": [1, 1, 4],
        "rank": [1 / 6, 1 / 3, 0.5],
        "norm": [0.125, 0.5, 0.75],
    }
    for name, numbers in expected.items():
        assert AGGREGATES[name](values, Fraction(1, 3)).tolist() == pytest.approx(numbers), name


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, N), st.integers(1, 4))
def test_choices_are_those_of_the_plain_reading(pool: Pool, seed: int, n: int, coarse: int) -> None:
    """Rounded influences, so that there are ties; some samples without any."""
    rng = np.random.default_rng(seed)
    values = np.round(rng.normal(size=(N, 5)) * coarse).astype(np.float32)
    values[rng.random(N) < 0.1] = np.nan
    wanted = plain.votes(values.T.tolist(), 100 * n / N)
    np.testing.assert_array_equal(np.where(np.isnan(values[:, 0]), np.nan, votes(values, Fraction(n, N))), wanted)
    order = np.argsort(mix64(pool.column("uid_hash64"), seed), kind="stable")
    ties = np.empty(N, dtype=np.int64)
    ties[order] = np.arange(N)
    assert select(made(), pool, values, n, seed).positions.tolist() == plain.keep(wanted, ties.tolist(), n)
    assert select(made(tie="index"), pool, values, n).positions.tolist() == plain.keep(wanted, range(N), n)


def test_no_sample_with_more_votes_is_left_out(pool: Pool) -> None:
    values = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
    for n in (1, 13, 59):
        count = votes(values, Fraction(n, N))
        kept = select(made(), pool, values, n).positions
        assert ((count >= 0) & (count <= 4)).all()
        assert count[kept].min() >= np.delete(count, kept).max()


def test_influence_is_the_mean_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The products of the means are the means of the products, in blocks of any size."""
    pool_side, target_side = unit(50, seed=1), unit(40, seed=2)
    tasks = np.array(["b", "a/x", "a/y", "c"])[np.random.default_rng(3).integers(0, 4, 40)]
    names = sorted(set(tasks.tolist()))
    means = task_means(target_side["gradient"], np.searchsorted(names, tasks), 4)
    found = influence(pool_side["gradient"], means)
    rows = pool_side["gradient"].astype(float)
    expected = plain.influences(rows.tolist(), target_side["gradient"].tolist(), tasks.tolist())
    by_part = dict(zip(names, found.T, strict=True))
    for task, numbers in expected.items():
        mine = np.fmax.reduce([by_part[p] for p in names if p.split("/")[0] == task])
        np.testing.assert_allclose(mine, np.array(numbers), atol=1e-6)
    monkeypatch.setattr(streaming, "ROWS", 7)
    np.testing.assert_allclose(influence(pool_side["gradient"], means), found, atol=1e-6)
    np.testing.assert_allclose(
        task_means(target_side["gradient"], np.searchsorted(names, tasks), 4), means, atol=1e-15
    )


def test_a_sample_keeps_its_influence_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit: equal samples tie, in any order of the pool."""
    rows = unit(300, width=320)["gradient"]
    means = task_means(rows, np.arange(300) % 9, 9)
    straight = influence(rows, means)
    order = np.random.default_rng(0).permutation(300)
    np.testing.assert_array_equal(influence(rows[order], means), straight[order])
    shuffled = task_means(rows[order], (np.arange(300) % 9)[order], 9)
    np.testing.assert_array_equal(influence(rows, shuffled), straight)
    monkeypatch.setattr(streaming, "THREADS", 5)
    np.testing.assert_array_equal(influence(rows, means), straight)


def test_gradients_on_disk_are_read_and_not_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = unit(50)["gradient"]
    np.save(tmp_path / "gradient.npy", rows)
    mapped = np.load(tmp_path / "gradient.npy", mmap_mode="r")
    monkeypatch.setattr(streaming, "ROWS", 8)
    means = np.random.default_rng(0).normal(size=(3, 64))
    np.testing.assert_array_equal(influence(mapped, means), influence(rows, means))
    np.testing.assert_array_equal(influence(mapped[5:], means), influence(rows[5:], means))
    np.testing.assert_array_equal(influence(mapped[:, ::-1], means), influence(rows[:, ::-1], means))
    assert [start for start, _ in streaming._blocks(mapped)] == list(range(0, 50, 8))
    np.testing.assert_array_equal(np.concatenate([block for _, block in streaming._blocks(mapped)]), rows)


def test_a_file_that_was_cut_off_is_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "gradient.npy", unit(50)["gradient"])
    mapped = np.load(tmp_path / "gradient.npy", mmap_mode="r")
    os.truncate(tmp_path / "gradient.npy", 4000)
    with pytest.raises(HarnessError, match="ends before row 50 of 50: run its pass again"):
        influence(mapped, np.ones((1, 64)))


def test_torch_keeps_its_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        influence(unit(5)["gradient"], np.ones((1, 64)))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_a_task_without_gradients_and_lengths_that_count() -> None:
    rows = np.array([[1, 0], [0, 1], [np.nan, np.nan]], dtype=np.float16)
    means = task_means(rows, np.array([0, 0, 1]), 2, np.array([3.0, 1.0, 1.0]))
    assert means[0].tolist() == [1.5, 0.5]
    assert np.isnan(means[1]).all()


def test_the_pools_own_sources_are_the_tasks(pool: Pool) -> None:
    columns = {"gradients": unit(N)}
    found = made().score(pool, columns)["influence"]
    rows = columns["gradients"]["gradient"].astype(float)
    expected = plain.influences(rows.tolist(), rows.tolist(), pool.sources().tolist())
    assert sorted(expected) == ["charts", "shapes", "text"]
    for i, name in enumerate(sorted(expected)):
        np.testing.assert_allclose(found[:, i], expected[name], atol=1e-6)
    chosen = made().select(pool, {"influence": found}, columns, 20, 0)
    assert chosen.card["n_nan"] == int(np.isnan(rows[:, 0]).sum()) > 0
    assert not np.isnan(rows[chosen.positions]).any()
    topped = made().select(pool, {"influence": found}, columns, N, 0)
    assert topped.card["n_topup"] == chosen.card["n_nan"]
    assert topped.card["cut"] is None


def test_targets_are_tasks_with_parts(pool: Pool, tmp_path: Path) -> None:
    """The larger part counts; parts of MME by the length of their gradients, however it is spelt."""
    from harness.pool_write import PoolWriter
    from tests.support import png

    names = ["vqa", "MME/colour", "MME/count", "vqa", "MME/colour"]
    with PoolWriter(tmp_path / "targets", "targets") as writer:
        for i, name in enumerate(names):
            assert writer.add(raw_record(i) | {"data_source": name}, lambda key: png(int(key[:-4])))
    columns = {"gradients": unit(N, seed=5), "targets": unit(5, seed=6)}
    columns["targets"]["gradient"][:] = np.nan_to_num(columns["targets"]["gradient"], nan=0.125)
    icons = made(targets=str(tmp_path / "targets"), allow_eval_leak=True)
    own, other = icons.needs()
    assert (own.pool, own.label, other.pool, other.label) == ("", "gradients", icons.config.targets, "targets")
    assert replace(other, pool="", alias="") == own
    rows = columns["targets"]["gradient"].astype(float)
    raw = rows * columns["targets"]["norm_projected"][:, None]
    pool_rows = columns["gradients"]["gradient"].tolist()
    for chosen, scaled in (
        (icons, True),
        (made(targets=icons.config.targets, raw_tasks=[], allow_eval_leak=True), False),
    ):
        found = chosen.score(pool, columns)["influence"]
        mme = plain.influences(pool_rows, (raw if scaled else rows).tolist(), names)["MME"]
        vqa = plain.influences(pool_rows, rows.tolist(), names)["vqa"]
        np.testing.assert_allclose(found, np.array([mme, vqa]).T, rtol=1e-5, atol=1e-6)


def test_of_two_parts_the_larger_influence_counts(tmp_path: Path) -> None:
    """A sample with influences 0.1 and 0.4 on the parts of a task has 0.4 on the task."""
    from harness.pool_write import PoolWriter
    from tests.support import png

    with PoolWriter(tmp_path / "targets", "targets") as writer:
        for i, name in enumerate(("mme/colour", "mme/count")):
            assert writer.add(raw_record(i) | {"data_source": name}, lambda key: png(int(key[:-4])))
    rest = (1 - 0.1**2 - 0.4**2) ** 0.5
    columns = {
        "gradients": {"gradient": np.array([[0.1, 0.4, rest]])},
        "targets": {"gradient": np.eye(2, 3), "norm_projected": np.ones(2)},
    }
    one = write_pool(tmp_path / "one", 1)
    found = made(targets=str(tmp_path / "targets"), allow_eval_leak=True).score(one, columns)["influence"]
    assert found.tolist() == [[pytest.approx(0.4)]]


def test_benchmarks_with_nothing_but_what_they_score_vote_only_if_told(pool: Pool, tmp_path: Path) -> None:
    from harness.pool_write import PoolWriter
    from tests.support import png

    def targets(name: str, sources: list[str]) -> str:
        with PoolWriter(tmp_path / name, name) as writer:
            for i, source in enumerate(sources):
                assert writer.add(raw_record(i) | {"data_source": source}, lambda key: png(int(key[:-4])))
        return str(tmp_path / name)

    mixed, scored_only = (
        targets("mixed", ["MM-Vet", "ai2d", "mme/count"]),
        targets("scored", ["OCRBench", "BLINK"]),
    )
    columns = {"gradients": unit(N, seed=5), "targets": unit(3, seed=6)}
    columns["targets"]["gradient"][:] = np.nan_to_num(columns["targets"]["gradient"], nan=0.125)
    honest, leaky = made(targets=mixed), made(targets=mixed, allow_eval_leak=True)
    both = leaky.score(pool, columns)["influence"]
    one = honest.score(pool, columns)["influence"]
    assert both.shape == (N, 3)
    np.testing.assert_array_equal(one, both[:, 1:2])  # MM-Vet, ai2d, mme
    told = select(honest, pool, one, 5).card
    assert (told["tasks"], told["tasks_left_out"]) == (1, ["MM-Vet", "mme"])
    assert "leakage" not in told
    leaked = select(leaky, pool, both, 5).card
    assert str(leaked["leakage"]).endswith(": MM-Vet, mme")
    assert "tasks_left_out" not in leaked
    with pytest.raises(HarnessError, match=r"OCRBench.*allow_eval_leak=true"):
        made(targets=scored_only).score(pool, {**columns, "targets": unit(2, seed=7)})


def test_what_is_asked_for() -> None:
    (ref,) = made().needs()
    assert (ref.name, ref.model, ref.warm_up) == ("gradients", "warm", warm_ups.SHARED)
    assert (ref.config["width"], ref.config["seed"], ref.config["parameters"]) == (5120, 0, "attention")
    (strict,) = made(sharing="strict", warm_up="200n").needs()
    assert strict.warm_up == replace(warm_ups.ICONS, budget="200n")
    assert strict.config["parameters"] == "linear"
    adam, plain_targets = made(form="adam").needs()
    assert (adam.config["form"], plain_targets.config["form"]) == ("adam", "sgd")
    for warm_up in (warm_ups.SHARED, warm_ups.ICONS):
        spec: dict[str, Any] = dict(warm_up.recipe)
        recipe = TrainSpec(**spec)
        assert (recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout) == (128, 256, 0.05)
        assert (recipe.learning_rate, recipe.schedule, recipe.warmup) == (2e-4, "cosine", 0.03)
        assert warm_up.budget == "5%"
    spec = dict(warm_ups.ICONS.recipe)
    assert (TrainSpec(**spec).global_batch, TrainSpec(**spec).epochs) == (128, 1.0)


def test_nothing_to_agree_with_is_an_error(pool: Pool) -> None:
    with pytest.raises(HarnessError, match="no target sample has a gradient"):
        select(made(), pool, np.full((N, 2), np.nan, dtype=np.float32), 3)


@pytest.mark.parametrize(
    "given",
    [
        {"sharing": "own"},
        {"aggregate": "sum"},
        {"tie": "random"},
        {"tie": "mean_rank", "aggregate": "mean"},
        {"percent": 100.0},
        {"percent": -1.0},
    ],
)
def test_settings_that_mean_nothing_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(HarnessError, match=next(iter(given))):
        made(**given)
