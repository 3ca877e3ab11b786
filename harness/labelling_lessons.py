"""Lessons: conversations made of labels, as a pool that a model is trained on like on any other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from harness.errors import HarnessError
from harness.keys import file_digest, seeded_order
from harness.labelling_file import Row, read_labels
from harness.pool import Pool, Record
from harness.pool_write import PoolWriter
from harness.registry import configured, feature_pass
from harness.types import Json, PassRef, Stage

KIND = "lessons"
VERSION = 1
BESIDE = "teachers.parquet"
"""Where the planner looks for labels of which it was told nothing: beside the pool, as miniworld has them."""


Teach = Callable[[Any, Record, Row], list[tuple[str, str]]]
"""What a pass class has as `lessons`: (user message, answer) of every lesson that a sample and its label make
under the pass's settings. It raises HarnessError for a label that is wrong."""


def lessons_stage(pool: Pool, ref: PassRef) -> Stage:
    """The stage that turns labels into lessons for the model of a pass.

    Raises HarnessError where there are no labels, or the pass's model cannot be taught.
    """
    plugin = feature_pass(ref.name)
    if not hasattr(plugin.cls, "lessons"):
        raise HarnessError(
            f"feature pass '{ref.name}' has no lessons: a model of it cannot be trained from labels."
        )
    labels = label_file(ref.lessons.labels, pool)
    params: dict[str, Json] = {
        "pass": ref.name,
        "distribution": plugin.distribution,
        "pass_version": plugin.cls.version,
        "config": dict(ref.config),
        "pool": pool.digest,
        "labels": file_digest(labels),
        "limit": ref.lessons.limit,
    }
    return Stage(
        kind=KIND,
        version=VERSION,
        params=params,
        settings={"pool_path": pool.path, "labels_path": str(labels)},
        label=f"{ref.name}/{pool.name}/lessons",
    )


def label_file(name: str, pool: Pool) -> Path:
    """The label file of a name; that beside the pool where none is named.

    Raises HarnessError where there is none.
    """
    file = Path(name).expanduser().resolve() if name else Path(pool.path).parent / BESIDE
    if not file.is_file():
        hint = "" if name else "; name one with selector.labels=FILE"
        raise HarnessError(f"there is no label file {file}{hint}: 'sievebench label' makes one.")
    return file


def write_lessons(pool: Pool, labels: Path, params: Mapping[str, Json], out: Path) -> dict[str, Json]:
    """Write the pool of lessons a label file makes; returns how many labels it used, and how many it could not.

    `limit` labels are used, by their uids' hashes; 0 uses all. Pictures stay where they are if they are files of
    their own. Raises HarnessError where no label is of a sample of the pool.
    """
    cls, settings = feature_pass(str(params["pass"])).cls, params["config"]
    assert isinstance(settings, dict)
    config, teach = configured(cls, settings), cast(Teach, cls.lessons)
    rows = read_labels(labels)
    positions = labelled(pool, rows, int(str(params["limit"])))
    if not len(positions):
        raise HarnessError(f"none of the {len(rows)} labels in {labels} is of a sample of pool {pool.name}.")
    counts: Counter[str] = Counter(labels=len(positions))
    with PoolWriter(
        out, f"{pool.name}-lessons", image_root=Path(pool.image_root) if pool.has_files else None
    ) as w:
        for position in positions:
            record = pool.record(int(position))
            for i, (question, answer) in enumerate(teach(config, record, rows[record.uid])):
                counts["lessons"] += w.add(_raw(record, i, question, answer), pool.image_bytes)
    return {**counts, "rejects": dict(w.rejects), "labels_elsewhere": len(rows.keys() - set(pool.uids()))}


def labelled(pool: Pool, rows: Mapping[str, Row], limit: int) -> Any:
    """Positions of labelled samples, int64, ascending; at most `limit` of them unless it is 0."""
    known = np.flatnonzero(np.fromiter((uid in rows for uid in pool.uids()), dtype=np.bool_, count=pool.n))
    if not limit or limit >= len(known):
        return known
    order = seeded_order(pool.column("uid_hash64")[known], 0)
    return np.sort(known[order[:limit]])


def _raw(record: Record, number: int, question: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    raw: dict[str, Any] = {"id": f"{record.uid}#{number}", "data_source": record.source, "conversations": turns}
    return raw | {"image": list(record.images)} if record.images else raw
