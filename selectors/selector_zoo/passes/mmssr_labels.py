"""The mmssr_labels pass: capability scores and styles from a file, in the columns of the `mmssr` pass."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.api import FeaturePass, Pool
from harness.errors import HarnessError
from harness.keys import uid_hash64
from selector_zoo.passes.mmssr_answers import TOP_SCORE, parse_styles, style_row
from selector_zoo.prompts import CAPABILITIES

Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class MmssrLabelsConfig:
    """Which file, and which content of it."""

    path: str = ""
    """A .parquet file, or a .jsonl file of one object a line: `uid`, the fourteen capabilities by name, and
    `styles` as a comma-separated text or a list."""
    digest: str = ""
    """sha256 of the file: other labels are other columns."""


class MmssrLabelsPass(FeaturePass):
    """Finds the samples of a pool in a file of labels."""

    name = "mmssr_labels"
    version = 1
    Config = MmssrLabelsConfig
    identity = "none"

    def open(self) -> None:
        """Read the file.

        Raises HarnessError for a file that cannot be read, or is not such a file.
        """
        self._labels = read_labels(Path(self.config.path))

    def run(self, pool: Pool, start: int, stop: int) -> tuple[Columns, list[str]]:
        """Columns for positions [start, stop), as the `mmssr` pass has them.

        A sample the file does not have is unknown, with reason `no_label`. Raises HarnessError where it has none
        of the whole pool.
        """
        at = self._labels.find(pool.column("uid_hash64"))
        if (at < 0).all():
            raise HarnessError(
                f"label file {self.config.path} has none of the {pool.n} samples of pool {pool.name}: its `uid` "
                "must hold the ids of the pool's records."
            )
        at = at[start:stop]
        missing = at < 0
        scores, styles = self._labels.scores[at], self._labels.styles[at]
        scores[missing], styles[missing] = np.nan, -1
        return {"scores": scores, "styles": styles}, ["no_label" if m else "" for m in missing.tolist()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Scores and styles of some samples, sorted by the hash of their uids."""

    hashes: npt.NDArray[np.uint64]
    scores: npt.NDArray[np.float32]
    """(n, 14)."""
    styles: npt.NDArray[np.int8]
    """(n, 10), as `style_row` writes them."""

    def find(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Row of each uid, -1 where there is none."""
        at = np.searchsorted(self.hashes, hashes)
        at[at == len(self.hashes)] = 0
        return np.where(self.hashes[at] == hashes, at, -1)


def read_labels(path: Path) -> Labels:
    """Read a label file.

    Raises HarnessError where it cannot be read, lacks a column, names a sample twice or scores one out of range.
    """
    table = _json_columns(path) if path.suffix == ".jsonl" else _parquet_columns(path)
    hashes = np.fromiter((uid_hash64(uid) for uid in table["uid"]), dtype=np.uint64, count=len(table["uid"]))
    if not len(hashes):
        raise HarnessError(f"label file {path} is empty.")
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    twice = np.flatnonzero(hashes[1:] == hashes[:-1])
    if len(twice):
        raise HarnessError(
            f"label file {path} names sample '{table['uid'][order[twice[0]]]}' twice: name each once."
        )
    scores = np.stack([_score_column(path, name, table[name]) for name in CAPABILITIES], axis=1)
    return Labels(hashes=hashes, scores=scores[order], styles=_style_rows(path, table["styles"])[order])


def _parquet_columns(path: Path) -> dict[str, list[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = ("uid", *CAPABILITIES, "styles")
    try:
        with pq.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names)
            table = file.read(columns=list(wanted))
    except (OSError, pa.ArrowInvalid) as e:
        raise HarnessError(f"label file {path} cannot be read as parquet: {str(e).splitlines()[0]}") from None
    columns = {name: table.column(name).to_pylist() for name in wanted}
    return columns | {"uid": [str(uid) for uid in columns["uid"]]}


def _json_columns(path: Path) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [] for name in ("uid", *CAPABILITIES, "styles")}
    for row in _json_rows(path):
        _check_columns(path, row)
        for name, values in columns.items():
            values.append(row[name])
    return columns | {"uid": [str(uid) for uid in columns["uid"]]}


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise HarnessError(f"label file {path}: line {number} is no JSON object; write one a line.")
                yield row
    except (OSError, ValueError) as e:
        raise HarnessError(f"label file {path} cannot be read as JSON lines: {e}.") from None


def _check_columns(path: Path, names: Iterable[str]) -> None:
    missing = [name for name in ("uid", *CAPABILITIES, "styles") if name not in set(names)]
    if missing:
        raise HarnessError(
            f"label file {path} lacks {', '.join(repr(name) for name in missing)}: it needs uid, styles and the "
            "fourteen capabilities."
        )


def _score_column(path: Path, name: str, values: list[Any]) -> npt.NDArray[np.float32]:
    try:
        scores = np.array([np.nan if v is None else v for v in values], dtype=np.float32)
    except (TypeError, ValueError):
        raise HarnessError(f"label file {path}: a score of '{name}' is not a number.") from None
    known = scores[~np.isnan(scores)]
    if not ((known >= 0) & (known <= TOP_SCORE)).all():
        raise HarnessError(f"label file {path}: a score of '{name}' is not between 0 and {TOP_SCORE}.")
    return scores


def _style_rows(path: Path, values: list[Any]) -> npt.NDArray[np.int8]:
    """Rows of styles; few different lists are read once each."""
    said = [", ".join(map(str, v)) if isinstance(v, list) else v or "" for v in values]
    if not all(isinstance(text, str) for text in said):
        raise HarnessError(f"label file {path}: styles must be a comma-separated text or a list of texts.")
    distinct, index = np.unique(np.asarray(said, dtype=object), return_inverse=True)
    rows = np.stack([style_row(parse_styles(text)) for text in distinct])
    return rows[index]
