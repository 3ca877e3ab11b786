"""docs/configuration.md is what the dataclasses say."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from harness import cli
from harness.cells import EvalSettings
from harness.config import EvaluationSchema, TrackingSchema
from harness.docstrings import field_docs
from harness.reference import OWN, Section, reference, table
from harness.tracking import Tracking
from harness.types import NOT_IN_KEY

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


@dataclass
class Plain:
    """Settings of a test."""

    size: int
    """Of something,
    over two lines."""
    kind: Literal["a", "b"] = "a"
    bare: str | None = None
    parts: list[str] = field(default_factory=list, metadata=NOT_IN_KEY)
    """One | other."""


@dataclass
class Special(Plain):
    """Settings with another default."""

    kind: Literal["a", "b"] = "b"
    """Its own."""


def test_the_committed_page_is_the_generated_one() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(OWN), "sievebench reference --out docs/configuration.md"


def test_every_setting_is_explained() -> None:
    rows = [line for line in reference(OWN).splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    assert [row for row in rows if row.endswith(("|  |", "| \N{DAGGER} |"))] == []


def test_docs_are_read_from_the_source_and_inherited() -> None:
    assert field_docs(Plain) == {"size": "Of something, over two lines.", "parts": "One | other."}
    assert field_docs(Special) == {**field_docs(Plain), "kind": "Its own."}
    assert field_docs(int) == {}


def test_a_table_says_type_default_and_meaning() -> None:
    made = table(Section(title="Plain", prefix="plain.", cls=Plain, without=("bare",)))
    assert made.splitlines() == [
        "## Plain",
        "",
        "| setting | type | default | meaning |",
        "|---|---|---|---|",
        "| `plain.size` | whole number |  | Of something, over two lines. |",
        '| `plain.kind` | `a`, `b` | `"a"` |  |',
        "| `plain.parts` | list of texts | `[]` | One \\| other. \N{DAGGER} |",
    ]


@pytest.mark.parametrize(("schema", "value"), [(EvaluationSchema, EvalSettings), (TrackingSchema, Tracking)])
def test_what_hydra_sees_is_what_is_documented(schema: type, value: type) -> None:
    seen, meant = ({f.name: (f.type, f.default) for f in dataclasses.fields(cls)} for cls in (schema, value))
    assert seen == meant


def test_the_verb_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reference"]) == 0
    assert "\n## Selector random\n" in capsys.readouterr().out
    assert cli.main(["reference", "--out", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == reference(OWN)
    assert cli.main(["reference", "--out", str(tmp_path / "no" / "page.md")]) == 2
    assert "cannot write" in capsys.readouterr().err
