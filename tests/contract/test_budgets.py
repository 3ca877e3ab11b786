"""Budgets are exact whatever the pool, and a sweep over budgets scores once."""

from __future__ import annotations

import json
import random
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from harness import registry
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
from tests.synthetic_columns import synthetic

LARGEST = 400
PAIRS = 1000
POOLS = 100


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


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return write_pool(tmp_path_factory.mktemp("pool") / "pool", LARGEST)


@pytest.fixture(autouse=True)
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Selectors given as files are forgotten after the test."""
    monkeypatch.setattr(registry, "_BY_PATH", {})


def settings(name: str, folder: Path, uids: list[str]) -> dict[str, Any]:
    """What a selector cannot do without: of these only a label file, as no pass is run here."""
    return needed(name, folder, uids) if name == "mmssr" else {}


@pytest.mark.parametrize("name", selector_names())
def test_any_share_of_any_pool_is_kept_exactly(name: str, pool: Pool, tmp_path: Path) -> None:
    """1,000 sizes and shares: floor(r * N) in exact arithmetic, all different, all of the pool."""
    cls = selector(name).cls
    made = cls(configured(cls, settings(name, tmp_path, pool.uids())))
    rng = random.Random(name)
    for _ in range(POOLS):
        n_pool = rng.randint(1, LARGEST)
        part = prefix(pool, n_pool)
        columns = {ref.label: synthetic(ref.name, part) for ref in made.needs()}
        scores = made.score(part, columns) or {}
        for seed in range(PAIRS // POOLS):
            share = Fraction(rng.randint(1, 1000), 1000)
            if name == "full" or share * n_pool < 1:
                share = Fraction(1)
            n = Budget.parse(str(share)).size(n_pool)
            assert n == share.numerator * n_pool // share.denominator
            checked(made.select(part, scores, columns, n, seed), part, n, name)


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

    def free(self, job: Job) -> bool:
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


def cell_of(pool: Pool, spec: SelectorSpec, backbone: Path) -> Cell:
    return Cell(
        pool=pool,
        selector=spec,
        budget=Budget.parse("10%"),
        backbone=Backbone(name="none", path=str(backbone), revision="r", processor="p"),
        recipe=TrainSpec(global_batch=8),
        suite=Suite(name="one", protocol="p", benchmarks=LMMS14.benchmarks[6:7]),
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained backbone for passes."""
    from harness.miniworld.architecture import build_untrained

    root = tmp_path_factory.mktemp("models")
    build_untrained("tiny", root / "tiny", seed=0)
    return root / "tiny"


@pytest.mark.parametrize("name", ["counting", "mmssr", "ppl_mid", "coincide"])
def test_a_sweep_over_budgets_scores_once(name: str, tmp_path: Path, tiny: Path) -> None:
    """1 to 25 %, then 1 to 50 %: the second sweep only selects what is new."""
    pool = write_pool(tmp_path / "pool", 100)
    given: dict[str, Any] = settings(name, tmp_path, pool.uids())
    if name == "counting":
        (tmp_path / "counting.py").write_text(COUNTING)
        register_file(tmp_path / "counting.py")
        given = {"mark": str(tmp_path / "mark")}
    cell = cell_of(pool, selector_spec(name, given), tiny)
    store = Store(tmp_path / "store").create()
    passes = {} if name == "counting" else {"features": 1}
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
            card = json.loads((directory.out / "card.json").read_text())
            assert card.get("uncertain", []) == list(selector(name).cls.uncertain)
            lost = {"scores": {"no_label": 1}, "styles": {"no_label": 1}}  # the label file lacks one sample
            assert card.get("failed", {}) == (lost if name == "mmssr" else {})
    if name == "counting":
        assert (tmp_path / "mark").read_text() == "x"
