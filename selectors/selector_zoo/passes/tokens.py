"""The tokens pass: how many tokens and tiles each sample costs under a backbone's tokenizer and geometry."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.api import FeaturePass, Pool
from harness.pool import IMAGE_TOKEN

COLUMNS = ("n_tokens", "n_sft", "n_answer", "n_response", "n_instruction", "n_image", "n_tiles")


@dataclass(frozen=True, slots=True)
class TokensConfig:
    """Nothing to set: the backbone decides."""


class TokensPass(FeaturePass):
    """Counts a sample's tokens as training would see them, before truncation."""

    name = "tokens"
    version = 1
    Config = TokensConfig
    identity = "processor"

    def open(self) -> None:
        """Load the tokenizer and the image geometry."""
        from transformers import AutoTokenizer

        from llava_train.tiles import Geometry

        folder = Path(self.context.model_path)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._geometry = Geometry.from_config(json.loads((folder / "config.json").read_text()))

    def run(self, pool: Pool, start: int, stop: int) -> tuple[dict[str, npt.NDArray[Any]], list[str]]:
        """Counts for positions [start, stop).

        `n_tokens` (all, images expanded), `n_sft` and `n_answer` (supervised under either mask), `n_response`
        (answer text without end markers), `n_instruction` (question text), `n_image` and `n_tiles`.
        """
        table = np.asarray([self._count(pool, i) for i in range(start, stop)], dtype=np.int32)
        return {name: table[:, i].copy() for i, name in enumerate(COLUMNS)}, [""] * (stop - start)

    def _count(self, pool: Pool, position: int) -> tuple[int, ...]:
        from llava_train.chat import encode
        from llava_train.tiles import image_tokens, sample_tiles

        record = pool.record(position)
        shapes = self._shapes(pool, record.images, position)
        images = image_tokens(shapes, self._geometry)
        encoded = encode(self._tokenizer, record.conversations, images)
        answer = int(encoded.answer_mask.sum())
        questions = [
            text.replace(IMAGE_TOKEN, "").strip() for role, text in record.conversations if role == "human"
        ]
        asked = self._tokenizer(questions, add_special_tokens=False)["input_ids"]
        return (
            len(encoded.ids),
            int(encoded.sft_mask.sum()),
            answer,
            answer - len(record.conversations) // 2,
            sum(map(len, asked)),
            sum(images),
            sample_tiles(shapes, self._geometry),
        )

    @staticmethod
    def _shapes(pool: Pool, images: tuple[str, ...], position: int) -> list[tuple[int, int]]:
        """Sizes (height, width) of a sample's images; the pool stores the first one's."""
        if len(images) < 2:
            return [(int(pool.column("height")[position]), int(pool.column("width")[position]))] * len(images)
        opened = [pool.image(key) for key in images]
        return [(image.height, image.width) for image in opened]
