"""The lessons stage: labels become a pool of conversations, and the selection of all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from harness.errors import HarnessError
from harness.keys import file_digest
from harness.labelling_lessons import write_lessons
from harness.pool import open_pool
from harness.stages.context import Facts, StageContext


def run_lessons(context: StageContext) -> Facts:
    """Leave `out/pool` and, for the train stage, the positions of everything in it."""
    params, settings = context.stage.params, context.stage.settings
    labels = Path(str(settings["labels_path"]))
    if not labels.is_file() or file_digest(labels) != params["labels"]:
        raise HarnessError(f"the label file {labels} has changed since the sweep was planned: start it again.")
    facts = write_lessons(open_pool(str(settings["pool_path"])), labels, params, context.out / "pool")
    np.save(context.out / "positions.npy", np.arange(open_pool(context.out / "pool").n, dtype=np.int32))
    return facts
