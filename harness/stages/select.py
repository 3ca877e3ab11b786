"""The score and select stages: a selector's budget-free columns, and the samples it keeps at a budget."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.api import Scores, Selection, Selector
from harness.errors import HarnessError
from harness.files import write_json
from harness.pool import Pool, open_pool
from harness.registry import make_selector
from harness.stages.context import Facts, StageContext
from harness.stages.features import read_columns
from harness.types import Budget, Json, SelectorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setting:
    selector: Selector
    pool: Pool
    features: dict[str, dict[str, npt.NDArray[Any]]]


def _open(context: StageContext) -> _Setting:
    raw = context.stage.params["selector"]
    assert isinstance(raw, dict)
    config = raw["config"]
    assert isinstance(config, dict)
    spec = SelectorSpec(
        name=str(raw["name"]),
        distribution=str(raw["distribution"]),
        version=int(str(raw["version"])),
        config=config,
        path=str(context.stage.settings["selector_path"]),
    )
    return _Setting(
        selector=make_selector(spec),
        pool=open_pool(str(context.stage.settings["pool_path"])),
        features={label: read_columns(folder) for label, folder in context.inputs("features").items()},
    )


def run_score(context: StageContext) -> Facts:
    """Compute a selector's budget-free columns."""
    s = _open(context)
    scores = s.selector.score(s.pool, s.features)
    if not scores:
        raise HarnessError(f"selector '{s.selector.name}' implements score() but returned no columns.")
    facts: Facts = {}
    for name, values in scores.items():
        if len(values) != s.pool.n:
            raise HarnessError(
                f"selector '{s.selector.name}' returned {len(values)} values of '{name}' for {s.pool.n} samples."
            )
        np.save(context.out / f"{name}.npy", values)
        if values.dtype.kind == "f":
            facts[f"{name}_nan"] = int(np.isnan(values).sum())
    return facts


def run_select(context: StageContext) -> Facts:
    """Choose samples at a budget, check the choice, and write it with its card."""
    s = _open(context)
    budget = Budget.parse(str(context.stage.params["budget"]))
    n = budget.size(s.pool.n)
    scores: Scores = {}
    for folder in context.inputs("score").values():
        scores = read_columns(folder)
    selection = s.selector.select(s.pool, scores, s.features, n, int(str(context.stage.params["seed"])))
    positions = checked(selection, s.pool, n, s.selector.name)
    np.save(context.out / "positions.npy", positions)
    doubts: dict[str, Json] = {"uncertain": list(s.selector.uncertain)} if s.selector.uncertain else {}
    card = selection_card(s.pool, positions, doubts | _read(context) | dict(selection.card))
    write_json(context.out / "card.json", card)
    write_json(context.out / "selection.json", {"pool": s.pool.digest, "n": n, "of": s.pool.n})
    return {"n": n, "n_topup": card["n_topup"], "n_nan": card["n_nan"]}


def _read(context: StageContext) -> dict[str, Json]:
    """What passes had trouble with, by their labels: `failed` by reason, and `truncated` to their length."""
    found: dict[str, dict[str, Json]] = {"failed": {}, "truncated": {}}
    for name in context.stage.inputs:
        kind, _, label = name.partition(".")
        manifest = context.store.input(context.stage, name).manifest() if kind == "features" else None
        if manifest is not None:
            for entry, fact in (("failed", "failures"), ("truncated", "truncated")):
                if manifest.facts.get(fact):
                    found[entry][label] = manifest.facts[fact]
    return {entry: said for entry, said in found.items() if said}


def checked(selection: Selection, pool: Pool, n: int, name: str) -> npt.NDArray[np.int32]:
    """The selection's positions, as int32.

    Raises HarnessError unless they are exactly n different positions of the pool.
    """
    positions = np.asarray(selection.positions)
    if positions.dtype.kind not in "iu" or positions.ndim != 1:
        raise HarnessError(f"selector '{name}' returned {positions.dtype} positions; return whole numbers.")
    if len(positions) != n:
        raise HarnessError(f"selector '{name}' kept {len(positions)} samples; the budget is exactly {n}.")
    if n and (positions.min() < 0 or positions.max() >= pool.n):
        raise HarnessError(f"selector '{name}' returned a position outside 0..{pool.n - 1}.")
    kept = np.zeros(pool.n, dtype=np.bool_)
    kept[positions] = True
    if np.count_nonzero(kept) != n:
        raise HarnessError(f"selector '{name}' kept a sample twice; keep {n} different ones.")
    return positions.astype(np.int32)


def selection_card(pool: Pool, positions: npt.NDArray[np.int32], said: Any) -> dict[str, Json]:
    """What a selection is made of: sources, turns, words, images, beside what its selector says of it.

    What a selector does not count did not happen: nothing filled up, cut off, or without a score.
    """
    sources = pool.sources()[positions]
    mean = {
        name: round(float(pool.column(name)[positions].mean()), 4)
        for name in ("n_turns", "n_words", "n_answer_words", "n_images", "height", "width")
    }
    card: dict[str, Json] = {
        "n": len(positions),
        "of": pool.n,
        "by_source": {k: int(v) for k, v in sorted(Counter(sources.tolist()).items())},
        "mean": dict(mean),
        "n_topup": 0,
        "n_truncated": 0,
        "n_nan": 0,
        "distinct_images": len(np.unique(pool.column("image_hash64")[positions])),
    }
    return card | dict(said)
