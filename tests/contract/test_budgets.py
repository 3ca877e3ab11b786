"""Budgets are exact whatever the pool, and a sweep over budgets scores once."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from harness import registry
from harness.api import Selector
from harness.benchmarks import LMMS14, Suite
from harness.cells import Cell
from harness.executors import Ended
from harness.keys import stage_key
from harness.plan import Plan, make_plan
from harness.pool import Pool, Record
from harness.registry import configured, register_file, selector, selector_names, selector_spec
from harness.schedule import Scheduler
from harness.stages.select import checked
from harness.store import Store
from harness.types import Backbone, Budget, SelectorSpec, Stage, TrainSpec
from harness.worker import Job, run_job
from tests.selector_settings import needed
from tests.support import write_pool

LARGEST = 400
PAIRS = 1000


class Prefix(Pool):
    """The first samples of a pool."""

    def column(self, name: str) -> npt.NDArray[Any]:
        return Pool.column(self, name)[: self.n]

    def record(self, position: int) -> Record:
        return Pool(**{f: getattr(self, f) for f in Pool.__slots__} | {"n": LARGEST}).record(position)

    def uids(self) -> list[str]:
        return Pool.uids(self)[: self.n]


def prefix(pool: Pool, n: int) -> Prefix:
    return Prefix(**{f: getattr(pool, f) for f in Pool.__slots__} | {"n": n})


def labelled(pool: Pool, rng: np.random.Generator) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """Columns of mmSSR's passes with ties, unknown scores, and samples without a style."""
    scores = rng.integers(0, 4, (pool.n, 14)).astype(np.float32)
    scores[rng.random(pool.n) < 0.1] = np.nan
    styles = np.full((pool.n, 10), -1, dtype=np.int8)
    styles[:, 0] = rng.integers(-1, 9, pool.n)
    return {"scores": {"scores": scores}, "styles": {"styles": styles}}


WITHOUT_MODEL: dict[str, Callable[[Pool, np.random.Generator], Any]] = {"mmssr": labelled}
"""Selectors that read a file in place of a model, and columns as the file's."""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return write_pool(tmp_path_factory.mktemp("pool") / "pool", LARGEST)


@pytest.fixture(autouse=True)
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Selectors given as files are forgotten after the test."""
    monkeypatch.setattr(registry, "_BY_PATH", {})


def modelless(folder: Path, uids: list[str]) -> dict[str, Any]:
    """Every installed selector that asks no model of anything, made."""
    found = {}
    for name in selector_names():
        cls = selector(name).cls
        made = cls(configured(cls, needed(name, folder, uids) if name in WITHOUT_MODEL else {}))
        if name in WITHOUT_MODEL or not _asks(made):
            found[name] = made
    return found


def _asks(made: Any) -> bool:
    return type(made).needs is not Selector.needs


def test_any_share_of_any_pool_is_kept_exactly(pool: Pool, tmp_path: Path) -> None:
    """1,000 pools and shares: floor(r * N) in exact arithmetic, all different, all of the pool."""
    made = modelless(tmp_path, pool.uids())
    assert {"full", "mmssr", "random", "random_stratified"} <= set(made)
    rng = random.Random(0)
    for trial in range(PAIRS):
        n_pool = rng.randint(1, LARGEST)
        share = Fraction(rng.randint(1, 1000), 1000)
        if share * n_pool < 1:
            share = Fraction(1)
        n = Budget.parse(str(share)).size(n_pool)
        assert n == share.numerator * n_pool // share.denominator
        part = prefix(pool, n_pool)
        for name, chosen in made.items():
            wanted = n_pool if name == "full" else n
            columns = WITHOUT_MODEL[name](part, np.random.default_rng(trial)) if name in WITHOUT_MODEL else {}
            scores = chosen.score(part, columns) or {}
            checked(chosen.select(part, scores, columns, wanted, trial), part, wanted, name)


def test_floats_do_not_cost_a_sample() -> None:
    assert int(0.29 * 100) == 28
    assert Budget.parse("0.29").size(100) == 29
    assert Budget.parse("30%").size(2_600_000) == 780_000


COUNTING = '''
from dataclasses import dataclass
import numpy as np
from harness.api import Selector

@dataclass(frozen=True)
class Config:
    """Where calls are noted."""
    mark: str = ""
    """A file that grows by a letter a call."""

class Counting(Selector):
    """Keeps samples of many words, and notes when it is asked for scores."""
    name = "counting"
    version = 1
    Config = Config

    def score(self, pool, features):
        with open(self.config.mark, "a") as f:
            f.write("x")
        return {"score": pool.column("n_words").astype(np.float32)}
'''


@dataclass(slots=True)
class Here:
    """An executor that runs every job at once, in this process."""

    store: Store
    over: deque[Ended] = field(default_factory=deque)
    kinds: Counter[str] = field(default_factory=Counter)

    def free(self) -> bool:
        return not self.over

    def submit(self, job: Job) -> None:
        self.kinds.update(stage.kind for stage in job.stages)
        run_job(self.store, job)
        self.over.append(Ended(job=job, exit=0))

    def poll(self, timeout: float) -> list[Ended]:
        return [self.over.popleft() for _ in range(len(self.over))]

    def cancel(self) -> None: ...

    def close(self) -> None: ...


class Silent:
    """A watcher that says nothing."""

    def started(self, job: Job) -> None: ...

    def ended(self, stage: Stage, outcome: str, message: str) -> None: ...

    def tick(self) -> None: ...


def sweep(store: Store, cell: Cell, percents: range) -> tuple[Counter[str], Plan]:
    """Run features, scores and selections of a sweep; how many stages of each kind were run."""
    cells = [_at(cell, percent) for percent in percents]
    whole = make_plan(cells)
    part = Plan(shard=whole.shard)
    for key in whole.ancestors([planned.select for planned in whole.cells]):
        part.add(whole.stages[key])
    executor = Here(store)
    result = Scheduler(plan=part, store=store, executor=executor, watcher=Silent()).run()
    assert not result.failures
    return executor.kinds, part


def _at(cell: Cell, percent: int) -> Cell:
    return replace(cell, budget=Budget.parse(f"{percent}%"))


def cell_of(pool: Pool, spec: SelectorSpec) -> Cell:
    return Cell(
        pool=pool,
        selector=spec,
        budget=Budget.parse("10%"),
        backbone=Backbone(name="none", path="nowhere", revision="r", processor="p"),
        recipe=TrainSpec(global_batch=8),
        suite=Suite(name="one", protocol="p", benchmarks=LMMS14.benchmarks[6:7]),
    )


@pytest.mark.parametrize("name", ["counting", "mmssr"])
def test_a_sweep_over_budgets_scores_once(name: str, tmp_path: Path) -> None:
    """1 to 25 %, then 1 to 50 %: the second sweep only selects what is new."""
    pool = write_pool(tmp_path / "pool", 100)
    if name == "counting":
        (tmp_path / "counting.py").write_text(COUNTING)
        register_file(tmp_path / "counting.py")
        settings: dict[str, Any] = {"mark": str(tmp_path / "mark")}
    else:
        settings = needed(name, tmp_path, pool.uids())
    cell = cell_of(pool, selector_spec(name, settings))
    store = Store(tmp_path / "store").create()
    passes = {"features": 1} if name == "mmssr" else {}
    first, _ = sweep(store, cell, range(1, 26))
    assert first == Counter({"score": 1, "select": 25, **passes})
    second, plan = sweep(store, cell, range(1, 51))
    assert second == Counter({"select": 25})
    again, _ = sweep(store, cell, range(1, 51))
    assert not again
    for stage in plan.stages.values():
        directory = store.by_key(stage.kind, stage_key(stage))
        assert len(directory.attempts()) == 1
        if stage.kind == "select":
            kept = np.load(directory.out / "positions.npy")
            assert len(kept) == Budget.parse(str(stage.params["budget"])).size(100)
    if name == "counting":
        assert (tmp_path / "mark").read_text() == "x"
