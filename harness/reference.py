"""The configuration reference: every setting with its type, default and meaning, read off the dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from harness import registry
from harness.benchmarks import Benchmark
from harness.cells import EvalSettings
from harness.docstrings import field_docs
from harness.errors import HarnessError
from harness.tracking import Tracking
from harness.types import TrainSpec

DAGGER = "\N{DAGGER}"
OWN = "sievebench"
"""The distribution whose selectors and passes docs/configuration.md lists."""

HEAD = """# Configuration

Every setting: name, type, default, meaning. `sievebench reference --out docs/configuration.md` writes this page
from the dataclasses that hold the settings, and a test compares the two. Without `--out` it goes to the terminal,
with the selectors and passes of other installed packages as well.

`python -m harness KEY=VALUE ...` runs one cell, with `-m` and lists of values a sweep. A group is chosen by name
(`recipe=mini`: a file in `conf/recipe/`) and its settings are changed one by one (`recipe.epochs=2`). Where no
default is given, the choice or the command must set a value. {dagger} marks what says how something is run and not
what it means: it is in no key, and changing it repeats nothing that is done.
"""

WORDS: Mapping[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    type(None): "null",
    Any: "any",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One table of settings."""

    title: str
    prefix: str
    """What stands in front of a setting's name on the command line."""
    cls: type
    about: str = ""
    without: Sequence[str] = ()
    """Fields that are not set here."""


def reference(distribution: str = "") -> str:
    """The reference as Markdown; selectors and passes of one distribution only, where it is named.

    Raises HarnessError where one of these cannot be loaded.
    """
    sections = list(_sections(distribution))
    links = (f"[{s.title}](#{s.title.lower().replace(' ', '-')})" for s in sections)
    return "\n".join([HEAD.format(dagger=DAGGER), " · ".join(links), "", *map(table, sections)])


def _sections(distribution: str) -> Iterator[Section]:
    from harness import config

    yield Section(title="Run", prefix="", cls=config.RunSchema)
    yield Section(title="Pool", prefix="pool.", cls=config.PoolSchema, about=_chosen("pool"))
    yield Section(title="Backbone", prefix="backbone.", cls=config.BackboneSchema, about=_chosen("backbone"))
    recipe = f"{_chosen('recipe')} The seed is the cell's."
    yield Section(title="Recipe", prefix="recipe.", cls=TrainSpec, about=recipe, without=("seed",))
    yield Section(title="Suite", prefix="suite.", cls=config.SuiteSchema, about=_chosen("suite"))
    entry = "An entry of `suite.benchmarks`; docs/benchmarks.md shows one."
    yield Section(title="Benchmark", prefix="", cls=Benchmark, about=entry)
    yield Section(title="Evaluation", prefix="evaluation.", cls=EvalSettings)
    yield Section(title="Baselines", prefix="baselines.", cls=config.BaselinesSchema)
    executor = f"{_chosen('executor')} Nothing of it is part of a key."
    yield Section(title="Executor", prefix="executor.", cls=config.ExecutorSchema, about=executor)
    tracking = f"{_chosen('tracking')} Nothing of it is part of a key."
    yield Section(title="Tracking", prefix="tracking.", cls=Tracking, about=tracking)
    for plugin in registry.loadable_selectors().values():
        if distribution in ("", plugin.distribution):
            yield Section(
                title=f"Selector {plugin.name}",
                prefix="selector.",
                cls=plugin.cls.Config,
                about=f"`selector={plugin.name}`. {_first(plugin.cls)}",
            )
    for plugin in registry.loadable_passes().values():
        if distribution in ("", plugin.distribution):
            about = f"Set by the selectors that ask for it. {_first(plugin.cls)}"
            yield Section(title=f"Pass {plugin.name}", prefix="", cls=plugin.cls.Config, about=about)


def _first(cls: type) -> str:
    """What a class says of itself, without the details."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())


def _chosen(group: str) -> str:
    files = resources.files("harness.conf").joinpath(group).iterdir()
    names = sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))
    return f"`{group}=NAME`, with NAME one of {', '.join(f'`{name}`' for name in names)}."


def table(section: Section) -> str:
    """One section as Markdown."""
    fields = [f for f in dataclasses.fields(section.cls) if f.name not in section.without]
    docs, hints = field_docs(section.cls), get_type_hints(section.cls)
    rows = [(f.name, _type(hints[f.name]), _default(f), _meaning(f, docs.get(f.name, ""))) for f in fields]
    lines = [f"## {section.title}", "", *([section.about, ""] if section.about else [])]
    if not rows:
        return "\n".join([*lines, "No settings.", ""])
    lines += ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for name, *cells in rows:
        lines.append(f"| `{section.prefix}{name}` | " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join([*lines, ""])


def _meaning(f: dataclasses.Field[Any], said: str) -> str:
    return said if f.metadata.get("key", True) else f"{said} {DAGGER}"


def _type(hint: Any) -> str:
    """A type as someone who writes YAML says it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(a) for a in arguments)
    if origin in (list, tuple):
        return f"list of {_type(arguments[0])}s"
    if origin is not None:
        return "mapping"
    return WORDS.get(hint) or f"[{_group(hint)}](#{_group(hint)})"


def _group(cls: type) -> str:
    """The heading of a part of the run's schema: `pool` for PoolSchema."""
    return re.sub("Schema$", "", cls.__name__).lower()


def _default(f: dataclasses.Field[Any]) -> str:
    if f.default_factory is not dataclasses.MISSING:
        made = f.default_factory()
        return "" if dataclasses.is_dataclass(made) else f"`{json.dumps(made, default=list)}`"
    if f.default in (dataclasses.MISSING, "???"):
        return ""
    return f"`{json.dumps(f.default, default=list, ensure_ascii=False)}`"


def write_reference(out: Path) -> None:
    """Write the reference of the project's own settings.

    Raises HarnessError where the file cannot be written.
    """
    try:
        out.write_text(reference(OWN), encoding="utf-8")
    except OSError as e:
        raise HarnessError(f"cannot write {out}: {e.strerror}.") from None
