"""The e5v pass: a multimodal language model's one-word summaries of a sample's image and of its text, as
embeddings (E5-V, arXiv 2407.12580), and their cosine.

The model is asked to sum up the image in one word, and on its own the text; the state in which it would begin
to answer is the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from harness.api import FeaturePass, Pool, Record
from harness.errors import HarnessError
from harness.pool import IMAGE_TOKEN
from harness.types import OMIT_DEFAULT
from llava_train.tiles import VIEWS
from selector_zoo.passes.clip import first_turn
from selector_zoo.passes.forward import DECODERS, ahead
from selector_zoo.passes.forward_samples import Reasons

Columns = dict[str, npt.NDArray[Any]]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

SENTENCE: Final = "<sent>"
"""Where the text goes in the prompt for texts."""
BATCH: Final = 16


@dataclass(frozen=True, slots=True)
class E5vConfig:
    """What is asked, about which text, and what is kept of the answers."""

    image_prompt: str
    """The whole prompt in the chat format of the model, with one `<image>`."""
    text_prompt: str
    """The same with `<sent>` where the text goes."""
    text: str = "qa"
    """First turn's question and answer (`qa`), `q`, or `a`."""
    text_tokens: int = 512
    """Longer texts are cut."""
    joint: bool = False
    """Also column `joint`: the two embeddings added up and scaled to length one."""
    dtype: str = "auto"
    """`float32`, `bfloat16`, `float16`, or what config.json says (`auto`). Embeddings are scaled in float32."""
    views: str = field(default="checkpoint", metadata=OMIT_DEFAULT)
    """How much of a picture is seen: the tiles the model's configuration says (`checkpoint`), or a `single` base
    view, a fraction of the tokens."""

    def __post_init__(self) -> None:
        allowed = {
            "text": ("qa", "q", "a"),
            "dtype": ("auto", "float32", "bfloat16", "float16"),
            "views": VIEWS,
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise HarnessError(f"e5v: {name}={getattr(self, name)} is none of {', '.join(values)}.")
        if self.text_tokens < 1:
            raise HarnessError(f"e5v: text_tokens={self.text_tokens} must be at least 1.")
        for name, slot in (("image_prompt", IMAGE_TOKEN), ("text_prompt", SENTENCE)):
            if getattr(self, name).count(slot) != 1:
                raise HarnessError(f"e5v: {name} must have {slot} exactly once.")


class E5vPass(FeaturePass):
    """Embeds the first image and the first turn of every sample with a LLaVA-NeXT or a LLaVA-OneVision."""

    name = "e5v"
    version = 2
    Config = E5vConfig
    batch = BATCH
    """Images or texts that go through the model together; changes nothing but speed and memory."""

    def open(self) -> None:
        """Load the model.

        Raises HarnessError for a model of another kind, and for prompts in another chat format.
        """
        from selector_zoo.passes.e5v_model import load_embedder

        c: E5vConfig = self.config
        self._embedder = load_embedder(Path(self.context.model_path), c.dtype, self.context.device, c.views)
        self._embedder.accept((c.image_prompt, c.text_prompt))

    def run(self, pool: Pool, start: int, stop: int) -> tuple[Columns, list[str]]:
        """Column `cosine` (float32, in [-1, 1]), and `joint` (float16, (n, width), length one) on request.

        Text-only samples and unreadable images have NaN, and a reason.
        """
        records = [pool.record(i) for i in range(start, stop)]
        text = self._texts(records)
        area = pool.column("height")[start:stop].astype(np.int64) * pool.column("width")[start:stop]
        image, reasons = self._images(pool, records, area)
        cosine = (image * text).sum(axis=1)
        for row in np.flatnonzero(np.isnan(cosine)):
            reasons.setdefault(int(row), "not_finite")
        columns: Columns = {"cosine": cosine.astype(np.float32)}
        if self.config.joint:
            both = image + text
            columns["joint"] = (both / np.linalg.norm(both, axis=1, keepdims=True)).astype(np.float16)
        return columns, [reasons.get(row, "") for row in range(len(records))]

    def _texts(self, records: Sequence[Record]) -> Floats:
        """Embedding of each record's text, (n, width)."""
        c: E5vConfig = self.config
        texts = [self._embedder.shortened(first_turn(r, c.text), c.text_tokens) for r in records]
        found = np.empty((len(records), self._embedder.width), dtype=np.float32)
        for rows in self._batches(np.array([len(text) for text in texts])):
            found[rows] = self._embedder.texts([c.text_prompt.replace(SENTENCE, texts[i]) for i in rows])
        return found

    def _images(self, pool: Pool, records: Sequence[Record], area: Ints) -> tuple[Floats, Reasons]:
        """Embedding of each record's first image, (n, width), NaN where there is none, and failures by row."""
        reasons: Reasons = {row: "no_image" for row, record in enumerate(records) if not record.images}
        rows = [row for row in range(len(records)) if row not in reasons]
        found = np.full((len(records), self._embedder.width), np.nan, dtype=np.float32)

        def decode(batch: list[int]) -> tuple[dict[int, Any], Reasons]:
            return decoded(pool, {row: records[row].images[0] for row in batch})

        workers = 1 if self.context.device == "cpu" else DECODERS
        batches = ([rows[i] for i in batch] for batch in self._batches(area[rows]))
        for pictures, failed in ahead(decode, batches, workers):
            reasons |= failed
            if pictures:
                embedded = self._embedder.images(list(pictures.values()), self.config.image_prompt)
                found[list(pictures)] = embedded
        return found, reasons

    def _batches(self, sizes: Ints) -> Iterator[list[int]]:
        """Indices in batches of similar size, the largest first."""
        order = np.argsort(-sizes, kind="stable").tolist()
        for at in range(0, len(order), self.batch):
            yield order[at : at + self.batch]


def decoded(pool: Pool, keys: dict[int, str]) -> tuple[dict[int, Any], Reasons]:
    """Images and failures by row."""
    pictures: dict[int, Any] = {}
    reasons: Reasons = {}
    for row, key in keys.items():
        try:
            pictures[row] = pool.image(key)
        except (OSError, KeyError, ValueError) as e:
            reasons[row] = f"unreadable_image: {e}"
    return pictures, reasons
