"""What Hydra composes, and how it becomes cells: the only module besides the plug-in that knows Hydra.

The schemas below are plain dataclasses, because OmegaConf knows no Fraction or Literal; meaning and defaults of
a recipe live in `harness.types.TrainSpec`, those of a selector in its Config.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from harness.benchmarks import SUITES, Benchmark, Suite
from harness.cells import Cell, EvalSettings
from harness.errors import HarnessError, unknown_name
from harness.models import backbone
from harness.pool import Pool, open_pool
from harness.registry import loadable_selectors, selector_spec
from harness.schedule import MODES, Mode
from harness.tracking import Tracking
from harness.types import Budget, TrainSpec


@dataclass
class PoolSchema:
    """Which pool: a folder, or miniworld of some size."""

    name: str = MISSING
    """What the choice is called; results know the pool by its digest."""
    path: str = ""
    """Folder of a pool that exists."""
    miniworld: int = 0
    """Samples to generate; 0 for a pool that exists."""
    seed: int = 0
    """Seed of what is generated."""


@dataclass
class BackboneSchema:
    """Which model before SFT: a folder, `miniworld:NAME`, or a hub id with the commit it is pinned to."""

    name: str = MISSING
    """What tables call it."""
    path: str = MISSING
    """A folder, `miniworld:NAME`, or a hub id."""
    revision: str = ""
    """Commit of a model on the hub."""


@dataclass
class SuiteSchema:
    """Which benchmarks: a built-in suite, or task files of one's own."""

    name: str = MISSING
    """`mini`, `table10` or `lmms14`; anything else is a suite of one's own and needs `benchmarks`."""
    protocol: str = "local"
    """What the way of evaluating is called; numbers of different protocols are never set against each other."""
    include_path: str = ""
    """Folder of lmms-eval task files; relative to where the command is run."""
    only: list[str] = field(default_factory=list)
    """Names of the built-in suite's benchmarks to keep; empty keeps all."""
    benchmarks: list[dict[str, Any]] = field(default_factory=list)
    """Entries of `harness.benchmarks.Benchmark` for a suite of one's own."""


@dataclass
class EvaluationSchema:
    """See `harness.cells.EvalSettings`."""

    batch_size: int = 8
    dtype: str = "float32"
    backend: str = "hf"
    attention: str = "sdpa"
    limit: int | None = None


@dataclass
class BaselinesSchema:
    """Runs the harness adds to a sweep by itself."""

    full_trials: int = 1
    """Runs on the whole pool for each backbone and recipe; 0 adds none."""
    random_trials: int = 3
    """Random runs for each budget, backbone and recipe; 0 adds none."""


@dataclass
class ExecutorSchema:
    """Where stages run."""

    name: str = "local"
    """`local`: processes on this machine."""
    slots: int = 0
    """Stages side by side; 0 for as many as the cores allow."""
    threads: int = 1
    """Threads of each; part of what makes CPU results repeatable."""
    shard: int = 4096
    """Samples a feature pass computes and keeps at a time: what a killed pass loses at most."""
    pass_processes: int = 1
    """Processes that share the shards of a feature pass, each with a model and `threads` threads of its own, and a
    GPU of its own where there are so many."""


@dataclass
class TrackingSchema:
    """See `harness.tracking.Tracking`."""

    name: str = "none"
    project: str = "sievebench"
    entity: str = ""
    mode: str = ""
    timeout_s: float = 900.0


def _recipe_schema() -> type[Any]:
    """TrainSpec with the types OmegaConf knows, and without the seed, which belongs to the cell."""
    fields = [(f.name, type(f.default), f.default) for f in dataclasses.fields(TrainSpec) if f.name != "seed"]
    return dataclasses.make_dataclass("Recipe", [("name", str, "custom"), *fields])


RecipeSchema = _recipe_schema()


@dataclass
class RunSchema:
    """One run or sweep."""

    pool: PoolSchema = field(default_factory=PoolSchema)
    """What is selected from."""
    selector: Any = MISSING
    """A selector's name or the path of a .py file; its settings are `selector.KEY`."""
    budget: Any = 0.1
    """How much is kept: `0.1` or `10%` of the pool, `200n` samples."""
    backbone: BackboneSchema = field(default_factory=BackboneSchema)
    """What is trained."""
    recipe: Any = field(default_factory=RecipeSchema)
    """How it is trained."""
    suite: SuiteSchema = field(default_factory=SuiteSchema)
    """What it is asked afterwards."""
    evaluation: EvaluationSchema = field(default_factory=EvaluationSchema)
    """How it is asked."""
    baselines: BaselinesSchema = field(default_factory=BaselinesSchema)
    """Runs added to a sweep for comparison."""
    executor: ExecutorSchema = field(default_factory=ExecutorSchema)
    """Where stages run."""
    tracking: TrackingSchema = field(default_factory=TrackingSchema)
    """Who is told of the results."""
    seed: int = 0
    """Number of the run: random choices and the order of training follow from it."""
    store: str = "runs"
    """Folder of all results."""
    name: str = ""
    """Name of the sweep in the store; derived from its cells where empty."""
    report: str = ""
    """Folder of the report; `STORE/reports/NAME` where empty."""
    titles: Any = None  # of a typed mapping Hydra lets no command line set a key
    """What tables and figures call methods: `{deita: Deita}` by a selector's name, where the sweep has it with one
    set of settings, or by a method as tables name it otherwise."""
    mode: str = "cached"
    """`cached` does what is missing, `retry` only what failed and what needs it, `force` all again, `read_only`
    nothing."""
    dry_run: bool = False
    """Print the plan and stop."""
    sweep: Any = None
    """A preset: `sweep=demo` is a file in `conf/sweep/` that sets everything else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How a sweep is carried out; nothing of it decides a result."""

    store: Path
    name: str
    report: str
    mode: Mode
    dry_run: bool
    full_trials: int
    random_trials: int
    executor: str
    slots: int
    threads: int
    shard: int
    pass_processes: int = 1
    titles: Mapping[str, str] = field(default_factory=dict)
    tracking: Tracking = field(default_factory=Tracking)


def register_schemas() -> None:
    """Tell Hydra about the schemas and about every installed selector."""
    store = ConfigStore.instance()
    store.store(name="schema", node=RunSchema)
    store.store(group="recipe", name="base", node=RecipeSchema)
    for group, node in (
        ("pool", PoolSchema),
        ("backbone", BackboneSchema),
        ("suite", SuiteSchema),
        ("executor", ExecutorSchema),
        ("tracking", TrackingSchema),
    ):
        store.store(group=group, name="base", node=node)
    for name, plugin in loadable_selectors().items():
        fields = [(f.name, f.type, _default(f)) for f in dataclasses.fields(plugin.cls.Config)]
        schema = dataclasses.make_dataclass(
            plugin.cls.Config.__name__,
            [("name", str, name), *fields],
            namespace={"__module__": plugin.cls.Config.__module__},
        )
        store.store(group="selector", name=name, node=schema)


def _default(f: dataclasses.Field[Any]) -> Any:
    if f.default_factory is not dataclasses.MISSING:
        return field(default_factory=f.default_factory)
    return MISSING if f.default is dataclasses.MISSING else f.default


def settings_of(cfg: DictConfig) -> RunSettings:
    """The part of a configuration that says how to run.

    Raises HarnessError for an unknown mode, executor or tracker, and for numbers and names that cannot be.
    """
    tracking: Any = OmegaConf.to_container(cfg.tracking, resolve=True)
    if cfg.mode not in MODES:
        raise unknown_name("mode", cfg.mode, MODES)
    if cfg.executor.name != "local":
        raise unknown_name("executor", cfg.executor.name, ["local"])
    if not cfg.store:
        raise HarnessError("store is empty: set store=DIR to the folder of all results, for example store=runs.")
    if "/" in cfg.name or cfg.name.startswith("."):
        raise HarnessError(f"name '{cfg.name}' cannot name a file: use letters, digits, - and _.")
    if min(cfg.baselines.full_trials, cfg.baselines.random_trials) < 0:
        raise HarnessError("baselines: full_trials and random_trials must be at least 0, which adds none.")
    if cfg.executor.slots < 0 or cfg.executor.threads < 1:
        raise HarnessError(
            f"executor: slots={cfg.executor.slots} must be at least 0, threads={cfg.executor.threads} at least 1."
        )
    return RunSettings(
        store=Path(cfg.store),
        name=cfg.name,
        report=cfg.report,
        mode=cfg.mode,
        dry_run=cfg.dry_run,
        full_trials=cfg.baselines.full_trials,
        random_trials=cfg.baselines.random_trials,
        executor=cfg.executor.name,
        slots=cfg.executor.slots,
        threads=cfg.executor.threads,
        shard=cfg.executor.shard,
        pass_processes=cfg.executor.pass_processes,
        titles=_titles(cfg.titles),
        tracking=Tracking(**tracking),
    )


def _titles(given: Any) -> dict[str, str]:
    if given is not None and not isinstance(given, Mapping):
        raise HarnessError(f"titles={given} is no mapping: write titles={{deita: Deita, mmssr: mmSSR}}.")
    return {str(method): str(title) for method, title in (given or {}).items()}


def cell_of(cfg: DictConfig) -> Cell:
    """The cell a configuration describes; generates miniworld where it is named.

    Raises HarnessError for everything a user can get wrong in it.
    """
    selector: Any = OmegaConf.to_container(cfg.selector, resolve=True)
    recipe: Any = OmegaConf.to_container(cfg.recipe, resolve=True)
    evaluation: Any = OmegaConf.to_container(cfg.evaluation, resolve=True)
    name = selector.pop("name")
    recipe.pop("name")
    # What can be judged at a glance first, what reads or generates files last.
    spec = selector_spec(name, selector)
    budget = Budget(fraction=Fraction(1)) if name == "full" else Budget.parse(cfg.budget)
    trained = TrainSpec(**recipe)
    return Cell(
        selector=spec,
        budget=budget,
        recipe=trained,
        evaluation=EvalSettings(**evaluation),
        seed=cfg.seed,
        backbone=backbone(cfg.backbone.name, cfg.backbone.path, cfg.backbone.revision),
        pool=pool_of(cfg.pool, Path(cfg.store)),
        suite=suite_of(cfg.suite, Path(cfg.store)),
    )


def pool_of(cfg: Any, store: Path) -> Pool:
    """The pool a configuration names; miniworld is generated once per store."""
    if cfg.miniworld and cfg.path:
        raise HarnessError(
            f"pool '{cfg.name}' has both a path and miniworld={cfg.miniworld}: "
            "take pool=path, or set pool.miniworld=0."
        )
    if cfg.miniworld:
        from harness.miniworld import ensure_pool

        return open_pool(ensure_pool(cfg.miniworld, cfg.seed, store / "world"))
    if not cfg.path:
        raise HarnessError(f"pool '{cfg.name}' has no path: set pool.path=DIR to a folder made by 'pool import'.")
    return open_pool(cfg.path)


def suite_of(cfg: Any, store: Path) -> Suite:
    """The suite a configuration names: miniworld's, a built-in one, or the user's own entries."""
    suite = _whole_suite(cfg, store)
    if not cfg.only:
        return suite
    kept = tuple(suite[name] for name in cfg.only)
    return Suite(name=f"{suite.name}[{','.join(cfg.only)}]", protocol=suite.protocol, benchmarks=kept)


def _whole_suite(cfg: Any, store: Path) -> Suite:
    if cfg.name == "mini":
        from harness.miniworld import ensure_suite, mini_suite

        return mini_suite(str(ensure_suite(store / "world").resolve()))
    if cfg.name in SUITES:
        return SUITES[cfg.name]
    if not cfg.benchmarks:
        known = ", ".join(["mini", *SUITES])
        raise HarnessError(
            f"suite '{cfg.name}' has no benchmarks and is none of those built in ({known}): list some in its file "
            "under 'benchmarks' (docs/benchmarks.md)."
        )
    folder = str(Path(cfg.include_path).resolve()) if cfg.include_path else ""
    entries: Any = OmegaConf.to_container(cfg.benchmarks, resolve=True)
    made = tuple(_benchmark(entry, folder) for entry in entries)
    return Suite(name=cfg.name, protocol=cfg.protocol, benchmarks=made)


def _benchmark(entry: dict[str, Any], folder: str) -> Benchmark:
    known = {f.name for f in dataclasses.fields(Benchmark)}
    for key in entry:
        if key not in known:
            raise unknown_name("setting of a benchmark", key, known)
    for key in ("name", "task", "metrics"):
        if key not in entry:
            raise HarnessError(f"suite: the benchmark {entry} has no '{key}'; give it one.")
    filled = {"title": entry["name"], "include_path": folder} | entry
    return Benchmark(**(filled | {"metrics": tuple(entry["metrics"])}))
