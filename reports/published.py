"""Published tables as tidy rows, so that they pass through the same metrics and renderers as our own."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from harness.benchmarks import Benchmark, Suite
from harness.errors import unknown_name
from reports.rows import FULL, RANDOM, ScoreRow

Record = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Where a published table comes from and which records of its file belong to it."""

    citation: str
    file: str
    keep: Callable[[Record], bool] = lambda record: True
    random_trials: int = 1
    """Runs behind each printed random number; 1 where the paper does not say."""


TABLES: Final[Mapping[str, Published]] = {
    "mmssr": Published(citation="mmSSR (arXiv:2503.13383), full table", file="mmssr.csv", random_trials=3),
    "datatailor": Published(
        citation="DataTailor (arXiv:2412.06293), Table 1",
        file="datatailor.csv",
        keep=lambda record: record["table"] == "Table 1",
    ),
    "datatailor_transfer": Published(
        citation="DataTailor (arXiv:2412.06293), Table 2",
        file="datatailor.csv",
        keep=lambda record: record["table"] == "Table 2",
    ),
}

_TITLES: Final = {
    "MMBench_en_v1.1": "MMBench",
    "MMT-Bench": "MMT",
    "MathVista_mini": "MathVista",
    "SEED-Bench-I": "SEED-I",
    "DataTailor w/ Increased Ratio (Ours)": "DataTailor (2x)",
    "DataTailor (Ours)": "DataTailor",
}
_ROLES: Final = {"Random": RANDOM, "FULL": FULL}


def load(name: str) -> tuple[list[ScoreRow], Suite]:
    """Score rows and suite of a published table; an unknown `name` raises HarnessError with the known ones."""
    if name not in TABLES:
        raise unknown_name("published table", name, TABLES)
    records = list(_records(TABLES[name]))
    rows = [_row(record, TABLES[name]) for record in records]
    benchmarks = {record["benchmark"]: _benchmark(record) for record in records}
    return rows, Suite(name=name, protocol="published", benchmarks=tuple(benchmarks.values()))


def _records(table: Published) -> Iterator[Record]:
    text = (files("reports") / "published" / table.file).read_text()
    return (record for record in csv.DictReader(text.splitlines()) if table.keep(record))


def _row(record: Record, table: Published) -> ScoreRow:
    method = _ROLES.get(record["method"], _TITLES.get(record["method"], record["method"]))
    return ScoreRow(
        method=method,
        budget="100%" if method == FULL else record["budget"],
        budget_fraction=float(record["budget_frac"]),
        n_selected=int(record["n_selected"]),
        backbone=record["model"],
        benchmark=record["benchmark"],
        value=float(record["score"]),
        source="published",
        trials=table.random_trials if method == RANDOM else 1,
    )


def _benchmark(record: Record) -> Benchmark:
    low, _, high = record["metric_scale"].partition("-")
    bounded = high.isdigit()
    return Benchmark(
        name=record["benchmark"],
        title=_TITLES.get(record["benchmark"], record["benchmark"]),
        task=record["benchmark"],
        metrics=("printed",),
        scale=1.0,
        minimum=float(low) if bounded else 0.0,
        maximum=float(high) if bounded else float("inf"),
        higher_is_better=record["higher_is_better"] == "1",
    )
