"""The clip pass: image and text embeddings of a CLIP-type dual encoder, and their cosine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.api import FeaturePass, Pool, Record
from harness.errors import HarnessError
from harness.pool import IMAGE_TOKEN

BATCH = 64


@dataclass(frozen=True, slots=True)
class ClipConfig:
    """What text is set against the picture."""

    text: str = "qa"
    """First turn's question and answer (`qa`), `q`, or `a`, cut at the model's text length."""

    def __post_init__(self) -> None:
        if self.text not in ("qa", "q", "a"):
            raise HarnessError(f"clip: text={self.text} is none of qa, q, a")


class ClipPass(FeaturePass):
    """Embeds the first image and the first turn of every sample with `transformers.CLIPModel`."""

    name = "clip"
    version = 1
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

        Text-only samples and unreadable images have NaN in `image` and `cosine`, and a reason.
        """
        records = [pool.record(i) for i in range(start, stop)]
        reasons, pictures = self._pictures(pool, records)
        usable = [i for i, reason in enumerate(reasons) if not reason]
        dim = self._model.config.projection_dim
        image = np.full((len(records), dim), np.nan, dtype=np.float32)
        text = np.empty((len(records), dim), dtype=np.float32)
        for at in range(0, len(usable), BATCH):
            rows = usable[at : at + BATCH]
            image[rows] = self._embed_images([pictures[i] for i in rows])
        texts = [first_turn(r, self.config.text) for r in records]
        # By length, so that a batch pads little; the order of a batch does not change its rows.
        order = np.argsort([len(t) for t in texts], kind="stable")
        for at in range(0, len(order), BATCH):
            rows = order[at : at + BATCH].tolist()
            text[rows] = self._embed_texts([texts[i] for i in rows])
        cosine = (image * text).sum(axis=1).astype(np.float32)
        columns = {"image": image.astype(np.float16), "text": text.astype(np.float16), "cosine": cosine}
        return columns, reasons

    @staticmethod
    def _pictures(pool: Pool, records: list[Record]) -> tuple[list[str], dict[int, Any]]:
        reasons = [""] * len(records)
        pictures: dict[int, Any] = {}
        for i, record in enumerate(records):
            if not record.images:
                reasons[i] = "no_image"
                continue
            try:
                pictures[i] = pool.image(record.images[0])
            except (OSError, KeyError) as e:
                reasons[i] = f"unreadable_image: {e}"
        return reasons, pictures

    def _embed_images(self, images: list[Any]) -> npt.NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            inputs = self._processor(images=images, return_tensors="pt").to(self.context.device)
            return _unit(self._model.get_image_features(**inputs))

    def _embed_texts(self, texts: list[str]) -> npt.NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            inputs = self._processor(text=texts, return_tensors="pt", padding=True, truncation=True)
            return _unit(self._model.get_text_features(**inputs.to(self.context.device)))


def _unit(features: Any) -> npt.NDArray[np.float32]:
    """Embeddings scaled to length one; transformers returns them bare or inside an output object."""
    tensor = getattr(features, "pooler_output", features).float()
    normed = tensor / tensor.norm(dim=-1, keepdim=True)
    out: npt.NDArray[np.float32] = normed.cpu().numpy()
    return out


def first_turn(record: Record, view: str) -> str:
    """The chosen text of a sample's first turn, without the image placeholder."""
    question = record.conversations[0][1].replace(IMAGE_TOKEN, "").strip()
    answer = record.conversations[1][1].strip()
    return {"q": question, "a": answer, "qa": f"{question} {answer}"}[view]
