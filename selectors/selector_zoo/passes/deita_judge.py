"""A LLaVA-OneVision as the judge of turns: the grade it is about to give, asked in its own chat layout about what
was said and the pictures it was said of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F

from harness.api import Pool
from harness.errors import HarnessError
from harness.types import TrainSpec
from llava_train.chat import IMAGE, Ids, prompt_ids, specials, spell
from llava_train.model import PackedModel, load_backbone
from llava_train.packs import Item, collate
from llava_train.plan import pack
from llava_train.pool_index import PoolIndex, Text
from llava_train.tiles import Geometry, Tiles, blank, image_tokens, sample_tiles
from selector_zoo.passes.activations_model import in_halves
from selector_zoo.passes.deita import Place, Prompt
from selector_zoo.passes.deita_model import digit_ids, expected_grade
from selector_zoo.passes.forward import DECODERS, ahead, stored_dtype
from selector_zoo.passes.forward_samples import Reasons

USER: Final = "user\n"
"""What stands before a question in its message."""


@dataclass(slots=True, kw_only=True)
class Judge:
    """A model in evaluation mode, which takes prompts laid end to end; `digits` are the tokens of the grades."""

    packed: PackedModel
    tokenizer: Any
    geometry: Geometry
    device: torch.device
    digits: list[int]
    limits: TrainSpec = field(default_factory=TrainSpec)
    """`pack_tokens` and `pack_tiles` of one forward; they change nothing but speed and memory."""

    @classmethod
    def load(cls, folder: Path, device: str, views: str) -> Judge:
        """Load a LLaVA-OneVision folder onto a device; `views` is how much of a picture it is shown.

        Raises HarnessError where a digit is not one token.
        """
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        digits = digit_ids(tokenizer, str(folder))
        model = load_backbone(folder, stored_dtype(folder)).eval().to(device)
        return cls(
            packed=PackedModel(model),
            tokenizer=tokenizer,
            geometry=Geometry.from_config(model.config, views),
            device=torch.device(device),
            digits=digits,
        )

    def __call__(
        self, pool: Pool, start: int, prompts: Mapping[Place, Prompt], max_length: int
    ) -> tuple[dict[int, list[float]], Reasons]:
        """Grades from 1 to 6 by row in the order of turns, and failures by row; a row has either.

        Rows count from position `start`. Raises HarnessError where a template alone is longer than `max_length`.
        """
        asked = {p: self._text(pool, start + p[0], prompt, max_length) for p, prompt in prompts.items()}
        index = PoolIndex(pool=pool, tokenizer=self.tokenizer, geometry=self.geometry, max_length=max_length)
        grades: dict[Place, float] = {}
        failed: Reasons = {}
        workers = 1 if self.device.type == "cpu" else DECODERS
        for items, lost in ahead(partial(_decoded, index, asked), self._batches(asked), workers):
            failed |= lost
            grades |= dict(zip(items, in_halves(self._read, list(items.values())), strict=True))
        rows: dict[int, list[float]] = defaultdict(list)
        for row, turn in asked:
            if row not in failed:
                rows[row].append(grades[row, turn])
        return rows, failed

    def encode(self, prompt: Prompt, taken: Sequence[int], max_length: int) -> Ids:
        """Token ids of a user message behind images of `taken` tokens, up to where the model is to answer.

        It has at most `max_length` tokens, those of images not counted; what it loses stands before the template's
        tail. Raises HarnessError where the template alone is longer.
        """
        front = f"{IMAGE * len(taken)}\n" if taken else ""
        # Pictures stand in front; a mark that an answer or a template has beside them would be one too many.
        said = spell(front + prompt.text.replace(IMAGE, ""))
        ids = prompt_ids(self.tokenizer, said, taken)
        surplus = len(ids) - sum(taken) - max_length
        if surplus <= 0:
            return ids
        encoded = self.tokenizer(USER + said, add_special_tokens=False, return_offsets_mapping=True)
        begins = np.array([begin for begin, _ in encoded["offset_mapping"]])
        first, last = np.searchsorted(begins, [len(USER + front), len(USER + said) - prompt.tail])
        if surplus >= last - first:
            raise HarnessError(
                f"deita: max_length={max_length} leaves no room for text beside the template; raise it."
            )
        end = np.flatnonzero(ids == specials(self.tokenizer).end)[-1]
        stop = int(end) - (len(begins) - int(last))
        return np.delete(ids, slice(stop - surplus, stop))

    def _text(self, pool: Pool, position: int, prompt: Prompt, max_length: int) -> Text:
        """A prompt and the pictures of the sample it is about, as samples are laid into packs."""
        record = pool.record(position)
        size = (int(pool.column("height")[position]), int(pool.column("width")[position]))
        sizes = (size,) * len(record.images)  # only a lone picture's matters
        ids = self.encode(prompt, image_tokens(sizes, self.geometry), max_length)
        nothing = np.zeros(len(ids), dtype=np.bool_)
        return Text(
            position=position,
            uid=record.uid,
            ids=ids,
            targets=nothing,
            answer=nothing,
            images=record.images,
            sizes=sizes,
            tiles=sample_tiles(sizes, self.geometry),
        )

    def _batches(self, asked: Mapping[Place, Text]) -> list[list[Place]]:
        """Prompts that go through the model together, as many as the limits allow."""
        places = list(asked)
        tokens = np.array([len(text.ids) for text in asked.values()], dtype=np.int64)
        tiles = np.array([text.tiles for text in asked.values()], dtype=np.int64)
        return [[places[i] for i in members] for members in pack(range(len(places)), tokens, tiles, self.limits)]

    @torch.inference_mode()
    def _read(self, items: Sequence[Item]) -> list[float]:
        """The grade each prompt is about to be given."""
        packed = collate(items, specials(self.tokenizer).image, blank(self.geometry)).to(self.device)
        model = self.packed.model
        states = model.model(packed)
        last = states[torch.tensor(packed.bounds[1:], device=self.device) - 1]
        # The head's own forward is that of training, which gives losses.
        bias = None if model.lm_head.bias is None else model.lm_head.bias[self.digits]
        grades: list[float] = expected_grade(F.linear(last, model.lm_head.weight[self.digits], bias)).tolist()
        return grades


def _decoded(
    index: PoolIndex, asked: Mapping[Place, Text], places: Sequence[Place]
) -> tuple[dict[Place, Item], Reasons]:
    """Decode pictures, once for all turns of a sample; what goes into the model by place, and failures by row."""
    pictures: dict[int, list[Tiles]] = {}
    failed: Reasons = {}
    for row, text in {place[0]: asked[place] for place in places}.items():
        try:
            pictures[row] = index.pixels(text)
        except HarnessError as e:
            failed[row] = f"unusable_image: {e}"
    items = {
        place: Item(ids=text.ids, targets=text.targets, images=pictures[place[0]], sizes=text.sizes)
        for place in places
        if place[0] in pictures and (text := asked[place])
    }
    return items, failed
