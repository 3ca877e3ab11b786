"""Small real things that tests share."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from harness.pool import Pool, open_pool
from harness.pool_import import import_llava_json
from harness.pool_write import PoolWriter

SOURCES = ("charts", "shapes", "text")


def png(seed: int, size: tuple[int, int] = (24, 16)) -> bytes:
    """A small noisy picture."""
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="png")
    return out.getvalue()


def raw_record(i: int) -> dict[str, object]:
    """Record number i in LLaVA's format; every fifth is text-only, every fourth has two turns."""
    text_only = i % 5 == 4
    question = f"What is number {i}?" if text_only else f"<image>\nWhat is number {i}?"
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "It is " + "very " * (i % 7) + "odd."}]
    if i % 4 == 3:
        turns += [{"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."}]
    record: dict[str, object] = {"id": f"s{i}", "conversations": turns, "data_source": SOURCES[i % 3]}
    return record if text_only else record | {"image": f"{i}.png"}


def pool_of_files(root: Path, n: int = 8) -> tuple[Pool, Path]:
    """A pool of n small records whose pictures are files of their own, and the folder of these, to be damaged."""
    images = root / "images"
    images.mkdir()
    for i in range(n):
        (images / f"{i}.png").write_bytes(png(i))
    with PoolWriter(root / "pool", "files", image_root=images) as writer:
        for i in range(n):
            assert writer.add(raw_record(i), lambda key: (images / key).read_bytes())
    return open_pool(root / "pool"), images


def write_pool(path: Path, n: int = 40, *, order: list[int] | None = None) -> Pool:
    """A pool of n small records with pictures kept inside; `order` arranges the same records differently."""
    with PoolWriter(path, "small") as writer:
        for i in order if order is not None else range(n):
            assert writer.add(raw_record(i), lambda key: png(int(key.split(".")[0])))
    return writer.pool()


def import_pool(folder: Path, n: int = 40) -> Pool:
    """The same pool with its pictures left where they are, as files below `folder`."""
    images = folder / "images"
    images.mkdir()
    for i in range(n):
        (images / f"{i}.png").write_bytes(png(i))
    file = folder / "data.json"
    file.write_text(json.dumps([raw_record(i) for i in range(n)]))
    return import_llava_json(file, images, folder / "pool").pool
