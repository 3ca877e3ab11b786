"""The forward pass: how likely a model finds each answer, teacher-forced, on the tokens training would see.

One forward serves perplexity, EL2N and the conditional half of IFD; on request also what DataTailor and Deita read
off the hidden states.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from harness.api import FeaturePass, Pool
from harness.errors import HarnessError
from harness.types import OMIT_DEFAULT, TrainSpec
from llava_train.pool_index import PoolIndex
from llava_train.tiles import VIEWS
from selector_zoo.passes.forward_samples import Reasons, Sample, complaint, read_samples, summary, truncated_rows

if TYPE_CHECKING:
    from llava_train.packs import Item

Columns = dict[str, npt.NDArray[Any]]
Given = TypeVar("Given")
Made = TypeVar("Made")

DECODERS = 8
"""Threads that decode images for an accelerator; on a CPU it is one, so that the model keeps the cores."""


@dataclass(frozen=True, slots=True)
class ForwardConfig:
    """How samples are cut, and what is kept besides the statistics of tokens."""

    max_length: int = 12000
    """Tokens of a sample after image expansion; longer ones lose text from the right, as in training."""
    dtype: str = "auto"
    """`float32`, `bfloat16`, or what config.json says (`auto`; 16 bits as bfloat16). Statistics are float32."""
    spectrum: bool = False
    """Also columns `sve` and `tau`: entropy, and largest share, of the singular values of the token states."""
    hidden: str = "none"
    """Also column `hidden`: the state at the last end-of-turn marker, `pre_norm` or `post_norm`."""
    views: str = field(default="checkpoint", metadata=OMIT_DEFAULT)
    """How much of a picture is seen: the tiles the model's configuration says (`checkpoint`, as in training), or a
    `single` base view, about a quarter of the work; pictures that share a sample are one view each anyhow."""

    def __post_init__(self) -> None:
        allowed = {
            "dtype": ("auto", "float32", "bfloat16"),
            "hidden": ("none", "pre_norm", "post_norm"),
            "views": VIEWS,
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise HarnessError(f"forward: {name}={getattr(self, name)} is none of {', '.join(values)}.")
        if self.max_length < 1:
            raise HarnessError(f"forward: max_length={self.max_length} must be at least 1.")


class ForwardPass(FeaturePass):
    """Runs a LLaVA-OneVision over every sample, in packs and therefore without padding."""

    name = "forward"
    version = 2
    Config = ForwardConfig
    limits = TrainSpec()
    """`pack_tokens` and `pack_tiles` of one forward; they change nothing but speed and memory."""

    def open(self) -> None:
        """Load the model, its tokenizer and its image geometry."""
        from selector_zoo.passes.forward_model import Scorer

        folder = Path(self.context.model_path)
        config: ForwardConfig = self.config
        self._scorer = Scorer.load(
            folder,
            stored_dtype(folder) if config.dtype == "auto" else config.dtype,
            self.context.device,
            spectrum=config.spectrum,
            hidden=config.hidden,
            views=config.views,
        )

    def run(self, pool: Pool, start: int, stop: int) -> tuple[Columns, list[str]]:
        """Columns for positions [start, stop), in nats where they are likelihoods or entropies.

        For both masks (`ans`: what the assistant says and its closing markers, `sft`: all that training
        supervises) `nll_sum_*`, `el2n_mean_*`, `ent_mean_*` (float32, NaN without such tokens) and `n_tok_*`
        (int32). `turn_nll` and `turn_ntok` are sums over the content of each answer without its closing marker,
        of shape (n, answers of the pool's longest conversation), NaN and 0 where a sample has fewer. `length` is
        in tokens, after cutting; `truncated` (bool) says that text was cut off, whatever else failed.
        """
        index = PoolIndex(
            pool=pool,
            tokenizer=self._scorer.tokenizer,
            geometry=self._scorer.geometry,
            max_length=self.config.max_length,
        )
        rounds = int(pool.column("n_turns").max()) // 2
        samples, reasons = read_samples(index, start, stop)
        columns = self._empty(stop - start, rounds)
        columns["truncated"] = truncated_rows(samples, stop - start)
        workers = 1 if self.context.device == "cpu" else DECODERS
        for items, failed in ahead(lambda rows: build(index, samples, rows), self._packs(samples), workers):
            reasons |= failed
            for row, scored in zip(items, self._scorer(list(items.values())), strict=True):
                told = summary(samples[row], scored.tokens, rounds) | scored.states
                reasons[row] = complaint(told)
                if reasons[row] == "not_finite":
                    continue  # an infinite loss would rank before all others
                for name, value in told.items():
                    columns[name][row] = value
        return columns, [reasons[row] for row in range(stop - start)]

    def _packs(self, samples: Mapping[int, Sample]) -> list[list[int]]:
        return packs(samples, self.limits)

    def _empty(self, n: int, rounds: int) -> Columns:
        """Columns in which nothing has been measured."""
        counts = ["n_tok_ans", "n_tok_sft", "length"]
        numbers = [f"{name}_{mask}" for mask in ("ans", "sft") for name in ("nll_sum", "el2n_mean", "ent_mean")]
        numbers += ["sve", "tau"] if self.config.spectrum else []
        columns: Columns = {name: np.full(n, -1, dtype=np.int32) for name in counts}
        columns |= {name: np.full(n, np.nan, dtype=np.float32) for name in numbers}
        columns["turn_ntok"] = np.full((n, rounds), -1, dtype=np.int32)
        columns["turn_nll"] = np.full((n, rounds), np.nan, dtype=np.float32)
        if self.config.hidden != "none":
            columns["hidden"] = np.full((n, self._scorer.width), np.nan, dtype=np.float16)
        return columns


def stored_dtype(folder: Path) -> str:
    """The dtype a model folder's config.json names, 16 bits always as bfloat16; float32 where it names none."""
    described = json.loads((folder / "config.json").read_text())
    stored = described.get("dtype") or described.get("torch_dtype") or "float32"
    return "float32" if stored == "float32" else "bfloat16"


def packs(samples: Mapping[int, Sample], limits: TrainSpec) -> list[list[int]]:
    """Rows that go through a model together: the longest first, as many as the limits allow."""
    from llava_train.plan import pack

    rows = list(samples)
    tokens = np.array([len(samples[row].text.ids) for row in rows], dtype=np.int64)
    tiles = np.array([samples[row].text.tiles for row in rows], dtype=np.int64)
    return [[rows[i] for i in members] for members in pack(range(len(rows)), tokens, tiles, limits)]


def build(index: PoolIndex, samples: Mapping[int, Sample], rows: list[int]) -> tuple[dict[int, Item], Reasons]:
    """Decode the images of some rows; what goes into the model, and failures, by row."""
    from llava_train.packs import Item

    items: dict[int, Item] = {}
    reasons: Reasons = {}
    for row in rows:
        text = samples[row].text
        try:
            images = index.pixels(text)
        except HarnessError as e:
            reasons[row] = f"unusable_image: {e}"
        else:
            items[row] = Item(ids=text.ids, targets=text.targets, images=images, sizes=text.sizes)
    return items, reasons


def ahead(make: Callable[[Given], Made], given: Iterable[Given], workers: int) -> Iterator[Made]:
    """`map` in background threads, in order, never more than `workers` + 1 results ahead of who takes them."""
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as threads:
        for one in given:
            waiting.append(threads.submit(make, one))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
