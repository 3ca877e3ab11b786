"""Reading records from LLaVA's JSON lists, JSONL files and lists of such files, one at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from harness.errors import HarnessError
from harness.pool_check import Rejected

CHUNK = 4 << 20
"""Characters read at a time."""

LONGEST = 64 << 20
"""What cannot be decoded within so many characters is broken, not unfinished."""

_AFTER = frozenset(" \t\n\r,]")
_SPACE = re.compile(r"[ \t\n\r]*")


def read_records(file: Path) -> Iterator[Any]:
    """The records of a JSON list, or of a JSONL file line by line (a line that is not JSON comes as Rejected).

    Memory is bounded by the longest record. Raises HarnessError for a file that is neither.
    """
    if not file.is_file():
        raise HarnessError(f"there is no file {file}.")
    try:
        if file.suffix == ".jsonl":
            yield from _lines(file)
        else:
            with file.open(encoding="utf-8-sig") as f:
                yield from _List(f, file).records()
    except OSError as e:
        raise HarnessError(f"{file} cannot be read: {e.strerror}.") from None


def expand(file: Path) -> list[Path]:
    """The files a name means: `folder/{a,b}.json` is a list of two, as LLaVA-NeXT writes it."""
    match = re.fullmatch(r"(.*)\{([^{}]*)\}(.*)", str(file))
    if match is None:
        return [file]
    return [Path(f"{match[1]}{name.strip()}{match[3]}") for name in match[2].split(",")]


def _lines(file: Path) -> Iterator[Any]:
    with file.open("rb") as f:
        for line in f:
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as e:
                yield Rejected("not_json", str(e)[:200])


class _List:
    """A JSON list read piece by piece: a buffer, and how far it has been read."""

    def __init__(self, source: TextIO, file: Path) -> None:
        self._source = source
        self._file = file
        self._decode = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = 0
        self._ended = False
        self._count = 0

    def records(self) -> Iterator[Any]:
        if self._next() != "[":
            raise self._not_a_list()
        self._at += 1
        if self._next() == "]":
            self._at += 1
        else:
            while True:
                yield self._record()
                self._count += 1
                mark = self._next()
                self._at += 1
                if mark == "]":
                    break
                if mark != ",":
                    raise self._broken("a comma is missing")
                self._next()
        if self._next():
            raise self._broken("there is more after the list")

    def _record(self) -> Any:
        while True:
            final = self._ended or len(self._text) - self._at > LONGEST
            try:
                value, end = self._decode(self._text, self._at)
            except (ValueError, RecursionError) as e:
                if final:
                    raise self._broken(getattr(e, "msg", str(e))) from None
            else:
                # "1" may be the beginning of "1.5": a value has ended where something else stands.
                if final or self._text[end : end + 1] in _AFTER:
                    self._at = end
                    return value
            self._more()

    def _next(self) -> str:
        """The next character that is not white space, or "" at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._more()

    def _more(self) -> None:
        try:
            piece = self._source.read(max(CHUNK, len(self._text) - self._at))
        except UnicodeDecodeError as e:
            raise self._broken(f"not UTF-8: {e.reason}") from None
        self._ended = not piece
        self._text = self._text[self._at :] + piece
        self._at = 0

    def _broken(self, why: str) -> HarnessError:
        return HarnessError(
            f"{self._file} is not JSON after {self._count} records ({why}); "
            "a file of one record a line must end in .jsonl."
        )

    def _not_a_list(self) -> HarnessError:
        if self._next() in ("{", '"') or self._next().isalnum():
            try:
                kind = type(self._record()).__name__
            except HarnessError as e:
                return e
            return HarnessError(f"{self._file} holds a {kind}; LLaVA's format is a list of records.")
        return self._broken("it does not begin with a list")
