"""The image index of a pool: which tar file holds an image, and where in it."""

from __future__ import annotations

import tarfile
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from harness.pool import key_hash64

INDEX_SCHEMA = pa.schema(
    [
        ("key_hash64", pa.uint64()),
        ("key", pa.string()),
        ("file", pa.dictionary(pa.int32(), pa.string())),
        ("offset", pa.int64()),
        ("size", pa.int64()),
    ]
)


@dataclass(slots=True)
class IndexBuilder:
    """Collects where images lie; a few dozen bytes an image, besides its key."""

    _row: dict[str, int] = field(default_factory=dict)
    _file: array[int] = field(default_factory=lambda: array("i"))
    _offset: array[int] = field(default_factory=lambda: array("q"))
    _size: array[int] = field(default_factory=lambda: array("q"))
    _files: dict[str, int] = field(default_factory=dict)

    def __contains__(self, key: str) -> bool:
        return key in self._row

    def add(self, key: str, file: str, offset: int, size: int) -> None:
        self._row[key] = len(self._row)
        self._file.append(self._files.setdefault(file, len(self._files)))
        self._offset.append(offset)
        self._size.append(size)

    def write(self, path: Path) -> None:
        """Write the index sorted by the hash of the key, in one piece, so that it is searched where it lies."""
        hashes = np.fromiter(map(key_hash64, self._row), dtype=np.uint64, count=len(self._row))
        order = np.argsort(hashes, kind="stable")
        file = pa.DictionaryArray.from_arrays(
            pa.array(np.asarray(self._file, dtype=np.int32)[order]), pa.array(list(self._files), pa.string())
        )
        columns = [
            pa.array(hashes[order]),
            pa.array(self._row, pa.string()).take(pa.array(order)),
            file,
            pa.array(np.asarray(self._offset, dtype=np.int64)[order]),
            pa.array(np.asarray(self._size, dtype=np.int64)[order]),
        ]
        with pa.ipc.new_file(str(path), INDEX_SCHEMA) as sink:
            sink.write_table(pa.Table.from_arrays(columns, schema=INDEX_SCHEMA))


class TarSink:
    """A tar file that is written member by member and says where each one's bytes are."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def add(self, name: str, data: bytes) -> int:
        """Append a member; returns the offset of its bytes."""
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._file.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict"))
        offset = self._file.tell()
        self._file.write(data + b"\0" * (-len(data) % tarfile.BLOCKSIZE))
        return offset

    def close(self) -> None:
        self._file.write(b"\0" * 2 * tarfile.BLOCKSIZE)
        self._file.close()
