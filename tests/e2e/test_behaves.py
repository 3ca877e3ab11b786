"""Miniworld in the small: what SFT is good for, and that it matters what the samples are worth.

The whole measurement, with seeds, budgets and skills, is `python -m tests.bench.behave`.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import pytest

from tests.bench.behave import World, make_world, run, select

N = 4000
BENCHMARKS = ("mini_choice", "mini_chart", "mini_short")
SETS = ("none", "random 5%", "sound 25%", "spoilt 25%")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    whole = make_world(tmp_path_factory.mktemp("behaves"), n=N, questions="tune")
    chosen = tuple(b for b in whole.suite.benchmarks if b.name in BENCHMARKS)
    return replace(whole, suite=replace(whole.suite, benchmarks=chosen))


@pytest.fixture(scope="module")
def means(world: World) -> dict[str, float]:
    return {name: mean(run(world, name, 7).benchmarks.values()) for name in SETS}


def test_without_sft_the_backbone_answers_next_to_nothing(means: dict[str, float]) -> None:
    assert means["none"] < 15


def test_sound_samples_teach_and_spoilt_ones_do_not(means: dict[str, float]) -> None:
    assert means["sound 25%"] > means["spoilt 25%"] + 10


def test_more_samples_teach_more(means: dict[str, float]) -> None:
    assert means["sound 25%"] > means["random 5%"] + 10
    assert means["random 5%"] > means["none"] + 5


def test_the_sets_are_what_their_names_say(world: World) -> None:
    assert {world.truth[i]["defect"] for i in select(world, "sound 25%", 7)} == {""}
    assert {world.truth[i]["defect"] for i in select(world, "wrong 5%", 7)} == {"wrong"}
    assert {world.truth[i]["defect"] for i in select(world, "spoilt 25%", 7)} == {"wrong", "off_topic"}
    assert len(select(world, "sound 25%", 7)) == len(select(world, "spoilt 25%", 7)) == N // 4
