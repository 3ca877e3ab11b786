"""A tiny untrained backbone, and samples for it."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)


@functools.cache
def backbone() -> Path:
    """The folder of an untrained `tiny`; one for the whole test process."""
    from harness.miniworld.architecture import build_untrained

    out = Path(tempfile.mkdtemp(prefix="sievebench-train-")) / "tiny"
    build_untrained("tiny", out, seed=3)
    return out


@functools.cache
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(backbone())


@functools.cache
def geometry() -> Any:
    import json

    from llava_train.tiles import Geometry

    return Geometry.from_config(json.loads((backbone() / "config.json").read_text()))


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed + 1000 * height + width)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def item(question: str, answer: str, sizes: Sequence[tuple[int, int]] = (), weight: float = 1.0) -> Any:
    """A sample on its way into a pack, with noise for pictures."""
    from llava_train.chat import encode
    from llava_train.packs import Item
    from llava_train.tiles import cut_sample, image_tokens

    asked = "<image>" * len(sizes) + ("\n" if sizes else "") + question
    encoded = encode(tokenizer(), [("human", asked), ("gpt", answer)], image_tokens(sizes, geometry()))
    images = cut_sample([picture(h, w) for h, w in sizes], geometry())
    return Item(ids=encoded.ids, targets=encoded.sft_mask, images=images, sizes=sizes, weight=weight)


def packed(items: Sequence[Any]) -> Any:
    from llava_train.chat import specials
    from llava_train.packs import collate
    from llava_train.tiles import blank

    return collate(items, specials(tokenizer()).image, blank(geometry()))
