"""Reading Hugging Face data sets of LLaVA-OneVision-Data's schema: id, image, conversations, data_source."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from harness.errors import HarnessError
from harness.pool_check import Rejected
from harness.pool_fill import Sample

ROWS = 64
"""Rows held at a time: they carry their images."""

_MAGIC = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}

_ENDING = re.compile(r"\.\w{1,8}", re.ASCII)
"""What a file's name may end in; where it came from anything may stand there."""

Tables = Iterator[tuple[str, Any]]
"""(part, table of a few rows)"""


def read_hf(source: str, revision: str, subsets: Sequence[str], *, embedded: bool) -> Iterator[Sample]:
    """The samples of a folder of parquet files, of a `save_to_disk` folder, or of a data set on the hub.

    Images that are embedded get a key made of their content. Raises HarnessError where nothing can be read.
    """
    yield from _samples(source, _tables(source, revision, subsets), embedded)


def _samples(source: str, tables: Tables, embedded: bool) -> Iterator[Sample]:
    for part, table in tables:
        if "conversations" not in table.column_names:
            raise HarnessError(
                f"{source}: {part} has no column 'conversations' (it has {', '.join(table.column_names)}); "
                "the schema read here is that of LLaVA-OneVision-Data: id, image, conversations, data_source."
            )
        for row in _rows(table):
            if isinstance(row, Rejected):
                yield Sample(row, part)
            else:
                yield _embedded(row, part) if embedded else Sample(_raw(row, part, _paths(row)), part)


def _rows(table: Any) -> list[dict[str, Any] | Rejected]:
    try:
        return list(table.to_pylist())
    except UnicodeDecodeError as e:  # parquet promises UTF-8 and does not check it
        if table.num_rows == 1:
            return [Rejected("not_unicode", e.reason)]
        return [row for i in range(table.num_rows) for row in _rows(table.slice(i, 1))]


def _tables(source: str, revision: str, subsets: Sequence[str]) -> Tables:
    folder = Path(source).expanduser()
    if not folder.exists():
        if source.startswith(("/", ".", "~")) or source.count("/") != 1:
            raise HarnessError(f"there is no folder {source}, and a data set on the hub is named OWNER/NAME.")
        return _hub(source, revision, subsets)
    if revision or subsets:
        raise HarnessError(f"{source} is a folder here: --revision and --subset are for data sets on the hub.")
    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        return _saved(folder)
    return _parquet(folder)


def _parquet(source: Path) -> Tables:
    files = [source] if source.is_file() else sorted(source.rglob("*.parquet"))
    if not files:
        raise HarnessError(f"{source} holds no parquet file and nothing that save_to_disk wrote.")
    root = source.parent if source.is_file() else source
    for file in files:
        folder = file.relative_to(root).parent.as_posix()
        part = root.name if folder in (".", "data") else folder
        try:
            with pq.ParquetFile(file) as opened:
                for batch in opened.iter_batches(batch_size=ROWS):
                    yield part, batch
        except (pa.ArrowException, OSError) as e:
            why = " ".join(str(e).split())
            raise HarnessError(f"{file} is not a parquet file that can be read ({why}): fetch it again.") from None


def _saved(folder: Path) -> Tables:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as e:
        why = " ".join(str(e).split())
        raise HarnessError(f"{folder} is not a data set that save_to_disk wrote ({why}): save it again.") from None
    splits = loaded.values() if isinstance(loaded, dict) else [loaded]
    for split in splits:
        for table in split.with_format("arrow").iter(batch_size=ROWS):
            yield folder.name, table


def _hub(name: str, revision: str, subsets: Sequence[str]) -> Tables:
    import datasets

    commit = revision or None
    try:
        for subset in subsets or datasets.get_dataset_config_names(name, revision=commit):
            loaded = datasets.load_dataset(name, subset, revision=commit, streaming=True)
            for split in loaded.values():
                for table in split.with_format("arrow").iter(batch_size=ROWS):
                    yield name.split("/")[-1] if subset == "default" else subset, table
    except (OSError, ValueError) as e:  # offline, no such data set, no access: all the user's to settle
        raise HarnessError(
            f"the data set {name} cannot be read from the hub ({type(e).__name__}: {str(e)[:200]}); "
            "a folder of its parquet files does as well."
        ) from e


def _embedded(row: dict[str, Any], part: str) -> Sample:
    keys, data = list[str](), dict[str, bytes]()
    for image in _images(row):
        content, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, image)
        named = PurePosixPath(path) if isinstance(path, str) else PurePosixPath()
        if isinstance(content, bytes) and content:
            data[key := _content_key(content, named.suffix)] = content
        else:
            key = named.name or "unnamed"  # no data under it: it will be set aside as missing
        keys.append(key)
    return Sample(_raw(row, part, keys), part, data)


def _images(row: dict[str, Any]) -> list[Any]:
    image = row.get("image") if row.get("image") is not None else row.get("images")
    listed = image if isinstance(image, list) else [image]
    return [i for i in listed if i is not None]


def _paths(row: dict[str, Any]) -> list[Any]:
    return [i.get("path") if isinstance(i, dict) else i for i in _images(row)]


def _content_key(content: bytes, said: str) -> str:
    """A name for embedded bytes: the same bytes have one name, and different ones never share it."""
    name = hashlib.sha256(content).hexdigest()[:32]
    ending = said if _ENDING.fullmatch(said) else ""
    return f"{name[:2]}/{name}{ending or next((e for m, e in _MAGIC.items() if content.startswith(m)), '')}"


def _raw(row: dict[str, Any], part: str, images: list[Any]) -> dict[str, Any]:
    """A row as a record in LLaVA's format; columns without a value are left out."""
    kept = ("id", "idx", "data_source", "image_source")
    raw = {name: row[name] for name in kept if row.get(name) is not None}
    turns = row["conversations"]
    if isinstance(turns, dict) and all(isinstance(said, list) for said in turns.values()):
        # How `datasets` stores a Sequence of objects; what one list has more than another comes as None.
        turns = [dict(zip(turns, said, strict=True)) for said in itertools.zip_longest(*turns.values())]
    return {"data_source": part, **raw, "conversations": turns, "image": images}
