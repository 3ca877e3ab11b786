"""The activations pass: what attention adds to the residual stream, averaged over a sample's image and its
text (the features of COINCIDE, arXiv 2406.10995).

For each of some decoder blocks the outputs of the attention's output projection, before they are added to the
residual, are averaged over the image's tokens and over the text that follows it, put through tanh and scaled
to length one; all of them together are scaled to length one again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.api import FeaturePass, Pool
from harness.errors import HarnessError
from harness.types import TrainSpec

Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class ActivationsConfig:
    """Which blocks are read, and how a sample is shown."""

    layers: tuple[int, ...] = ()
    """Decoder blocks, from 0; empty: five at equal distances, 3, 7, 11, 15, 19 of 24."""
    view: str = "square"
    """One view of each image, padded to a square (`square`), or the tiles of training (`tiles`)."""
    max_length: int = 12000
    """Tokens of a sample after image expansion; longer ones lose text from the right."""
    dtype: str = "auto"
    """`float32`, `bfloat16`, or what config.json says (`auto`; 16 bits as bfloat16). Means are float32."""

    def __post_init__(self) -> None:
        allowed = {"view": ("square", "tiles"), "dtype": ("auto", "float32", "bfloat16")}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise HarnessError(f"activations: {name}={getattr(self, name)} is none of {', '.join(values)}.")
        if self.max_length < 1:
            raise HarnessError(f"activations: max_length={self.max_length} must be at least 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Positions [start, stop) of a pool on their way to a model."""

    pool: Pool
    start: int
    stop: int
    config: ActivationsConfig
    limits: TrainSpec


class ActivationsPass(FeaturePass):
    """Runs the lower part of a LLaVA-OneVision, or of a LLaVA such as TinyLLaVA, over every sample."""

    name = "activations"
    version = 1
    Config = ActivationsConfig
    limits = TrainSpec()
    """`pack_tokens` and `pack_tiles` of one forward; they change nothing but speed and memory."""

    @staticmethod
    def shows(config: Mapping[str, Any]) -> str:
        """All tiles, or one view."""
        return "checkpoint" if config.get("view", "square") == "tiles" else "single"

    def open(self) -> None:
        """Load the model up to the last block that is read, its tokenizer and how it sees images."""
        from selector_zoo.passes.activations_llava import load_reader

        self._reader = load_reader(Path(self.context.model_path), self.config, self.context.device)

    def run(self, pool: Pool, start: int, stop: int) -> tuple[Columns, list[str]]:
        """Columns for positions [start, stop).

        `feature` (float16, (n, 2 * layers * width)): the image halves of all layers, then their text halves; of
        length one, or shorter where a sample has no image (zeros) or its text was cut away. `n_image` and
        `n_text` (int32): how many tokens were averaged.
        """
        shard = Shard(pool=pool, start=start, stop=stop, config=self.config, limits=self.limits)
        columns, reasons = self._empty(stop - start), [""] * (stop - start)
        for row, read in self._reader.rows(shard):
            if isinstance(read, str):
                reasons[row] = read
            elif not np.isfinite(read.feature).all():
                reasons[row] = "not_finite"
            else:
                columns["feature"][row] = read.feature
                columns["n_image"][row], columns["n_text"][row] = read.n_image, read.n_text
        return columns, reasons

    def _empty(self, n: int) -> Columns:
        """Columns in which nothing has been measured."""
        columns: Columns = {name: np.full(n, -1, dtype=np.int32) for name in ("n_image", "n_text")}
        return columns | {"feature": np.full((n, self._reader.width), np.nan, dtype=np.float16)}
