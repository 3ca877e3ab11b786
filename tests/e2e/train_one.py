"""One training run as a process (or a rank of torchrun): python -m tests.e2e.train_one JSON.

The JSON names the pool, the backbone and the folder, how many samples, changes to the recipe, and at which step to
be killed, if at all.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from harness.pool import open_pool
from harness.types import TrainSpec
from llava_train.run import TrainRequest, train

SPEC = TrainSpec(
    dtype="float32",
    gradient_checkpointing=False,
    global_batch=6,
    learning_rate=1e-3,
    vision_learning_rate=2e-4,
    pack_tokens=300,
    pack_tiles=8,
    checkpoint_every=3,
)


def main() -> None:
    wanted = json.loads(sys.argv[1])
    folder = Path(wanted["folder"])

    def progress(done: int, steps: int, figures: dict[str, float]) -> None:
        if done == wanted.get("kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)

    request = TrainRequest(
        spec=replace(SPEC, **wanted.get("spec", {})),
        pool=open_pool(wanted["pool"]),
        positions=np.arange(wanted["n"], dtype=np.int32),
        backbone_path=wanted["backbone"],
        out=folder / "out",
        partial=folder / "partial",
    )
    train(request, progress)


if __name__ == "__main__":
    main()
