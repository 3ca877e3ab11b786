"""The deita pass: what scorers say of every turn, or one text embedding of every conversation.

Deita (Liu et al. 2024, arXiv 2312.15685): a scorer of Llama type is asked for a grade and read before it answers,
as the mean of the digits 1 to 6 under the softmax of their logits. Prompts are data and stand in the configuration
as the texts they are (`selector_zoo.prompts`). A text scorer sees no pictures; a LLaVA-OneVision in its place is
a judge that is asked in its own chat layout and does (`deita_judge`).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.api import FeaturePass, Pool
from harness.errors import HarnessError
from harness.pool import IMAGE_TOKEN
from harness.types import OMIT_DEFAULT
from llava_train.tiles import VIEWS
from selector_zoo.prompts import fill

if TYPE_CHECKING:
    from selector_zoo.passes.deita_judge import Judge
    from selector_zoo.passes.deita_model import Reader

Columns = dict[str, npt.NDArray[Any]]
Turn = tuple[str, str]
Place = tuple[int, int]
"""Where a prompt belongs: row of the shard, and turn of the sample."""
PARTS = ("complexity", "quality", "embedding")
FLOAT16_MAX = 65504.0


@dataclass(frozen=True, slots=True)
class DeitaConfig:
    """What is read off the model, and how text is put to it."""

    part: str = "complexity"
    """`complexity` grades every question, `quality` every answer to it; `embedding` is of the conversation."""
    template: str = ""
    """Words put to the model, with `{instruction}` and `{output}` where a turn's question and answer go; for an
    embedding, how one turn is written."""
    system: str = ""
    """For an embedding: what stands before the turns, with a space between."""
    max_length: int = 2048
    """Tokens of a prompt, those of pictures not counted. A longer one loses the end of its text; what follows the
    text in the template stays."""
    views: str = field(default="checkpoint", metadata=OMIT_DEFAULT)
    """How much of a picture a judge sees: the tiles its configuration says (`checkpoint`), or its `single` base
    view."""

    def __post_init__(self) -> None:
        for name, values in (("part", PARTS), ("views", VIEWS)):
            if getattr(self, name) not in values:
                raise HarnessError(f"deita: {name}={getattr(self, name)} is none of {', '.join(values)}.")
        slots = ["{instruction}"] if self.part == "complexity" else ["{instruction}", "{output}"]
        missing = [slot for slot in slots if slot not in self.template]
        if missing:
            raise HarnessError(f"deita: the template for {self.part} lacks {missing[0]}; give a prompt pack's.")


class DeitaPass(FeaturePass):
    """Runs a causal language model, or as a judge a LLaVA-OneVision, over questions, answers or conversations."""

    name = "deita"
    version = 2
    Config = DeitaConfig
    tokens_at_once = 16384
    """Tokens of one batch of texts, padding included; changes nothing but speed and memory."""
    _reader: Reader
    _judge: Judge | None = None

    def open(self) -> None:
        """Load the model and its tokenizer.

        Raises HarnessError where its tokenizer does not write the digits 1 to 6 as a token each.
        """
        folder, device = self.context.model_path, self.context.device
        grades = self.config.part != "embedding"
        if grades and is_onevision(Path(folder)):
            from selector_zoo.passes.deita_judge import Judge

            self._judge = Judge.load(Path(folder), device, self.config.views)
        else:
            from selector_zoo.passes.deita_model import Reader

            self._reader = Reader.load(folder, device, grades=grades)

    def run(self, pool: Pool, start: int, stop: int) -> tuple[Columns, list[str]]:
        """Columns for positions [start, stop).

        Grades: `turns`, float32 from 1 to 6 of shape (n, turns of the pool's longest conversation), NaN where a
        sample has fewer, or a judge cannot see its pictures. An embedding: `hidden`, float16 (n, d), the state
        after the last norm at the last token.
        """
        prompts = {
            (row, turn): prompt
            for row in range(stop - start)
            for turn, prompt in enumerate(self._prompts(turns_of(pool, start + row)))
        }
        if self._judge:
            read, failed = self._judge(pool, start, prompts, self.config.max_length)
        else:
            read, failed = self._read(prompts), {}
        reasons = [failed.get(row) or self._complaint(read[row]) for row in range(stop - start)]
        if self.config.part == "embedding":
            hidden = np.stack([np.asarray(read[row][0]) for row in range(stop - start)])
            lost = ~np.isfinite(hidden).all(axis=1)
            hidden = hidden.clip(-FLOAT16_MAX, FLOAT16_MAX).astype(np.float16)
            hidden[lost] = np.nan
            return {"hidden": hidden}, reasons
        grades = np.full((stop - start, int(pool.column("n_turns").max()) // 2), np.nan, dtype=np.float32)
        for row, said in read.items():
            grades[row, : len(said)] = said
        return {"turns": grades}, reasons

    def _prompts(self, turns: Sequence[Turn]) -> list[Prompt]:
        """What is put to the model for one sample: a prompt a turn, or one for all."""
        template = self.config.template
        if self.config.part == "embedding":
            said = [fill(template, instruction=q, output=a) for q, a in turns]
            return [Prompt(text=" ".join(filter(None, (self.config.system, "".join(said)))), tail=0)]
        last = max(template.rfind("{instruction}"), template.rfind("{output}"))
        tail = len(template) - template.index("}", last) - 1
        return [Prompt(text=fill(template, instruction=q, output=a), tail=tail) for q, a in turns]

    def _read(self, prompts: dict[Place, Prompt]) -> dict[int, list[Any]]:
        """What the model says to each prompt, by row in the order of turns; the longest prompts go first."""
        places = list(prompts)
        ids = self._reader.encode([prompts[p] for p in places], self.config.max_length)
        longest = sorted(range(len(places)), key=lambda i: -len(ids[i]))
        said: dict[int, Any] = {}
        while longest:
            size = max(1, self.tokens_at_once // len(ids[longest[0]]))
            batch, longest = longest[:size], longest[size:]
            said |= dict(zip(batch, self._reader([ids[i] for i in batch]), strict=True))
        rows: dict[int, list[Any]] = defaultdict(list)
        for i, (row, _) in enumerate(places):
            rows[row].append(said[i])
        return rows

    @staticmethod
    def _complaint(said: list[Any]) -> str:
        return "" if all(np.isfinite(one).all() for one in said) else "not_finite"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A text for the model, and how many of its last characters must survive when it is cut."""

    text: str
    tail: int


def is_onevision(folder: Path) -> bool:
    """Whether a model folder is that of a LLaVA-OneVision, which sees pictures."""
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return bool(described.get("model_type") == "llava_onevision")


def turns_of(pool: Pool, position: int) -> list[Turn]:
    """Questions and answers of a sample, the questions without image placeholders."""
    said = [text for _, text in pool.record(position).conversations]
    return [(without_image(q), a) for q, a in zip(said[::2], said[1::2], strict=True)]


def without_image(text: str) -> str:
    """A text without its image placeholders and the newlines next to them, but for one where one stood inside."""
    return re.sub(rf"\n*{IMAGE_TOKEN}\n*", "\n", text).strip("\n") if IMAGE_TOKEN in text else text
