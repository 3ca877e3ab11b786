"""Small readings of a store's files: ids of a selection, the curve of a training, the numbers of a card."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import HarnessError
from harness.pool import open_pool
from harness.store import StageDir
from harness.tracking.content import Scalar


def subset_files(directory: StageDir, pool_path: str, scratch: Path) -> dict[str, Path]:
    """The files of a selection, and `ids.parquet` (position, uid) where its pool is still there to tell uids."""
    files = {p.name: p for p in sorted(directory.out.iterdir())}
    try:
        uids = open_pool(pool_path).uids()
    except HarnessError:
        return files
    import pyarrow as pa
    import pyarrow.parquet as pq

    positions = np.load(directory.out / "positions.npy")
    ids = scratch / directory.path.name / "ids.parquet"
    ids.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"position": positions, "uid": [uids[i] for i in positions]}), ids)
    return files | {"ids.parquet": ids}


def curve(log: Path) -> Iterator[dict[str, int | float]]:
    """The steps of a training, `train/` before every number; empty where there is no log.

    What is not finite is left out: a diverged loss shows as a gap.
    """
    seen = 0
    for line in log.read_text().splitlines() if log.is_file() else ():
        row = json.loads(line)
        seen += row.get("samples", 0)
        found = {k: v for k, v in numbers(row, "train").items() if isinstance(v, int | float)}
        yield found | {"train/samples_seen": seen}


def numbers(values: Mapping[str, Any], prefix: str) -> dict[str, Scalar]:
    """The finite numbers of nested mappings, keys joined by slashes."""
    found: dict[str, Scalar] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}/{name}")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[f"{prefix}/{name}"] = value
    return found


def entropy(counts: Mapping[str, int]) -> float:
    """Entropy of a composition, in nats; 0 for nothing."""
    total = sum(counts.values())
    return -sum(n / total * math.log(n / total) for n in counts.values() if n)
