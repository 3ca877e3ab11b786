"""The clip pass: image and text embeddings of a CLIP-type dual encoder, and their cosine (row "CLIP" of arXiv
2503.13383, whose text view is not published: there are several)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.api import FeaturePass, Pool, Record
from harness.errors import HarnessError
from harness.types import OMIT_DEFAULT
from selector_zoo.passes.deita import without_image
from selector_zoo.passes.forward import DECODERS, ahead
from selector_zoo.passes.forward_samples import Reasons

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float32]

BATCH = 64
VIEWS = ("qa", "q", "a", "all", "chunk_mean", "turn_max")


@dataclass(frozen=True, slots=True)
class ClipConfig:
    """What text is set against what of the picture."""

    text: str = "qa"
    """First turn's question and answer (`qa`), `q`, or `a`; or `all` turns; cut at the model's text length.
    `chunk_mean` cuts all turns into parts of that length and takes the mean of their embeddings, `turn_max` takes
    the turn that agrees most."""
    image: str = field(default="crop", metadata=OMIT_DEFAULT)
    """The middle of the picture (`crop`), as the model's processor cuts it, or all, padded to a square (`pad`)."""

    def __post_init__(self) -> None:
        for name, values in {"text": VIEWS, "image": ("crop", "pad")}.items():
            if getattr(self, name) not in values:
                raise HarnessError(f"clip: {name}={getattr(self, name)} is none of {', '.join(values)}.")


class ClipPass(FeaturePass):
    """Embeds the first image and the text of every sample with `transformers.CLIPModel`."""

    name = "clip"
    version = 2
    Config = ClipConfig

    def open(self) -> None:
        """Load the model and its processor."""
        import torch
        from transformers import CLIPModel, CLIPProcessor

        self._model = CLIPModel.from_pretrained(self.context.model_path, dtype=torch.float32).eval()
        self._model.to(self.context.device)
        self._processor = CLIPProcessor.from_pretrained(self.context.model_path)

    def run(self, pool: Pool, start: int, stop: int) -> tuple[dict[str, npt.NDArray[Any]], list[str]]:
        """Columns `image` and `text` (float16, unit length, (n, dim)) and `cosine` (float32).

        Of several texts the one that agrees most is kept. Text-only samples and unreadable images have NaN in
        `image` and `cosine`, and a reason.
        """
        records = [pool.record(i) for i in range(start, stop)]
        image, reasons = self._images(pool, records)
        texts = [texts_of(r, self.config.text) for r in records]
        bounds = np.cumsum([0, *map(len, texts)])
        text = self._embed_texts([one for several in texts for one in several])
        cosine = (np.repeat(image, np.diff(bounds), axis=0) * text).sum(axis=1).astype(np.float32)
        best = [a + int(np.argmax(cosine[a:b])) for a, b in pairwise(bounds.tolist())]
        text, cosine = text[best], cosine[best]
        for row in np.flatnonzero(~np.isfinite(cosine)).tolist():
            reasons.setdefault(row, "not_finite")
        columns = {"image": image.astype(np.float16), "text": text.astype(np.float16), "cosine": cosine}
        return columns, [reasons.get(row, "") for row in range(len(records))]

    def _images(self, pool: Pool, records: Sequence[Record]) -> tuple[Floats, Reasons]:
        """Embedding of each record's first image, (n, dim), NaN where there is none, and failures by row."""
        reasons: Reasons = {row: "no_image" for row, record in enumerate(records) if not record.images}
        rows = [row for row in range(len(records)) if row not in reasons]
        found = np.full((len(records), self._model.config.projection_dim), np.nan, dtype=np.float32)
        keys = (
            {row: records[row].images[0] for row in rows[at : at + BATCH]} for at in range(0, len(rows), BATCH)
        )
        workers = 1 if self.context.device == "cpu" else DECODERS
        for pixels, failed in ahead(partial(self._pixels, pool), keys, workers):
            reasons |= failed
            if pixels:
                found[list(pixels)] = self._embed_images(list(pixels.values()))
        return found, reasons

    def _pixels(self, pool: Pool, keys: Mapping[int, str]) -> tuple[dict[int, Tensor], Reasons]:
        """What the model sees of some images, and failures, by row; no two pictures are in memory whole."""
        pixels: dict[int, Tensor] = {}
        reasons: Reasons = {}
        for row, key in keys.items():
            try:
                picture = pool.image(key)
            except (OSError, KeyError, ValueError) as e:
                reasons[row] = f"unreadable_image: {e}"
                continue
            if self.config.image == "pad":
                picture = self._padded(picture)
            pixels[row] = self._processor.image_processor(picture, return_tensors="pt").pixel_values[0]
        return pixels, reasons

    def _padded(self, picture: Any) -> Any:
        """A picture in the middle of a square of the colour that the model takes for zero."""
        from PIL import ImageOps

        mean = tuple(round(255 * value) for value in self._processor.image_processor.image_mean)
        return ImageOps.pad(picture, (max(picture.size),) * 2, color=mean)

    def _embed_images(self, pixels: list[Tensor]) -> Floats:
        import torch

        with torch.inference_mode():
            return _unit(self._model.get_image_features(pixel_values=torch.stack(pixels).to(self.context.device)))

    def _embed_texts(self, texts: list[str]) -> Floats:
        """Embeddings of texts, (n, dim)."""
        found = np.empty((len(texts), self._model.config.projection_dim), dtype=np.float32)
        # By length, so that a batch pads little; the order of a batch does not change its rows.
        order = np.argsort([len(t) for t in texts], kind="stable")
        for at in range(0, len(order), BATCH):
            rows = order[at : at + BATCH].tolist()
            found[rows] = self._embed_batch([texts[i] for i in rows])
        return found

    def _embed_batch(self, texts: list[str]) -> Floats:
        """Embeddings of some texts; with `chunk_mean` the mean of those of their parts, of length one again."""
        import torch

        in_parts = self.config.text == "chunk_mean"
        parts = self._processor.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self._model.config.text_config.max_position_embeddings,
            return_overflowing_tokens=in_parts,
            return_tensors="pt",
        )
        owner = parts.pop("overflow_to_sample_mapping", None)
        found = []
        with torch.inference_mode():
            for at in range(0, len(parts["input_ids"]), BATCH):
                some = {name: ids[at : at + BATCH].to(self.context.device) for name, ids in parts.items()}
                found.append(_unit(self._model.get_text_features(**some)))
        units = np.concatenate(found)
        if not in_parts:
            return units
        sums = np.zeros((len(texts), units.shape[1]), dtype=np.float32)
        np.add.at(sums, owner.numpy(), units)
        means: Floats = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        return means


def _unit(features: Any) -> Floats:
    """Embeddings scaled to length one; transformers returns them bare or inside an output object."""
    tensor = getattr(features, "pooler_output", features).float()
    normed = tensor / tensor.norm(dim=-1, keepdim=True)
    out: Floats = normed.cpu().numpy()
    return out


def texts_of(record: Record, view: str) -> list[str]:
    """The texts of a view of a sample: one, but for `turn_max`, which has one a turn."""
    if view in ("q", "a", "qa"):
        return [first_turn(record, view)]
    said = [text for _, text in record.conversations]
    turns = [f"{_bare(q)} {_bare(a)}".strip() for q, a in zip(said[::2], said[1::2], strict=True)]
    return turns if view == "turn_max" else [" ".join(turns)]


def first_turn(record: Record, view: str) -> str:
    """The chosen text of a sample's first turn, without image placeholders."""
    question, answer = (_bare(text) for _, text in record.conversations[:2])
    return {"q": question, "a": answer, "qa": f"{question} {answer}".strip()}[view]


def _bare(text: str) -> str:
    return without_image(text).strip()
