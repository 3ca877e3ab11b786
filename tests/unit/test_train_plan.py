"""Properties of plans: every sample once, the same batches for any number of processes, limits kept."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import HarnessError
from harness.keys import mix64
from harness.types import TrainSpec
from llava_train.plan import Facts, batches, deal, order, pack, plan, token_weights


def _hashes(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**63, n, dtype=np.uint64)


def _facts(n: int, seed: int = 0) -> Facts:
    rng = np.random.default_rng(seed)
    tokens, tiles = rng.integers(10, 400, n), rng.integers(0, 12, n)
    supervised = rng.integers(0, 9, n)
    return Facts(tokens=tokens, supervised=supervised, tiles=tiles, flops=tokens * 2.0 + tiles * 100.0)


specs = st.builds(
    TrainSpec,
    global_batch=st.sampled_from([2, 4, 8, 16]),
    epochs=st.sampled_from([0.3, 1.0, 2.0, 2.5]),
    fixed_steps=st.sampled_from([0, 0, 0, 5]),
    last_batch=st.sampled_from(["drop", "partial"]),
    loss_norm=st.sampled_from(["microbatch_mean", "token_mean", "sample_mean"]),
    seed=st.integers(0, 5),
    pack_tokens=st.sampled_from([64, 500, 4000]),
    pack_tiles=st.sampled_from([4, 16]),
    zero_stage=st.sampled_from([1, 2, 3]),
)


@settings(max_examples=60, deadline=None)
@given(spec=specs, n=st.integers(1, 90), world=st.sampled_from([1, 2, 3, 8]))
def test_plans(spec: TrainSpec, n: int, world: int) -> None:
    facts = _facts(n)
    steps = plan(_hashes(n), facts, spec, world)
    alone = plan(_hashes(n), facts, spec, 1)
    assert len(steps) == len(alone) > 0
    for step, single in zip(steps, alone, strict=True):
        np.testing.assert_array_equal(step.members, single.members)
        np.testing.assert_array_equal(step.weights, single.weights)
        assert len(step.ranks) == world
        counts = [len(rank) for rank in step.ranks]
        assert min(counts) > 0
        assert spec.zero_stage == 1 or len(set(counts)) == 1
        packs = [p for rank in step.ranks for p in rank]
        assert sorted(i for p in packs for i in p) == list(range(len(step.members)))
        for p in packs:
            own = step.members[list(p)]
            assert len(p) <= 1 or facts.tokens[own].sum() <= spec.pack_tokens
            assert len(p) <= 1 or facts.tiles[own].sum() <= spec.pack_tiles
    sizes = [len(step.members) for step in steps]
    assert set(sizes[:-1]) <= {spec.global_batch}
    if spec.fixed_steps:
        assert sizes == [spec.global_batch] * spec.fixed_steps


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 60), batch=st.sampled_from([2, 8]), last=st.sampled_from(["drop", "partial"]))
def test_one_epoch_sees_each_sample_once(n: int, batch: int, last: str) -> None:
    spec = TrainSpec(global_batch=batch, last_batch=last)  # type: ignore[arg-type]
    seen = np.concatenate(batches(_hashes(n), spec))
    assert len(np.unique(seen)) == len(seen)
    dropped = n % batch if last == "drop" and n >= batch else 0
    assert len(seen) == n - dropped


def test_order_is_by_hash_and_seed_and_shared_by_selections() -> None:
    hashes = _hashes(50)
    np.testing.assert_array_equal(order(hashes, 7, 0), np.argsort(mix64(hashes, 7)))
    part = np.sort(np.random.default_rng(1).choice(50, 20, replace=False))
    shared = [i for i in order(hashes, 7, 0) if i in part]
    assert part[order(hashes[part], 7, 0)].tolist() == shared
    assert not np.array_equal(order(hashes, 7, 0), order(hashes, 8, 0))
    assert not np.array_equal(order(hashes, 7, 0), order(hashes, 7, 1))


def test_order_does_not_depend_on_arrangement() -> None:
    hashes = _hashes(40)
    shuffle = np.random.default_rng(2).permutation(40)
    np.testing.assert_array_equal(hashes[order(hashes, 1, 0)], hashes[shuffle][order(hashes[shuffle], 1, 0)])


def test_copies_of_a_sample_are_spread() -> None:
    hashes = np.concatenate([_hashes(30), _hashes(30), _hashes(30)])
    ranked = order(hashes, 3, 0)
    assert sorted(ranked.tolist()) == list(range(90))
    neighbours = sum(hashes[a] == hashes[b] for a, b in itertools.pairwise(ranked))
    assert neighbours < 10


@pytest.mark.parametrize(("epochs", "n", "samples"), [(2.0, 10, 20), (1.5, 10, 15), (0.5, 10, 5), (0.01, 10, 1)])
def test_epochs(epochs: float, n: int, samples: int) -> None:
    spec = TrainSpec(global_batch=4, epochs=epochs, last_batch="partial")
    steps = batches(_hashes(n), spec)
    assert sum(map(len, steps)) == samples
    counts = np.bincount(np.concatenate(steps), minlength=n)
    assert counts.max() - counts.min() <= 1


def test_too_few_samples_make_one_partial_step() -> None:
    assert [len(b) for b in batches(_hashes(3), TrainSpec(global_batch=8))] == [3]
    with pytest.raises(HarnessError, match="empty"):
        batches(_hashes(0), TrainSpec())


def test_weights_of_the_three_norms() -> None:
    supervised = np.array([1, 3, 0, 0, 5])
    micro = token_weights(supervised, TrainSpec(global_batch=8, nominal_micro_batch=2))
    np.testing.assert_allclose(micro[[0, 1, 4]], [1 / 12, 1 / 12, 1 / 15])
    tokens = token_weights(supervised, TrainSpec(loss_norm="token_mean"))
    np.testing.assert_allclose(tokens, 1 / 9)
    sample = token_weights(supervised, TrainSpec(loss_norm="sample_mean"))
    np.testing.assert_allclose(sample[[0, 1, 4]], [1 / 5, 1 / 15, 1 / 25])
    assert np.isfinite(np.concatenate([micro, tokens, sample])).all()


@settings(max_examples=40, deadline=None)
@given(
    norm=st.sampled_from(["microbatch_mean", "token_mean", "sample_mean"]),
    counts=st.lists(st.integers(1, 50), min_size=1, max_size=20),
)
def test_weights_sum_to_one(norm: str, counts: list[int]) -> None:
    supervised = np.array(counts)
    weights = token_weights(supervised, TrainSpec(loss_norm=norm))  # type: ignore[arg-type]
    assert math.isclose(float((weights * supervised).sum()), 1.0, rel_tol=1e-9)


def test_ranks_are_balanced() -> None:
    flops = np.random.default_rng(0).lognormal(0, 1, 256)
    loads = [flops[list(part)].sum() for part in deal(flops, 8)]
    assert max(loads) / np.mean(loads) < 1.01


def test_packing_is_tight_and_keeps_order() -> None:
    tokens, tiles = np.array([6, 5, 4, 4, 3, 12]), np.zeros(6, dtype=np.int64)
    packs = pack(range(6), tokens, tiles, TrainSpec(pack_tokens=10, pack_tiles=4))
    assert packs == [(5,), (0, 2), (1, 3), (4,)]
    assert pack([], tokens, tiles, TrainSpec()) == []
