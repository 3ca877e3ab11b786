"""Tidy rows: one score per line, one cell per line; the only input that reports know."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

from harness.errors import HarnessError
from harness.types import Cost

Source = Literal["measured", "published", "external"]
Status = Literal["ok", "missing", "failed", "pending", "invalid", "external"]
Part = Literal["select", "train", "eval"]

RANDOM: Final = "random"
"""Method name of the random baseline."""
FULL: Final = "full"
"""Method name of the run on the whole pool."""
HAS_VALUE: Final[frozenset[Status]] = frozenset({"ok", "external"})
"""Statuses whose value counts; `external` ones count with a dagger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """The score of one run (method, budget, backbone, seed) on one benchmark, in the benchmark's own scale.

    Direction and scale belong to the suite. `trials` is the number of runs that `value` already averages: 1 for
    what was measured here, more for a published mean.
    """

    method: str
    budget: str
    """Label of tables and paths: `5%`, `200n`; `100%` for the whole pool."""
    budget_fraction: float | None = None
    n_selected: int | None = None
    backbone: str
    seed: int | None = None
    benchmark: str
    value: float | None = None
    n_items: int = 0
    status: Status = "ok"
    source: Source = "measured"
    trials: int = 1

    def __post_init__(self) -> None:
        if self.status not in get_args(Status) or self.source not in get_args(Source):
            raise HarnessError(f"{self.where}: status '{self.status}' or source '{self.source}' is not known.")
        has_value = self.value is not None and math.isfinite(self.value)
        if has_value != (self.status in HAS_VALUE):
            raise HarnessError(
                f"{self.where}: status '{self.status}' does not go with value {self.value}: "
                "ok and external rows have a finite value, all others have none."
            )

    @property
    def where(self) -> str:
        return f"{cell_name(self.method, self.budget, self.backbone, self.seed)} on {self.benchmark}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageUse:
    """A stage that a cell rests on, and what that stage has cost; cells that share it name the same key.

    `processes` is how many shared its work; without a GPU each of them held a device of its own.
    """

    part: Part
    key: str
    label: str = ""
    cost: Cost = field(default_factory=Cost)
    processes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CellRow:
    """What is known about one cell as a whole: status, cost by stage, and why it failed."""

    method: str
    budget: str
    budget_fraction: float | None = None
    n_selected: int | None = None
    backbone: str
    seed: int | None = None
    status: Status = "ok"
    stages: tuple[StageUse, ...] = ()
    failure: str = ""
    command: str = ""
    """Command that runs this cell again; empty where the caller has none to offer."""

    @property
    def name(self) -> str:
        return cell_name(self.method, self.budget, self.backbone, self.seed)

    def cost(self, part: Part | None = None) -> Cost:
        """Cost of the cell's stages (of one part), each counted in full even where other cells share it."""
        return sum((s.cost for s in self.stages if part in (None, s.part)), Cost())


def cell_name(method: str, budget: str, backbone: str, seed: int | None) -> str:
    """The path-like name of a run: `mmssr/10%/tiny/s0`, without the seed where it has none."""
    return "/".join([method, budget, backbone] + ([] if seed is None else [f"s{seed}"]))


def budget_order(fraction: float | None, n_selected: int | None, label: str) -> tuple[float, float, str]:
    """Sort key of budgets: by share of the pool, then by count, then by label; unknown shares come last."""
    return (math.inf if fraction is None else fraction, math.inf if n_selected is None else n_selected, label)


_SCORE_FIELDS: Final = tuple(f.name for f in dataclasses.fields(ScoreRow))
_NUMBERS: Final[Mapping[str, type]] = {
    "budget_fraction": float,
    "value": float,
    "n_selected": int,
    "seed": int,
    "n_items": int,
    "trials": int,
}


def write_scores(rows: Iterable[ScoreRow], path: Path) -> None:
    """Write score rows; the suffix of `path` (.json, .csv or .parquet) decides the format."""
    records = [dataclasses.asdict(r) for r in rows]
    if path.suffix == ".json":
        path.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
    elif path.suffix == ".csv":
        with path.open("w", newline="") as f:
            writer = csv.DictWriter(f, _SCORE_FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(records)
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(records, schema=_score_schema()), path)
    else:
        raise _unknown_suffix(path)


def read_scores(path: Path) -> list[ScoreRow]:
    """Read what `write_scores` wrote (.json, .csv or .parquet)."""
    if path.suffix == ".json":
        return [_score(r) for r in json.loads(path.read_text())]
    if path.suffix == ".csv":
        with path.open(newline="") as f:
            return [_score(r) for r in csv.DictReader(f)]
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return [_score(r) for r in pq.read_table(path).to_pylist()]
    raise _unknown_suffix(path)


def write_cells(cells: Sequence[CellRow], path: Path) -> None:
    """Write cell rows as JSON (they are nested: stages and their costs)."""
    path.write_text(json.dumps([dataclasses.asdict(c) for c in cells], indent=1, sort_keys=True) + "\n")


def read_cells(path: Path) -> list[CellRow]:
    """Read what `write_cells` wrote."""
    return [_cell(record) for record in json.loads(path.read_text())]


def _score(record: Mapping[str, Any]) -> ScoreRow:
    """A row from text or typed values; empty and absent fields take their defaults."""
    given = {k: v for k, v in record.items() if k in _SCORE_FIELDS and v not in (None, "")}
    return ScoreRow(**{k: _NUMBERS[k](v) if k in _NUMBERS else v for k, v in given.items()})


def _cell(record: Mapping[str, Any]) -> CellRow:
    stages = tuple(StageUse(**{**s, "cost": Cost(**s["cost"])}) for s in record["stages"])
    return CellRow(**{**record, "stages": stages})


def _score_schema() -> Any:
    import pyarrow as pa

    types = {float: pa.float64(), int: pa.int64()}
    return pa.schema([(n, types[_NUMBERS[n]] if n in _NUMBERS else pa.string()) for n in _SCORE_FIELDS])


def _unknown_suffix(path: Path) -> HarnessError:
    return HarnessError(f"{path}: rows are kept as .json, .csv or .parquet; give the file one of these endings.")
