"""The train stage: SFT of a backbone on a selection."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from harness.pool import open_pool
from harness.stages.context import Facts, StageContext
from harness.types import TrainSpec


def run_train(context: StageContext) -> Facts:
    """Train (or go on training) and leave a Hugging Face folder in `out/model`."""
    from llava_train.run import TrainRequest, train

    recipe, run = context.stage.params["recipe"], context.stage.settings["run"]
    assert isinstance(recipe, dict)
    assert isinstance(run, dict)
    spec = replace(TrainSpec(**recipe), **run)  # type: ignore[arg-type]
    (name,) = context.stage.inputs
    selection = context.input(name)
    lessons = selection / "pool"  # a lessons stage brings the pool that it selects from
    request = TrainRequest(
        spec=spec,
        pool=open_pool(lessons if lessons.is_dir() else str(context.stage.settings["pool_path"])),
        positions=np.load(selection / "positions.npy"),
        backbone_path=str(context.stage.settings["backbone_path"]),
        out=context.out,
        partial=context.partial,
        threads=context.threads,
    )
    report = train(request, lambda step, steps, _: context.progress(step, steps, "steps"))
    return {
        "steps": report.steps,
        "samples": report.samples,
        "tokens": report.tokens,
        "supervised_tokens": report.supervised_tokens,
        "final_loss": report.final_loss,
        "flops": report.flops,
        "resumed_from": report.resumed_from,
    }
