"""Lists of sample ids that others made: text, JSON, JSON lines and CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import HarnessError
from harness.keys import uid_hash64
from harness.pool import Pool

FIELDS = ("uid", "id", "idx")
"""Where an object or a CSV row keeps its id, the first that is there."""
SUFFIXES = (".txt", ".json", ".jsonl", ".csv")


def read_ids(file: Path) -> list[str]:
    """The ids of a list, in its order.

    A text file has one a line; JSON is a list of ids or of objects (LLaVA's format among them), or an object with
    one such list; JSON lines are ids or objects; CSV has a column named as in `FIELDS`. Numbers count as their
    digits. Raises HarnessError where a file is none of these, or has no ids.
    """
    if file.suffix not in SUFFIXES:
        raise HarnessError(f"{file} is not a list of ids: give a file that ends in {', '.join(SUFFIXES)}.")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise HarnessError(f"{file} cannot be read ({e}): give a UTF-8 file with one id a line.") from None
    ids = list(_PARSERS[file.suffix](text, file))
    if not ids:
        raise HarnessError(f"{file} has no ids: a selection keeps at least one sample.")
    return ids


def _lines(text: str, file: Path) -> Iterator[str]:
    return (line.strip() for line in text.splitlines() if line.strip())


def _json(text: str, file: Path) -> Iterator[str]:
    content = _parsed(text, str(file))
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        if len(lists) != 1:
            raise HarnessError(f"{file} is an object with {len(lists)} lists: keep the one with the ids.")
        content = lists[0]
    if not isinstance(content, list):
        raise HarnessError(f'{file} holds no list: write the ids as ["a", "b"].')
    return (_id(item, f"{file}, item {i}") for i, item in enumerate(content, 1))


def _json_lines(text: str, file: Path) -> Iterator[str]:
    for i, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield _id(_parsed(line, f"{file}, line {i}"), f"{file}, line {i}")


def _csv(text: str, file: Path) -> Iterator[str]:
    rows = csv.DictReader(text.splitlines())
    name = next((f for f in FIELDS if f in (rows.fieldnames or ())), None)
    if name is None:
        raise HarnessError(f"{file} has no column {', '.join(FIELDS)}: name the ids' column so in its first line.")
    return (_id(row[name], f"{file}, row {i}") for i, row in enumerate(rows, 1))


_PARSERS = {".txt": _lines, ".json": _json, ".jsonl": _json_lines, ".csv": _csv}


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        raise HarnessError(f"{where} is not JSON ({e}): correct it, or give the ids one a line as .txt.") from None


def _id(item: Any, where: str) -> str:
    if isinstance(item, dict):
        item = next((item[f] for f in FIELDS if f in item), None)
    if not isinstance(item, str | int) or isinstance(item, bool) or item == "":
        raise HarnessError(
            f"{where} has no id: it must be a string or a number, or have one as {', '.join(FIELDS)}."
        )
    return str(item)


def find_ids(pool: Pool, ids: Iterable[str]) -> tuple[npt.NDArray[np.int32], list[str], int]:
    """Positions of ids in a pool in their order, the ids it does not have, and how many came again."""
    listed = list(dict.fromkeys(given := list(ids)))
    hashes = pool.column("uid_hash64")
    order = np.argsort(hashes)
    wanted = np.fromiter(map(uid_hash64, listed), dtype=np.uint64, count=len(listed))
    place = np.minimum(np.searchsorted(hashes, wanted, sorter=order), pool.n - 1)
    found = order[place]
    known = hashes[found] == wanted
    unknown = [uid for uid, here in zip(listed, known, strict=True) if not here]
    return found[known].astype(np.int32), unknown, len(given) - len(listed)
