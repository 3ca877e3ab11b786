"""One SFT run, from a pool and positions to a model folder; resumable, and the same whichever way it got there."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from harness.errors import HarnessError
from harness.keys import digest, seed64
from harness.pool import Pool
from harness.types import TrainSpec
from llava_train import checkpoint, lora
from llava_train.cost import ModelCost
from llava_train.engine import Engine, StepResult
from llava_train.loader import Loader, Work
from llava_train.model import PackedModel, load_backbone
from llava_train.plan import Ints, batches
from llava_train.pool_index import PoolIndex
from llava_train.tiles import Geometry
from llava_train.watch import Heartbeat, Journal, check_finite, read_journal
from llava_train.weights import export
from llava_train.world import World, open_world

log = logging.getLogger(__name__)

Progress = Callable[[int, int, dict[str, float]], None]
JOURNAL: Final = "train_log.jsonl"
_UNSEEN_SHOWN: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """Everything one run needs."""

    spec: TrainSpec
    pool: Pool
    positions: npt.NDArray[np.int32]
    """Pool positions of the selection; their order does not matter."""
    backbone_path: str
    out: Path
    """Gets model/ (and adapter/ where adapters were trained), train_log.jsonl and report.json in the end."""
    partial: Path
    """Keeps what is needed to continue; survives failures."""
    threads: int = 1
    """Compute threads on a CPU: fixed, because results depend on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """What a finished run did, all attempts together."""

    steps: int
    samples: int
    """Samples seen, repeats counted."""
    unseen: tuple[int, ...]
    """Pool positions of the selection that no step used (at most 10,000 of them)."""
    n_unseen: int
    tokens: int
    supervised_tokens: int
    tiles: int
    final_loss: float
    flops: float
    """Model operations, forward and backward; recomputation not counted."""
    wall_s: float
    """Seconds in steps, summed over attempts; repeated steps counted once."""
    skipped: int
    resumed_from: int
    """Step this attempt started at."""


def train(request: TrainRequest, progress: Progress | None = None) -> TrainReport:
    """Train and write `out/model`, continuing from `partial` where there is something to continue from.

    `progress(steps done, steps, {"loss", "seconds"})` is called after every step on the first rank.
    Raises HarnessError for what a user can fix: an empty selection, unreadable images, a loss that is not finite.
    """
    torch.set_num_threads(request.threads)
    request.partial.mkdir(parents=True, exist_ok=True)
    request.out.mkdir(parents=True, exist_ok=True)
    with open_world() as world:
        return _Run(request, world).finish(progress)


def make_loader(
    request: TrainRequest, config: Any, world: World, positions: Ints, members: Sequence[Ints]
) -> Loader:
    """The loader of a run: `members` are the batches as indices into `positions`."""
    from transformers import AutoTokenizer

    spec = request.spec
    index = PoolIndex(
        pool=request.pool,
        tokenizer=AutoTokenizer.from_pretrained(request.backbone_path, local_files_only=True),
        geometry=Geometry.from_config(config),
        max_length=spec.max_length,
        mask=spec.mask,
    )
    return Loader(
        index=index,
        cost=ModelCost.from_config(config),
        spec=spec,
        world=world,
        positions=positions,
        batches=members,
        pin=world.device.type == "cuda",
    )


class _Run:
    """The parts of a run, put together; lives as long as `train`."""

    def __init__(self, request: TrainRequest, world: World) -> None:
        spec = request.spec
        self.request, self.world = request, world
        self.heartbeat = Heartbeat(request.partial / f"heartbeat-{world.rank}.json", rank=world.rank)
        self.heartbeat.beat(0, "load")
        positions = np.sort(np.asarray(request.positions, dtype=np.int64))
        if len(positions) and not 0 <= positions[0] <= positions[-1] < request.pool.n:
            raise HarnessError(
                f"the selection has positions {positions[0]} to {positions[-1]} and pool {request.pool.name} only "
                f"{request.pool.n} samples: it was made on another pool."
            )
        self.positions = positions
        self.batches = batches(request.pool.column("uid_hash64")[positions], spec)
        model = load_backbone(request.backbone_path, spec.dtype, spec.attention)
        self.loader = make_loader(request, model.config, world, positions, self.batches)
        if spec.lora_rank:
            lora.attach(model, spec)
        packed = PackedModel(model, gradient_checkpointing=spec.gradient_checkpointing)
        self.engine = Engine(packed, spec, len(self.batches), world)
        log.info("%d samples, %d steps, %s", len(positions), len(self.batches), self.engine.describe())

    def finish(self, progress: Progress | None) -> TrainReport:
        """Run what is left of the steps, write the model and say what was done."""
        start = self._resume()
        leads = self.world.leads
        with Journal(self.request.partial / JOURNAL, start) if leads else nullcontext() as journal:
            self._steps(start, journal, progress)
        return self._write(start)

    def _steps(self, start: int, journal: Journal | None, progress: Progress | None) -> None:
        threads = 1 if self.world.device.type == "cpu" else min(8, os.cpu_count() or 1)
        for work in self.loader.stream(start, threads, ahead=2 * threads):
            row = self._step(work)
            if journal is not None:
                journal.write(row)
                if progress is not None:
                    progress(work.step + 1, len(self.batches), {"loss": row["loss"], "seconds": row["seconds"]})
            self._checkpoint(work.step + 1, journal)

    def _step(self, work: Work) -> dict[str, Any]:
        """Run one step and describe it in a row of the journal."""
        started = time.perf_counter()
        self.heartbeat.beat(work.step, "step")
        result = self.engine.step(work.step, work.packs, int(work.digest[:8], 16))
        self._check(result, work)
        return {
            "step": work.step,
            "loss": result.loss,
            "token_loss": result.token_loss,
            "grad_norm": result.grad_norm,
            "lr": self.engine.rates,
            "samples": len(work.uids),
            "tokens": work.tokens,
            "supervised": work.supervised,
            "tiles": work.tiles,
            "flops": work.flops,
            "batch": work.digest,
            "seconds": round(time.perf_counter() - started, 4),
        }

    def _check(self, result: StepResult, work: Work) -> None:
        check_finite(result.loss, "the loss", work.step, work.uids)
        check_finite(result.grad_norm, "the gradient norm", work.step, work.uids)
        if self.engine.skipped:
            check_finite(float("nan"), "a gradient", work.step, work.uids)

    def _mark(self, step: int) -> checkpoint.Mark:
        request = self.request
        parts = {
            "spec": request.spec,
            "pool": request.pool.digest,
            "positions": seed64(self.positions.tobytes().hex()),
        }
        return checkpoint.Mark(
            step=step, run=digest(parts), world=self.world.size, zero_stage=request.spec.zero_stage
        )

    def _resume(self) -> int:
        found = checkpoint.find(self.request.partial, self._mark(0))
        if found is None:
            return 0
        self.heartbeat.beat(0, "resume")
        step = checkpoint.load(self.engine, found)
        log.info("continuing at step %d of %d", step, len(self.batches))
        return step

    def _checkpoint(self, done: int, journal: Journal | None) -> None:
        every = self.request.spec.checkpoint_every
        if every and done % every == 0 and done < len(self.batches):
            self.heartbeat.beat(done, "checkpoint")
            if journal is not None:
                journal.sync()
            checkpoint.save(self.engine, self.request.partial, self._mark(done))

    def _write(self, start: int) -> TrainReport:
        request = self.request
        self.heartbeat.beat(len(self.batches), "export")
        state = self.engine.state()
        adam = self.engine.adam() if request.spec.lora_rank else None
        if not self.world.leads:
            return self._report([], start)
        if adam is not None:
            lora.save(state, adam, request.spec, request.out / "adapter")
            state = lora.merged(state, request.spec)
        export(state, Path(request.backbone_path), request.out / "model", request.spec.dtype)
        rows = read_journal(request.partial / JOURNAL)
        report = self._report(rows, start)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (request.out / JOURNAL).write_text(lines)
        (request.out / "report.json").write_text(json.dumps(asdict(report), indent=1) + "\n")
        checkpoint.clear(request.partial, self.world)
        return report

    def _report(self, rows: list[dict[str, Any]], start: int) -> TrainReport:
        seen = np.unique(np.concatenate(self.batches))
        unseen = np.delete(self.positions, seen)
        return TrainReport(
            steps=len(self.batches),
            samples=sum(len(b) for b in self.batches),
            unseen=tuple(unseen[:_UNSEEN_SHOWN].tolist()),
            n_unseen=len(unseen),
            tokens=sum(row["tokens"] for row in rows),
            supervised_tokens=sum(row["supervised"] for row in rows),
            tiles=sum(row["tiles"] for row in rows),
            final_loss=rows[-1]["loss"] if rows else float("nan"),
            flops=sum(row["flops"] for row in rows),
            wall_s=sum(row["seconds"] for row in rows),
            skipped=self.engine.skipped,
            resumed_from=start,
        )
