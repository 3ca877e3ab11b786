"""Several questions about one sample at the price of little more than one: what they share is encoded once.

A sample is one row. Its prefix (picture, conversation, the common start of the questions) goes through the model
and into the cache; then the rests of all questions follow in the same row, side by side. Every token sees the
prefix and its own question, and counts its position as if the others were not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from llava_train.chat import specials
from llava_train.model import image_features, load_backbone
from llava_train.packs import Item, collate
from llava_train.tiles import Geometry, Tiles, blank
from selector_zoo.passes.mmssr_questions import Asked

SHARED: Final = 0
"""Owner of a prefix token; question i owns its tokens as i + 1."""
PADDING: Final = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Questions about one sample, and its pictures."""

    asked: Asked
    images: Sequence[Tiles] = ()
    sizes: Sequence[tuple[int, int]] = ()
    """(height, width) of each image before tiling."""


@dataclass(slots=True)
class _Row:
    """What the language model has seen so far: its cache, and the owner of each cached token, (B, K)."""

    language: Any
    cache: Any
    owners: Tensor | None = field(default=None)

    def extend(self, embeddings: Tensor, positions: Tensor, owners: Tensor) -> Tensor:
        """Send new tokens (B, T, d) through the model; their last hidden states, (B, T, d)."""
        known = owners if self.owners is None else torch.cat([self.owners, owners], dim=1)
        seen, new = known.shape[1], owners.shape[1]
        mine = (known[:, None, :] == SHARED) | (known[:, None, :] == owners[:, :, None])
        at = torch.arange(seen, device=owners.device)
        mask = mine & (at[None, :] <= at[seen - new :, None])
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
        """Prefill, then all questions at once, then a token of every answer at a time."""
        from transformers import DynamicCache

        config = self.model.config.text_config
        row = _Row(self.model.model.language_model, DynamicCache(config=config))
        prefixes = [_prefix(sample.asked) for sample in samples]
        row.extend(self._with_images(prefixes, samples), *self._laid_out(prefixes)[1:])
        suffixes = [_suffixes(sample.asked) for sample in samples]
        ids, positions, owners = self._laid_out(suffixes)
        hidden = row.extend(self._embed(ids), positions, owners)
        last = self._tensor([_last(sample.asked) for sample in samples])
        answers = [self._next(torch.gather(hidden, 1, last[..., None].expand(-1, -1, hidden.shape[-1])))]
        at = torch.gather(positions, 1, last)
        who = torch.arange(1, last.shape[1] + 1, device=self.device).expand_as(last)
        end = specials(self.tokenizer).end
        closed = answers[0] == end
        while len(answers) < self.max_new_tokens and not bool(closed.all()):
            at = at + 1
            hidden = row.extend(self._embed(answers[-1]), at, who)
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

    def _with_images(self, prefixes: Sequence[_Tokens], samples: Sequence[Sample]) -> Tensor:
        """Embeddings of prefixes, image features in place; (B, P, d)."""
        ids = self._laid_out(prefixes)[0]
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

    def _laid_out(self, rows: Sequence[_Tokens]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, positions and owners of rows, padded on the right; each (B, T)."""
        longest = max(len(row.ids) for row in rows)
        shape = (len(rows), longest)
        table = {"ids": np.zeros(shape), "positions": np.zeros(shape), "owners": np.full(shape, PADDING)}
        for i, row in enumerate(rows):
            for name, values in table.items():
                values[i, : len(row.ids)] = getattr(row, name)
        ids, positions, owners = (self._tensor(values) for values in table.values())
        return ids, positions, owners

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values, dtype=np.int64), device=self.device)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Tokens of one row, with their positions and owners."""

    ids: Any
    positions: Any
    owners: Any


def _prefix(asked: Asked) -> _Tokens:
    n = len(asked.prefix)
    return _Tokens(asked.prefix, np.arange(n), np.full(n, SHARED))


def _suffixes(asked: Asked) -> _Tokens:
    lengths = [len(s) for s in asked.suffixes]
    starts = len(asked.prefix)
    return _Tokens(
        np.concatenate(asked.suffixes),
        np.concatenate([starts + np.arange(n) for n in lengths]),
        np.repeat(np.arange(1, len(lengths) + 1), lengths),
    )


def _last(asked: Asked) -> list[int]:
    """Where each question's last token stands among the suffixes."""
    ends: list[int] = (np.cumsum([len(s) for s in asked.suffixes]) - 1).tolist()
    return ends
