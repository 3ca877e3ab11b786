"""Pre-training batches: pictures, each with several captions that do not see one another. No questions."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from harness.miniworld.captions import brief, fragments
from harness.miniworld.render import picture
from harness.miniworld.scenes import DRAW, Scene
from llava_train.chat import END, specials
from llava_train.tiles import Geometry, cut, tokens_of

if TYPE_CHECKING:
    import torch

CAPTIONS: Final = 5
"""Captions of one picture; the picture is encoded once for all of them."""
GAP: Final = 48
WEIGHTS: Final = {"shapes": 6, "chart": 4, "print": 4, "table": 5, "digits": 3}
"""How often each kind of picture is drawn."""


@dataclass(frozen=True, slots=True)
class Batch:
    """B pictures of one size with packed captions, L tokens a row."""

    pixels: torch.Tensor
    """float32, shape (B, tiles, 3, tile, tile), in [-1, 1]."""
    sizes: torch.Tensor
    """int64, shape (B, 2): height and width."""
    ids: torch.Tensor
    """int64, shape (B, L)."""
    positions: torch.Tensor
    """int64, shape (B, L); every caption starts right after the picture."""
    mask: torch.Tensor
    """float32, shape (B, 1, L, L); 0 where a token may look, -inf elsewhere."""
    targets: torch.Tensor
    """int64, shape (B, L); the next token of the same caption, -100 elsewhere."""


def draw_batch(rng: Random, n: int, tokenizer: Any, geometry: Geometry) -> Batch:
    """Draw `n` pictures of one size; the first decides whether they are wide."""
    scenes = [_draw(rng) for _ in range(4 * n)]
    wide = [getattr(s, "wide", False) for s in scenes]
    chosen = [s for s, w in zip(scenes, wide, strict=True) if w == wide[0]][:n]
    return _collate(chosen, rng, tokenizer, geometry)


def _draw(rng: Random) -> Scene:
    kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    return DRAW[kind](rng)


def _collate(scenes: list[Scene], rng: Random, tokenizer: Any, geometry: Geometry) -> Batch:
    import torch

    images = [picture(scene, rng, "pool")[0] for scene in scenes]
    height, width = images[0].height, images[0].width
    pixels = np.stack([cut(image, geometry) for image in images]).astype(np.float32) / 127.5 - 1
    n_image = tokens_of(height, width, geometry)
    marks = specials(tokenizer)
    rows = [_row(_captions(scene, rng, tokenizer), n_image, marks.image, marks.newline) for scene in scenes]
    length = max(len(ids) for ids, _, _ in rows)
    ids, group, target = (
        np.stack([np.pad(row[i], (0, length - len(row[i])), constant_values=fill) for row in rows])
        for i, fill in enumerate((0, -1, -100))
    )
    return Batch(
        pixels=torch.from_numpy(pixels),
        sizes=torch.tensor([[height, width]] * len(images)),
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(_positions(group, n_image, rng)),
        mask=torch.from_numpy(_mask(group)),
        targets=torch.from_numpy(target),
    )


def _captions(scene: Scene, rng: Random, tokenizer: Any) -> list[list[int]]:
    parts = fragments(scene)
    texts = [brief(scene), *rng.sample(parts, min(len(parts), CAPTIONS - 1))]
    return list(tokenizer([t + END for t in texts], add_special_tokens=False).input_ids)


Row = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]


def _row(captions: list[list[int]], n_image: int, image: int, newline: int) -> Row:
    """Token ids, caption number (0: the picture) and next token of one packed row."""
    ids, group, target = [image] * n_image, [0] * n_image, [-100] * n_image
    for number, caption in enumerate(captions, 1):
        ids += [newline, *caption]
        group += [number] * (len(caption) + 1)
        target += [*caption, -100]
    return np.array(ids), np.array(group), np.array(target)


def _positions(group: np.ndarray[Any, Any], n_image: int, rng: Random) -> np.ndarray[Any, Any]:
    """Positions that restart for every caption, a random gap after the picture, where a question may come to
    stand in training; otherwise captions would learn to look a fixed distance back."""
    index = np.arange(group.shape[1])
    starts = np.where(np.diff(group, axis=1, prepend=0) != 0, index, 0)
    offset = index - np.maximum.accumulate(starts, axis=1)
    gaps = np.array([[0, *(rng.randint(0, GAP) for _ in range(CAPTIONS))] for _ in group])
    return np.where(group == 0, index, n_image + offset + np.take_along_axis(gaps, np.maximum(group, 0), axis=1))


def _mask(group: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A token sees the picture and the earlier tokens of its own caption."""
    causal = np.tril(np.ones((group.shape[1],) * 2, dtype=bool))
    same = group[:, :, None] == group[:, None, :]
    seen = causal & (same | (group[:, None, :] == 0))
    return np.where(seen, np.float32(0), np.float32(-1e9))[:, None]
