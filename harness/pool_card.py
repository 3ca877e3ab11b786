"""The README of an exported selection: a dataset card that says what it is and how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.pool import Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A selection as its stage says it."""

    key: str
    spec: Mapping[str, Any]
    """The select stage's spec.json."""
    card: Mapping[str, Any]
    """The selection's card.json."""
    pool: Pool

    @property
    def title(self) -> str:
        return f"{self.spec['params']['selector']['name']} {self.spec['params']['budget']} of {self.pool.name}"


def dataset_card(exported: Exported, use: str, head: Mapping[str, Any]) -> str:
    """The text of README.md; `use` says how to read the data, `head` completes the hub's YAML header."""
    import yaml

    selector = exported.spec["params"]["selector"]
    rows = {
        "selector": f"{selector['name']}, version {selector['version']} ({selector['distribution']})",
        "settings": _inline(selector["config"]),
        "budget": exported.spec["params"]["budget"],
        "samples": f"{exported.card['n']} of {exported.card['of']}",
        "seed": str(exported.spec["params"]["seed"]),
        "pool": exported.pool.name,
        "pool digest": f"`{exported.pool.digest}`",
        "selection key": f"`{exported.key}`",
    }
    said = {k: v for k, v in exported.card.items() if k not in ("n", "of", "by_source", "mean")}
    rows |= {name: _inline(value) for name, value in said.items()}
    header = yaml.safe_dump({"pretty_name": exported.title, **head}, sort_keys=False, allow_unicode=True)
    lines = ["---", header.strip(), "---", "", f"# {exported.title}", ""]
    lines += ["A data selection for multimodal instruction tuning, made with Sievebench.", ""]
    lines += _table(("", ""), [(name, value) for name, value in rows.items()])
    lines += ["", "## Use", "", use, "", "## Sources", ""]
    lines += _table(("source", "samples"), sorted(exported.card["by_source"].items(), key=lambda s: (-s[1], s[0])))
    lines += ["", "## Means", ""]
    lines += _table(("", "mean"), exported.card["mean"].items())
    lines += ["", "The data are their authors'; the licences of the sources apply to them unchanged.", ""]
    return "\n".join(lines)


def _inline(value: Any) -> str:
    if value == {}:
        return "none"
    return f"`{json.dumps(value, sort_keys=True)}`" if isinstance(value, dict | list) else str(value)


def _table(head: tuple[str, str], rows: Any) -> list[str]:
    escaped = [tuple(str(cell).replace("|", "\\|") for cell in row) for row in rows]
    return [f"| {head[0]} | {head[1]} |", "| --- | --- |", *(f"| {a} | {b} |" for a, b in escaped)]
