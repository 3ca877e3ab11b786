"""The tracker without a service: one line of JSON a run, in the store."""

from __future__ import annotations

import json
from pathlib import Path

from harness.files import write_atomic
from harness.store import Store
from harness.tracking.sweep_runs import sweep_runs


def write_jsonl(store: Store, name: str) -> Path:
    """Write `STORE/tracking/SWEEP.jsonl` anew, its artifacts by name, digest and reference; returns the file."""
    path = store.root / "tracking" / f"{name}.jsonl"
    lines = [
        json.dumps(run.as_json() | {"digest": run.digest}, sort_keys=True, allow_nan=False)
        for run in sweep_runs(store, name)
    ]
    write_atomic(path, "".join(f"{line}\n" for line in lines).encode())
    return path
