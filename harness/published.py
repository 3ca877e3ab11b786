"""Prompt packs from the projects that published them: fetched when asked for, and only what the digests know.

The words a released checkpoint was trained on stand in the source code of its project. The file is read, never
run: every text that its literals spell is put together, and the one with the right sha256 is the template.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from selector_zoo.prompts import OFFICIAL, PromptPack, text_digest, write_pack

from harness.errors import HarnessError, unknown_name

HOST: Final = "https://raw.githubusercontent.com"
LARGEST: Final = 1 << 20
"""Bytes of a file; those in question have a few thousand."""
TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a project keeps its prompts."""

    repository: str
    commit: str
    path: str
    licence: str


ORIGINS: Final[Mapping[str, Origin]] = {
    "mmssr": Origin(
        repository="lyumengyao/mmssr",
        commit="9312a7009cdd3dea9f717824713ad3834be780ce",
        path="config/ss.py",
        licence="Apache-2.0",
    ),
    "deita": Origin(
        repository="hkust-nlp/deita",
        commit="acec45ca2ec7534513a352cbbac3965c1cf82a13",
        path="src/deita/selection/scorer/llama_scorer.py",
        licence="Apache-2.0",
    ),
    "vicuna": Origin(
        repository="hkust-nlp/deita",
        commit="405d06090e2b31035a4ba7d154207cde846e78bc",
        path="src/deita/selection/embedder/conversation.py",
        licence="Apache-2.0",
    ),
    "e5v": Origin(
        repository="kongds/E5-V",
        commit="856ea816b943df95d77df39a386302b14ea197a2",
        path="retrieval.py",
        licence="Apache-2.0",
    ),
}
"""Repository, commit and file of each project's prompts."""

LAYOUTS: Final[Mapping[str, Mapping[str, str]]] = {
    "vicuna": {"conversation": "USER: {instruction} ASSISTANT: {output}</s>"},
}
"""Templates that a project has as code and not as a text: what that code writes."""


def fetch_pack(name: str, host: str = HOST) -> PromptPack:
    """The published prompts of a project.

    Raises HarnessError for a project we know no prompts of, where its file cannot be fetched, and where the file
    does not hold texts of the known digests.
    """
    if name not in ORIGINS:
        raise unknown_name("published prompt pack", name, ORIGINS)
    origin = ORIGINS[name]
    url = f"{host}/{origin.repository}/{origin.commit}/{origin.path}"
    try:
        found = {text_digest(text): text for text in spelled(_fetch(url))}
    except SyntaxError as e:
        raise HarnessError(f"{url} is no Python file ({e.msg}): it is not what was published.") from None
    missing = [template for template, sha in OFFICIAL[name].items() if sha not in found]
    if missing:
        raise HarnessError(
            f"{url} does not have the published template '{missing[0]}': no text in it has sha256 "
            f"{OFFICIAL[name][missing[0]]}."
        )
    return PromptPack(
        name=name,
        version=origin.commit[:12],
        source=f"https://github.com/{origin.repository}/blob/{origin.commit}/{origin.path}",
        licence=origin.licence,
        templates={template: found[sha] for template, sha in OFFICIAL[name].items()} | dict(LAYOUTS.get(name, {})),
    )


def _fetch(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            data: bytes = answer.read(LARGEST + 1)
    except (urllib.error.URLError, OSError) as e:
        why = getattr(e, "reason", e)
        raise HarnessError(f"{url} cannot be fetched ({why}): write its YAML by hand, or try later.") from None
    if len(data) > LARGEST:
        raise HarnessError(f"{url} is larger than expected: it is not what was published.")
    return data.decode("utf-8", "replace")


def spelled(source: str) -> Iterator[str]:
    """Every text that expressions of a Python source come to, as far as literals and earlier assignments say."""
    reader = _Reader()
    reader.visit(ast.parse(source))
    yield from (text for text in reader.found if isinstance(text, str))


class _Unknown(Exception):
    """An expression whose value cannot be said without running it."""


@dataclass
class _Reader(ast.NodeVisitor):
    """Reads a module from top to bottom."""

    found: list[Any] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def visit_Assign(self, node: ast.Assign) -> None:
        """Remember what a name stands for from here on."""
        self.generic_visit(node)
        for target in node.targets:
            if isinstance(target, ast.Name):
                try:
                    self.values[target.id] = self._value(node.value)
                except _Unknown:
                    self.values.pop(target.id, None)

    def generic_visit(self, node: ast.AST) -> None:
        """Collect what expressions come to."""
        if isinstance(node, ast.expr):
            with contextlib.suppress(_Unknown):
                self.found.append(self._value(node))
        super().generic_visit(node)

    def _value(self, node: ast.expr) -> Any:
        """The value of a literal, or of a few harmless operations on such."""
        match node:
            case ast.Constant(value=str() | int() as value):
                return value
            case ast.Name(id=name) if name in self.values:
                return self.values[name]
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                return [self._value(part) for part in parts]
            case ast.JoinedStr(values=parts):
                return "".join(str(self._value(part)) for part in parts)
            case ast.FormattedValue(value=inner, conversion=-1, format_spec=None):
                return self._value(inner)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self._added(self._value(left), self._value(right))
            case ast.Subscript(value=of, slice=at):
                return self._item(self._value(of), self._value(at))
            case ast.Call(func=ast.Attribute(value=of, attr=method), args=args, keywords=[]):
                return self._called(self._value(of), method, [self._value(arg) for arg in args])
        raise _Unknown

    @staticmethod
    def _added(left: Any, right: Any) -> Any:
        if isinstance(left, str) and isinstance(right, str):
            return left + right
        raise _Unknown

    @staticmethod
    def _item(of: Any, at: Any) -> Any:
        if isinstance(of, list) and isinstance(at, int) and at < len(of):
            return of[at]
        raise _Unknown

    @staticmethod
    def _called(of: Any, method: str, given: list[Any]) -> Any:
        """`", ".join(list)`, and `"...{}...".format(text)` with that one bare slot."""
        match method, given:
            case "join", [list() as parts] if isinstance(of, str) and all(isinstance(p, str) for p in parts):
                return of.join(parts)
            case "format", [str() as text] if isinstance(of, str) and of.count("{}") == 1 == of.count("{"):
                return of.replace("{}", text)
        raise _Unknown


def add_published_verb(verbs: object) -> None:
    """Add `published prompts` to the command line."""
    text = "fetch what other projects published"
    verb: argparse.ArgumentParser = verbs.add_parser("published", help=text)  # type: ignore[attr-defined]
    actions = verb.add_subparsers(dest="action", required=True, metavar="ACTION")
    prompts = actions.add_parser("prompts", help="the words a released model was trained on, as a prompt pack")
    prompts.add_argument("name", metavar="NAME", help=", ".join(ORIGINS))
    prompts.add_argument("--out", type=Path, help="YAML file to write; prompts/NAME.yaml where left out")
    prompts.add_argument("--host", default=HOST, help=argparse.SUPPRESS)
    prompts.set_defaults(handler=_prompts)


def _prompts(options: argparse.Namespace) -> int:
    pack = fetch_pack(options.name, options.host)
    out = options.out or Path("prompts", f"{pack.name}.yaml")
    write_pack(pack, out)
    print(f"{out}: {', '.join(sorted(pack.templates))} of {pack.source}, licence {pack.licence}, as published")
    return 0
