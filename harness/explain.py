"""Looking into a store: status of a sweep, and everything about one stage."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from harness.errors import HarnessError
from harness.files import read_json
from harness.store import StageDir, Store

ORDER = ("done", "running", "failed", "interrupted", "missing")


def show_status(root: Path, name: str, console: Console) -> int:
    """Print stages by kind and status, and every failure with the last lines of its log.

    Of one sweep, or of all sweeps of the store where `name` is empty. Returns 1 where something failed.
    """
    store = Store(root)
    names = [name] if name else store.sweeps()
    if not names:
        raise HarnessError(f"store {root} has no sweeps yet: 'sievebench run' makes one.")
    failed = 0
    for sweep in names:
        stages = _stages(store, sweep)
        console.print(Text(f"{sweep}: {len(stages)} stages", style="bold"))
        console.print(_counts(stages))
        for label, directory in stages:
            if directory.status() in ("failed", "interrupted"):
                failed += directory.status() == "failed"
                _show_failure(label, directory, console)
        for _, directory in stages:
            for conflict in directory.conflicts():
                console.print(Text(f"recomputed with another result: {conflict}", style="yellow"))
    return 1 if failed else 0


def _stages(store: Store, sweep: str) -> list[tuple[str, StageDir]]:
    """Label and directory of every stage of a sweep, each once; stages may share a label."""
    cells = store.sweep(sweep)["cells"]
    stages = {s["key"]: s for cell in cells for s in cell["stages"]}
    return [(s["label"], store.by_key(s["kind"], key)) for key, s in stages.items()]


def _counts(stages: list[tuple[str, StageDir]]) -> RichTable:
    found: Counter[tuple[str, str]] = Counter((d.path.parent.name, d.status()) for _, d in stages)
    table = RichTable(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in ("stage", *ORDER):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for kind in dict.fromkeys(kind for kind, _ in found):
        table.add_row(kind, *(str(found[(kind, status)] or "") for status in ORDER))
    return table


def _show_failure(label: str, directory: StageDir, console: Console) -> None:
    last = directory.attempts()[-1]
    message = last.message or "its process was ended"
    console.print(Text(f"{directory.status()}: {label}: {message}", style="red"))
    if last.kind != "user":
        for line in last.log_tail.splitlines()[-6:]:
            console.print(Text(f"    {line}", style="dim"))
    console.print(Text(f"    log: {directory.log}", style="dim"))


def show_stage(root: Path, name: str, console: Console) -> int:
    """Print what a stage means, what it needs, how it went and where it lies.

    Raises HarnessError unless exactly one stage has that label or key prefix.
    """
    directory, spec = find_stage(Store(root), name)
    status = directory.status()
    console.print(Text(f"{spec['label']}  ({spec['kind']}, {status})", style="bold"))
    console.print(f"key     {directory.key}", highlight=False)
    console.print(f"folder  {directory.path}", highlight=False, soft_wrap=True)
    for label, key in sorted(spec["inputs"].items()):
        console.print(f"needs   {label} = {key[:12]}", highlight=False)
    console.print("means   " + json.dumps(spec["params"], indent=1, sort_keys=True), markup=False)
    for attempt in directory.attempts():
        cost = attempt.cost
        console.print(
            f"attempt {attempt.number}: {attempt.outcome} {attempt.kind} {attempt.message}, "
            f"{cost.wall_s:.1f} s wall, {cost.cpu_s:.1f} s CPU, {cost.gpu_s:.1f} s GPU",
            markup=False,
            highlight=False,
        )
    manifest = directory.manifest()
    if manifest is not None:
        console.print("result  " + json.dumps(dict(manifest.facts), sort_keys=True), markup=False)
        for file, digest in sorted(manifest.outputs.items()):
            console.print(f"output  {file}  {digest[:12]}", highlight=False)
    return 0


def find_stage(store: Store, name: str, kind: str = "") -> tuple[StageDir, dict[str, Any]]:
    """The one stage with that label or key prefix, and its spec.

    With a `kind` only stages of it are considered, and its name at the end of a label may be left out. Raises
    HarnessError unless exactly one is found.
    """
    hits = []
    labels = (name, f"{name}/{kind}") if kind else (name,)
    for directory in store.stages():
        spec = read_json(directory.path / "spec.json")
        if not spec or kind not in ("", spec["kind"]):
            continue
        if spec["label"] in labels or (len(name) >= 4 and directory.key.startswith(name)):
            hits.append((directory, spec))
    if len(hits) == 1:
        return hits[0]
    what = f"{kind} stage" if kind else "stage"
    if not hits:
        raise HarnessError(f"store {store.root} has no {what} '{name}': give a label or 4 digits of a key.")
    found = ", ".join(f"{spec['kind']} {d.key[:12]}" for d, spec in hits[:6])
    raise HarnessError(f"'{name}' names {len(hits)} {what}s ({found}): give a key instead.")
