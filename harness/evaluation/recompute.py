"""From logged items back to the reported value: the check that nothing was lost, and the per-item scores.

Every recipe reads what a task logs for one item and says how items aggregate. Values are on the engine's own
scale (before `Benchmark.scale`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from harness.benchmarks import Benchmark
from harness.errors import unknown_name

TOLERANCE: Final = 1e-6
CIRCULAR_STEP: Final = 1_000_000
"""MMBench numbers the rotations of question `q` as `q + k * 10**6`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One scored item: its score in [0, 1], what it is scored together with, and the part it is averaged in."""

    score: float
    group: str = ""
    """Items that the metric looks at together (a pair, the rotations of a question); empty: each by itself."""
    stratum: str = ""
    parsed: bool = True
    """False where no answer could be read from the text, so that the score is a guess or a zero."""


Read = Callable[[Mapping[str, Any], str], Item]
"""From a logged sample and `Benchmark.item_score` to an item."""

Aggregate = Callable[[Sequence[Item]], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a benchmark's items are read and how they become its value."""

    read: Read
    aggregate: Aggregate
    finish: Callable[[Sequence[Mapping[str, Any]], Sequence[Item]], Sequence[Item]] | None = None
    """For scores that need more than one sample at a time."""
    digits: int | None = None
    """Decimals the engine rounds to; None for none."""


def score_items(benchmark: Benchmark, samples: Sequence[Mapping[str, Any]]) -> list[Item]:
    """The items of a benchmark in the order of `samples`.

    Raises KeyError where a sample lacks the logged score.
    """
    recipe = find_recipe(benchmark.recompute)
    items: Sequence[Item] = [recipe.read(s, benchmark.item_score) for s in samples]
    if recipe.finish is not None:
        items = recipe.finish(samples, items)
    return list(items)


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


def logged(sample: Mapping[str, Any], path: str) -> Any:
    """The value at `key` or `key.subkey` of a sample."""
    value: Any = sample
    for part in path.split("."):
        value = value[part]
    return value


def _read_score(sample: Mapping[str, Any], path: str) -> Item:
    """A number or truth value, or a dict that holds it as `score`, with optional `parsed`."""
    value = logged(sample, path)
    head = logged(sample, path.partition(".")[0])
    details = head if isinstance(head, Mapping) else {}
    score = value["score"] if isinstance(value, Mapping) else value
    return Item(score=float(score), parsed=bool(details.get("parsed", True)))


def _read_circular(sample: Mapping[str, Any], path: str) -> Item:
    return replace(_read_score(sample, path), group=str(logged(sample, path)["group"]))


def _read_pair(sample: Mapping[str, Any], path: str) -> Item:
    value = logged(sample, path)
    category = str(value["category"])
    return replace(_read_score(sample, path), group=f"{category}/{value['pair']}", stratum=category)


def _read_mme(sample: Mapping[str, Any], path: str) -> Item:
    """MME logs perception and cognition under keys of their own: `{path}_perception_score` and so on."""
    value = next(sample[k] for k in (f"{path}_perception_score", f"{path}_cognition_score") if k in sample)
    category = str(value["category"])
    return Item(score=float(value["score"]), group=f"{category}/{value['question_id']}", stratum=category)


def _read_mmstar(sample: Mapping[str, Any], path: str) -> Item:
    head = logged(sample, path.partition(".")[0])
    return replace(_read_score(sample, path), stratum=str(head["l2_category"]))


def _read_mmmu(sample: Mapping[str, Any], path: str) -> Item:
    """MMMU logs the parsed answer only; it is judged again by the task's own rules."""
    from lmms_eval.tasks.mmmu.utils import eval_multi_choice, eval_open

    value = logged(sample, path)
    judge = eval_multi_choice if value["question_type"] == "multiple-choice" else eval_open
    correct = judge(value["answer"], value["parsed_pred"][0])
    return Item(score=float(correct), stratum=str(value["subdomain"]))


def _read_mmbench(sample: Mapping[str, Any], path: str) -> Item:
    index = int(logged(sample, path)["index"])
    return Item(score=math.nan, group=str(index % CIRCULAR_STEP))  # `_finish_mmbench` scores whole questions


def _finish_mmbench(samples: Sequence[Mapping[str, Any]], items: Sequence[Item]) -> list[Item]:
    """MMBench logs no score: the task's own evaluator judges all rotations of a question together."""
    import pandas as pd
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

    rows = pd.DataFrame([s["gpt_eval_score"] for s in samples])
    rows["prediction"] = rows["prediction"].astype(str)
    answers = dict(zip(rows["index"], rows["answer"], strict=True))
    question = rows["index"].astype(int) % CIRCULAR_STEP
    evaluator = MMBench_Evaluator()
    hits = {
        str(name): float(evaluator.eval_sub_data(part.sort_values("index"), answers, static_only=True))
        for name, part in rows.groupby(question)
    }
    return [replace(item, score=hits[item.group]) for item in items]


def _mean(items: Sequence[Item]) -> float:
    return math.fsum(i.score for i in items) / len(items)


def _mean100(items: Sequence[Item]) -> float:
    return 100 * _mean(items)


def _mean_of_strata(items: Sequence[Item]) -> float:
    parts = _parts(items, lambda i: i.stratum)
    return math.fsum(map(_mean, parts)) / len(parts)


def _hits_per_thousand(items: Sequence[Item]) -> float:
    """OCRBench divides by its thousand items, also where only some of them were run."""
    return math.fsum(i.score for i in items) / 1000


def _all_or_nothing(items: Sequence[Item]) -> float:
    """Share of groups in which every item is right."""
    groups = _parts(items, lambda i: i.group)
    return math.fsum(min(i.score for i in g) for g in groups) / len(groups)


def _all_or_nothing100(items: Sequence[Item]) -> float:
    return 100 * _all_or_nothing(items)


def _pairs(items: Sequence[Item]) -> float:
    """Sum over strata of accuracy plus the share of pairs with both right, in percent (MME's acc + acc+)."""
    strata = _parts(items, lambda i: i.stratum)
    return math.fsum(100 * (_mean(part) + _all_or_nothing(part)) for part in strata)


def _parts(items: Sequence[Item], key: Callable[[Item], str]) -> list[list[Item]]:
    parts: defaultdict[str, list[Item]] = defaultdict(list)
    for item in items:
        parts[key(item)].append(item)
    return list(parts.values())


RECIPES: Final[Mapping[str, Recipe]] = MappingProxyType(
    {
        "mean": Recipe(read=_read_score, aggregate=_mean),
        "mean100": Recipe(read=_read_score, aggregate=_mean100),
        "mmt": Recipe(read=_read_score, aggregate=_mean100, digits=5),
        "mathvista": Recipe(read=_read_score, aggregate=_mean100, digits=2),
        "mme": Recipe(read=_read_mme, aggregate=_pairs),
        "mmbench": Recipe(read=_read_mmbench, finish=_finish_mmbench, aggregate=_all_or_nothing100),
        "mmstar": Recipe(read=_read_mmstar, aggregate=_mean_of_strata),
        "mmmu": Recipe(read=_read_mmmu, aggregate=_mean, digits=5),
        "ocrbench": Recipe(read=_read_score, aggregate=_hits_per_thousand),
        "circular": Recipe(read=_read_circular, aggregate=_all_or_nothing),
        "pairs": Recipe(read=_read_pair, aggregate=_pairs),
    }
)
