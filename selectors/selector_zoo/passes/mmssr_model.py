"""Several questions about one sample at the price of little more than one: what they share is encoded once.

A sample is one row: the tree of its prompts, segment after segment (`mmssr_questions.Asked`). Every token sees the
segments on the way to its own, and counts its position as if the others were not there; so do the tokens of the
answers, which all grow at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llava_train.chat import specials
from llava_train.model import image_features, load_backbone
from llava_train.packs import Item, collate
from llava_train.tiles import Geometry, Tiles, blank
from selector_zoo.passes.mmssr_questions import Asked

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Questions about one sample, and its pictures."""

    asked: Asked
    images: Sequence[Tiles] = ()
    sizes: Sequence[tuple[int, int]] = ()
    """(height, width) of each image before tiling."""


@dataclass(slots=True)
class _Row:
    """What the language model has seen so far: its cache, and the segment of each cached token, (B, K)."""

    language: Any
    cache: Any
    related: Tensor
    """Which segments (last) a segment sees, (B, segments, segments), bool; it is one of them."""
    owners: Tensor | None = field(default=None)

    def extend(self, embeddings: Tensor, positions: Tensor, owners: Tensor) -> Tensor:
        """Send new tokens (B, T, d) of segments (B, T) through the model; their last hidden states, (B, T, d)."""
        known = owners if self.owners is None else torch.cat([self.owners, owners], dim=1)
        seen, new = known.shape[1], owners.shape[1]
        rows = torch.arange(len(owners), device=owners.device)[:, None, None]
        at = torch.arange(seen, device=owners.device)
        mask = self.related[rows, owners[:, :, None], known[:, None, :]] & (at <= at[seen - new :, None])
        self.owners = known
        hidden: Tensor = self.language(
            inputs_embeds=embeddings,
            attention_mask=mask[:, None],
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        return hidden


@dataclass(slots=True, kw_only=True)
class Answerer:
    """A LLaVA-OneVision that answers questions about samples, greedily."""

    model: Any
    tokenizer: Any
    geometry: Geometry
    device: torch.device
    max_new_tokens: int

    @classmethod
    def load(cls, folder: Path, dtype: str, device: str, max_new_tokens: int) -> Answerer:
        """Load a LLaVA-OneVision folder onto a device."""
        from transformers import AutoTokenizer

        model = load_backbone(folder, dtype).eval().to(device)
        # The attention of training keeps samples of a pack apart; a cache and a mask want the ordinary one.
        model.model.language_model.set_attn_implementation("sdpa")
        return cls(
            model=model,
            tokenizer=AutoTokenizer.from_pretrained(folder),
            geometry=Geometry.from_config(model.config),
            device=torch.device(device),
            max_new_tokens=max_new_tokens,
        )

    def __call__(self, samples: Sequence[Sample]) -> list[list[str]]:
        """The answers of every sample, in the order of its questions; half at a time where memory runs out."""
        try:
            return self._answers(samples)
        except torch.OutOfMemoryError:
            if len(samples) == 1:
                raise
        half = len(samples) // 2
        return self(samples[:half]) + self(samples[half:])

    @torch.inference_mode()
    def _answers(self, samples: Sequence[Sample]) -> list[list[str]]:
        """All prompts, then a token of every answer at a time."""
        from transformers import DynamicCache

        asked = [sample.asked for sample in samples]
        cache = DynamicCache(config=self.model.config.text_config)
        row = _Row(self.model.model.language_model, cache, self._tensor(_related(asked)).bool())
        ids, positions, owners = (self._tensor(table) for table in _laid_out(asked))
        hidden = row.extend(self._embedded(ids, samples), positions, owners)
        last = self._tensor([_ends(a)[list(a.leaves)] for a in asked])
        leaves = self._tensor([a.leaves for a in asked])
        answers = [self._next(torch.gather(hidden, 1, last[..., None].expand(-1, -1, hidden.shape[-1])))]
        at = torch.gather(positions, 1, last)
        end = specials(self.tokenizer).end
        closed = answers[0] == end
        while len(answers) < self.max_new_tokens and not bool(closed.all()):
            at = at + 1
            hidden = row.extend(self._embed(answers[-1]), at, leaves)
            answers.append(self._next(hidden))
            closed |= answers[-1] == end
        return [self._texts(told) for told in torch.stack(answers, dim=-1).tolist()]

    def _next(self, hidden: Tensor) -> Tensor:
        """The likeliest next tokens, (B, questions)."""
        chosen: Tensor = self.model.lm_head(hidden).argmax(dim=-1)
        return chosen

    def _texts(self, answers: list[list[int]]) -> list[str]:
        """What a sample's answers say up to their end marker."""
        end = specials(self.tokenizer).end
        said = [ids[: ids.index(end)] if end in ids else ids for ids in answers]
        return [str(text).strip() for text in self.tokenizer.batch_decode(said, skip_special_tokens=True)]

    def _embed(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    def _embedded(self, ids: Tensor, samples: Sequence[Sample]) -> Tensor:
        """Embeddings of rows, image features in place; (B, T, d)."""
        embeddings = self._embed(ids)
        pictured = [sample for sample in samples if sample.images]
        if not pictured:
            return embeddings
        image = specials(self.tokenizer).image
        empty = np.zeros(1, dtype=np.int32)
        items = [Item(ids=empty, targets=empty.astype(np.bool_), images=s.images, sizes=s.sizes) for s in pictured]
        pack = collate(items, image, blank(self.geometry)).to(self.device)
        features = image_features(self.model.model, pack).to(embeddings.dtype)
        # A literal "<image>" of a sample without pictures is text, and never this token.
        embeddings[ids == image] = features
        return embeddings

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values, dtype=np.int64), device=self.device)


def _laid_out(rows: Sequence[Asked]) -> tuple[Ints, Ints, Ints]:
    """Ids, positions and segments of trees, padded on the right with a segment of its own; each (B, T)."""
    shape = (len(rows), max(row.tokens for row in rows))
    ids, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    owners = np.full(shape, max(len(row.segments) for row in rows))
    for i, row in enumerate(rows):
        lengths = np.array([len(s) for s in row.segments])
        depths = [int(lengths[row.path(s)[:-1]].sum()) for s in range(len(lengths))]
        ids[i, : row.tokens] = np.concatenate(row.segments)
        owners[i, : row.tokens] = np.repeat(np.arange(len(lengths)), lengths)
        positions[i, : row.tokens] = np.concatenate(
            [d + np.arange(n) for d, n in zip(depths, lengths, strict=True)]
        )
    return ids, positions, owners


def _ends(row: Asked) -> Ints:
    """Where the last token of each segment stands in a row."""
    return np.cumsum([len(s) for s in row.segments]) - 1


def _related(rows: Sequence[Asked]) -> Ints:
    """Which segments (last axis) a segment sees: those on the way to it. Padding sees itself. (B, S+1, S+1)."""
    size = max(len(row.segments) for row in rows) + 1
    table = np.zeros((len(rows), size, size), dtype=np.int64)
    for i, row in enumerate(rows):
        for segment in range(len(row.segments)):
            table[i, segment, row.path(segment)] = 1
    table[:, -1, -1] = 1
    return table
