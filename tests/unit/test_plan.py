"""Plans: what cells share exists once, baselines are added, keys follow meaning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import registry
from harness.api import FeaturePass, PassRef, Selector
from harness.benchmarks import LMMS14, Benchmark, Suite
from harness.cells import Cell, canonical_cell, cell_key, with_baselines
from harness.errors import HarnessError
from harness.keys import stage_key
from harness.miniworld import weights_dir
from harness.plan import Plan, make_plan
from harness.registry import Plugin, selector_spec
from harness.types import Backbone, Budget, TrainSpec, WarmUp
from tests.support import write_pool

TINY = Backbone(name="tiny", path="nowhere", revision="r1", processor="p1")


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Cell:
    return Cell(
        pool=write_pool(tmp_path_factory.mktemp("pool") / "pool", 100),
        selector=selector_spec("length", {}),
        budget=Budget.parse("10%"),
        backbone=TINY,
        recipe=TrainSpec(global_batch=8),
        suite=Suite(name="two", protocol="p", benchmarks=LMMS14.benchmarks[6:8]),
    )


def kinds(plan: Plan) -> dict[str, int]:
    found = [s.kind for s in plan.stages.values()]
    return {k: found.count(k) for k in dict.fromkeys(found)}


def test_one_cell_is_a_chain(cell: Cell) -> None:
    plan = make_plan([cell])
    assert kinds(plan) == {"features": 1, "score": 1, "select": 1, "train": 1, "evaluate": 2}
    assert plan.cells[0].stages == tuple(plan.stages)


def test_a_cell_is_named_by_the_settings_that_differ(cell: Cell) -> None:
    """Hydra hands lists to settings whose default is a tuple."""
    assert replace(cell, selector=selector_spec("coincide", {"layers": []})).method == "coincide"
    assert replace(cell, selector=selector_spec("coincide", {"layers": [3]})).method == "coincide(layers=[3])"


def test_score_once_cut_many(cell: Cell) -> None:
    cells = [replace(cell, budget=Budget.parse(f"{p}%")) for p in range(1, 51)]
    assert kinds(make_plan(cells)) == {"features": 1, "score": 1, "select": 50, "train": 50, "evaluate": 100}


def test_seeds_share_the_scoring_and_another_backbone_shares_nothing_but_the_tokens(cell: Cell) -> None:
    twin = replace(TINY, name="twin", revision="r2")
    found = kinds(make_plan([cell, replace(cell, seed=1), replace(cell, backbone=twin)]))
    assert found == {"features": 1, "score": 1, "select": 2, "train": 3, "evaluate": 6}
    other = replace(twin, processor="p2")
    assert kinds(make_plan([cell, replace(cell, backbone=other)]))["features"] == 2


def test_a_toy_does_not_judge_real_samples_for_a_real_backbone(cell: Cell) -> None:
    asking = replace(cell, selector=selector_spec("clip_score", {}))
    with pytest.raises(HarnessError, match=r"'small' nor backbone 'tiny': set selector\.model to a folder"):
        make_plan([asking])
    shipped = replace(TINY, path=str(weights_dir("tiny")))
    make_plan([replace(asking, backbone=shipped)])
    make_plan([replace(asking, pool=replace(cell.pool, name="miniworld-100-s0-v1"))])


def test_everything_of_budget_one_is_the_full_run(cell: Cell) -> None:
    forms = [
        replace(cell, budget=Budget.parse("1.0")),
        replace(cell, budget=Budget.parse("100%"), selector=selector_spec("random", {})),
        replace(cell, budget=Budget.parse("100n")),
        replace(cell, selector=selector_spec("full", {})),
    ]
    assert len({cell_key(canonical_cell(c)) for c in forms}) == 1
    assert canonical_cell(forms[0]).label == "full/100%/tiny/s0"


def test_baselines_are_added_once(cell: Cell) -> None:
    asked = [
        replace(cell, budget=Budget.parse(b), selector=selector_spec(s, {}))
        for b in ("5%", "30%")
        for s in ("random", "length", "clip_score")
    ]
    cells = with_baselines([*asked, asked[0]], full_trials=1, random_trials=3)
    labels = [c.label for c in cells]
    assert len(labels) == len(set(labels)) == 6 + 1 + 4
    assert "full/100%/tiny/s0" in labels
    added = [c.label for c in cells if c.baseline]
    assert sorted(added) == sorted(
        ["full/100%/tiny/s0", *(f"random/{b}/tiny/s{i}" for b in ("5%", "30%") for i in (1, 2))]
    )


def test_two_spellings_of_a_cell_are_one(cell: Cell) -> None:
    cells = [replace(cell, budget=Budget.parse(b)) for b in ("0.1", "10%", "1e-1")]
    assert len(with_baselines(cells, full_trials=0, random_trials=0)) == 1


def test_training_at_the_same_index_has_the_same_seed_for_all_selectors(cell: Cell) -> None:
    plan = make_plan([replace(cell, seed=4), replace(cell, seed=4, selector=selector_spec("random", {}))])
    seeds = [s.params["recipe"]["seed"] for s in plan.stages.values() if s.kind == "train"]  # type: ignore[index,call-overload]
    assert seeds == [4, 4]


def test_how_a_run_is_carried_out_is_not_in_its_keys(cell: Cell) -> None:
    other = replace(
        cell,
        pool=replace(cell.pool, path="elsewhere"),
        backbone=replace(cell.backbone, path="elsewhere"),
        recipe=replace(cell.recipe, pack_tokens=77, zero_stage=2),
    )
    assert list(make_plan([cell]).stages) == list(make_plan([other], shard=7, processes=3).stages)


def test_a_pass_has_no_more_processes_than_shards(cell: Cell) -> None:
    cell = replace(cell, selector=selector_spec("ppl_mid", {}))

    def planned(shard: int) -> list[object]:
        stages = make_plan([cell], shard=shard, processes=3).stages.values()
        return [s.settings["processes"] for s in stages if s.kind == "features"]

    assert planned(cell.pool.n) == [1]
    assert planned(cell.pool.n - 1) == [2]
    assert planned(1) == [3]


def test_what_decides_a_number_is_in_its_key(cell: Cell) -> None:
    def last(changed: Cell) -> str:
        return next(reversed(make_plan([changed]).stages))

    keys = {
        last(cell),
        last(replace(cell, seed=1)),
        last(replace(cell, budget=Budget.parse("11%"))),
        last(replace(cell, recipe=replace(cell.recipe, learning_rate=3e-5))),
        last(replace(cell, backbone=replace(TINY, revision="r2"))),
        last(replace(cell, pool=replace(cell.pool, digest="other"))),
        last(replace(cell, evaluation=replace(cell.evaluation, batch_size=4))),
        last(replace(cell, evaluation=replace(cell.evaluation, limit=10))),
        last(replace(cell, selector=selector_spec("length", {"order": "shortest"}))),
    }
    assert len(keys) == 9


def test_a_judged_benchmark_keeps_its_answers_apart_from_their_scores(cell: Cell) -> None:
    judged = Benchmark(name="free", title="Free", task="free", metrics=("score,none",), judge="openai")
    suite = Suite(name="judged", protocol="p", benchmarks=(judged,))
    plan = make_plan([replace(cell, suite=suite)])
    stages = list(plan.stages.values())
    assert [s.kind for s in stages[-2:]] == ["evaluate", "judge"]
    assert stages[-1].inputs == {"evaluate.answers": stage_key(stages[-2])}
    other = replace(judged, judge="another")
    again = make_plan([replace(cell, suite=replace(suite, benchmarks=(other,)))])
    assert list(again.stages)[:-1] == list(plan.stages)[:-1]  # a new judge needs no new answers


class WarmPass(FeaturePass):
    """A pass on a warm-up checkpoint."""

    name = "warm_pass"
    version = 1
    Config = registry.feature_pass("tokens").cls.Config


class NeedsWarm(Selector):
    """A selector on a warm-up checkpoint, as the gradient methods are."""

    name = "needs_warm"
    version = 1
    Config = registry.selector("full").cls.Config

    def needs(self) -> tuple[PassRef, ...]:
        return (PassRef(name="warm_pass", model="warm"),)


def test_a_pass_may_need_a_train_stage(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradient methods look at a warm-up checkpoint; it depends neither on the budget nor on the seed."""
    monkeypatch.setitem(
        registry._BY_PATH, "needs_warm", Plugin(name="needs_warm", distribution="t", cls=NeedsWarm)
    )
    known = registry.feature_pass
    warm = Plugin(name="warm_pass", distribution="t", cls=WarmPass)
    monkeypatch.setattr("harness.plan.feature_pass", lambda name: warm if name == "warm_pass" else known(name))
    asked = replace(cell, selector=selector_spec("needs_warm", {}))
    plan = make_plan([asked, replace(asked, seed=3), replace(asked, budget=Budget.parse("20%"))])
    assert kinds(plan)["features"] == 1
    order = [s.kind for s in plan.stages.values()]
    assert order[:3] == ["select", "train", "features"]
    features = next(s for s in plan.stages.values() if s.kind == "features")
    assert plan.stages[features.inputs["train.model"]].label == "warm-up/tiny/train"


def planned(cell: Cell, monkeypatch: pytest.MonkeyPatch, *refs: PassRef) -> Plan:
    """The plan of cells of which each needs one of these passes."""
    warm = Plugin(name="warm_pass", distribution="t", cls=WarmPass)
    monkeypatch.setattr("harness.plan.feature_pass", lambda name: warm)
    cells = []
    for i, ref in enumerate(refs):
        made = type(f"Needs{i}", (NeedsWarm,), {"name": f"needs{i}", "needs": lambda self, ref=ref: (ref,)})
        monkeypatch.setitem(registry._BY_PATH, f"needs{i}", Plugin(name=f"needs{i}", distribution="t", cls=made))
        cells.append(replace(cell, selector=selector_spec(f"needs{i}", {})))
    return make_plan(cells)


def warm_ups(plan: Plan) -> list[Any]:
    return [s.params["recipe"] for s in plan.stages.values() if s.label.startswith("warm-up")]


def test_equal_warm_ups_are_one_train_stage_and_others_their_own(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Methods that ask for the same adapters share them; one with a recipe of its own trains its own."""
    lora = WarmUp(recipe={"lora_rank": 8, "learning_rate": 2e-4})
    shared = [PassRef(name="warm_pass", model="warm", warm_up=lora, alias=alias) for alias in ("a", "b")]
    assert len(warm_ups(planned(cell, monkeypatch, *shared))) == 1
    strict = replace(shared[0], warm_up=WarmUp(recipe={"lora_rank": 16}))
    large = replace(shared[0], warm_up=replace(lora, budget="20%"))
    plain = PassRef(name="warm_pass", model="warm")
    found = warm_ups(planned(cell, monkeypatch, *shared, strict, large, plain))
    assert [(r.get("lora_rank", 0), r["learning_rate"]) for r in found] == [
        (8, 2e-4),
        (16, cell.recipe.learning_rate),
        (8, 2e-4),
        (0, cell.recipe.learning_rate),
    ]
    assert {r["global_batch"] for r in found} == {8}


def test_a_warm_up_of_unknown_fields_is_refused(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = PassRef(name="warm_pass", model="warm", warm_up=WarmUp(recipe={"lora_rang": 8}))
    with pytest.raises(HarnessError, match="lora_rank"):
        planned(cell, monkeypatch, wrong)


def test_two_models_with_one_tokenizer_share_what_the_tokenizer_says_and_no_losses(cell: Cell) -> None:
    """A checkpoint after single-image SFT differs from the one before in nothing but its weights."""
    after = replace(cell, backbone=replace(TINY, revision="r2"))
    read = make_plan([replace(c, selector=selector_spec("length", {})) for c in (cell, after)])
    judged = make_plan([replace(c, selector=selector_spec("ppl_mid", {})) for c in (cell, after)])
    assert [kinds(plan)["features"] for plan in (read, judged)] == [1, 2]


def test_a_pass_may_run_over_another_pool(cell: Cell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Target tasks: the same checkpoint, other samples."""
    targets = write_pool(tmp_path / "targets", 7)
    ref = PassRef(name="warm_pass", model="warm")
    plan = planned(cell, monkeypatch, ref, replace(ref, alias="targets", pool=targets.path))
    own, other = [s for s in plan.stages.values() if s.kind == "features"]
    assert (own.params["pool"], other.params["pool"]) == (cell.pool.digest, targets.digest)
    assert (own.settings["pool_path"], other.settings["pool_path"]) == (cell.pool.path, targets.path)
    assert own.inputs == other.inputs


def test_recipes_of_before_there_were_adapters_keep_their_keys(cell: Cell) -> None:
    recipes = [s.params["recipe"] for s in make_plan([cell]).stages.values() if s.kind == "train"]
    assert not [name for r in recipes for name in r if name.startswith("lora")]  # type: ignore[union-attr]


def test_a_budget_that_keeps_nothing_is_refused_before_anything_runs(cell: Cell) -> None:
    with pytest.raises(HarnessError, match="keeps 0 of 100"):
        with_baselines([replace(cell, budget=Budget.parse("0.1%"))], full_trials=1, random_trials=3)


def test_a_missing_task_folder_is_named(cell: Cell, tmp_path: Path) -> None:
    local = Benchmark(name="x", title="X", task="x", metrics=("m,none",), include_path=str(tmp_path / "no"))
    with pytest.raises(HarnessError, match="no task folder"):
        make_plan([replace(cell, suite=Suite(name="s", protocol="p", benchmarks=(local,)))])


def test_a_setting_that_was_added_later_names_its_cell(cell: Cell) -> None:
    by_source = replace(cell, selector=selector_spec("clip_score", {"scope": "source"}))
    assert by_source.method == "clip_score(scope=source)"
    assert replace(cell, selector=selector_spec("clip_score", {"scope": "global"})).method == "clip_score"
