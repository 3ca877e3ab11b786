"""Selectors against worked examples of the specifications."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.api import Pool, Selector, ranked
from harness.errors import HarnessError
from harness.pool_write import PoolWriter
from harness.registry import configured, selector
from tests.support import write_pool


def pool_of(path: Path, turns: list[int]) -> Pool:
    """A text-only pool whose samples have these numbers of question-answer pairs."""
    with PoolWriter(path, "oracle") as writer:
        for i, pairs in enumerate(turns):
            said = [{"from": ("human", "gpt")[t % 2], "value": f"{i}.{t}"} for t in range(2 * pairs)]
            writer.add({"id": "ABCDEFGH"[i], "conversations": said}, lambda key: b"")
    return writer.pool()


def make(name: str, **settings: Any) -> Selector:
    plugin = selector(name)
    made: Selector = plugin.cls(configured(plugin.cls, settings))
    return made


def kept(made: Selector, pool: Pool, features: Any, n: int, seed: int = 0) -> list[str]:
    scores = made.score(pool, features) or {}
    uids = pool.uids()
    return [uids[i] for i in made.select(pool, scores, features, n, seed).positions]


def test_length_sums_answers_or_averages_them_over_turns(tmp_path: Path) -> None:
    """Answers of A:[3,4], B:[7], C:[2], D:[10] tokens; A before B by index."""
    pool = pool_of(tmp_path / "pool", [2, 1, 1, 1])
    columns = {"n_response": np.array([7, 7, 2, 10]), "n_instruction": np.array([1, 9, 20, 1])}
    features = {"tokens": columns}
    assert kept(make("length", tie="index"), pool, features, 2) == ["D", "A"]
    assert kept(make("length", tie="index", agg="mean_per_turn"), pool, features, 2) == ["D", "B"]
    assert kept(make("length", tie="index", order="shortest"), pool, features, 2) == ["C", "A"]
    assert kept(make("length", tie="index", part="instruction"), pool, features, 2) == ["C", "B"]
    assert kept(make("length", tie="index", part="total"), pool, features, 2) == ["C", "B"]


def test_clip_score_ranks_by_cosine_and_keeps_text_only_last(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool", [1, 1, 1, 1])
    features = {"clip": {"cosine": np.array([0.6, np.nan, 1.0, 0.0], dtype=np.float32)}}
    assert kept(make("clip_score"), pool, features, 3) == ["C", "A", "D"]
    assert kept(make("clip_score"), pool, features, 4)[-1] == "B"
    assert kept(make("clip_score", direction="mid"), pool, features, 1) == ["A"]
    chosen = make("clip_score")
    card = chosen.select(pool, chosen.score(pool, features) or {}, features, 4, 0).card
    assert (card["n_nan"], card["n_topup"]) == (1, 1)


def test_random_is_uniform_nested_and_independent_between_seeds(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", 200)
    draws = [set(kept(make("random"), pool, {}, 60, seed)) for seed in range(300)]
    counts = np.array([sum(u in d for d in draws) for u in pool.uids()])
    assert abs(counts.mean() - 90) < 1e-9
    assert 6.5 < counts.std() < 9.5  # binomial(300, 0.3): 7.9
    overlap = np.mean([len(a & b) for a, b in pairwise(draws)])
    assert abs(overlap - 60 * 60 / 200) < 1.0
    assert set(kept(make("random"), pool, {}, 20, 5)) < draws[5]
    fresh = make("random", nested=False)
    assert not set(kept(fresh, pool, {}, 20, 5)) < set(kept(fresh, pool, {}, 60, 5))


def test_ties_are_broken_by_seed_and_not_by_place(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", 50)
    flat = np.zeros(50)
    assert ranked(pool, flat, 0).tolist() != list(range(50))
    assert ranked(pool, flat, 0).tolist() != ranked(pool, flat, 1).tolist()
    assert ranked(pool, flat, 0, tie="index").tolist() == list(range(50))
    with pytest.raises(ValueError, match="not by 'lowest'"):
        ranked(pool, flat, 0, tie="lowest")
    with_nan = np.arange(50.0)
    with_nan[7] = np.nan
    assert ranked(pool, with_nan, 0)[-1] == 7
    assert ranked(pool, with_nan, 0)[0] == 49


@pytest.mark.parametrize(
    ("name", "settings", "hint"),
    [
        ("length", {"part": "answer"}, "response, instruction, total"),
        ("clip_score", {"direction": "up"}, "is none of top, mid, threshold"),
        ("random", {"nest": True}, "Did you mean 'nested'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(name: str, settings: dict[str, Any], hint: str) -> None:
    with pytest.raises(HarnessError, match=hint):
        make(name, **settings)
