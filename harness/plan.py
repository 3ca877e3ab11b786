"""From cells to a graph of stages, each of which exists once however many cells need it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from harness.api import Selector
from harness.benchmarks import Benchmark
from harness.cells import Cell, canonical_cell, cell_key
from harness.errors import HarnessError, unknown_name
from harness.evalspec import eval_spec
from harness.keys import plain, stage_key
from harness.labelling_lessons import lessons_stage
from harness.models import MINIWORLD, is_shipped
from harness.models import backbone as read_backbone
from harness.pool import Pool, open_pool
from harness.registry import configured, feature_pass, make_selector, selector_spec
from harness.types import Budget, Json, PassRef, Stage, TrainSpec, WarmUp

VERSIONS: Mapping[str, int] = {"features": 1, "score": 1, "select": 1, "train": 1, "evaluate": 1, "judge": 1}
"""Raised when what a stage kind computes changes; part of every key."""

SHARD = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class CellPlan:
    """A cell and the keys of the stages its result is read from."""

    cell: Cell
    key: str
    select: str
    train: str
    scores: Mapping[str, str]
    """Benchmark name to the key of the stage that holds its score."""
    stages: tuple[str, ...]
    """Keys of every stage the cell depends on, those it shares included."""


@dataclass(slots=True, kw_only=True)
class Plan:
    """All stages of a sweep by key, in an order in which inputs come first."""

    stages: dict[str, Stage] = field(default_factory=dict)
    cells: list[CellPlan] = field(default_factory=list)
    shard: int = SHARD
    """Samples a feature pass computes and keeps at a time; not part of any key."""
    processes: int = 1
    """Processes that share a feature pass; not part of any key."""

    def add(self, stage: Stage) -> str:
        """Add a stage once; returns its key. Inputs must have been added before."""
        missing = [k for k in stage.inputs.values() if k not in self.stages]
        if missing:
            raise ValueError(f"{stage.label} needs stages that are not planned: {missing}")
        key = stage_key(stage)
        self.stages.setdefault(key, stage)
        return key

    def ancestors(self, keys: Iterable[str]) -> tuple[str, ...]:
        """The given stages and everything they need, in plan order."""
        wanted: set[str] = set()
        todo = list(keys)
        while todo:
            key = todo.pop()
            if key not in wanted:
                wanted.add(key)
                todo += self.stages[key].inputs.values()
        return tuple(k for k in self.stages if k in wanted)


def make_plan(cells: Iterable[Cell], *, shard: int = SHARD, processes: int = 1) -> Plan:
    """The deduplicated stage graph of some cells."""
    plan = Plan(shard=shard, processes=processes)
    for cell in cells:
        plan.cells.append(_plan_cell(plan, cell))
    return plan


def _plan_cell(plan: Plan, cell: Cell) -> CellPlan:
    select = _add_selection(plan, cell)
    train = _add_train(plan, cell, select, cell.recipe, cell.label)
    scores = {b.name: _add_benchmark(plan, cell, b, train) for b in cell.suite.benchmarks}
    return CellPlan(
        cell=cell,
        key=cell_key(cell),
        select=select,
        train=train,
        scores=scores,
        stages=plan.ancestors([train, *scores.values()]),
    )


def _selector_params(cell: Cell) -> dict[str, Json]:
    spec = plain(cell.selector)
    assert isinstance(spec, dict)
    return {"selector": spec, "pool": cell.pool.digest}


def _pool_settings(cell: Cell) -> dict[str, Json]:
    return {"pool_path": cell.pool.path, "selector_path": cell.selector.path}


def _add_selection(plan: Plan, cell: Cell) -> str:
    """The select stage of a cell, after its feature passes and its budget-free score."""
    selector = make_selector(cell.selector)
    inputs = {f"features.{ref.label}": _add_pass(plan, cell, ref) for ref in selector.needs()}
    if type(selector).score is not Selector.score:
        score = Stage(
            kind="score",
            version=VERSIONS["score"],
            params=_selector_params(cell),
            inputs=inputs,
            settings=_pool_settings(cell),
            label=f"{cell.method}/score",
        )
        inputs = inputs | {"score.scores": plan.add(score)}
    seedless = cell.selector.name == "full"
    stage = Stage(
        kind="select",
        version=VERSIONS["select"],
        params=_selector_params(cell) | {"budget": cell.budget.label, "seed": 0 if seedless else cell.seed},
        inputs=inputs,
        settings=_pool_settings(cell),
        label=f"{cell.method}/{cell.budget.label}/s{cell.seed}/select",
    )
    return plan.add(stage)


def _add_pass(plan: Plan, cell: Cell, ref: PassRef) -> str:
    """A feature pass on the model its alias means; `warm` brings the train stage it depends on."""
    plugin = feature_pass(ref.name)
    pool = _pass_pool(cell, ref)
    config = plain(configured(plugin.cls, ref.config))
    params: dict[str, Json] = {
        "pass": ref.name,
        "distribution": plugin.distribution,
        "pass_version": plugin.cls.version,
        "config": config,
        "pool": pool.digest,
    }
    settings: dict[str, Json] = {"pool_path": pool.path, "model_path": ""}
    shards = -(-pool.n // plan.shard)  # a process without a shard would hold a GPU for nothing
    settings |= {"shard": plan.shard, "processes": min(plan.processes, shards)}
    inputs: dict[str, str] = {}
    if ref.model == "warm":
        inputs["train.model"] = _add_warm_up(plan, cell, ref.warm_up)
    elif ref.model == "trained":
        inputs["train.model"] = _add_taught(plan, cell, ref)
    elif ref.model:
        _refuse_toy(cell, ref, pool)
        model = cell.backbone if ref.model == "mid" else read_backbone(ref.label, *_pinned(ref.model))
        params["model"] = getattr(model, "processor" if plugin.cls.identity == "processor" else "revision")
        settings["model_path"] = model.path
    on = {"mid": "", "warm": "/warm", "trained": "/trained"}.get(ref.model)
    label = f"{ref.name}/{pool.name}" + ("" if on is None else f"/{cell.backbone.name}{on}")
    return plan.add(
        Stage(
            kind="features",
            version=VERSIONS["features"],
            params=params,
            inputs=inputs,
            settings=settings,
            label=label,
        )
    )


def _refuse_toy(cell: Cell, ref: PassRef, pool: Pool) -> None:
    """Raise HarnessError where a model of miniworld's, some selectors' default, would judge for a real backbone.

    It would choose almost at random, and nothing would show it.
    """
    if not ref.model.startswith(MINIWORLD) or pool.name.startswith("miniworld-") or is_shipped(cell.backbone):
        return
    named = [f"selector.{name}" for name, value in cell.selector.config.items() if value == ref.model]
    raise HarnessError(
        f"{cell.method}: {ref.model} knows miniworld only, neither pool '{pool.name}' nor backbone "
        f"'{cell.backbone.name}': set {' and '.join(named) or 'its model'} to a folder or a pinned hub id."
    )


def _pass_pool(cell: Cell, ref: PassRef) -> Pool:
    """The pool a pass runs over: the one of the cell, or another one the selector brings."""
    return open_pool(ref.pool) if ref.pool else cell.pool


def _pinned(model: str) -> tuple[str, str]:
    """Split `org/name@commit` into its parts; a folder or `miniworld:NAME` has no commit."""
    path, _, revision = model.partition("@")
    return path, revision


def _add_warm_up(plan: Plan, cell: Cell, warm_up: WarmUp) -> str:
    """The warm-up checkpoint of gradient methods: SFT on a small random subset, never of the cell's own seed.

    Raises HarnessError for a field that recipes do not have.
    """
    warm = replace(
        cell,
        selector=selector_spec("random", {}),
        budget=Budget.parse(warm_up.budget),
        seed=0,
        recipe=_changed(cell.recipe, warm_up.recipe, "a warm-up's recipe"),
    )
    # A warm-up on everything is the run on everything.
    warm = canonical_cell(warm)
    label = f"warm-up{'-lora' if warm.recipe.lora_rank else ''}/{cell.backbone.name}"
    return _add_train(plan, warm, _add_selection(plan, warm), warm.recipe, label)


def _add_taught(plan: Plan, cell: Cell, ref: PassRef) -> str:
    """A checkpoint taught from labels: SFT on all of the lessons they make, never of the cell's own seed.

    Raises HarnessError for a field that recipes do not have.
    """
    lessons = plan.add(lessons_stage(cell.pool, ref))
    recipe = _changed(cell.recipe, ref.lessons.recipe, "the recipe for lessons")
    return _add_train(plan, replace(cell, seed=0), lessons, recipe, f"{ref.label}/{cell.backbone.name}")


def _changed(recipe: TrainSpec, changes: Mapping[str, Any], what: str) -> TrainSpec:
    """A recipe of seed 0 with some of its fields changed."""
    known = [f.name for f in fields(TrainSpec)]
    for name in changes:
        if name not in known:
            raise unknown_name(f"field of {what}", name, known)
    return replace(recipe, **changes, seed=0)


def _add_train(plan: Plan, cell: Cell, select: str, recipe: TrainSpec, label: str) -> str:
    spec = replace(recipe, seed=cell.seed)
    stage = Stage(
        kind="train",
        version=VERSIONS["train"],
        params={"recipe": plain(spec), "backbone": cell.backbone.revision, "pool": cell.pool.digest},
        inputs={f"{plan.stages[select].kind}.selection": select},
        settings={
            "pool_path": cell.pool.path,
            "backbone_path": cell.backbone.path,
            "samples": cell.budget.size(cell.pool.n),
            "run": {
                "zero_stage": spec.zero_stage,
                "pack_tokens": spec.pack_tokens,
                "pack_tiles": spec.pack_tiles,
                "checkpoint_every": spec.checkpoint_every,
                "gradient_checkpointing": spec.gradient_checkpointing,
            },
        },
        label=f"{label}/train",
    )
    return plan.add(stage)


def _add_benchmark(plan: Plan, cell: Cell, benchmark: Benchmark, train: str) -> str:
    """Evaluation of one benchmark, and the judging of its answers where rules cannot score them."""
    spec = eval_spec(benchmark, cell.suite.protocol, cell.evaluation)
    label = f"{cell.label}/{benchmark.name}"
    stage = Stage(
        kind="evaluate",
        version=VERSIONS["evaluate"],
        params={"eval": plain(replace(spec, judge=None)), "benchmark": _benchmark_identity(benchmark)},
        inputs={"train.checkpoint": train},
        settings={"include_path": spec.include_path, "benchmark": plain(benchmark)},
        label=label,
    )
    key = plan.add(stage)
    if benchmark.judge is None:
        return key
    judged = replace(
        stage,
        kind="judge",
        params={"eval": plain(spec), "benchmark": _benchmark_identity(benchmark)},
        inputs={"evaluate.answers": key},
        label=f"{label}/judge",
    )
    return plan.add(judged)


def _benchmark_identity(benchmark: Benchmark) -> dict[str, Any]:
    """What of a registry entry decides the reported number; its title and folder do not."""
    described = plain(benchmark)
    assert isinstance(described, dict)
    return {k: v for k, v in described.items() if k not in ("title", "include_path", "chance", "judge")}


def find_stage(plan: Plan, name: str) -> Stage:
    """A planned stage by label or by a prefix of its key.

    Raises HarnessError where none or several match.
    """
    hits = [s for k, s in plan.stages.items() if s.label == name or (len(name) >= 4 and k.startswith(name))]
    if len(hits) != 1:
        raise HarnessError(f"'{name}' names {len(hits)} stages of this sweep; 'sievebench status' lists them.")
    return hits[0]
