"""What a tracker is told, as values: runs with their curves, tables and artifacts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from harness.keys import digest, short
from harness.types import Json

Job = Literal["select", "train", "eval", "report"]
Scalar = None | bool | int | float | str

SCHEMA: Final = 1
"""Version of ids, names and keys below; part of every id."""
NAME_LENGTH: Final = 128
"""Longest name of an artifact that W&B takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableContent:
    """A table; all values of a column are of one type or None."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Scalar, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactContent:
    """A named set of files. Its digest is known without them, so that an unchanged one is never made."""

    name: str
    type: str
    digest: str
    files: Callable[[Path], Mapping[str, Path]] = field(default=lambda scratch: {})
    """Name in the artifact to file, given a folder in which files the store does not have can be made."""
    references: Mapping[str, Path] = field(default_factory=dict)
    """Name in the artifact to a file that stays where it is."""
    metadata: Mapping[str, Json] = field(default_factory=dict)

    @property
    def aliases(self) -> list[str]:
        return ["latest", f"sha-{self.digest[:8]}"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContent:
    """One run of a tracker, whole: it is written once and never added to."""

    id: str
    name: str
    job: Job
    group: str
    tags: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Scalar] = field(default_factory=dict)
    history: tuple[Mapping[str, int | float], ...] = ()
    step: str = ""
    """Key of `history` that its other keys are drawn over."""
    tables: Mapping[str, TableContent] = field(default_factory=dict)
    artifacts: tuple[ArtifactContent, ...] = ()

    @property
    def digest(self) -> str:
        """Digest of all of it: the same digest needs no second push."""
        return digest(self.as_json())

    def as_json(self) -> dict[str, Any]:
        """Everything but the files of artifacts."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "artifacts"}
        plain["tables"] = {k: {"columns": list(t.columns), "rows": t.rows} for k, t in self.tables.items()}
        plain["artifacts"] = [
            {
                "name": a.name,
                "type": a.type,
                "digest": a.digest,
                "references": {k: p.as_uri() for k, p in a.references.items()},
                "metadata": a.metadata,
            }
            for a in self.artifacts
        ]
        return plain


def run_id(job: Job, *parts: str) -> str:
    """`train-0123456789ab`: a function of what the run shows, so that a second push meets the first."""
    return f"{job}-{short(digest([SCHEMA, job, *parts]))}"


def artifact_name(kind: str, label: str, key: str) -> str:
    """A name W&B takes, readable and unique: kind, label and the short key of the stage."""
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", label.replace("%", "pct")).strip("-")
    room = NAME_LENGTH - len(kind) - len(short(key)) - 2
    return f"{kind}-{readable[:room].rstrip('-')}-{short(key)}"
