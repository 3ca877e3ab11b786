"""Training samples a second: packed, loss at targets only, against the stock model with a padding collator.

Both train the same untrained `tiny` on the same batches of miniworld with the same optimiser, on one thread;
pictures are decoded and text tokenised on the way. Chunks of both alternate, so that a busy machine slows both
alike. Stock is measured at one forward of the whole batch and at the recipe's micro-batches; the ratio is to its
faster form.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.pool import Pool, open_pool
from harness.types import TrainSpec
from llava_train.engine import Engine, parameter_groups
from llava_train.loader import Loader
from llava_train.model import PackedModel, load_backbone
from llava_train.plan import batches
from llava_train.pool_index import PoolIndex
from llava_train.run import TrainRequest, make_loader
from llava_train.world import open_world

BATCH = 8
SPEC = TrainSpec(
    dtype="float32",
    gradient_checkpointing=False,
    global_batch=BATCH,
    learning_rate=5e-4,
    vision_learning_rate=5e-4,
    pack_tokens=2048,
    checkpoint_every=0,
)
IGNORED = -100


def stock_batch(index: PoolIndex, processor: Any, positions: np.ndarray, pad: int) -> dict[str, torch.Tensor]:
    """A padded batch as a stock collator makes it: the image processor's pixels, labels, attention mask."""
    texts = [index.text(int(p)) for p in positions]
    longest = max(len(t.ids) for t in texts)
    ids = np.full((len(texts), longest), pad, dtype=np.int64)
    labels = np.full((len(texts), longest), IGNORED, dtype=np.int64)
    mask = np.zeros((len(texts), longest), dtype=np.int64)
    for row, text in enumerate(texts):
        n = len(text.ids)
        ids[row, :n], mask[row, :n] = text.ids, 1
        labels[row, :n] = np.where(text.targets, text.ids, IGNORED)
    batch = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    images = [[index.pool.image(key) for key in text.images] for text in texts if text.images]
    pixels = dict(processor(images, return_tensors="pt")) if images else {}
    return {name: torch.from_numpy(value) for name, value in batch.items()} | pixels


def stock_steps(folder: Path, loader: Loader, micro: int) -> Iterator[None]:
    """The stock way: padded micro-batches of the Hugging Face model, gradients accumulated, torch's AdamW."""
    from transformers import LlavaOnevisionForConditionalGeneration, LlavaOnevisionImageProcessorPil

    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa").train()
    processor = LlavaOnevisionImageProcessorPil.from_pretrained(folder)
    optimizer = torch.optim.AdamW(parameter_groups(model, SPEC), fused=True)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"]
    for members in loader.batches:
        for at in range(0, len(members), micro):
            part = loader.positions[members[at : at + micro]]
            inputs = stock_batch(loader.index, processor, part, pad=0)
            loss = model(**inputs, use_cache=False).loss * micro / len(members)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), SPEC.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        yield


def our_steps(engine: Engine, loader: Loader) -> Iterator[None]:
    for step in range(len(loader.batches)):
        engine.step(step, loader.build(step).packs)
        yield


def measure(ways: dict[str, Iterator[None]], steps: int, chunk: int) -> dict[str, float]:
    """Seconds a step of each way, in alternating chunks, the first chunk of each left out."""
    spent = dict.fromkeys(ways, 0.0)
    for round_ in range(steps // chunk + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            for _ in range(chunk):
                next(way)
            if round_:
                spent[name] += time.perf_counter() - started
    return {name: seconds / (steps // chunk * chunk) for name, seconds in spent.items()}


def main(report: Callable[[str], None] = print) -> None:
    """Measure and report one line of JSON."""
    from harness.miniworld.architecture import build_untrained
    from harness.miniworld.build import ensure_pool

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--chunk", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, open_world() as world:
        backbone = Path(folder) / "tiny"
        build_untrained("tiny", backbone)
        found = next(ensure_pool(n=500, root=Path(folder)).rglob("pool.json"))
        pool: Pool = open_pool(found.parent)
        request = TrainRequest(
            spec=SPEC,
            pool=pool,
            positions=np.arange(BATCH * (options.steps + options.chunk), dtype=np.int32),
            backbone_path=str(backbone),
            out=Path(folder),
            partial=Path(folder),
        )
        model = load_backbone(backbone)
        positions = request.positions.astype(np.int64)
        loader = make_loader(request, model.config, world, positions, batches(_hashes(pool, positions), SPEC))
        engine = Engine(PackedModel(model), SPEC, len(loader.batches), world)
        ways = {
            "ours": our_steps(engine, loader),
            "stock_one_forward": stock_steps(backbone, loader, BATCH),
            "stock_micro_batches": stock_steps(backbone, loader, SPEC.nominal_micro_batch),
        }
        seconds = measure(ways, options.steps, options.chunk)
    figures = {f"{name}_samples_per_s": round(BATCH / s, 1) for name, s in seconds.items()}
    best = min(s for name, s in seconds.items() if name != "ours")
    report(json.dumps({"benchmark": "train_throughput", "ratio": round(best / seconds["ours"], 2), **figures}))


def _hashes(pool: Pool, positions: np.ndarray) -> np.ndarray:
    return np.asarray(pool.column("uid_hash64")[positions])


if __name__ == "__main__":
    main()
