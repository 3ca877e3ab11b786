"""What the conformance kit tries selectors on: a small pool, copies of parts of it, and real columns of passes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.api import Features, PassContext, PassRef, Pool, Scores, Selection, Selector
from harness.errors import HarnessError
from harness.keys import digest
from harness.models import model_folder
from harness.pool import open_pool
from harness.pool_write import PoolWriter
from harness.registry import configured, feature_pass, make_selector
from harness.stages.features import read_columns
from harness.types import SelectorSpec


@dataclass(slots=True)
class Trial:
    """A selector, made anew, on one pool with its columns; what it is given cannot be written to."""

    selector: Selector
    pool: Pool
    features: Features
    _scores: Scores | None = None

    def select(self, n: int, seed: int) -> Selection:
        """What the selector returns, unchecked."""
        if self._scores is None:
            self._scores = self.selector.score(self.pool, self.features) or {}
            for name, values in self._scores.items():
                if np.shape(values)[:1] != (self.pool.n,):
                    raise ValueError(f"score() returned {np.size(values)} values of '{name}', not one a sample")
                values.setflags(write=False)
        return self.selector.select(self.pool, self._scores, self.features, n, seed)

    def kept(self, n: int, seed: int) -> list[str]:
        """The uids of what it returns."""
        uids = self.pool.uids()
        return [uids[i] for i in self.select(n, seed).positions]


@dataclass(slots=True, kw_only=True)
class World:
    """A folder with a small pool and the columns one selector asks for."""

    folder: Path
    spec: SelectorSpec
    pool: Pool
    _copies: dict[tuple[int, ...], Pool] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path, spec: SelectorSpec, n: int) -> World:
        """Generate a miniworld pool of `n` samples and run the selector's passes over it.

        What is wrong with the samples is thrown away, so that nothing can look it up. Raises HarnessError where a
        pass or the model it names is not here.
        """
        from harness.miniworld import ensure_pool, truth_file

        pool = open_pool(ensure_pool(n, 0, folder / "world"))
        truth_file(Path(pool.path)).unlink(missing_ok=True)
        Path(pool.path).with_name("teachers.parquet").unlink(missing_ok=True)
        for ref in make_selector(spec).needs():
            measure(ref, _pass_pool(ref, pool), folder)
        return cls(folder=folder, spec=spec, pool=pool)

    def trial(self, positions: Sequence[int] | None = None) -> Trial:
        """The selector on the whole pool, or on a pool of these of its samples in this order."""
        made = make_selector(self.spec)
        columns = {
            ref.label: read_columns(columns_folder(self.folder, _pass_pool(ref, self.pool), ref))
            for ref in made.needs()
        }
        if positions is None:
            return Trial(made, self.pool, columns)
        own = {ref.label for ref in made.needs() if not ref.pool}
        picked = {
            label: _rows(table, np.asarray(positions)) if label in own else table
            for label, table in columns.items()
        }
        return Trial(made, self._copy(tuple(positions)), picked)

    def elsewhere(self, n: int, seed: int) -> list[str]:
        """The uids kept by a process of its own, in which strings have other hashes."""
        code = "import sys; from harness.conformance_world import replay; replay(*sys.argv[1:])"
        hashing = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
        spec = {name: getattr(self.spec, name) for name in ("name", "distribution", "version", "path")}
        given = json.dumps(spec | {"config": dict(self.spec.config)})
        done = subprocess.run(
            [sys.executable, "-c", code, given, str(self.folder), self.pool.path, str(n), str(seed)],
            env={**os.environ, "PYTHONHASHSEED": hashing},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        return list(json.loads(done.stdout.splitlines()[-1]))

    def _copy(self, positions: tuple[int, ...]) -> Pool:
        if positions not in self._copies:
            folder = Path(tempfile.mkdtemp(prefix="copy-", dir=self.folder))
            self._copies[positions] = copy_pool(self.pool, positions, folder / "pool")
        return self._copies[positions]


def replay(given: str, folder: str, pool: str, n: str, seed: str) -> None:
    """Print what a selector keeps, as JSON: the other process of `World.elsewhere`."""
    world = World(folder=Path(folder), spec=SelectorSpec(**json.loads(given)), pool=open_pool(pool))
    print(json.dumps(world.trial().kept(int(n), int(seed))))


def _rows(table: Mapping[str, npt.NDArray[Any]], positions: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    picked = {name: values[positions] for name, values in table.items()}
    for values in picked.values():
        values.setflags(write=False)
    return picked


def copy_pool(pool: Pool, positions: Sequence[int], path: Path) -> Pool:
    """A new pool of some samples of another, in the order given."""
    with PoolWriter(path, path.name) as writer:
        for position in positions:
            record = pool.record(position)
            turns = [{"from": role, "value": text} for role, text in record.conversations]
            raw: dict[str, Any] = {"id": record.uid, "data_source": record.source, "conversations": turns}
            if record.images:
                raw["image"] = list(record.images)
            writer.add(raw, pool.image_bytes)
    return writer.pool()


def _pass_pool(ref: PassRef, pool: Pool) -> Pool:
    return open_pool(ref.pool) if ref.pool else pool


def columns_folder(folder: Path, pool: Pool, ref: PassRef) -> Path:
    """Where the columns of one pass over one pool are kept."""
    asked = {"pool": pool.digest, "model": ref.model, "config": ref.config}
    return folder / "columns" / f"{ref.name}-{digest(asked)[:12]}"


def measure(ref: PassRef, pool: Pool, folder: Path) -> None:
    """Run a pass over a whole pool and keep its columns, unless they are there already."""
    out = columns_folder(folder, pool, ref)
    if out.is_dir():
        return
    plugin = feature_pass(ref.name)
    made = plugin.cls(configured(plugin.cls, ref.config), PassContext(model_path=_model(ref.model, folder)))
    made.open()
    columns, _ = made.run(pool, 0, pool.n)
    out.mkdir(parents=True)
    for name, values in columns.items():
        np.save(out / f"{name}.npy", values)


def _model(alias: str, folder: Path) -> str:
    """The folder of the model a pass asks for; the tiny backbone stands for the backbone of a cell."""
    if not alias:
        return ""
    if alias not in ("mid", "warm", "trained"):
        path, _, revision = alias.partition("@")
        return str(model_folder(alias, path, revision))
    try:
        return str(model_folder("tiny", "miniworld:tiny"))
    except HarnessError:
        return str(_untrained(folder / "models" / "tiny"))


def _untrained(out: Path) -> Path:
    from harness.miniworld.architecture import build_untrained

    if not out.is_dir():
        build_untrained("tiny", out)
    return out
