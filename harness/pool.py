"""A pool: the samples selection chooses from, model-free, identified by its digest.

A pool is a directory: `pool.json` (name, n, digest, where images are), `meta.parquet` (one row a sample,
numbers only, what selectors read), `text.arrow` (uid, source, conversations, image keys) and `rejects.parquet`
(records left out, with the reason). Images lie as files below `image_root`, or as members of
tar files (the pool's own `images.tar`, or tar files below `image_root`), which `image_index.arrow` finds.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from harness.errors import HarnessError

FORMAT = 1
IMAGE_TOKEN = "<image>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One sample of a pool as its text says it; images are named, not loaded."""

    uid: str
    source: str
    conversations: tuple[tuple[str, str], ...]
    """(`human` or `gpt`, text) in order."""
    images: tuple[str, ...]


@functools.lru_cache(maxsize=8)
def _mapped(path: str) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(path)).read_all()


@functools.lru_cache(maxsize=8)
def _text(path: str, n: int) -> tuple[Any, int]:
    """The reader of `text.arrow`, and the number of records in each of its batches but the last."""
    # Read, not mapped: a mapped page brings fifteen neighbours into the process, a gigabyte for 1,000 records.
    reader = pa.ipc.open_file(pa.OSFile(path))
    last = reader.num_record_batches - 1
    size = int(reader.get_batch(0).num_rows)
    if last * size + reader.get_batch(last).num_rows != n:
        raise ValueError(f"{path} does not hold {n} records in equal batches; 'sievebench pool verify' says more")
    return reader, size


@functools.lru_cache(maxsize=16)
def _text_batch(path: str, n: int, number: int) -> pa.RecordBatch:
    return _text(path, n)[0].get_batch(number)


def _numpy(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    # Arrow's own to_numpy imports pandas, which takes longer than reading the column.
    return np.from_dlpack(column.chunk(0) if column.num_chunks == 1 else column.combine_chunks())


def key_hash64(key: str) -> int:
    """64-bit blake2b of an image key; the image index is sorted by it."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


@functools.lru_cache(maxsize=4)
def _image_rows(path: str) -> dict[str, int]:
    return {key: i for i, key in enumerate(_mapped(path).column("key").to_pylist())}


@functools.lru_cache(maxsize=4)
def _key_hashes(path: str) -> npt.NDArray[np.uint64]:
    return _numpy(_mapped(path).column("key_hash64"))


@functools.lru_cache(maxsize=64)
def _opened(path: str) -> BinaryIO:
    return open(path, "rb", buffering=0)  # closed when the cache lets go of it


def _indexed_bytes(index: str, root: str, key: str) -> bytes:
    """A member of a tar file, by the pool's image index."""
    hashes = _key_hashes(index)
    wanted = np.uint64(key_hash64(key))
    first, last = np.searchsorted(hashes, wanted), np.searchsorted(hashes, wanted, side="right")
    for row in _mapped(index).slice(first, last - first).to_pylist():
        if row["key"] == key:
            file = _opened(f"{root}/{row['file']}")
            return os.pread(file.fileno(), row["size"], row["offset"])
    raise KeyError(key)


@functools.lru_cache(maxsize=64)
def _meta_column(path: str, column: str) -> npt.NDArray[Any]:
    with pq.ParquetFile(path) as file:
        values = _numpy(file.read(columns=[column]).column(column))
    values.setflags(write=False)
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """An opened pool; cheap to make, safe to pickle, reads only what is asked for."""

    path: str
    name: str
    digest: str
    n: int
    columns: tuple[str, ...]
    image_root: str = ""
    """Folder the image keys, or the tar files they lie in, are relative to; empty: the pool's own folder."""

    def column(self, name: str) -> npt.NDArray[Any]:
        """One column of `meta.parquet` in pool order, shape (n,), read-only."""
        if name not in self.columns:
            raise KeyError(f"pool {self.name} has no column '{name}'; it has {', '.join(self.columns)}")
        return _meta_column(f"{self.path}/meta.parquet", name)

    def record(self, position: int) -> Record:
        """The sample at a position in [0, n)."""
        number, within = divmod(int(position), _text(self._text, self.n)[1])
        row = _text_batch(self._text, self.n, number).slice(within, 1).to_pylist()[0]
        turns = tuple((t["from"], t["value"]) for t in row["conversations"])
        return Record(uid=row["uid"], source=row["source"], conversations=turns, images=tuple(row["images"]))

    def uids(self) -> list[str]:
        """All uids in pool order (each a str: prefer `uid_hash64` for work over whole pools)."""
        with pa.memory_map(self._text) as file:
            return list(pa.ipc.open_file(file).read_all().column("uid").to_pylist())

    def sources(self) -> npt.NDArray[np.str_]:
        """The source of every sample in pool order."""
        ids = self.column("source_id")
        _, first = np.unique(ids, return_index=True)  # ids count up from 0 in order of appearance
        names = [self.record(int(i)).source for i in first]
        return np.take(np.asarray(names, dtype=np.str_), ids)

    @property
    def has_files(self) -> bool:
        """Whether images are files of their own, below `image_root`."""
        return bool(self.image_root) and not os.path.exists(self._index)

    def image_bytes(self, key: str) -> bytes:
        """The encoded bytes of one image of this pool.

        Raises OSError or KeyError where it is not there.
        """
        if self.has_files:
            return Path(self.image_root, key).read_bytes()
        if os.path.exists(self._index):
            return _indexed_bytes(self._index, self.image_root or self.path, key)
        arrow = f"{self.path}/images.arrow"  # how pools kept images before there was an index
        return bytes(_mapped(arrow).column("data")[_image_rows(arrow)[key]].as_buffer())

    def image(self, key: str) -> Any:
        """One image of this pool as PIL RGB, without EXIF rotation (as training sees it)."""
        from PIL import Image

        return Image.open(io.BytesIO(self.image_bytes(key))).convert("RGB")

    @property
    def _index(self) -> str:
        return f"{self.path}/image_index.arrow"

    @property
    def _text(self) -> str:
        return f"{self.path}/text.arrow"


def open_pool(path: str | Path) -> Pool:
    """Open a pool directory.

    Raises HarnessError where there is none, it is damaged, or it has a format this version does not read.
    """
    root = Path(path)
    head_file = root / "pool.json"
    if not head_file.is_file():
        raise HarnessError(
            f"there is no pool at {root}: it has no pool.json. Make one with "
            f"'sievebench pool import llava-json FILE --images DIR --out {root}'."
        )
    try:
        head = json.loads(head_file.read_text())
        if head["format"] != FORMAT:
            raise HarnessError(
                f"pool {root} has format {head['format']}, this version reads {FORMAT}: import it again."
            )
        return Pool(
            path=str(root.resolve()),
            name=head["name"],
            digest=head["digest"],
            n=head["n"],
            columns=tuple(pq.read_schema(root / "meta.parquet").names),
            image_root=head["image_root"],
        )
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as e:
        raise unreadable(root, e) from None


def unreadable(path: Path, error: Exception) -> HarnessError:
    """The error for a pool whose files are damaged or gone."""
    why = " ".join(str(error).split())
    return HarnessError(f"pool {path} cannot be read any more ({type(error).__name__}: {why}): import it again.")
