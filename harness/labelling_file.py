"""Label files: one row a sample, by uid, as Parquet or JSON lines."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.files import write_atomic

Row = Mapping[str, Any]
"""A label: `uid`, and whatever is said of the sample, such as a number a capability and a list of styles."""


def read_labels(file: Path) -> dict[str, Row]:
    """The rows of a label file by uid.

    Raises HarnessError for a file that is missing, of another form, without uids or with one of them twice.
    """
    if not file.is_file():
        raise HarnessError(f"there is no label file {file}: 'sievebench label' makes one.")
    rows: dict[str, Row] = {}
    for row in _rows(file):
        uid = row.get("uid")
        if not isinstance(uid, str):
            raise HarnessError(f"label file {file}: a row has no uid; every row names its sample.")
        if uid in rows:
            raise HarnessError(f"label file {file}: sample '{uid}' is labelled twice; keep one of the rows.")
        rows[uid] = row
    return rows


def _rows(file: Path) -> Iterable[Row]:
    if file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            rows: list[Row] = pq.read_table(file).to_pylist()
        except pa.ArrowException as e:
            raise HarnessError(f"label file {file} is not Parquet: {str(e).splitlines()[0]}.") from None
        return rows
    if file.suffix not in (".jsonl", ".json"):
        raise HarnessError(f"label file {file} is neither .parquet nor .jsonl.")
    lines = file.read_text(encoding="utf-8").split("\n")  # splitlines would break at signs that may be in texts
    return [_parsed(file, i, line) for i, line in enumerate(lines, 1) if line.strip()]


def _parsed(file: Path, number: int, line: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as e:
        raise HarnessError(f"label file {file}, line {number} is not JSON: {e.msg}.") from None
    if not isinstance(row, dict):
        raise HarnessError(f"label file {file}, line {number} is not an object.")
    return row


def write_labels(file: Path, rows: Iterable[Row]) -> None:
    """Write a label file, Parquet or JSON lines by its name; rows are sorted by uid.

    Raises HarnessError for another kind of name.
    """
    ordered = sorted(rows, key=lambda row: str(row["uid"]))
    if file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        out = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([dict(r) for r in ordered]), out)
        write_atomic(file, out.getvalue())
    elif file.suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in ordered]
        write_atomic(file, "".join(lines).encode())
    else:
        raise HarnessError(f"{file}: name a label file .parquet or .jsonl.")
