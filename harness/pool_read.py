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

TOO_DEEP = "nested too deeply"

_PACKED = {b"\x1f\x8b": "gzip", b"PK": "zip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}

_AFTER = frozenset(" \t\n\r,]")
_SPACE = re.compile(r"[ \t\n\r]*")


def read_records(file: Path) -> Iterator[Any]:
    """The records of a JSON list, or of a JSONL file line by line (a line that is not JSON comes as Rejected).

    Memory is bounded by the longest record. Raises HarnessError for a file that is neither.
    """
    if not file.is_file():
        raise HarnessError(f"there is no file {file}{', but a folder' if file.is_dir() else ''}.")
    try:
        _refuse_packed(file)
        if file.suffix == ".jsonl":
            yield from _lines(file)
        else:
            with file.open(encoding="utf-8-sig") as f:
                yield from _List(f, file).records()
    except OSError as e:
        raise HarnessError(f"{file} cannot be read: {e.strerror}.") from None


def _refuse_packed(file: Path) -> None:
    with file.open("rb") as f:
        packed = _PACKED.get(f.read(2))
    if packed:
        raise HarnessError(f"{file} is compressed ({packed}): unpack it first.")


def _integer(digits: str) -> int | str:
    """A number with more digits than Python turns into one stays text: a record's trouble, not the file's."""
    try:
        return int(digits)
    except ValueError:
        return digits


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
                yield json.loads(line, parse_int=_integer)
            except RecursionError:
                yield Rejected("not_json", TOO_DEEP)
            except ValueError as e:
                yield Rejected("not_json", str(e)[:200])


class _List:
    """A JSON list read piece by piece: a buffer, and how far it has been read."""

    def __init__(self, source: TextIO, file: Path) -> None:
        self._source = source
        self._file = file
        self._decode = json.JSONDecoder(parse_int=_integer).raw_decode
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
            except RecursionError:
                raise self._broken(TOO_DEEP) from None
            except ValueError as e:
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
            raise HarnessError(
                f"{self._file} is not UTF-8 text after {self._count} records ({e.reason}): convert it first."
            ) from None
        self._ended = not piece
        self._text = self._text[self._at :] + piece
        self._at = 0

    def _broken(self, why: str) -> HarnessError:
        return HarnessError(
            f"{self._file} is not JSON after {self._count} records ({why}): mend it there, or write one record a "
            "line in a file that ends in .jsonl, where a bad line costs no other."
        )

    def _not_a_list(self) -> HarnessError:
        if not self._next():
            return HarnessError(f"{self._file} is empty: LLaVA's format is a JSON list of records.")
        try:
            value = self._record()
        except HarnessError as e:
            return e
        if isinstance(value, dict) and self._next() == "{":
            return HarnessError(f"{self._file} has one record a line: name it .jsonl.")
        inside = [f"'{k}'" for k, v in value.items() if isinstance(v, list)] if isinstance(value, dict) else []
        kind = f"an object (with a list at {' and '.join(inside[:3])})" if inside else "no list"
        return HarnessError(f"{self._file} holds {kind}; LLaVA's format is a JSON list of records.")
