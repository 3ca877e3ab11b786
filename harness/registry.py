"""Finding plug-ins: selectors and feature passes, by entry point or by the path of a file."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import logging
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.api import FeaturePass, Selector
from harness.errors import HarnessError, unknown_name
from harness.keys import default_of
from harness.types import Json, SelectorSpec

log = logging.getLogger(__name__)

SELECTORS = "sievebench.selectors"
PASSES = "sievebench.passes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """A plug-in class and the distribution that provides it."""

    name: str
    distribution: str
    cls: type[Any]
    path: str = ""
    """The file it came from, where it is not installed."""


@functools.cache
def _entry_points(group: str) -> Mapping[str, metadata.EntryPoint]:
    return {ep.name: ep for ep in metadata.entry_points(group=group)}


_BY_PATH: dict[str, Plugin] = {}


@functools.cache
def _load(group: str, name: str) -> Plugin:
    ep = _entry_points(group)[name]
    distribution = ep.dist.name if ep.dist is not None else "unknown"
    return Plugin(name=name, distribution=distribution, cls=ep.load())


def selector_names() -> list[str]:
    """All selectors that can be asked for by name."""
    return sorted({*_entry_points(SELECTORS), *_BY_PATH})


def selector(name: str) -> Plugin:
    """The selector of that name.

    Raises HarnessError for an unknown name (with the closest one) and for a plug-in that cannot be loaded.
    """
    if name in _BY_PATH:
        return _BY_PATH[name]
    if name not in _entry_points(SELECTORS):
        raise unknown_name("selector", name, selector_names())
    return _checked(SELECTORS, name, Selector)


def feature_pass(name: str) -> Plugin:
    """The feature pass of that name.

    Raises HarnessError for an unknown name and for a plug-in that cannot be loaded.
    """
    if name not in _entry_points(PASSES):
        raise unknown_name("feature pass", name, _entry_points(PASSES))
    return _checked(PASSES, name, FeaturePass)


def _checked(group: str, name: str, base: type) -> Plugin:
    try:
        plugin = _load(group, name)
    except Exception as e:
        where = _entry_points(group)[name].value
        raise HarnessError(f"plug-in '{name}' ({where}) cannot be loaded: {type(e).__name__}: {e}.") from e
    if not (isinstance(plugin.cls, type) and issubclass(plugin.cls, base)):
        raise HarnessError(f"plug-in '{name}' is not a {base.__name__}: subclass harness.api.{base.__name__}.")
    return plugin


def loadable_selectors() -> dict[str, Plugin]:
    """All selectors that load; a broken plug-in is warned of and stops nobody else."""
    return _loadable(selector_names(), selector)


def loadable_passes() -> dict[str, Plugin]:
    """All feature passes that load; a broken plug-in is warned of and stops nobody else."""
    return _loadable(sorted(_entry_points(PASSES)), feature_pass)


def _loadable(names: Iterable[str], load: Callable[[str], Plugin]) -> dict[str, Plugin]:
    found = {}
    for name in names:
        try:
            found[name] = load(name)
        except HarnessError as e:
            log.warning("%s", e)
    return found


def register_file(path: Path) -> str:
    """Make the selector in a .py file known under its name; the file's digest stands for its distribution.

    Raises HarnessError where there is no such file, it cannot be loaded, or has not exactly one Selector.
    """
    if not path.is_file():
        raise HarnessError(f"there is no selector file {path}.")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    module_name = f"sievebench_file_{digest}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        del sys.modules[module_name]
        line = max(
            (f.lineno or 0 for f in traceback.extract_tb(e.__traceback__) if f.filename == str(path)), default=0
        )
        where = f"{path}, line {line}" if line else path  # a SyntaxError names its line itself
        raise HarnessError(f"{where}: the selector cannot be loaded: {type(e).__name__}: {e}.") from e
    classes = [v for v in vars(module).values() if isinstance(v, type) and issubclass(v, Selector)]
    own = [c for c in classes if c.__module__ == module_name]
    if len(own) != 1:
        raise HarnessError(f"{path} defines {len(own)} selectors; a selector file defines exactly one.")
    name = own[0].name
    _BY_PATH[name] = Plugin(name=name, distribution=f"file:{digest}", cls=own[0], path=str(path.resolve()))
    return name


def configured(cls: type[Any], config: Mapping[str, Json]) -> Any:
    """A plug-in's Config made from plain values.

    Raises HarnessError for a key it does not have.
    """
    known = {f.name for f in dataclasses.fields(cls.Config)}
    for key in config:
        if key not in known:
            raise unknown_name(f"setting of '{cls.name}'", key, known)
    return cls.Config(**config)


def make_selector(spec: SelectorSpec) -> Selector:
    """The configured selector a spec names; one given by file is loaded from its path again."""
    if spec.path and spec.name not in _BY_PATH:
        register_file(Path(spec.path))
    plugin = selector(spec.name)
    made: Selector = plugin.cls(configured(plugin.cls, spec.config))
    return made


def selector_spec(name: str, config: Mapping[str, Json]) -> SelectorSpec:
    """Resolve a name and plain settings to a spec with all defaults but those of fields marked OMIT_DEFAULT."""
    plugin = selector(name)
    made = configured(plugin.cls, config)
    later = {f.name: default_of(f) for f in dataclasses.fields(made) if f.metadata.get("omit_default")}
    full = {k: v for k, v in dataclasses.asdict(made).items() if k not in later or v != later[k]}
    return SelectorSpec(
        name=name,
        distribution=plugin.distribution,
        version=plugin.cls.version,
        config=full,
        path=plugin.path,
    )
