"""Writing samples as parquet of LLaVA-OneVision-Data's schema, images embedded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from harness.pool import Record

ROW_GROUP = 100
"""Rows of one row group: what a reader holds at a time, as the hub advises for images."""

SHARD_BYTES = 500 << 20
"""A file is closed once its images have so many bytes."""


def write_parquet(records: Iterator[Record], load: Callable[[str], bytes], folder: Path, *, single: bool) -> None:
    """Write samples in order to `train-00000.parquet` and on; `load` gives an image's bytes by its key.

    `single`: every sample has at most one image, in a column `image`; otherwise all are lists in `images`.
    """
    folder.mkdir(parents=True)
    schema = _schema(single)
    shard, size, rows = 0, 0, list[dict[str, Any]]()
    writer = pq.ParquetWriter(folder / f"train-{shard:05d}.parquet", schema)
    try:
        for record in records:
            if size >= SHARD_BYTES:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                writer.close()
                shard, size, rows = shard + 1, 0, []
                writer = pq.ParquetWriter(folder / f"train-{shard:05d}.parquet", schema)
            images = [{"bytes": load(key), "path": key} for key in record.images]
            size += sum(len(image["bytes"]) for image in images)
            rows.append(_row(record, images, single))
            if len(rows) == ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    finally:
        writer.close()


def _row(record: Record, images: list[dict[str, Any]], single: bool) -> dict[str, Any]:
    return {
        "id": record.uid,
        **({"image": images[0] if images else None} if single else {"images": images}),
        "conversations": [{"from": role, "value": text} for role, text in record.conversations],
        "data_source": record.source,
    }


def _schema(single: bool) -> pa.Schema:
    from datasets import Features, Image, List, Value

    text = Value("string")
    image = {"image": Image()} if single else {"images": List(Image())}
    turns = List({"from": text, "value": text})
    return Features({"id": text, **image, "conversations": turns, "data_source": text}).arrow_schema
