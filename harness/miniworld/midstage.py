"""Pre-training batches: pictures, each with several captions that do not see one another. No questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from harness.miniworld.corpus import captioned, coded, overview, region_caption, salad
from harness.miniworld.regions import tags
from harness.miniworld.render import SIDE, picture, width_of
from harness.miniworld.scenes import DRAW, Scene
from harness.miniworld.tokenizer import words
from llava_train.chat import END, IMAGE, prompt_ids
from llava_train.tiles import Geometry, cut, tokens_of

if TYPE_CHECKING:
    import torch

Ints = npt.NDArray[Any]

CAPTIONS: Final = 7
"""Captions of one picture; the picture is encoded once for all of them."""
GAP: Final = 24
WEIGHTS: Final = {"shapes": 6, "chart": 4, "print": 4, "table": 5, "digits": 3}
"""How often each kind of picture is drawn."""
TOLD: Final = {"shapes": 6, "chart": 1, "print": 3, "table": 8, "digits": 2}
"""How often each kind is told: to look something up is all there is to learn, and tables are for that."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed captions of B pictures of one size, L tokens a row."""

    pixels: torch.Tensor | None
    """float32, shape (B, tiles, 3, tile, tile), in [-1, 1]; None where tags stand for them."""
    tags: torch.Tensor | None
    """int64, shape (B, tiles, patches, slots); None where there are pixels."""
    sizes: torch.Tensor
    """int64, shape (B, 2): height and width."""
    ids: torch.Tensor
    """int64, shape (B, L)."""
    positions: torch.Tensor
    """int64, shape (B, L); every caption continues the prompt."""
    mask: torch.Tensor
    """float32, shape (B, 1, L, L); 0 where a token may look, -1e9 elsewhere."""
    targets: torch.Tensor
    """int64, shape (B, L); the next token of the same caption, -100 elsewhere."""


def draw_batch(
    rng: Random, n: int, tokenizer: Any, geometry: Geometry, silent: float = 0, *, seen: bool = True
) -> Batch:
    """Draw up to `n` pictures of one size; the first decides whether they are wide, and few are.

    `silent` is the share of prompts about regions that ask for no caption; if there are any, others do by a code.
    What is not `seen` is told: the batch has tags in place of pixels.
    """
    scenes = [draw_scene(rng, WEIGHTS if seen else TOLD) for _ in range(4 * n)]
    wide = [getattr(s, "wide", False) for s in scenes]
    chosen = [s for s, w in zip(scenes, wide, strict=True) if w == wide[0]][:n]
    return (collate if seen else collate_told)(chosen, rng, tokenizer, geometry, silent)


def draw_tagged(rng: Random, n: int, geometry: Geometry) -> tuple[torch.Tensor, torch.Tensor]:
    """Tiles of `n` pictures, (T, 3, tile, tile) in [-1, 1], and the tags of their patches, (T, patches, slots)."""
    import torch

    scenes = [draw_scene(rng) for _ in range(n)]
    images = [picture(scene, rng, "pool")[0] for scene in scenes]
    # The only grid tile of a small picture equals its base tile: one of them is enough.
    first = [slice(0, 1) if image.width == geometry.tile else slice(0, None) for image in images]
    tiles = np.concatenate([cut(i, geometry)[s] for i, s in zip(images, first, strict=True)])
    labels = [tags(scene, i.width, geometry)[s] for scene, i, s in zip(scenes, images, first, strict=True)]
    return torch.from_numpy(_scaled(tiles)), torch.from_numpy(np.concatenate(labels))


def _scaled(tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return tiles.astype(np.float32) / np.float32(127.5) - 1


def draw_scene(rng: Random, weights: Mapping[str, int] = WEIGHTS) -> Scene:
    """Draw a scene, kinds in the proportions of `weights`."""
    kind = rng.choices(list(weights), list(weights.values()))[0]
    return DRAW[kind](rng)


def collate(scenes: list[Scene], rng: Random, tokenizer: Any, geometry: Geometry, silent: float = 0) -> Batch:
    """Draw the pictures of some scenes of one size, and captions of them."""
    import torch

    images = [picture(scene, rng, "pool")[0] for scene in scenes]
    pixels = torch.from_numpy(_scaled(np.stack([cut(image, geometry) for image in images])))
    sizes = [[image.height, image.width] for image in images]
    return _pack(_captions_of(scenes, sizes[0], rng, tokenizer, geometry, silent), rng, sizes, pixels=pixels)


def collate_told(scenes: list[Scene], rng: Random, tokenizer: Any, geometry: Geometry, silent: float = 0) -> Batch:
    """Tags of some scenes of one size, and captions of them."""
    import torch

    shown = torch.from_numpy(np.stack([tags(scene, width_of(scene), geometry) for scene in scenes]))
    sizes = [[SIDE, width_of(scene)] for scene in scenes]
    return _pack(_captions_of(scenes, sizes[0], rng, tokenizer, geometry, silent), rng, sizes, tags=shown)


Captioned = list[tuple[Ints, list[int]]]
"""Prompts and captions of one picture, as tokens."""


def _captions_of(
    scenes: list[Scene], size: list[int], rng: Random, tokenizer: Any, geometry: Geometry, silent: float
) -> list[Captioned]:
    n_image = tokens_of(*size, geometry)
    return [_captions(scene, rng, tokenizer, n_image, silent) for scene in scenes]


def _pack(
    captions: list[Captioned],
    rng: Random,
    sizes: list[list[int]],
    pixels: torch.Tensor | None = None,
    tags: torch.Tensor | None = None,
) -> Batch:
    import torch

    rows = [_row(of_one) for of_one in captions]
    length = max(len(ids) for ids, _, _ in rows)
    ids, group, target = (
        np.stack([np.pad(row[i], (0, length - len(row[i])), constant_values=fill) for row in rows])
        for i, fill in enumerate((0, -1, -100))
    )
    return Batch(
        pixels=pixels,
        tags=tags,
        sizes=torch.tensor(sizes),
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(_positions(group, rng)),
        mask=torch.from_numpy(_mask(group)),
        targets=torch.from_numpy(target),
    )


def _captions(scene: Scene, rng: Random, tokenizer: Any, n_image: int, silent: float) -> Captioned:
    """Prompts and captions as tokens: the whole picture, and some regions, named by the prompt."""
    parts = captioned(scene)
    some = rng.sample(parts, min(len(parts), CAPTIONS - 1))
    chosen = [("", overview(scene)), *(region_caption(f, rng) for f in some)]
    if silent:
        chosen = [(coded(prompt), text) for prompt, text in chosen]
        chosen[1:] = [
            salad(f, words(), rng) if rng.random() < silent else c for f, c in zip(some, chosen[1:], strict=True)
        ]
    prompts = [prompt_ids(tokenizer, f"{IMAGE}\n{prompt}".strip(), [n_image]) for prompt, _ in chosen]
    texts = tokenizer([text + END for _, text in chosen], add_special_tokens=False).input_ids
    return list(zip(prompts, texts, strict=True))


def _row(captions: Captioned) -> tuple[Ints, Ints, Ints]:
    """Token ids, caption number (0: what all prompts begin with) and next token of a packed row."""
    shared = _common([prompt for prompt, _ in captions])
    first = captions[0][0]
    ids, group, target = list(first[:shared]), [0] * shared, [-100] * shared
    for number, (prompt, caption) in enumerate(captions, 1):
        header = prompt[shared:]
        ids += [*header, *caption]
        group += [number] * (len(header) + len(caption))
        target += [-100] * (len(header) - 1) + [*caption, -100]
    return np.array(ids), np.array(group), np.array(target)


def _common(prompts: list[Ints]) -> int:
    """How many tokens all prompts share at their start."""
    shortest = min(map(len, prompts))
    rows = np.stack([prompt[:shortest] for prompt in prompts])
    same = (rows == rows[0]).all(axis=0)
    return int(np.argmin(same)) if not same.all() else shortest


def _positions(group: Ints, rng: Random) -> Ints:
    """Positions that restart for every caption, a random gap before it: questions will be longer than names of
    regions, and captions should not learn to look a fixed distance back."""
    index = np.arange(group.shape[1])
    first = np.argmax(group > 0, axis=1)[:, None]
    starts = np.where((np.diff(group, axis=1, prepend=0) != 0) & (group > 0), index, 0)
    restarted = index - np.maximum.accumulate(starts, axis=1) + first
    gaps = np.array([[rng.randint(0, GAP)] for _ in group])
    return np.asarray(np.where(group > 0, restarted + gaps, index))


def _mask(group: Ints) -> npt.NDArray[np.float32]:
    """A token sees the prompt and the earlier tokens of its own caption."""
    causal = np.tril(np.ones((group.shape[1],) * 2, dtype=bool))
    same = group[:, :, None] == group[:, None, :]
    seen = causal & (same | (group[:, None, :] == 0))
    return np.where(seen, np.float32(0), np.float32(-1e9))[:, None]
