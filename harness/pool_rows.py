"""What a pool stores of a record: its row of text, its row of numbers, and its digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from harness.keys import uid_hash64
from harness.pool_check import CheckedRecord, ImageFacts

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
REJECT_SCHEMA = pa.schema(
    [("idx", pa.int64()), ("uid", pa.string()), ("reason", pa.string()), ("detail", pa.string())]
)

_encode = json.JSONEncoder(ensure_ascii=False).encode


def record_digest(record: CheckedRecord, facts: Sequence[ImageFacts]) -> bytes:
    """sha256 of a record's uid, source, turns and image contents; a pool's digest is the sha256 over these."""
    images = [f.digest.hex() for f in facts]
    content = _encode([record.uid, record.source, record.turns, images])
    return hashlib.sha256(content.encode()).digest()


def measure(record: CheckedRecord, facts: Sequence[ImageFacts], source_id: int, sha: bytes) -> tuple[int, ...]:
    """A record's row of `meta.parquet`, in the order of META_SCHEMA and without `idx`."""
    words = [len(text.split()) for _, text in record.turns]
    images = hashlib.sha256(b"".join(f.digest for f in facts)).digest() if facts else b"\0" * 8
    return (
        uid_hash64(record.uid),
        source_id,
        facts[0].height if facts else 0,
        facts[0].width if facts else 0,
        len(facts),
        len(words),
        sum(words),
        sum(words[1::2]),  # turns alternate, the human first
        int.from_bytes(sha[:8], "little"),
        int.from_bytes(images[:8], "little"),
    )


@dataclass(slots=True)
class TextRows:
    """Rows of `text.arrow` as flat columns, which is what makes a table of them cheaply."""

    uid: list[str] = field(default_factory=list)
    source: list[str] = field(default_factory=list)
    role: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    turns: list[int] = field(default_factory=lambda: [0])
    """Offsets of every record's turns in `role` and `text`."""
    image: list[str] = field(default_factory=list)
    images: list[int] = field(default_factory=lambda: [0])
    characters: int = 0

    def add(self, record: CheckedRecord) -> None:
        self.uid.append(record.uid)
        self.source.append(record.source)
        for role, text in record.turns:
            self.role.append(role)
            self.text.append(text)
            self.characters += len(text)
        self.turns.append(len(self.role))
        self.image.extend(record.images)
        self.images.append(len(self.image))

    def take(self) -> pa.Table:
        """The rows as a table; the buffer is empty afterwards."""
        said = pa.StructArray.from_arrays(
            [pa.array(self.role, pa.string()), pa.array(self.text, pa.string())], fields=list(_TURN)
        )
        columns = [
            pa.array(self.uid, pa.string()),
            pa.array(self.source, pa.string()),
            pa.ListArray.from_arrays(pa.array(self.turns, pa.int32()), said),
            pa.ListArray.from_arrays(pa.array(self.images, pa.int32()), pa.array(self.image, pa.string())),
        ]
        self.uid, self.source, self.role, self.text, self.turns = [], [], [], [], [0]
        self.image, self.images, self.characters = [], [0], 0
        return pa.Table.from_arrays(columns, schema=TEXT_SCHEMA)
