"""Importing pools from the formats people have."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.pool import Pool
from harness.pool_check import Rejected
from harness.pool_write import PoolWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What an import found."""

    pool: Pool
    seen: int
    rejects: dict[str, int]


def import_llava_json(
    file: Path,
    images: Path,
    out: Path,
    *,
    name: str = "",
    strict: bool = False,
    progress: Callable[[int], None] | None = None,
) -> ImportReport:
    """Make a pool of a LLaVA JSON or JSONL file whose images lie as files below a folder.

    Records that cannot be used are set aside in `rejects.parquet`; with `strict` they are an error.
    Raises HarnessError for a file or folder that cannot be read.
    """
    if not images.is_dir():
        raise HarnessError(f"there is no image folder {images}: give it with --images DIR.")
    writer = PoolWriter(out, name or out.name, image_root=images, default_source=file.stem)
    with writer:
        for raw in read_records(file):
            if isinstance(raw, Rejected):
                writer.reject(writer.seen, "", raw)
                writer.seen += 1
            else:
                writer.add(raw, lambda key: (images / key).read_bytes())
            if progress is not None:
                progress(writer.seen)
        if strict and writer.rejects:
            found = ", ".join(f"{reason} ({n})" for reason, n in writer.rejects.most_common())
            raise HarnessError(f"{file}: {sum(writer.rejects.values())} records cannot be used: {found}.")
    return ImportReport(pool=writer.pool(), seen=writer.seen, rejects=dict(writer.rejects))


def read_records(file: Path) -> Iterator[Any]:
    """The records of a JSON list, or of a JSONL file line by line (a line that is not JSON comes as Rejected).

    Raises HarnessError for a file that is neither.
    """
    if not file.is_file():
        raise HarnessError(f"there is no file {file}.")
    if file.suffix == ".jsonl":
        yield from _lines(file)
        return
    try:
        records = json.loads(file.read_bytes())
    except ValueError as e:  # broken JSON or broken UTF-8
        raise HarnessError(f"{file} is not JSON ({e}); a file of one record a line must end in .jsonl.") from None
    if not isinstance(records, list):
        raise HarnessError(f"{file} holds a {type(records).__name__}; LLaVA's format is a list of records.")
    yield from records


def _lines(file: Path) -> Iterator[Any]:
    with file.open("rb") as f:
        for line in f:
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except ValueError as e:
                yield Rejected("not_json", str(e)[:200])
