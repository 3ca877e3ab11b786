"""From logged items back to the reported value: the check that nothing was lost, and the per-item scores.

Values are on the engine's own scale (before `Benchmark.scale`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from harness.benchmarks import Benchmark
from harness.errors import unknown_name
from harness.evaluation import reading
from harness.evaluation.reading import Item, Sample

TOLERANCE: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a benchmark's items are read and how they become its value."""

    read: Callable[[Sample, str], Item]
    """From a logged sample and `Benchmark.item_score` to an item."""
    aggregate: Callable[[Sequence[Item]], float]
    finish: Callable[[Sequence[Sample], Sequence[Item]], Sequence[Item]] | None = None
    """For scores that need more than one sample at a time."""
    digits: int | None = None
    """Decimals the engine rounds to; None for none."""


def score_items(benchmark: Benchmark, samples: Sequence[Sample]) -> list[Item]:
    """The items of a benchmark in the order of `samples`.

    Raises KeyError where a sample lacks the logged score.
    """
    recipe = find_recipe(benchmark.recompute)
    items: Sequence[Item] = [recipe.read(s, benchmark.item_score) for s in samples]
    return list(items if recipe.finish is None else recipe.finish(samples, items))


def recomputed(benchmark: Benchmark, items: Sequence[Item]) -> float:
    """The benchmark's value from its items, on the engine's scale and rounded as the engine rounds."""
    recipe = find_recipe(benchmark.recompute)
    value = recipe.aggregate(items)
    return value if recipe.digits is None else round(value, recipe.digits)


def find_recipe(name: str) -> Recipe:
    """The recipe of a name; raises HarnessError for an unknown one."""
    if name not in RECIPES:
        raise unknown_name("recompute function", name, RECIPES)
    return RECIPES[name]


def _mean(items: Sequence[Item]) -> float:
    return math.fsum(i.score for i in items) / len(items)


def _mean100(items: Sequence[Item]) -> float:
    return 100 * _mean(items)


def _mean_of_strata(items: Sequence[Item]) -> float:
    strata = _split(items, lambda i: i.stratum)
    return math.fsum(map(_mean, strata)) / len(strata)


def _hits_per_thousand(items: Sequence[Item]) -> float:
    """OCRBench divides by its thousand items, also where only some of them were run."""
    return math.fsum(i.score for i in items) / 1000


def _all_or_nothing(items: Sequence[Item]) -> float:
    """Share of groups in which every item is right."""
    groups = _split(items, lambda i: i.group)
    return math.fsum(min(i.score for i in g) for g in groups) / len(groups)


def _all_or_nothing100(items: Sequence[Item]) -> float:
    return 100 * _all_or_nothing(items)


def _pairs(items: Sequence[Item]) -> float:
    """Sum over strata of accuracy plus the share of pairs with both right, in percent (MME's acc + acc+)."""
    strata = _split(items, lambda i: i.stratum)
    return math.fsum(100 * (_mean(s) + _all_or_nothing(s)) for s in strata)


def _split(items: Sequence[Item], key: Callable[[Item], str]) -> list[list[Item]]:
    parts: defaultdict[str, list[Item]] = defaultdict(list)
    for item in items:
        parts[key(item)].append(item)
    return list(parts.values())


RECIPES: Final[Mapping[str, Recipe]] = MappingProxyType(
    {
        "mean": Recipe(read=reading.read_score, aggregate=_mean),
        "mean100": Recipe(read=reading.read_score, aggregate=_mean100),
        "circular": Recipe(read=reading.read_circular, aggregate=_all_or_nothing),
        "pairs": Recipe(read=reading.read_pair, aggregate=_pairs),
        "mme": Recipe(read=reading.read_mme, aggregate=_pairs),
        "mmstar": Recipe(read=reading.read_mmstar, aggregate=_mean_of_strata),
        "mmt": Recipe(read=reading.read_mmt, aggregate=_mean100, digits=5),
        "mmmu": Recipe(read=reading.read_mmmu, aggregate=_mean, digits=5),
        "mathvista": Recipe(read=reading.read_score, aggregate=_mean100, digits=2),
        "ocrbench": Recipe(read=reading.read_score, aggregate=_hits_per_thousand),
        "mmbench": Recipe(read=reading.read_mmbench, finish=reading.score_mmbench, aggregate=_all_or_nothing100),
    }
)
