"""Samples of a pool as training takes them: tokenised, cut to length, tiled; computed when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from harness.errors import HarnessError
from harness.pool import Pool
from llava_train.chat import Ids, Mask, encode, specials
from llava_train.cost import ModelCost
from llava_train.plan import Facts, Ints
from llava_train.tiles import Geometry, Tiles, cut_sample, image_tokens, sample_tiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """One sample without its pixels."""

    position: int
    uid: str
    ids: Ids
    targets: Mask
    """True where a token is to be predicted; never the first."""
    answer: Mask
    """True where the assistant speaks, closing markers included; the targets themselves with `mask="answer"`."""
    images: tuple[str, ...]
    """Keys of its images in the pool."""
    sizes: tuple[tuple[int, int], ...]
    """(height, width) of each image."""
    tiles: int

    @property
    def supervised(self) -> int:
        return int(self.targets.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolIndex:
    """A pool seen through one model's tokenizer and image geometry."""

    pool: Pool
    tokenizer: Any
    geometry: Geometry
    max_length: int
    mask: Literal["llava", "answer"] = "llava"

    def text(self, position: int) -> Text:
        """Tokenise one sample.

        Raises HarnessError, naming the sample, where its images and placeholders do not match.
        """
        record = self.pool.record(position)
        sizes = self._sizes(position, len(record.images))
        try:
            encoded = encode(self.tokenizer, record.conversations, image_tokens(sizes, self.geometry))
        except HarnessError as error:
            raise HarnessError(f"sample '{record.uid}' of pool {self.pool.name}: {error}") from None
        keep = self._kept(encoded.ids, has_images=bool(sizes))
        sft, answer = encoded.sft_mask[:keep].copy(), encoded.answer_mask[:keep]
        sft[0] = False  # nothing comes before it that could predict it
        return Text(
            position=position,
            uid=record.uid,
            ids=encoded.ids[:keep],
            targets=sft if self.mask == "llava" else answer,
            answer=answer,
            images=record.images,
            sizes=sizes,
            tiles=sample_tiles(sizes, self.geometry),
        )

    def pixels(self, text: Text) -> list[Tiles]:
        """Decode and tile the images of one sample.

        Raises HarnessError, naming the sample, for an image that cannot be read or is not of the size on record.
        """
        try:
            images = [self.pool.image(key) for key in text.images]
        except (OSError, KeyError, ValueError) as error:
            raise HarnessError(
                f"an image of sample '{text.uid}' of pool {self.pool.name} cannot be read ({error}): run "
                "'sievebench pool verify', or restore the file."
            ) from error
        found = tuple((image.height, image.width) for image in images)
        if len(found) == 1 and found != text.sizes:
            raise HarnessError(
                f"the image of sample '{text.uid}' has (height, width) {found[0]} and pool {self.pool.name} says "
                f"{text.sizes[0]}: it changed after the import; import the pool again."
            )
        return cut_sample(images, self.geometry)

    def facts(self, positions: Sequence[int], cost: ModelCost) -> Facts:
        """Sizes of samples, tokenising each."""
        return facts_of([self.text(int(p)) for p in positions], cost)

    def _sizes(self, position: int, images: int) -> tuple[tuple[int, int], ...]:
        """Sizes of a sample's images; where there are several, their size does not matter."""
        if images != 1:
            return ((self.geometry.tile, self.geometry.tile),) * images
        height, width = self.pool.column("height")[position], self.pool.column("width")[position]
        return ((int(height), int(width)),)

    def _kept(self, ids: Ids, *, has_images: bool) -> int:
        """Tokens kept of a sample: cut from the right, but never into an image: features and tokens must match."""
        keep = min(self.max_length, len(ids))
        if has_images and keep < len(ids):
            image = np.flatnonzero(ids == specials(self.tokenizer).image)
            keep = max(keep, int(image[-1]) + 1)
        return keep


def facts_of(texts: Sequence[Text], cost: ModelCost) -> Facts:
    """Sizes of tokenised samples."""
    tokens: Ints = np.array([len(t.ids) for t in texts], dtype=np.int64)
    supervised: Ints = np.array([t.supervised for t in texts], dtype=np.int64)
    tiles: Ints = np.array([t.tiles for t in texts], dtype=np.int64)
    return Facts(tokens=tokens, supervised=supervised, tiles=tiles, flops=cost.forward(tokens, supervised, tiles))
