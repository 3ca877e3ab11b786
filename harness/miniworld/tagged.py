"""Tags of patches between the vision tower and the language model: each learns its part of captioning by them.

The tower learns to say the tags of what it sees, the language model to read pictures whose patches are given as
tags, and the projector to turn the one into the other. Without this a tiny model finds no rows in tables: features
that mean nothing yet have to be looked up by attention that looks for nothing yet.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import nn

from harness.miniworld.regions import NONE, SLOTS

NAMED: Final = 3
"""Slots whose tags begin as the words they are; later figures of a number do not, or their order would be lost."""


class TaggedTower(nn.Module):
    """The vision tower of a model with one linear head a slot; the heads are thrown away afterwards."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        width = self.tower.config.hidden_size
        self.heads = nn.ModuleList(nn.Linear(width, len(slot)) for slot in SLOTS)

    def loss(self, tiles: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the tags of all patches, summed over slots."""
        hidden = features(self.tower, tiles).flatten(0, 1)
        labels = tags.flatten(0, 1)
        found = [F.cross_entropy(head(hidden), labels[:, i]) for i, head in enumerate(self.heads)]
        return torch.stack(found).sum()


class TaggedPictures(nn.Module):
    """What a language model is given in place of projected features: embeddings of tags and place, summed."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.language_model = model.model.language_model
        self.image_newline = model.model.image_newline
        known = model.get_input_embeddings().weight.detach()
        patches = (model.config.vision_config.image_size // model.config.vision_config.patch_size) ** 2
        self.embed_tags = nn.ParameterList(_first(slot, i, known, tokenizer) for i, slot in enumerate(SLOTS))
        self.embed_places = nn.Parameter(torch.zeros(patches, known.shape[1]))

    def forward(self, tags: torch.Tensor) -> torch.Tensor:
        """Embeddings (..., patches, width) of tags (..., patches, slots)."""
        found = [F.embedding(tags[..., i], table) for i, table in enumerate(self.embed_tags)]
        return torch.stack(found).sum(0) + self.embed_places


def _first(slot: tuple[str, ...], i: int, known: torch.Tensor, tokenizer: Any) -> torch.Tensor:
    """Embeddings that the tags of a slot begin with; `NONE` is nothing."""
    rows = torch.randn(len(slot), known.shape[1]) * known.std()
    if i < NAMED:
        rows = torch.stack([known[tokenizer(t, add_special_tokens=False).input_ids].mean(0) for t in slot])
    rows[slot.index(NONE)] = 0
    return rows


def features(tower: Any, tiles: torch.Tensor) -> torch.Tensor:
    """What the projector is given: the last hidden states before the final LayerNorm."""
    last: torch.Tensor = tower(tiles, output_hidden_states=True).hidden_states[-1]
    return last


def misfit(model: Any, pictures: TaggedPictures, tiles: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
    """Squared distance of projected features from the tags' embeddings, as a share of these."""
    with torch.no_grad():
        wanted: torch.Tensor = pictures(tags)
        hidden = features(model.model.vision_tower, tiles)
    projected: torch.Tensor = model.model.multi_modal_projector(hidden)
    return F.mse_loss(projected, wanted) / wanted.square().mean()
