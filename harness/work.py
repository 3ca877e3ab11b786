"""How much work a stage is, before anything has run: operations as weights times tokens.

Two operations per weight and token make a forward, six a forward and a backward (the usual count for transformers,
Kaplan et al. 2020, section 2.1); attention and the different weights of towers are left out. Such figures are good
to a factor of two or three where a model is large, and far too small where loading and decoding take the time.
"""

from __future__ import annotations

import functools
import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np

from harness.pool import Pool, open_pool
from harness.provenance import gpu_names
from llava_train.cost import PEAK_FLOPS
from llava_train.tiles import Geometry, tokens_of

TRAINING: Final = 6.0
"""Operations per weight and token of a training step."""
FORWARD: Final = 2.0
TOKENS_PER_WORD: Final = 1.4
CPU_RATE: Final = 50e9
"""Operations a second of one thread."""
SMALL: Final = 2e9
"""Weights up to which a model reaches but a fifth of a device's peak."""
_SAMPLED: Final = 256
"""Samples whose images stand for a pool's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Samples, the tokens a model sees of them, and the operations that takes."""

    samples: float
    tokens: float
    flops: float
    weights: int


def model_work(
    pool_path: str, model: Path, samples: float, per_token: float, added: float = 0, views: str = "checkpoint"
) -> Work | None:
    """Work of a model on some samples like those of a pool; None where the model's weights cannot be counted.

    `per_token` is the number of operations per weight and token, `added` the tokens a sample has besides its own,
    `views` how much of a picture is seen, as in `Geometry`.
    """
    weights = count_weights(model)
    if not weights:
        return None
    tokens = samples * (mean_tokens(pool_path, model, views) + added)
    return Work(samples=samples, tokens=tokens, flops=per_token * weights * tokens, weights=weights)


@functools.lru_cache(maxsize=64)
def count_weights(folder: Path) -> int:
    """Numbers in the headers of a folder's safetensors files, or by the size of its .bin files; 0 without any."""
    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as f:
            (size,) = struct.unpack("<Q", f.read(8))
            header = json.loads(f.read(size))
        total += sum(prod(t["shape"]) for name, t in header.items() if name != "__metadata__")
    return total or sum(file.stat().st_size for file in folder.glob("*.bin")) // _bytes_a_number(folder)


def _bytes_a_number(folder: Path) -> int:
    """Of a checkpoint whose files do not say it themselves, as its configuration has it."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    return 4 if (config.get("dtype") or config.get("torch_dtype") or "float32") == "float32" else 2


@functools.lru_cache(maxsize=64)
def mean_tokens(pool_path: str, model: Path, views: str = "checkpoint") -> float:
    """Tokens of a mean sample of a pool: its words, and its images as the model's configuration cuts them."""
    pool = open_pool(pool_path)
    words = float(np.mean(pool.column("n_words")))
    return TOKENS_PER_WORD * words + _image_tokens(pool, json.loads((model / "config.json").read_text()), views)


def _image_tokens(pool: Pool, config: dict[str, Any], views: str) -> float:
    """Visual tokens of a mean sample; its first image stands for all."""
    some = np.linspace(0, pool.n - 1, min(pool.n, _SAMPLED)).astype(int)
    count, height, width = (pool.column(name)[some] for name in ("n_images", "height", "width"))
    if "image_grid_pinpoints" in config:
        geometry = Geometry.from_config(config, views)
        seen = [
            tokens_of(int(h), int(w), geometry) if n else 0 for n, h, w in zip(count, height, width, strict=True)
        ]
        return float(np.mean(np.asarray(seen) * count))
    vision = config.get("vision_config") or {}
    side = vision.get("image_size", 0) // vision.get("patch_size", 1)
    return float(side**2 * np.mean(count))


def nominal_rate(weights: int, *, gpu: bool, threads: int = 1, training: bool = False) -> float | None:
    """Operations a second that a model of that size may reach; None on a GPU whose peak is not known.

    Of a GPU's peak 40 % in forwards of large models, 20 % in those of small ones, and 25 % in training.
    """
    if not gpu:
        return CPU_RATE * threads
    name = " ".join(gpu_names()).lower()
    peak = next((flops for kind, flops in PEAK_FLOPS.items() if kind in name), None)
    share = 0.25 if training else 0.2 if weights <= SMALL else 0.4
    return None if peak is None else share * peak
