"""Writing a pool: every record is checked, bad ones are set aside with the reason, the rest is streamed out."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from harness.errors import HarnessError
from harness.pool import FORMAT, Pool, open_pool
from harness.pool_check import CheckedRecord, ImageFacts, Rejected, check_record, said_uid
from harness.pool_index import IndexBuilder, TarSink
from harness.pool_places import ImageTars, Place, check_bytes
from harness.pool_rows import META_SCHEMA, REJECT_SCHEMA, TEXT_SCHEMA, TextRows, measure, record_digest

BATCH = 4096
"""Records written at a time."""

TEXT_BATCH = 256
"""Records of every batch of `text.arrow` but the last; reading one record reads so many."""

HELD = 64 << 20
"""Characters after which records are written though they are fewer."""

ROW_GROUP = 65_536
"""Rows of one row group of `meta.parquet`: few enough groups that a column of millions is read at once."""


@dataclass(slots=True)
class PoolWriter:
    """Writes one pool; use as a context manager: `with PoolWriter(path, name) as w: w.add(raw, load)`.

    The pool appears under its name only when the block ends without an error.
    """

    path: Path
    name: str
    image_root: Path | None = None
    """Where images stay; None copies their bytes into the pool."""
    tars: ImageTars | None = None
    """The tar files below `image_root` the images stay in, where they are not files of their own."""
    default_source: str = ""
    seen: int = 0
    renamed: int = 0
    """Records whose id another part of the input had used: they got the part's name in front."""
    rejects: Counter[str] = field(default_factory=Counter)
    facts: dict[str, ImageFacts | Rejected] = field(default_factory=dict)
    """Every image checked so far, by its key."""
    _uids: dict[str, str] = field(default_factory=dict)
    _index: IndexBuilder = field(default_factory=IndexBuilder)
    _sources: dict[str, int] = field(default_factory=dict)
    _rows: TextRows = field(default_factory=TextRows)
    _metas: list[tuple[int, ...]] = field(default_factory=list)
    _rejected: list[tuple[int, str, str, str]] = field(default_factory=list)
    _example: str = ""
    """The first record set aside, in words."""
    _n: int = 0
    _hash: Any = field(default_factory=hashlib.sha256)
    _tmp: Path = Path()
    _open: ExitStack = field(default_factory=ExitStack)
    _text: Any = None
    _meta: Any = None
    _reject: Any = None
    _tar: TarSink | None = None

    def __enter__(self) -> Self:
        self.path = Path(self.path)
        if (self.path / "pool.json").exists():
            raise HarnessError(f"{self.path} already holds a pool: choose another --out or delete it.")
        if self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise HarnessError(f"{self.path} is not an empty folder: choose another --out.")
        self._tmp = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            self._tmp.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise HarnessError(f"cannot write a pool at {self.path}: {e.strerror}.") from None
        keep = self._open.enter_context
        self._text = keep(pa.ipc.new_file(str(self._tmp / "text.arrow"), TEXT_SCHEMA))
        self._meta = keep(pq.ParquetWriter(str(self._tmp / "meta.parquet"), META_SCHEMA))
        self._reject = keep(pq.ParquetWriter(str(self._tmp / "rejects.parquet"), REJECT_SCHEMA))
        if self.image_root is None:
            self._tar = TarSink(self._tmp / "images.tar")
            self._open.callback(self._tar.close)
        return self

    def add(self, raw: Any, load: Callable[[str], bytes], part: str = "") -> bool:
        """Add one record in LLaVA's format; `load` gives the bytes of an image by its key.

        Returns False where the record was set aside. `part` says which of several inputs it is from.
        """
        position, self.seen = self.seen, self.seen + 1
        try:
            record = check_record(raw, position, self.default_source)
        except Rejected as e:
            self.reject(position, said_uid(raw), e)
            return False
        loaded: dict[str, bytes] = {}
        for key in record.images:
            if key not in self.facts:
                self.facts[key] = _load(key, load, loaded)
        return self.put(position, record, lambda key: loaded[key] if key in loaded else load(key), part)

    def put(self, position: int, record: CheckedRecord, read: Callable[[str], bytes], part: str = "") -> bool:
        """Add a checked record whose images are all in `facts`; `read` gives bytes to be kept inside.

        Returns False where the record was set aside.
        """
        try:
            renamed = self._unique(record, part)
            facts = [self._fact(key) for key in record.images]
        except Rejected as e:
            self.reject(position, record.uid, e)
            return False
        self.renamed += renamed is not record
        self._uids[renamed.uid] = part
        for key in record.images:
            if key not in self._index:
                self._keep(key, read)
        self._append(renamed, facts)
        return True

    def reject(self, position: int, uid: str, why: Rejected) -> None:
        """Set a record aside with its reason."""
        self.rejects[why.reason] += 1
        self._example = self._example or _printable(str(why))
        self._rejected.append((position, _printable(uid), why.reason, _printable(why.detail)))
        if len(self._rejected) >= BATCH:
            self._flush_rejected()

    def _unique(self, record: CheckedRecord, part: str) -> CheckedRecord:
        if record.uid not in self._uids:
            return record
        uid = f"{part}/{record.uid}"
        if self._uids[record.uid] == part or uid in self._uids:
            raise Rejected("duplicate_id", record.uid[:80])
        return replace(record, uid=uid)

    def _fact(self, key: str) -> ImageFacts:
        facts = self.facts[key]
        if isinstance(facts, Rejected):
            raise Rejected(facts.reason, f"{key}: {facts.detail}"[:200])
        return facts

    def _keep(self, key: str, read: Callable[[str], bytes]) -> None:
        if self._tar is not None:
            data = read(key)
            self._index.add(key, "images.tar", self._tar.add(key, data), len(data))
        elif self.tars is not None:
            place = self.tars.place(key)
            assert isinstance(place, Place)
            self._index.add(key, os.path.relpath(place.file, self.image_root), place.offset, place.size)

    def _append(self, record: CheckedRecord, facts: list[ImageFacts]) -> None:
        sha = record_digest(record, facts)
        self._hash.update(sha)
        source = self._sources.setdefault(record.source, len(self._sources))
        self._rows.add(record)
        self._metas.append((self._n, *measure(record, facts, source, sha)))
        self._n += 1
        heavy = self._rows.characters > HELD and self._n % TEXT_BATCH == 0
        if heavy or self._n % BATCH == 0:
            self._text.write_table(self._rows.take(), max_chunksize=TEXT_BATCH)
        if self._n % ROW_GROUP == 0:
            self._flush_metas()

    def _flush_metas(self) -> None:
        columns = zip(*self._metas, strict=True) if self._metas else [()] * len(META_SCHEMA)
        arrays = [pa.array(c, t) for c, t in zip(columns, META_SCHEMA.types, strict=True)]
        self._meta.write_table(pa.Table.from_arrays(arrays, schema=META_SCHEMA))
        self._metas = []

    def _flush_rejected(self) -> None:
        columns = list(zip(*self._rejected, strict=True)) or [()] * len(REJECT_SCHEMA)
        arrays = [pa.array(c, t) for c, t in zip(columns, REJECT_SCHEMA.types, strict=True)]
        self._reject.write_table(pa.Table.from_arrays(arrays, schema=REJECT_SCHEMA))
        self._rejected = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._open:
                if kind is None:
                    self._text.write_table(self._rows.take(), max_chunksize=TEXT_BATCH)
                    self._flush_metas()
                    self._flush_rejected()
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self._tmp, ignore_errors=True)

    def _finish(self) -> None:
        if self._n == 0:
            top = ", ".join(f"{k} ({v})" for k, v in self.rejects.most_common(3)) or "the input was empty"
            example = f" (the first: {self._example})" if self._example else ""
            raise HarnessError(f"no usable record for pool {self.path}: {top}{example}.")
        if self._tar is not None or self.tars is not None:
            self._index.write(self._tmp / "image_index.arrow")
        head = {
            "format": FORMAT,
            "name": self.name,
            "n": self._n,
            "n_seen": self.seen,
            "rejects": dict(sorted(self.rejects.items())),
            "digest": self._hash.hexdigest(),
            "image_root": str(self.image_root.resolve()) if self.image_root is not None else "",
        }
        (self._tmp / "pool.json").write_text(json.dumps(head, indent=1) + "\n")
        if self.path.exists():
            self.path.rmdir()
        os.rename(self._tmp, self.path)

    def pool(self) -> Pool:
        """The finished pool, opened."""
        return open_pool(self.path)


def _load(key: str, load: Callable[[str], bytes], loaded: dict[str, bytes]) -> ImageFacts | Rejected:
    try:
        loaded[key] = load(key)
    except (OSError, KeyError) as e:
        return Rejected("missing_image", (getattr(e, "strerror", None) or type(e).__name__).lower())
    return check_bytes(loaded[key])


def _printable(text: str) -> str:
    """Text that a file can hold, whatever was in the input."""
    return text.encode("utf-8", "replace").decode()
