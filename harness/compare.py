"""From names of selections to subsets of one pool that can be compared."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import HarnessError
from harness.explain import find_stage
from harness.files import read_json
from harness.id_lists import SUFFIXES, find_ids, read_ids
from harness.pool import Pool, open_pool
from harness.store import StageDir, Store
from reports.compare import Subset


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A selection of ours: a finished select stage, and what it is called."""

    name: str
    directory: StageDir
    pool_path: str
    pool_digest: str
    unfinished: tuple[str, ...] = ()
    """Cells of the same sweep whose selections are not finished."""


def read_subsets(store: Store, names: Sequence[str], pool_path: Path | None = None) -> tuple[Pool, list[Subset]]:
    """The pool that selections are of, and the selections as subsets of it.

    A name is a sweep (all its finished selections), a cell, a select stage's label or key prefix, its directory,
    or a file of ids. Raises HarnessError where one is not there or not finished, or where they are of different
    pools.
    """
    found = [item for name in names for item in _found(store, name)]
    stems = Counter(item.stem for item in found if isinstance(item, Path))
    chosen = [c for c in found if isinstance(c, Chosen)]
    pool = _common_pool(chosen, pool_path)
    subsets = [
        _chosen_subset(c)
        if isinstance(c, Chosen)
        else _listed_subset(pool, c, c.stem if stems[c.stem] == 1 else c.name)
        for c in found
    ]
    return pool, _distinct(subsets)


def _found(store: Store, name: str) -> list[Chosen | Path]:
    path = Path(name)
    if path.is_file():
        return [path]
    if (path / "spec.json").is_file():
        return [_chosen(_at(path))]
    if name in store.sweeps():
        return _of_sweep(store, name)
    cells = _of_cell(store, name)
    if cells:
        return cells
    if path.suffix in SUFFIXES:
        raise HarnessError(f"there is no file {path}.")
    directory, _ = find_stage(store, name, kind="select")
    return [_chosen(directory)]


def _at(path: Path) -> StageDir:
    """A stage directory given by its path."""
    spec = read_json(path / "spec.json") or {}
    if spec.get("kind") != "select":
        raise HarnessError(f"{path} is a {spec.get('kind')} stage: give the directory of a select stage.")
    return StageDir(path.resolve().parent.parent, spec["key"], "select")


def _of_sweep(store: Store, name: str) -> list[Chosen | Path]:
    """The distinct finished selections of a sweep by size and method, the whole pool left out.

    The first one says which are not finished. Raises HarnessError where none is.
    """
    cells = [c for c in store.sweep(name)["cells"] if c["method"] != "full"]
    cells.sort(key=lambda c: (c["n_selected"], c["method"], c["seed"]))
    labels = {c["select"]: c["label"] for c in reversed(cells)}  # a selection is called by its first cell
    stages = {c["select"]: store.by_key("select", c["select"]) for c in cells}
    done = [_chosen(directory, labels[key]) for key, directory in stages.items() if directory.done()]
    unfinished = tuple(labels[key] for key, directory in stages.items() if not directory.done())
    if not done:
        known = f" ({unfinished[0]}, for example)" if unfinished else ""
        raise HarnessError(f"sweep '{name}' has no finished selection{known}: run it first.")
    return [replace(done[0], unfinished=unfinished), *done[1:]]


def _of_cell(store: Store, name: str) -> list[Chosen | Path]:
    """The selection of a cell, by its label or a prefix of its key; empty where no sweep has such a cell."""
    cells = [c for sweep in store.sweeps() for c in store.sweep(sweep)["cells"] if _is_cell(c, name)]
    keys = {c["select"] for c in cells}
    if len(keys) > 1:
        known = ", ".join(sorted(key[:12] for key in keys))
        raise HarnessError(f"'{name}' names {len(keys)} cells of this store: give one of the select keys {known}.")
    label = cells[0]["label"] if cells else ""
    return [replace(_chosen(store.by_key("select", key), label), name=label) for key in keys]


def _is_cell(cell: dict[str, Any], name: str) -> bool:
    return bool(cell["label"] == name or (len(name) >= 4 and cell["key"].startswith(name)))


def _chosen(directory: StageDir, cell: str = "") -> Chosen:
    """A finished selection; `cell` is what to call it where it is not."""
    spec = read_json(directory.path / "spec.json")
    if spec is None or not directory.done():
        label = cell or (spec["label"] if spec else directory.key[:12])
        raise HarnessError(f"selection {label} is {directory.status()}: run its cell first.")
    return Chosen(
        name=spec["label"].removesuffix("/select"),
        directory=directory,
        pool_path=spec["settings"]["pool_path"],
        pool_digest=json.loads((directory.out / "selection.json").read_text())["pool"],
    )


def _common_pool(chosen: Sequence[Chosen], path: Path | None) -> Pool:
    """The one pool; where it was moved, `path` says where it is now."""
    if not chosen and path is None:
        raise HarnessError("lists of ids do not say which pool they are of: give it with --pool DIR.")
    pool = open_pool(path or chosen[0].pool_path)
    for c in chosen:
        if c.pool_digest != pool.digest:
            raise HarnessError(
                f"{c.name} chose from a pool with digest {c.pool_digest[:12]}, {pool.path} has "
                f"{pool.digest[:12]}: compare selections of one pool, or give it with --pool DIR."
            )
    return pool


def _chosen_subset(chosen: Chosen) -> Subset:
    positions = np.load(chosen.directory.out / "positions.npy")
    return Subset(name=chosen.name, positions=positions, origin=chosen.directory.key, unfinished=chosen.unfinished)


def _listed_subset(pool: Pool, file: Path, name: str) -> Subset:
    ids = read_ids(file)
    positions, unknown, repeated = find_ids(pool, ids)
    if not len(positions):
        raise HarnessError(
            f"none of the {len(ids)} ids of {file} is in pool {pool.path} ({ids[0]}, for example; the pool has "
            f"{pool.record(0).uid}): give the pool they are of with --pool DIR."
        )
    return Subset(name=name, positions=positions, origin=str(file), unknown=tuple(unknown), repeated=repeated)


def _distinct(subsets: Sequence[Subset]) -> list[Subset]:
    """The subsets with names of their own: those that share one are numbered."""
    used: Counter[str] = Counter()
    shared = {name for name, n in Counter(s.name for s in subsets).items() if n > 1}
    named = []
    for subset in subsets:
        used[subset.name] += 1
        number = f"#{used[subset.name]}" if subset.name in shared else ""
        named.append(replace(subset, name=subset.name + number))
    return named
