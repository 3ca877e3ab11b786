"""Looking at a folder of local task files without loading the evaluator, before anything is trained for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from harness.errors import HarnessError, unknown_name

FILE_FORMATS: Final = ("parquet", "json", "csv", "arrow", "text")
"""Values of `dataset_path` that mean local files."""


def check_local_task(folder: str | Path, task: str) -> None:
    """Check that a task folder has the task (or group) and the data files that it names.

    Raises HarnessError naming what is missing.
    """
    root = Path(folder)
    if not root.is_dir():
        raise HarnessError(f"there is no task folder {root}: give a folder with lmms-eval task files.")
    found = dict(_tasks(root))
    if task not in found:
        raise unknown_name(f"task in {root}", task, found)
    _check(task, found)


def _check(task: str, found: Mapping[str, tuple[Path, Mapping[str, Any]]]) -> None:
    file, config = found[task]
    members = config["task"] if isinstance(config["task"], list) else []
    for member in members:
        if member in found:
            _check(member, found)
    for path in _data_files(file, config):
        if not path.exists():
            raise HarnessError(
                f"task {task} needs {path}, which is not there: make it, or correct data_files in {file}."
            )


def _tasks(root: Path) -> Iterator[tuple[str, tuple[Path, Mapping[str, Any]]]]:
    for file in sorted(root.rglob("*.yaml")):
        config = _read(file)
        name = config.get("group") if isinstance(config.get("task"), list) else config.get("task")
        if isinstance(name, str):
            yield name, (file, config)


def _read(file: Path) -> dict[str, Any]:
    """A task file with what it includes; what it says itself wins."""
    import yaml

    loader = type("Loader", (yaml.SafeLoader,), {})
    yaml.add_constructor("!function", lambda loader, node: str(node.value), Loader=loader)
    try:
        config = yaml.load(file.read_text(), Loader=loader)
    except yaml.YAMLError as e:
        raise HarnessError(f"the task file {file} is not valid YAML: {e}") from None
    if not isinstance(config, dict):
        return {}
    included = config.pop("include", [])
    for name in reversed([included] if isinstance(included, str) else included):
        other = Path(name) if Path(name).is_file() else file.parent / name
        if not other.is_file():
            raise HarnessError(f"the task file {file} includes {name}, which is not there.")
        config = _read(other) | config
    return dict(config)


def _data_files(file: Path, config: Mapping[str, Any]) -> Iterator[Path]:
    """Local data files, relative to the task file; patterns and addresses are left to `datasets`."""
    if config.get("dataset_path") not in FILE_FORMATS:
        return
    named = (config.get("dataset_kwargs") or {}).get("data_files") or []
    groups = named.values() if isinstance(named, Mapping) else [named]
    for group in groups:
        for name in [group] if isinstance(group, str) else group:
            if "*" not in name and "://" not in name:
                yield file.parent / name
