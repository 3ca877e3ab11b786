"""LLaVA-NeXT's data YAML: which files a mixture is made of, and how much of each."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import HarnessError
from harness.keys import seed64, seeded_order
from harness.pool_read import expand, read_records

_STRATEGY = re.compile(r"(first|end|random):([0-9]{1,12}(?:\.[0-9]{1,12})?)(%?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file of a mixture, and which of its records belong to it."""

    name: str
    """The file's name without its ending; made different from the names before it where need be."""
    file: Path
    take: str = "all"
    """`all`, or `first`, `end` or `random` with a count (`first:200`) or a share (`random:10%`, rounded up)."""

    def __post_init__(self) -> None:
        match = _STRATEGY.fullmatch(self.take)
        wrong = match is None or (Fraction(match[2]) > 100 if match[3] else "." in match[2])
        if self.take != "all" and wrong:
            raise HarnessError(
                f"{self.file}: sampling_strategy '{self.take[:80]}' cannot be read: write all, or first, end or "
                "random with a count or a share, for example first:200 or random:10%."
            )

    def records(self, seed: int) -> Iterator[Any]:
        """The part's records in file order; `random` draws them by `seed` and the file's name."""
        match = _STRATEGY.fullmatch(self.take)
        if match is None:
            yield from read_records(self.file)
        elif match[1] == "first" and not match[3]:
            yield from itertools.islice(read_records(self.file), int(match[2]))
        else:
            total = sum(1 for _ in read_records(self.file))
            kept = _kept(match[1], _size(match[2], match[3], total), total, seed64(self.file.name, seed))
            yield from itertools.compress(read_records(self.file), kept)


def _size(number: str, percent: str, total: int) -> int:
    return math.ceil(Fraction(number) * total / 100) if percent else int(number)


def _kept(which: str, size: int, total: int, seed: int) -> Iterator[bool]:
    """For every record of a file whether it is taken."""
    if which == "random":
        rank = seeded_order(np.arange(total, dtype=np.uint64), seed)
        kept = np.zeros(total, dtype=np.bool_)
        kept[rank[:size]] = True
        return (bool(k) for k in kept)
    start, stop = (0, size) if which == "first" else (total - size, total)
    return (start <= i < stop for i in range(total))


def read_yaml(file: Path) -> list[Part]:
    """The parts of a data YAML: a list `datasets` of `json_path` and `sampling_strategy`.

    Relative paths start at the YAML's folder; `{a,b}.json` is a list of two. Raises HarnessError where it
    cannot be read.
    """
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise HarnessError(f"{file} cannot be read: {e.strerror}.") from None
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as e:
        why = " ".join(str(e).split())  # YAML draws the place on lines of their own
        raise HarnessError(f"{file} cannot be read as YAML ({why}): correct it there.") from None
    entries = content.get("datasets") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise HarnessError(f"{file} has no list 'datasets': LLaVA-NeXT's data YAML names its JSON files there.")
    listed = [pair for i, entry in enumerate(entries) for pair in _entry(file, i, entry)]
    return name_parts(listed)


def _entry(file: Path, number: int, entry: Any) -> list[tuple[Path, str]]:
    where = f"{file}: entry {number + 1} of 'datasets'"
    if not isinstance(entry, dict) or not isinstance(entry.get("json_path"), str):
        raise HarnessError(f"{where} has no json_path.")
    unknown = sorted(map(str, entry.keys() - {"json_path", "sampling_strategy"}))
    if unknown:
        raise HarnessError(f"{where} has {', '.join(unknown)}, which means nothing here: take it out.")
    files = expand(file.parent / entry["json_path"])
    return [(f, str(entry.get("sampling_strategy") or "all")) for f in files]


def name_parts(listed: list[tuple[Path, str]]) -> list[Part]:
    """Parts with different names: the file's, with its folder in front or a number behind where taken."""
    parts: dict[str, Part] = {}
    for file, take in listed:
        wishes = itertools.chain((file.stem, f"{file.parent.name}/{file.stem}"), _numbered(file.stem))
        name = next(w for w in wishes if w not in parts)
        parts[name] = Part(name=name, file=file, take=take)
    return list(parts.values())


def _numbered(stem: str) -> Iterator[str]:
    return (f"{stem}#{i}" for i in itertools.count(2))
