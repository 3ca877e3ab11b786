"""The answer_only pass: how likely a model finds each answer when it sees neither question nor picture.

What IFD (Li et al. 2023, arXiv 2308.12032) divides by: every answer alone after the assistant's header, without a
system message. The tokens are those the forward pass reads, its cut to `max_length` included, so that both passes
sum over the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.api import FeaturePass, Pool
from harness.errors import HarnessError
from harness.types import OMIT_DEFAULT, TrainSpec
from llava_train.pool_index import PoolIndex
from llava_train.tiles import VIEWS
from selector_zoo.passes.forward import stored_dtype
from selector_zoo.passes.forward_samples import Sample, read_samples, truncated_rows

if TYPE_CHECKING:
    from llava_train.packs import Item

Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class AnswerOnlyConfig:
    """How samples are cut before their answers are taken out."""

    max_length: int = 12000
    """Tokens of the whole sample after image expansion, as in the forward pass."""
    dtype: str = "auto"
    """`float32`, `bfloat16`, or what config.json says (`auto`; 16 bits as bfloat16). Statistics are float32."""
    views: str = field(default="checkpoint", metadata=OMIT_DEFAULT)
    """As in the forward pass, `checkpoint` or `single`: tokens of pictures count towards `max_length`."""

    def __post_init__(self) -> None:
        allowed = {"dtype": ("auto", "float32", "bfloat16"), "views": VIEWS}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise HarnessError(f"answer_only: {name}={getattr(self, name)} is none of {', '.join(values)}.")
        if self.max_length < 1:
            raise HarnessError(f"answer_only: max_length={self.max_length} must be at least 1.")


class AnswerOnlyPass(FeaturePass):
    """Runs a LLaVA-OneVision over every answer by itself."""

    name = "answer_only"
    version = 2
    Config = AnswerOnlyConfig
    limits = TrainSpec()
    """`pack_tokens` of one forward; it changes nothing but speed and memory."""

    def open(self) -> None:
        """Load the model, its tokenizer and its image geometry."""
        from llava_train.chat import specials
        from selector_zoo.passes.forward_model import Scorer

        folder, config = Path(self.context.model_path), self.config
        dtype = stored_dtype(folder) if config.dtype == "auto" else config.dtype
        self._scorer = Scorer.load(
            folder, dtype, self.context.device, spectrum=False, hidden="none", views=config.views
        )
        tokenizer = self._scorer.tokenizer
        role = tokenizer("assistant\n", add_special_tokens=False).input_ids
        self._header = np.array([specials(tokenizer).start, *role], dtype=np.int32)

    def run(self, pool: Pool, start: int, stop: int) -> tuple[Columns, list[str]]:
        """Columns for positions [start, stop).

        `turn_nll` (float32, nats) and `turn_ntok` (int32): sums over the content of each answer without its
        closing marker, of shape (n, answers of the pool's longest conversation); NaN and 0 where a sample has
        fewer.
        `truncated` (bool) says that text was cut off.
        """
        index = PoolIndex(
            pool=pool,
            tokenizer=self._scorer.tokenizer,
            geometry=self._scorer.geometry,
            max_length=self.config.max_length,
        )
        rounds = int(pool.column("n_turns").max()) // 2
        samples, reasons = read_samples(index, start, stop)
        columns: Columns = {
            "turn_nll": np.full((stop - start, rounds), np.nan, dtype=np.float32),
            "turn_ntok": np.full((stop - start, rounds), -1, dtype=np.int32),
            "truncated": truncated_rows(samples, stop - start),
        }
        items: dict[tuple[int, int], Item] = {}
        for row, sample in samples.items():
            columns["turn_ntok"][row] = 0
            for turn, content in answers(sample).items():
                columns["turn_ntok"][row, turn] = len(content)
                items[row, turn] = self._item(content)
            reasons[row] = "" if columns["turn_ntok"][row].any() else "no_answer_tokens"
        measured = self._measured(items)
        for place, nll in measured:
            columns["turn_nll"][place] = nll
        for row in {row for (row, _), nll in measured if not np.isfinite(nll)}:
            reasons[row] = "not_finite"
            columns["turn_nll"][row], columns["turn_ntok"][row] = np.nan, -1
        return columns, [reasons[row] for row in range(stop - start)]

    def _item(self, content: npt.NDArray[np.int32]) -> Item:
        from llava_train.packs import Item

        ids = np.concatenate([self._header, content])
        return Item(ids=ids, targets=np.arange(len(ids)) >= len(self._header))

    def _measured(self, items: dict[tuple[int, int], Item]) -> list[tuple[tuple[int, int], float]]:
        """The sum of losses of every item, the longest first."""
        from llava_train.plan import pack

        places = list(items)
        lengths = np.array([len(items[p].ids) for p in places], dtype=np.int64)
        found = []
        for members in pack(range(len(places)), lengths, np.zeros_like(lengths), self.limits):
            scored = self._scorer([items[places[i]] for i in members])
            found += [(places[i], float(one.tokens[0].sum())) for i, one in zip(members, scored, strict=True)]
        return found


def answers(sample: Sample) -> dict[int, npt.NDArray[np.int32]]:
    """Content of each answer as tokens, by turn; turns of which nothing is left are not there."""
    turn = sample.turn
    return {int(t): sample.text.ids[turn == t] for t in np.unique(turn[turn >= 0])}
