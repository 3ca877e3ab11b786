"""A cell: one experiment, and the canonical form in which two spellings of the same one are equal."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction

from harness.benchmarks import Suite
from harness.errors import HarnessError
from harness.keys import digest, plain
from harness.pool import Pool
from harness.registry import selector_spec
from harness.types import Backbone, Budget, Json, SelectorSpec, TrainSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSettings:
    """How checkpoints are evaluated; all of it is part of a result's identity."""

    batch_size: int = 8
    """Items answered together; part of the identity because rounding may depend on it."""
    dtype: str = "float32"
    """Of the weights: `float32`, `bfloat16` or `float16`."""
    backend: str = "hf"
    """What generates; `hf` is transformers."""
    attention: str = "sdpa"
    """Implementation of attention: `sdpa`, `eager` or `flash_attention_2`."""
    limit: int | None = None
    """Items of each task, for a quick look; null takes all."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.limit is not None and self.limit < 1):
            raise HarnessError(
                f"evaluation: batch_size={self.batch_size} and limit={self.limit} must be at least 1 "
                "(limit=null takes all items)."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """(pool, selector, budget, backbone, recipe, suite, seed): what one row of a result is a run of."""

    pool: Pool
    selector: SelectorSpec
    budget: Budget
    backbone: Backbone
    recipe: TrainSpec
    suite: Suite
    evaluation: EvalSettings = field(default_factory=EvalSettings)
    seed: int = 0
    baseline: bool = False
    """Added by the harness rather than asked for."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise HarnessError(f"seed {self.seed} is negative: runs are numbered from 0.")

    @property
    def label(self) -> str:
        """`clip_score/5%/tiny/s0`; settings that differ from the defaults follow the selector's name."""
        return f"{self.method}/{self.budget.label}/{self.backbone.name}/s{self.seed}"

    @property
    def changed(self) -> dict[str, Json]:
        """Settings of the selector that are not its defaults, by name in order."""
        default = selector_spec(self.selector.name, {}).config
        given = sorted(self.selector.config.items())
        # What is not among the defaults is a field that is left out where it has its default.
        return {k: v for k, v in given if k not in default or plain(v) != plain(default[k])}

    @property
    def method(self) -> str:
        """The selector with those of its settings that are not the default, as tables name it."""
        inner = ",".join(f"{k}={_shown(v)}" for k, v in self.changed.items())
        return f"{self.selector.name}({inner})" if inner else self.selector.name


def _shown(value: Json) -> str:
    """A setting as tables name it: mappings as YAML and command lines write them."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {v}" for k, v in value.items()) + "}"
    return str(value)


def cell_key(cell: Cell) -> str:
    """What the cell means, as a digest; who asked for it does not count."""
    return digest(
        {
            "pool": cell.pool.digest,
            "selector": cell.selector,
            "budget": cell.budget,
            "backbone": cell.backbone,
            "recipe": cell.recipe,
            "suite": cell.suite,
            "evaluation": cell.evaluation,
            "seed": cell.seed,
        }
    )


def canonical_cell(cell: Cell) -> Cell:
    """The one form of a cell: the whole pool is selector `full` whatever was asked to choose it."""
    full_size = cell.budget.count == cell.pool.n
    if cell.budget.is_full or full_size or cell.selector.name == "full":
        return replace(cell, selector=selector_spec("full", {}), budget=Budget(fraction=Fraction(1)))
    cell.budget.size(cell.pool.n)  # a budget that keeps nothing is refused here, not in the middle of a sweep
    return cell


def with_baselines(cells: list[Cell], *, full_trials: int, random_trials: int) -> list[Cell]:
    """The cells asked for, deduplicated, plus the runs they are to be compared with.

    For every (pool, backbone, recipe, suite) asked for: full-data runs of seeds 0..full_trials-1, and for every
    budget random runs of seeds 0..random_trials-1.
    """
    asked = _unique([canonical_cell(c) for c in cells])
    extra: list[Cell] = []
    for cell in asked:
        full = canonical_cell(replace(cell, selector=selector_spec("full", {}), baseline=True))
        extra += [replace(full, seed=i) for i in range(full_trials)]
        if not cell.budget.is_full:
            random = replace(cell, selector=selector_spec("random", {}), baseline=True)
            extra += [replace(random, seed=i) for i in range(random_trials)]
    return _unique([*asked, *extra])


def _unique(cells: list[Cell]) -> list[Cell]:
    seen: dict[str, Cell] = {}
    for cell in cells:
        seen.setdefault(cell_key(cell), cell)
    return list(seen.values())
