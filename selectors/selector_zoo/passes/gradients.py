"""The gradients pass: how each sample would move a model, projected at random to a few thousand numbers.

The gradient of a sample's mean loss by the adapters its model was trained with (or, for a model without adapters,
by the weights they would change), for the selectors that compare gradients: ICONS (arXiv 2501.00654), LESS (arXiv
2402.04333), TIVE (arXiv 2403.09559), GraNd.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.api import FeaturePass, Pool
from harness.errors import HarnessError
from harness.types import OMIT_DEFAULT, TrainSpec
from llava_train.pool_index import PoolIndex, Text
from llava_train.tiles import VIEWS
from selector_zoo.passes.forward import DECODERS, ahead, stored_dtype
from selector_zoo.passes.forward_samples import Reasons, Sample, read_samples, truncated_rows

if TYPE_CHECKING:
    from llava_train.packs import Item

Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class GradientsConfig:
    """Whose gradients, of which loss, in how many numbers."""

    parameters: str = "attention"
    """Maps of the language model: the four of `attention`, or all `linear` ones; of these, those with adapters."""
    form: str = "sgd"
    """The gradient itself (`sgd`), or Adam's step: `adam` as LESS releases it, `adam_paper` as it is written."""
    width: int = 5120
    """Numbers kept of a gradient, a multiple of 64; 0 keeps it whole, for small models."""
    seed: int = 0
    """Of the projection."""
    mask: str = "ans"
    """Tokens of the loss: answers with their closing markers (`ans`), or all that training supervises (`sft`)."""
    max_length: int = 12000
    """Tokens of a sample after image expansion; longer ones lose text from the right, as in training."""
    dtype: str = "auto"
    """`float32`, `bfloat16`, or what config.json says (`auto`; 16 bits as bfloat16). Sums are float32."""
    views: str = field(default="checkpoint", metadata=OMIT_DEFAULT)
    """As in the forward pass: the tiles of training (`checkpoint`), or a `single` base view."""

    def __post_init__(self) -> None:
        allowed = {
            "parameters": ("attention", "linear"),
            "form": ("sgd", "adam", "adam_paper"),
            "mask": ("ans", "sft"),
            "dtype": ("auto", "float32", "bfloat16"),
            "views": VIEWS,
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise HarnessError(f"gradients: {name}={getattr(self, name)} is none of {', '.join(values)}.")
        if self.width < 0 or self.width % 64:
            raise HarnessError(f"gradients: width={self.width} must be a multiple of 64, or 0.")
        if self.max_length < 1:
            raise HarnessError(f"gradients: max_length={self.max_length} must be at least 1.")


class GradientsPass(FeaturePass):
    """Runs a LLaVA-OneVision forward and backward over every sample, in packs and therefore without padding."""

    name = "gradients"
    version = 2
    Config = GradientsConfig
    work = 6.0
    limits = TrainSpec()
    """`pack_tokens` and `pack_tiles` of one backward; they change nothing but speed and memory."""

    def open(self) -> None:
        """Load the model, its adapters, its tokenizer and its image geometry."""
        from selector_zoo.passes.gradients_model import Differentiator, Kind

        config: GradientsConfig = self.config
        folder, adapter = Path(self.context.model_path), self.context.adapter_path
        self._taker = Differentiator.load(
            folder,
            Path(adapter) if adapter else None,
            stored_dtype(folder) if config.dtype == "auto" else config.dtype,
            self.context.device,
            Kind(parameters=config.parameters, form=config.form, width=config.width, seed=config.seed),
            config.views,
        )

    def run(self, pool: Pool, start: int, stop: int) -> tuple[Columns, list[str]]:
        """Columns for positions [start, stop).

        `gradient` (float16, (n, width); float32 where it is whole): of length one. `norm` and `norm_projected`
        (float32): its lengths before and after projection. All NaN for samples without answer tokens, or with a
        gradient that is zero or not finite. `truncated` (bool) says that text was cut off, whatever else failed.
        """
        index = PoolIndex(
            pool=pool,
            tokenizer=self._taker.tokenizer,
            geometry=self._taker.geometry,
            max_length=self.config.max_length,
            mask="answer" if self.config.mask == "ans" else "llava",
        )
        samples, reasons = read_samples(index, start, stop)
        texts, without = supervised(samples)
        reasons |= without
        columns = self._empty(stop - start) | {"truncated": truncated_rows(samples, stop - start)}
        workers = 1 if self.context.device == "cpu" else DECODERS
        for items, failed in ahead(lambda rows: build(index, texts, rows), self._packs(texts), workers):
            reasons |= failed
            reasons |= self._fill(columns, items)
        return columns, [reasons.get(row, "") for row in range(stop - start)]

    def _fill(self, columns: Columns, items: Mapping[int, Item]) -> Reasons:
        """Put the gradients of some rows into their places; returns what is wrong with which."""
        if not items:
            return {}
        reasons: Reasons = {}
        found = self._taker(list(items.values()))
        lengths = found.rows.double().norm(dim=1)
        for i, row in enumerate(items):
            norm, length = float(found.norms[i]), float(lengths[i])
            if norm > 0 and length > 0 and np.isfinite(norm) and np.isfinite(length):
                columns["gradient"][row] = (found.rows[i] / length).numpy()
                columns["norm"][row], columns["norm_projected"][row] = norm, length
            else:
                reasons[row] = "zero_gradient" if norm == 0 else "not_finite"
        return reasons

    def _packs(self, texts: Mapping[int, Text]) -> list[list[int]]:
        """Rows that go through the model together: the longest first, as many as the limits allow."""
        from llava_train.plan import pack

        rows = list(texts)
        tokens = np.array([len(texts[row].ids) for row in rows], dtype=np.int64)
        tiles = np.array([texts[row].tiles for row in rows], dtype=np.int64)
        return [[rows[i] for i in members] for members in pack(range(len(rows)), tokens, tiles, self.limits)]

    def _empty(self, n: int) -> Columns:
        """Columns in which nothing has been measured."""
        stored = np.float16 if self.config.width else np.float32
        columns: Columns = {name: np.full(n, np.nan, dtype=np.float32) for name in ("norm", "norm_projected")}
        return columns | {"gradient": np.full((n, self._taker.projection.width), np.nan, dtype=stored)}


def supervised(samples: Mapping[int, Sample]) -> tuple[dict[int, Text], Reasons]:
    """The samples that have something to predict, and a reason for each other, by row."""
    texts = {row: sample.text for row, sample in samples.items() if sample.text.supervised}
    return texts, {row: "no_answer_tokens" for row in samples if row not in texts}


def build(index: PoolIndex, texts: Mapping[int, Text], rows: list[int]) -> tuple[dict[int, Item], Reasons]:
    """Decode the images of some rows; what goes into the model, each with the mean of its losses, and failures."""
    from llava_train.packs import Item

    items: dict[int, Item] = {}
    reasons: Reasons = {}
    for row in rows:
        text = texts[row]
        try:
            images = index.pixels(text)
        except HarnessError as e:
            reasons[row] = f"unusable_image: {e}"
        else:
            items[row] = Item(
                ids=text.ids,
                targets=text.targets,
                images=images,
                sizes=text.sizes,
                weight=1 / text.supervised,
            )
    return items, reasons
