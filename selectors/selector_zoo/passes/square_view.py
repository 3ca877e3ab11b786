"""A pool whose every image is one view, padded to a square, as LLaVA-1.5 and TinyLLaVA see images."""

from __future__ import annotations

from harness.errors import HarnessError
from llava_train.chat import encode
from llava_train.pool_index import PoolIndex, Text
from llava_train.tiles import Tiles, square


class SquareIndex(PoolIndex):
    """The samples of a pool with each image as a single tile, whatever its size."""

    __slots__ = ()

    def text(self, position: int) -> Text:
        """Tokenise one sample.

        Raises HarnessError, naming the sample, where its images and placeholders do not match.
        """
        record = self.pool.record(position)
        views = len(record.images)
        try:
            encoded = encode(self.tokenizer, record.conversations, [self.geometry.lone_tokens] * views)
        except HarnessError as error:
            raise HarnessError(f"sample '{record.uid}' of pool {self.pool.name}: {error}") from None
        keep = self._kept(encoded.ids, has_images=views > 0)
        return Text(
            position=position,
            uid=record.uid,
            ids=encoded.ids[:keep],
            targets=encoded.sft_mask[:keep],
            answer=encoded.answer_mask[:keep],
            images=record.images,
            sizes=((self.geometry.tile, self.geometry.tile),) * views,
            tiles=views,
        )

    def pixels(self, text: Text) -> list[Tiles]:
        """Decode the images of one sample, each to one tile.

        Raises HarnessError, naming the sample, for an image that cannot be read.
        """
        try:
            return [square(self.pool.image(key), self.geometry) for key in text.images]
        except (OSError, KeyError, ValueError) as error:
            raise HarnessError(
                f"an image of sample '{text.uid}' of pool {self.pool.name} cannot be read ({error}): run "
                "'sievebench pool verify', or restore the file."
            ) from error
