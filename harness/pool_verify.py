"""Is a pool still what was imported? Everything is read and hashed again."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from harness.errors import HarnessError
from harness.pool import Pool, open_pool, unreadable
from harness.pool_check import CheckedRecord, ImageFacts
from harness.pool_rows import META_SCHEMA, measure, record_digest

NAMED = 3
"""Examples named of each kind of difference."""

_MEASURES = META_SCHEMA.names[1:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What verifying a pool found."""

    whole: bool
    sentence: str


@dataclass(slots=True)
class _Check:
    """A verification in progress."""

    pool: Pool
    threads: ThreadPoolExecutor
    facts: dict[str, ImageFacts | None] = field(default_factory=dict)
    """Every image read so far; None where it is gone."""
    sources: dict[str, int] = field(default_factory=dict)
    hash: Any = field(default_factory=hashlib.sha256)
    rows: int = 0
    gone: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)

    def batch(self, records: list[CheckedRecord], stored: list[tuple[int, ...]]) -> None:
        keys = [k for k in dict.fromkeys(k for r in records for k in r.images) if k not in self.facts]
        self.facts.update(zip(keys, self.threads.map(self._image, keys), strict=True))
        for record, row in zip(records, stored, strict=True):
            self._record(record, row)
        self.rows += len(records)

    def _image(self, key: str) -> ImageFacts | None:
        try:
            return _read_facts(self.pool.image_bytes(key))
        except (OSError, KeyError, OverflowError, MemoryError):  # a damaged index says how much to read
            return None

    def _record(self, record: CheckedRecord, row: tuple[int, ...]) -> None:
        found = [self.facts[key] for key in record.images]
        facts = [f for f in found if f is not None]
        self.gone += [k for k, f in zip(record.images, found, strict=True) if f is None]
        sha = record_digest(record, facts)
        self.hash.update(sha)
        source = self.sources.setdefault(record.source, len(self.sources))
        differs = {
            name
            for name, now, before in zip(_MEASURES, measure(record, facts, source, sha), row, strict=True)
            if now != before
        }
        if len(facts) < len(found) or not differs:
            return
        if "image_hash64" in differs:
            self.images.append(", ".join(record.images) or record.uid)
        elif "record_hash64" in differs:
            self.texts.append(record.uid)
        else:
            self.numbers.append(f"{record.uid}: {', '.join(sorted(differs))}")

    def differences(self, head: dict[str, Any], rejected: int) -> list[str]:
        """What differs, in words."""
        found = [
            _counted(list(dict.fromkeys(self.gone)), "image is gone", "images are gone"),
            _counted(self.images, "record's images have changed", "records' images have changed"),
            _counted(self.texts, "record's text has changed", "records' texts have changed"),
            _counted(self.numbers, "record's numbers have changed", "records' numbers have changed"),
        ]
        if self.rows != head["n"]:
            found.append(f"it has {self.rows} records and not {head['n']}")
        if rejected != sum(head["rejects"].values()):
            found.append(f"rejects.parquet has {rejected} rows and not {sum(head['rejects'].values())}")
        found = [f for f in found if f]
        if not found and self.hash.hexdigest() != head["digest"]:
            found.append(f"its digest is {self.hash.hexdigest()[:12]} and not {head['digest'][:12]}")
        return found


def verify_pool(path: Path, workers: int = 4, progress: Callable[[int], None] = lambda _: None) -> Verdict:
    """Hash every record and image of a pool again, and compare with what importing it wrote down.

    Raises HarnessError where there is no pool.
    """
    try:
        pool = open_pool(path)
        _check_index(path / "image_index.arrow")
        head = json.loads((path / "pool.json").read_text())
        with ThreadPoolExecutor(workers) as threads:
            check = _Check(pool, threads)
            for records, stored in _batches(path):
                check.batch(records, stored)
                progress(check.rows)
        differences = check.differences(head, pq.read_metadata(path / "rejects.parquet").num_rows)
    except HarnessError as e:
        if not (path / "pool.json").is_file():
            raise
        return Verdict(whole=False, sentence=str(e))
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError) as e:
        return Verdict(whole=False, sentence=str(unreadable(path, e)))
    if differences:
        return Verdict(whole=False, sentence=f"pool {path} is not what was imported: {'; '.join(differences)}.")
    images = len(check.facts)
    said = f"pool {path} is whole: {check.rows} records and {images} images hash to {pool.digest[:12]}."
    return Verdict(whole=True, sentence=said)


def _check_index(file: Path) -> None:
    """Arrow takes an index at its word: a damaged one would lead it out of its memory."""
    if file.exists():
        with pa.OSFile(str(file)) as source:
            pa.ipc.open_file(source).read_all().validate(full=True)


def _batches(path: Path) -> Iterator[tuple[list[CheckedRecord], list[tuple[int, ...]]]]:
    meta = pq.read_table(path / "meta.parquet", columns=_MEASURES)
    rows_of_text = pa.ipc.open_file(pa.memory_map(str(path / "text.arrow"))).read_all().num_rows
    if meta.num_rows != rows_of_text:
        raise ValueError(f"meta.parquet has {meta.num_rows} rows, text.arrow {rows_of_text}")
    start = 0
    with pa.ipc.open_file(pa.memory_map(str(path / "text.arrow"))) as text:
        for i in range(text.num_record_batches):
            batch = text.get_batch(i)
            batch.validate(full=True)
            rows = meta.slice(start, batch.num_rows)
            start += batch.num_rows
            columns = [rows.column(name).to_pylist() for name in _MEASURES]
            yield [_checked(row) for row in batch.to_pylist()], list(zip(*columns, strict=True))


def _checked(row: dict[str, Any]) -> CheckedRecord:
    turns = tuple((t["from"], t["value"]) for t in row["conversations"])
    return CheckedRecord(uid=row["uid"], source=row["source"], turns=turns, images=tuple(row["images"]))


def _read_facts(data: bytes) -> ImageFacts:
    """Digest and size of an image; the pixels need no decoding where the bytes are the same."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        width, height = 0, 0
    return ImageFacts(height=height, width=width, digest=hashlib.sha256(data).digest())


def _counted(names: list[str], one: str, many: str) -> str:
    if not names:
        return ""
    more = ", …" if len(names) > NAMED else ""
    return f"{len(names)} {one if len(names) == 1 else many} ({', '.join(names[:NAMED])}{more})"
