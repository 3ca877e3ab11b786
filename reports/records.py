"""Reading a sweep's results out of the store: plan on disk and stage directories in, tidy rows out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.benchmarks import Benchmark, Suite
from harness.errors import HarnessError
from harness.files import read_json
from harness.store import StageDir, Store
from reports.rows import CellRow, Part, ScoreRow, StageUse, Status

PARTS: Mapping[str, Part] = {"train": "train", "evaluate": "eval", "judge": "eval"}
"""What a stage kind is paid for; every other kind serves the selection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """A sweep's results as tidy rows."""

    name: str
    suite: Suite
    scores: tuple[ScoreRow, ...]
    cells: tuple[CellRow, ...]
    command: str
    titles: Mapping[str, str] = field(default_factory=dict)
    """What methods are called in print; those without a title as they are."""
    uncertain: tuple[str, ...] = ()
    """Methods of which the selection's card says that something is not published."""
    leaky: tuple[str, ...] = ()
    """Methods of which it says that they may have seen what they judge or what is scored."""


def read_sweep(store: Store, name: str) -> Records:
    """The rows of a planned sweep as far as they exist.

    Raises HarnessError where the store has no such sweep, or its cells use different suites.
    """
    sweep = store.sweep(name)
    suites = sweep["suites"]
    if len(suites) != 1:
        raise HarnessError(f"sweep '{name}' mixes {len(suites)} suites; report them as sweeps of their own.")
    suite = read_suite(suites[0])
    scores: list[ScoreRow] = []
    cells: list[CellRow] = []
    for cell in sweep["cells"]:
        rows = [_score(store, cell, b) for b in suite.benchmarks]
        scores += rows
        cells.append(_cell(store, sweep, cell, rows))
    return Records(
        name=name,
        suite=suite,
        scores=tuple(scores),
        cells=tuple(cells),
        command=sweep.get("command", ""),
        titles=sweep.get("titles", {}),
        uncertain=_saying(store, sweep["cells"], "uncertain"),
        leaky=_saying(store, sweep["cells"], "leakage"),
    )


def read_suite(raw: Mapping[str, Any]) -> Suite:
    """A suite as the sweep file keeps it."""
    benchmarks = tuple(Benchmark(**(b | {"metrics": tuple(b["metrics"])})) for b in raw["benchmarks"])
    return Suite(name=raw["name"], protocol=raw["protocol"], benchmarks=benchmarks)


def _facts(cell: Mapping[str, Any]) -> dict[str, Any]:
    names = ("method", "budget", "budget_fraction", "n_selected", "backbone", "seed")
    return {name: cell[name] for name in names}


def _score(store: Store, cell: Mapping[str, Any], benchmark: Benchmark) -> ScoreRow:
    kind = "judge" if benchmark.judge else "evaluate"
    directory = store.by_key(kind, cell["scores"][benchmark.name])
    manifest = directory.manifest()
    if manifest is None:
        return ScoreRow(**_facts(cell), benchmark=benchmark.name, status=_hole(store, cell, directory))
    facts = manifest.facts
    return ScoreRow(
        **_facts(cell),
        benchmark=benchmark.name,
        value=float(str(facts["value"])),
        n_items=int(str(facts["n"])),
        status="ok",
    )


def _hole(store: Store, cell: Mapping[str, Any], directory: StageDir) -> Status:
    """Why a score is not there: its own stage or one it needs failed, or nothing has run yet."""
    if directory.status() == "failed" or _failed_input(store, cell) is not None:
        return "failed"
    return "pending"


def _failed_input(store: Store, cell: Mapping[str, Any]) -> StageDir | None:
    for stage in cell["stages"]:
        if stage["kind"] in ("evaluate", "judge"):
            continue
        directory = store.by_key(stage["kind"], stage["key"])
        if directory.status() == "failed":
            return directory
    return None


def _cell(store: Store, sweep: Mapping[str, Any], cell: Mapping[str, Any], rows: list[ScoreRow]) -> CellRow:
    uses = tuple(stage_use(store, cell, stage) for stage in cell["stages"])
    found = {row.status for row in rows}
    status: Status = "ok" if found == {"ok"} else ("failed" if "failed" in found else "pending")
    return CellRow(
        **_facts(cell),
        status=status,
        stages=uses,
        failure=_why(store, cell) if status == "failed" else "",
        command=cell.get("command", sweep.get("command", "")),
    )


def stage_use(store: Store, cell: Mapping[str, Any], stage: Mapping[str, Any]) -> StageUse:
    """What a cell uses a stage for, and what that has cost."""
    directory = store.by_key(stage["kind"], stage["key"])
    return StageUse(
        part=_part(cell, stage),
        key=stage["key"],
        label=stage["label"],
        cost=directory.cost(),
        processes=_processes(directory) if stage["kind"] == "features" else 1,
    )


def _processes(directory: StageDir) -> int:
    """Processes that shared a pass; where it is not finished, as many as it was begun with."""
    manifest, spec = directory.manifest(), read_json(directory.path / "spec.json") or {}
    asked = spec.get("settings", {}).get("processes", 1)
    return int(str(manifest.facts.get("processes", asked) if manifest else asked))


def _part(cell: Mapping[str, Any], stage: Mapping[str, Any]) -> Part:
    """A training other than the cell's own serves the selection: a warm-up, or the teaching of a scorer."""
    taught = stage["kind"] == "train" and stage["key"] != cell["train"]
    return "select" if taught else PARTS.get(stage["kind"], "select")


def _why(store: Store, cell: Mapping[str, Any]) -> str:
    for stage in cell["stages"]:
        directory = store.by_key(stage["kind"], stage["key"])
        if directory.status() == "failed":
            return f"{stage['label']}: {directory.attempts()[-1].message}"
    return ""


def _saying(store: Store, cells: Sequence[Mapping[str, Any]], what: str) -> tuple[str, ...]:
    """Methods whose cards say something under a name, sorted."""
    return tuple(sorted({c["method"] for c in cells if (selection_card(store, c) or {}).get(what)}))


def selection_card(store: Store, cell: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a cell's selection is made of, or None while it has not been made."""
    card = read_json(store.by_key("select", cell["select"]).out / "card.json")
    return None if card is None else dict(card)
