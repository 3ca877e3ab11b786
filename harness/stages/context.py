"""What a running stage is given, and the table of stage kinds."""

from __future__ import annotations

import importlib
import json
import os
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.store import StageDir, Store
from harness.types import Json, Stage

Facts = dict[str, Json]
"""Small results that go into the manifest."""

_KINDS: Mapping[str, str] = {
    "features": "harness.stages.features",
    "lessons": "harness.stages.lessons",
    "score": "harness.stages.select",
    "select": "harness.stages.select",
    "train": "harness.stages.train",
    "evaluate": "harness.stages.evaluate",
    "judge": "harness.stages.evaluate",
}


@dataclass(slots=True, kw_only=True)
class StageContext:
    """A stage in progress: where it reads, writes and reports."""

    stage: Stage
    store: Store
    directory: StageDir
    threads: int = 1
    device: str = "cpu"
    shared: dict[Hashable, Any] = field(default_factory=dict)
    """Lives as long as the process: a loaded model that several stages of one job use."""
    _said: float = 0.0

    @property
    def out(self) -> Path:
        return self.directory.out

    @property
    def partial(self) -> Path:
        return self.directory.partial

    def input(self, name: str) -> Path:
        """The result folder of one of the stage's inputs."""
        return self.store.input(self.stage, name).out

    def inputs(self, kind: str) -> dict[str, Path]:
        """Result folders of all inputs of a kind, by label."""
        prefix = f"{kind}."
        return {k.removeprefix(prefix): self.input(k) for k in self.stage.inputs if k.startswith(prefix)}

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Say how far the stage is; cheap enough for every step, written at most five times a second."""
        now = time.monotonic()
        if now - self._said < 0.2 and done < total:
            return
        self._said = now
        path = self.directory.path / "progress.json"
        tmp = path.with_name(f".progress.{os.getpid()}.tmp")
        tmp.write_text(json.dumps({"done": done, "total": total, "text": text, "time": time.time()}))
        os.replace(tmp, path)


def runner(kind: str) -> Callable[[StageContext], Facts]:
    """The function that does the work of a stage kind; its module is imported only now."""
    module = importlib.import_module(_KINDS[kind])
    function: Callable[[StageContext], Facts] = getattr(module, f"run_{kind}")
    return function
