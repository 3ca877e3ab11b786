"""Packs: several samples laid end to end in one row, as the model takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from llava_train.chat import Ids, Mask
from llava_train.tiles import Tiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One sample on its way into a pack."""

    ids: Ids
    targets: Mask
    """True where a token is to be predicted; the first token has nothing to be predicted from and never counts."""
    images: Sequence[Tiles] = ()
    sizes: Sequence[tuple[int, int]] = ()
    """(height, width) of each image before tiling."""
    weight: float = 1.0
    """Weight of each of its target tokens in the loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """Tensors of one packed forward: T tokens, S targets, I image tokens, K tiles."""

    ids: Tensor
    """int64, (T,)."""
    positions: Tensor
    """int64, (T,); restarts at 0 with every sample, which is what keeps samples from seeing each other."""
    bounds: tuple[int, ...]
    """Where samples start, and T at the end."""
    read_at: Tensor
    """int64, (S,): the token whose output predicts target i."""
    targets: Tensor
    """int64, (S,)."""
    weights: Tensor
    """float32, (S,)."""
    image_at: Tensor
    """int64, (I,): where image features go."""
    tiles: Tensor
    """uint8, (K, 3, side, side); a single blank one where there is no image."""
    splits: tuple[int, ...]
    """Tiles of each image."""
    sizes: tuple[tuple[int, int], ...]
    """(height, width) of each image."""

    def to(self, device: torch.device) -> Self:
        """The same pack on a device."""
        return self if device.type == "cpu" else self._map(lambda t: t.to(device, non_blocking=True))

    def pinned(self) -> Self:
        """The same pack in page-locked memory, from where it is copied to a GPU without waiting."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        changes: dict[str, Any] = {
            f.name: change(value) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **changes)


def collate(items: Sequence[Item], image_id: int, blank: Tiles) -> Pack:
    """Lay samples end to end; no samples at all give a pack of one token without targets.

    A rank that has nothing to do in a step still runs such a pack, so that all ranks run the same operations.
    """
    if not items:
        items = [Item(ids=np.zeros(1, dtype=np.int32), targets=np.zeros(1, dtype=np.bool_))]
    lengths = [len(item.ids) for item in items]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.concatenate([item.ids for item in items]).astype(np.int64)
    targets = np.concatenate([item.targets for item in items])
    targets[bounds[:-1]] = False
    at = np.flatnonzero(targets)
    weights = np.repeat(np.array([item.weight for item in items], dtype=np.float32), lengths)
    images = [image for item in items for image in item.images]
    has_images = np.repeat([len(item.images) > 0 for item in items], lengths)
    return Pack(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(np.arange(len(ids)) - np.repeat(bounds[:-1], lengths)),
        bounds=tuple(bounds.tolist()),
        read_at=torch.from_numpy(at - 1),
        targets=torch.from_numpy(ids[at]),
        weights=torch.from_numpy(weights[at]),
        image_at=torch.from_numpy(np.flatnonzero((ids == image_id) & has_images)),
        tiles=torch.from_numpy(np.concatenate(images) if images else blank),
        splits=tuple(len(image) for image in images) or (1,),
        sizes=tuple(size for item in items for size in item.sizes) or ((1, 1),),
    )
