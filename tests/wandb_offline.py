"""What an offline run of W&B says, put together from its .wandb file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.tracking.wandb_file import read_records


@dataclass
class OfflineRun:
    """One offline run."""

    folder: Path
    head: Any = None
    """The run record: id, name, group, job type, tags."""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    steps: dict[str, str] = field(default_factory=dict)
    """Metric to the metric it is drawn over."""
    artifacts: dict[str, Any] = field(default_factory=dict)
    """Artifact records by name."""
    finished: bool = False

    def table(self, key: str) -> dict[str, Any]:
        """Columns and data of a logged table, from the file W&B would upload."""
        content: dict[str, Any] = json.loads((self.folder / "files" / self.summary[key]["path"]).read_text())
        return content


def read_run(folder: Path) -> OfflineRun:
    """Read one offline run."""
    (file,) = folder.glob("run-*.wandb")
    run = OfflineRun(folder)
    for record in read_records(file):
        match record.WhichOneof("record_type"):
            case "run":
                run.head = record.run
                _update(run.config, record.run.config.update)
            case "summary":
                _update(run.summary, record.summary.update)
            case "history":
                row: dict[str, Any] = {}
                _update(row, record.history.item)
                run.history.append(row)
            case "metric":
                run.steps[record.metric.name] = record.metric.step_metric
            case "artifact":
                run.artifacts[record.artifact.name] = record.artifact
            case "exit":
                run.finished = True
    return run


def read_runs(store: Path) -> dict[str, OfflineRun]:
    """Every offline run of a store, by name."""
    runs = [read_run(folder) for folder in sorted((store / "wandb").glob("offline-run-*"))]
    found = {run.head.display_name: run for run in runs}
    assert len(found) == len(runs), "two folders for one run"
    return found


def _update(into: dict[str, Any], items: Iterable[Any]) -> None:
    for item in items:
        *path, last = item.nested_key or [item.key]
        place = into
        for name in path:
            place = place.setdefault(name, {})
        place[last] = json.loads(item.value_json)
