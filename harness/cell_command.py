"""The command that runs one cell of a sweep again, with every setting that decides its result."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.benchmarks import SUITES, Benchmark, Suite
from harness.cells import Cell, EvalSettings
from harness.keys import plain
from harness.models import is_shipped
from harness.pool import Pool
from harness.types import Backbone, Json, TrainSpec

Part = tuple[str, Any]
"""A setting and its value."""

DEFAULT_STORE = Path("runs")
DEFAULT_RECIPE = "mini"


def cell_command(cell: Cell, store: Path) -> str:
    """The command that runs this cell alone, in the same folder and against the same store.

    It names files of settings only where they come with Sievebench; what a file of the user's said is spelt out.
    """
    parts: list[Part] = [("selector", cell.selector.path or cell.selector.name)]
    parts += [(f"selector.{name}", value) for name, value in cell.changed.items()]
    parts += [*_backbone(cell.backbone), *_suite(cell.suite)]
    parts += [] if cell.budget.is_full else [("budget", cell.budget.label)]
    parts += [*_pool(cell.pool, store), *_recipe(cell.recipe)]
    parts += _changed("evaluation", cell.evaluation, EvalSettings())
    parts += [("store", str(store))] if store != DEFAULT_STORE else []
    spelt = [f"{name}={_spelt(value)}" for name, value in [*parts, ("seed", cell.seed)]]
    return f"python -m harness {shlex.join(spelt)}"


def _backbone(backbone: Backbone) -> Iterator[Part]:
    own = backbone.name not in _choices("backbone")
    yield "backbone", "base" if own else backbone.name
    if own:
        yield "backbone.name", backbone.name
    if not is_shipped(backbone) or Path(backbone.path).name != backbone.name:
        yield "backbone.path", backbone.path
    # A digest follows from the folder's files; a commit has to be said.
    if not re.fullmatch(r"[0-9a-f]{64}", backbone.revision):
        yield "backbone.revision", backbone.revision


def _suite(suite: Suite) -> Iterator[Part]:
    names = [b.name for b in suite.benchmarks]
    name = suite.name.removesuffix(f"[{','.join(names)}]")
    built_in = name == "mini" or name in SUITES
    yield "suite", name if built_in else "base"
    if not built_in:
        yield from (("suite.name", name), ("suite.protocol", suite.protocol))
        yield "suite.benchmarks", [_entry(b) for b in suite.benchmarks]
    if name != suite.name:
        yield "suite.only", names


def _entry(benchmark: Benchmark) -> dict[str, Any]:
    default = Benchmark(name="", title="", task="", metrics=("",))
    found = {f.name: getattr(benchmark, f.name) for f in dataclasses.fields(Benchmark)}
    return {name: value for name, value in found.items() if value != getattr(default, name)}


def _pool(pool: Pool, store: Path) -> Iterator[Part]:
    world = re.fullmatch(r"miniworld-(\d+)-s(\d+)-v\d+", pool.name)
    if world and Path(pool.path).is_relative_to((store / "world").resolve()):
        yield "pool.miniworld", int(world[1])
        if int(world[2]):
            yield "pool.seed", int(world[2])
    else:
        yield from (("pool", "path"), ("pool.path", pool.path))


def _recipe(recipe: TrainSpec) -> list[Part]:
    """The shipped recipe that is nearest, and what differs from it; the seed is the cell's."""
    found = {name: _changed("recipe", recipe, _read_recipe(file)) for name, file in _choices("recipe").items()}
    nearest = min(found, key=lambda name: (len(found[name]), name != DEFAULT_RECIPE, name))
    chosen: list[Part] = [] if nearest == DEFAULT_RECIPE else [("recipe", nearest)]
    return chosen + found[nearest]


def _read_recipe(file: Path) -> TrainSpec:
    import yaml

    said: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return TrainSpec(**{name: value for name, value in said.items() if name not in ("defaults", "name")})


def _choices(group: str) -> dict[str, Path]:
    """The files of settings that come with Sievebench, by name."""
    folder = Path(str(importlib.resources.files("harness.conf") / group))
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def _changed(group: str, value: Any, default: Any) -> list[Part]:
    pairs = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value) if f.name != "seed"]
    return [(f"{group}.{name}", v) for name, v in pairs if plain(v) != plain(getattr(default, name))]


def _spelt(value: Json) -> str:
    """A value as Hydra reads it on a command line."""
    if isinstance(value, str):
        return value if _is_word(value) else _quoted(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_spelt(v)}" for name, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_spelt(v) for v in value) + "]"
    return json.dumps(plain(value))


def _is_word(text: str) -> bool:
    """Whether Hydra reads a text without quotes as that text: no number, list or name of a value."""
    plain_text = re.fullmatch(r"\d+[n%]|[A-Za-z_/][\w./:@%-]*", text, re.ASCII)
    return bool(plain_text) and text.lower() not in ("true", "false", "null", "nan", "inf")


def _quoted(text: str) -> str:
    # Hydra takes backslashes as they are, but for those before a quote.
    return '"' + re.sub(r'(\\*)("|\Z)', lambda m: m[1] * 2 + ('\\"' if m[2] else ""), text) + '"'
