"""Writing a pool: every record is checked, bad ones are set aside with the reason, the rest is streamed out."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from harness.errors import HarnessError
from harness.keys import uid_hash64
from harness.pool import FORMAT, Pool, open_pool
from harness.pool_check import CheckedRecord, ImageFacts, Rejected, check_image, check_record

BATCH = 4096

_TURN = pa.struct([("from", pa.string()), ("value", pa.string())])
TEXT_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("source", pa.string()),
        ("conversations", pa.list_(_TURN)),
        ("images", pa.list_(pa.string())),
    ]
)
META_SCHEMA = pa.schema(
    [
        ("idx", pa.int32()),
        ("uid_hash64", pa.uint64()),
        ("source_id", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("n_images", pa.int16()),
        ("n_turns", pa.int16()),
        ("n_words", pa.int32()),
        ("n_answer_words", pa.int32()),
        ("record_hash64", pa.uint64()),
        ("image_hash64", pa.uint64()),
    ]
)
IMAGE_SCHEMA = pa.schema([("key", pa.string()), ("data", pa.binary())])
REJECT_SCHEMA = pa.schema(
    [("idx", pa.int64()), ("uid", pa.string()), ("reason", pa.string()), ("detail", pa.string())]
)


@dataclass(slots=True)
class PoolWriter:
    """Writes one pool; use as a context manager: `with PoolWriter(path, name) as w: w.add(raw, load)`.

    The pool appears under its name only when the block ends without an error.
    """

    path: Path
    name: str
    image_root: Path | None = None
    """Where images stay as files; None copies their bytes into the pool."""
    default_source: str = ""
    seen: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    _uids: set[str] = field(default_factory=set)
    _image_cache: dict[str, ImageFacts] = field(default_factory=dict)
    _sources: dict[str, int] = field(default_factory=dict)
    _rows: list[dict[str, Any]] = field(default_factory=list)
    _metas: list[dict[str, Any]] = field(default_factory=list)
    _rejected: list[dict[str, Any]] = field(default_factory=list)
    _n: int = 0
    _hash: Any = field(default_factory=hashlib.sha256)
    _tmp: Path = Path()
    _sinks: list[Any] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.path = Path(self.path)
        if (self.path / "pool.json").exists():
            raise HarnessError(f"{self.path} already holds a pool: choose another --out or delete it.")
        self._tmp = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            self._tmp.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise HarnessError(f"cannot write a pool at {self.path}: {e.strerror}.") from None
        self._sinks = [
            pa.ipc.new_file(str(self._tmp / "text.arrow"), TEXT_SCHEMA),
            pq.ParquetWriter(str(self._tmp / "meta.parquet"), META_SCHEMA),
            pa.ipc.new_file(str(self._tmp / "images.arrow"), IMAGE_SCHEMA) if self.image_root is None else None,
        ]
        return self

    def add(self, raw: Any, load: Callable[[str], bytes]) -> bool:
        """Add one record in LLaVA's format; `load` gives the bytes of an image by its key.

        Returns False where the record was set aside.
        """
        position, self.seen = self.seen, self.seen + 1
        try:
            record = check_record(raw, position, self.default_source)
            if record.uid in self._uids:
                raise Rejected("duplicate_id", record.uid[:80])
            facts = [self._image(key, load) for key in record.images]
        except Rejected as e:
            self.reject(position, str(raw.get("id", "")) if isinstance(raw, dict) else "", e)
            return False
        self._append(record, facts)
        return True

    def reject(self, position: int, uid: str, why: Rejected) -> None:
        """Set a record aside with its reason."""
        self.rejects[why.reason] += 1
        self._rejected.append({"idx": position, "uid": uid, "reason": why.reason, "detail": why.detail})

    def _image(self, key: str, load: Callable[[str], bytes]) -> ImageFacts:
        if key not in self._image_cache:
            try:
                data = load(key)
            except (OSError, KeyError) as e:
                raise Rejected("missing_image", f"{key}: {type(e).__name__}"[:200]) from None
            facts = check_image(data)
            if self._sinks[2] is not None:
                self._sinks[2].write_table(pa.table({"key": [key], "data": [data]}, schema=IMAGE_SCHEMA))
            self._image_cache[key] = facts
        return self._image_cache[key]

    def _append(self, record: CheckedRecord, facts: Sequence[ImageFacts]) -> None:
        self._uids.add(record.uid)
        content = json.dumps(
            [record.uid, record.source, record.turns, [f.digest.hex() for f in facts]], ensure_ascii=False
        ).encode()
        sha = hashlib.sha256(content).digest()
        self._hash.update(sha)
        images = hashlib.sha256(b"".join(f.digest for f in facts)).digest() if facts else b"\0" * 8
        self._rows.append(
            {
                "uid": record.uid,
                "source": record.source,
                "conversations": [{"from": r, "value": v} for r, v in record.turns],
                "images": list(record.images),
            }
        )
        self._metas.append(
            {
                "idx": self._n,
                "uid_hash64": uid_hash64(record.uid),
                "source_id": self._sources.setdefault(record.source, len(self._sources)),
                "height": facts[0].height if facts else 0,
                "width": facts[0].width if facts else 0,
                "n_images": len(facts),
                "n_turns": len(record.turns),
                "n_words": sum(len(v.split()) for _, v in record.turns),
                "n_answer_words": sum(len(v.split()) for r, v in record.turns if r == "gpt"),
                "record_hash64": int.from_bytes(sha[:8], "little"),
                "image_hash64": int.from_bytes(images[:8], "little"),
            }
        )
        self._n += 1
        if len(self._rows) >= BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._sinks[0].write_table(pa.Table.from_pylist(self._rows, schema=TEXT_SCHEMA))
            self._sinks[1].write_table(pa.Table.from_pylist(self._metas, schema=META_SCHEMA))
        self._rows, self._metas = [], []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
            for sink in self._sinks:
                if sink is not None:
                    sink.close()
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self._tmp, ignore_errors=True)

    def _finish(self) -> None:
        if self._n == 0:
            top = ", ".join(f"{k} ({v})" for k, v in self.rejects.most_common(3)) or "the input was empty"
            raise HarnessError(f"no usable record for pool {self.path}: {top}.")
        pq.write_table(pa.Table.from_pylist(self._rejected, schema=REJECT_SCHEMA), self._tmp / "rejects.parquet")
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
            self.path.rmdir()  # an empty folder the user made; anything else is refused by the system
        os.rename(self._tmp, self.path)

    def pool(self) -> Pool:
        """The finished pool, opened."""
        return open_pool(self.path)
