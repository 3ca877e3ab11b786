"""The mmssr pass: what a trained scorer and styler say of every sample (mmSSR, arXiv 2503.13383).

Fourteen questions about capabilities and one about styles are put to a LLaVA-OneVision; what they share is encoded
once (`mmssr_model`). The questions are data (`selector_zoo.prompts`) and stand in the configuration as the texts
they are, so that a key names words and never a file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.api import FeaturePass, Pool, Record
from harness.errors import HarnessError
from harness.keys import seed64
from harness.types import OMIT_DEFAULT
from selector_zoo.passes.forward import DECODERS, ahead, stored_dtype
from selector_zoo.passes.mmssr_answers import (
    OTHER,
    label_score,
    normal_styles,
    parse_score,
    parse_styles,
    style_row,
)
from selector_zoo.passes.mmssr_questions import Asked, Spelling, ask, message, queries
from selector_zoo.prompts import CAPABILITIES, OWN, STYLES, fill, load_pack

if TYPE_CHECKING:
    from selector_zoo.passes.mmssr_model import Sample

Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class MmssrConfig:
    """What is asked, and how a sample is put to the model; with neither question, both of the pack `own`."""

    score: str = ""
    """The question about a capability, with `{cap_keyword}` where its name goes; empty asks none."""
    styles: str = ""
    """The question about styles; empty asks none."""
    clean: str = "prefix"
    """`prefix` removes a leading "Question:"; `charset` is what the released inference does."""
    image: str = "front"
    """The picture stands in `front` of the text, as in training, or `inline`, as in the released inference."""
    view: str = "tiles"
    """`tiles` cuts pictures as training does; `squash` shows one view, squeezed to a square, as released."""
    max_length: int = 12000
    """Tokens of a prompt; longer ones are not asked."""
    max_new_tokens: int = 64
    """Tokens of an answer."""
    dtype: str = "auto"
    """`float32`, `bfloat16`, or what config.json says (`auto`; 16 bits as bfloat16)."""
    zeros: str = field(default="all", metadata=OMIT_DEFAULT)
    """Which scores of 0 are lessons: `all`, or `some`, no more of a sample than it has others, if it has any."""

    def __post_init__(self) -> None:
        allowed = {
            "view": ("tiles", "squash"),
            "dtype": ("auto", "float32", "bfloat16"),
            "zeros": ("all", "some"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise HarnessError(f"mmssr: {name}={getattr(self, name)} is none of {', '.join(values)}.")
        if not (self.score or self.styles):
            for name, text in asking(OWN).items():
                object.__setattr__(self, name, text)
        if self.score and "{cap_keyword}" not in self.score:
            raise HarnessError("mmssr: the question `score` lacks {cap_keyword}.")
        if min(self.max_length, self.max_new_tokens) < 1:
            raise HarnessError("mmssr: max_length and max_new_tokens must be at least 1.")
        _ = self.spelling

    @property
    def spelling(self) -> Spelling:
        """How conversations are written out."""
        return Spelling(clean=self.clean, image=self.image)


def asking(pack: str, *, scores: bool = True, styles: bool = True, released: bool = False) -> dict[str, Any]:
    """Settings that put a prompt pack's questions: as training here does, or as the released inference does.

    Raises HarnessError for a pack that is not there or lacks a template.
    """
    words = load_pack(pack)
    how = {"clean": "charset", "image": "inline", "view": "squash", "max_new_tokens": 1024} if released else {}
    asked = {
        "score": words.template("score") if scores else "",
        "styles": words.template("styles") if styles else "",
    }
    return {**asked, **how}


class MmssrPass(FeaturePass):
    """Asks a scorer, a styler, or a model that is both."""

    name = "mmssr"
    version = 2
    Config = MmssrConfig
    asks = 300.0  # fourteen questions and one about styles, what they share counted once, and the answers
    tokens_at_once = 16384
    """Tokens of one batch, padding included; changes nothing but speed and memory."""

    @staticmethod
    def shows(config: Mapping[str, Any]) -> str:
        """All tiles, or one view."""
        return "checkpoint" if config.get("view", "tiles") == "tiles" else "single"

    def open(self) -> None:
        """Load the model, its tokenizer and its image geometry."""
        from selector_zoo.passes.mmssr_model import Answerer

        folder, config = Path(self.context.model_path), self.config
        dtype = stored_dtype(folder) if config.dtype == "auto" else config.dtype
        self._answerer = Answerer.load(folder, dtype, self.context.device, config.max_new_tokens)

    def run(self, pool: Pool, start: int, stop: int) -> tuple[Columns, list[str]]:
        """Columns for positions [start, stop).

        Where scores are asked for, `scores` (float32, (n, 14), 0 to 5 in the order of CAPABILITIES, NaN where the
        answer was no such number). Where styles are, `styles` (int8, (n, 10)): numbers of a sample's styles in
        STYLES in the order they were named, 9 for any other, -1 in the places left over.
        """
        records = [pool.record(i) for i in range(start, stop)]
        reasons = [""] * len(records)
        asked: dict[int, Asked] = {}
        for row, record in enumerate(records):
            try:
                asked[row] = self._ask(pool, start + row, record)
            except HarnessError as e:
                reasons[row] = f"bad_conversation: {e}"
                continue
            if asked[row].tokens > self.config.max_length:
                reasons[row] = f"too_long: {asked.pop(row).tokens} tokens"
        columns = self._empty(len(records))
        workers = 1 if self.context.device == "cpu" else DECODERS
        for samples, failed in ahead(partial(self._decode, pool, records, asked), self._batches(asked), workers):
            for row, reason in failed.items():
                reasons[row] = reason
            for row, answers in zip(samples, self._told(list(samples.values())), strict=True):
                reasons[row] = self._keep(columns, row, answers)
        return columns, reasons

    @staticmethod
    def lessons(config: MmssrConfig, record: Record, row: Mapping[str, Any]) -> list[tuple[str, str]]:
        """(user message, answer) of what a label says: a number a capability, and a list of styles.

        `row` has capabilities as keys, and `styles` as a comma-separated text or a list; what it lacks teaches
        nothing. Raises HarnessError for a score that is no whole number from 0 to 5.
        """
        said: list[tuple[str, str]] = []
        scores = known_scores(record, row) if config.score else {}
        for capability in taught(record, scores) if config.zeros == "some" else scores:
            query = fill(config.score, cap_keyword=capability)
            said.append((message(record, query, config.spelling), str(scores[capability])))
        styles = row.get("styles") or ()
        named = parse_styles(styles) if isinstance(styles, str) else normal_styles(styles)
        known = [style for style in named if style in STYLES]
        if config.styles and known:
            said.append((message(record, config.styles, config.spelling), ", ".join(known)))
        return said

    def _told(self, samples: list[Sample]) -> list[list[str]]:
        return self._answerer(samples) if samples else []

    def _ask(self, pool: Pool, position: int, record: Record) -> Asked:
        from llava_train.tiles import image_tokens

        config, seen = self.config, self._answerer
        sizes = [(int(pool.column("height")[position]), int(pool.column("width")[position]))] * len(record.images)
        if config.view == "squash":
            tokens = [seen.geometry.lone_tokens] * len(sizes)
        else:
            tokens = image_tokens(sizes, seen.geometry)
        return ask(seen.tokenizer, record, queries(config.score, config.styles), tokens, config.spelling)

    def _batches(self, asked: dict[int, Asked]) -> list[list[int]]:
        """Rows that go through the model together: the longest first, as many as the limit allows."""
        longest = deque(sorted(asked, key=lambda row: -asked[row].tokens))
        batches: list[list[int]] = []
        while longest:
            first = asked[longest[0]]
            size = max(1, self.tokens_at_once // (first.tokens + len(first.leaves)))
            batches.append([longest.popleft() for _ in range(min(size, len(longest)))])
        return batches

    def _decode(
        self, pool: Pool, records: list[Record], asked: dict[int, Asked], rows: list[int]
    ) -> tuple[dict[int, Sample], dict[int, str]]:
        """Pictures of some rows; what goes into the model, and failures, by row."""
        from llava_train.tiles import cut_sample, image_tokens
        from selector_zoo.passes.mmssr_model import Sample

        geometry = self._answerer.geometry
        samples: dict[int, Sample] = {}
        failed: dict[int, str] = {}
        for row in rows:
            try:
                pictures = [pool.image(key) for key in records[row].images]
            except (OSError, KeyError, ValueError) as e:
                failed[row] = f"unusable_image: {e}"
                continue
            sizes = [(p.height, p.width) for p in pictures]
            if self.config.view == "squash":
                tiles = [squashed(p, geometry.tile) for p in pictures]
            else:
                tiles = cut_sample(pictures, geometry)
                if sum(image_tokens(sizes, geometry)) != self._room(asked[row]):
                    failed[row] = "unusable_image: its size changed after the import"
                    continue
            samples[row] = Sample(asked=asked[row], images=tiles, sizes=sizes)
        return samples, failed

    def _room(self, asked: Asked) -> int:
        """Image tokens of a prompt."""
        from llava_train.chat import specials

        image = specials(self._answerer.tokenizer).image
        return sum(int((segment == image).sum()) for segment in asked.segments)

    def _empty(self, n: int) -> Columns:
        """Columns in which nothing has been answered."""
        columns: Columns = {}
        if self.config.score:
            columns["scores"] = np.full((n, len(CAPABILITIES)), np.nan, dtype=np.float32)
        if self.config.styles:
            columns["styles"] = np.full((n, OTHER + 1), -1, dtype=np.int8)
        return columns

    def _keep(self, columns: Columns, row: int, answers: list[str]) -> str:
        """Write one sample's answers; why some are missing, or ""."""
        lost = []
        if self.config.score:
            scores = [parse_score(text) for text in answers[: len(CAPABILITIES)]]
            columns["scores"][row] = scores
            lost += [f"{c} {t[:20]!r}" for c, t, s in zip(CAPABILITIES, answers, scores, strict=False) if s != s]
        if self.config.styles:
            named = parse_styles(answers[-1])
            columns["styles"][row] = style_row(named)
            lost += [] if set(named) & set(STYLES) else [f"styles {answers[-1][:40]!r}"]
        return f"unreadable_answer: {lost[0]}, {len(lost)} in all" if lost else ""


def known_scores(record: Record, row: Mapping[str, Any]) -> dict[str, int]:
    """A label's scores by capability, without unknown ones.

    Raises HarnessError for a score that is no whole number from 0 to 5.
    """
    found: dict[str, int] = {}
    for capability in CAPABILITIES:
        try:
            score = label_score(row.get(capability))
        except ValueError as e:
            raise HarnessError(f"label of '{record.uid}': {capability} is {e}.") from None
        if score is not None:
            found[capability] = score
    return found


def taught(record: Record, scores: Mapping[str, int]) -> list[str]:
    """Capabilities that are lessons where not all zeros are: the others, and as many zeros by a hash.

    Most scores are 0, and a small model that is taught them all learns to say nothing else. A sample that is worth
    nothing keeps all of its zeros: they are how a model can learn what such samples look like.
    """
    zeros = sorted((c for c in scores if not scores[c]), key=lambda c: seed64("zeros", record.uid, c))
    others = len(scores) - len(zeros)
    left_out = zeros[others:] if others else []
    return [capability for capability in scores if capability not in left_out]


def squashed(picture: Any, side: int) -> npt.NDArray[np.uint8]:
    """One view of a whole picture, squeezed to a square; uint8 (1, 3, side, side)."""
    from PIL import Image

    small = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC))
    return small.transpose(2, 0, 1)[None]
