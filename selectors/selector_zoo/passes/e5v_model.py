"""Multimodal language models as embedders: the last state of a prompt that asks for a summary in one word."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import HarnessError
from harness.pool import IMAGE_TOKEN
from llava_train.chat import specials
from llava_train.model import PackedModel, load_backbone
from llava_train.packs import Item, collate
from llava_train.tiles import Geometry, blank, cut, tokens_of
from selector_zoo.passes.activations_model import in_halves
from selector_zoo.passes.forward import stored_dtype

Floats = npt.NDArray[np.float32]

MARKERS: Final = re.compile(r"<\|[^|>]*\|>")
"""Tokens that mark turns, in any chat format."""


class Embedder(ABC):
    """A model that turns prompts into embeddings of length one."""

    def __init__(self, model: Any, tokenizer: Any, device: str) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.device = torch.device(device)

    @property
    def width(self) -> int:
        """Numbers in an embedding."""
        return int(self.model.config.text_config.hidden_size)

    def accept(self, prompts: Sequence[str]) -> None:
        """Raise HarnessError for prompts with markers of turns that the model does not know."""
        known = self.tokenizer.get_vocab()
        for marker in sorted({m for prompt in prompts for m in MARKERS.findall(prompt)} - set(known)):
            raise HarnessError(
                f"e5v: the model's tokenizer has no token {marker}: these prompts are for another chat format; "
                "royokong/e5-v takes prompts=e5v, a LLaVA-OneVision prompts=e5v_chatml."
            )

    def shortened(self, text: str, most: int) -> str:
        """A text without what follows its first `most` tokens."""
        places = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return text if len(places) <= most else text[: places[most - 1][1]]

    def texts(self, prompts: Sequence[str]) -> Floats:
        """Embeddings of prompts, (n, width)."""
        return self._units(in_halves(lambda part: list(self._text_states(part)), prompts))

    def images(self, pictures: Sequence[Any], prompt: str) -> Floats:
        """Embeddings of one prompt about each of some PIL images, (n, width)."""
        return self._units(in_halves(lambda part: list(self._image_states(part, prompt)), pictures))

    def _units(self, states: list[Tensor]) -> Floats:
        found: Floats = F.normalize(torch.stack(states).float(), dim=-1).cpu().numpy()
        return found

    @abstractmethod
    def _text_states(self, prompts: Sequence[str]) -> Tensor:
        """Last state of each prompt, (n, width)."""

    @abstractmethod
    def _image_states(self, pictures: Sequence[Any], prompt: str) -> Tensor:
        """Last state of the prompt about each image, (n, width)."""


class NextEmbedder(Embedder):
    """A LLaVA-NeXT with its own processor, as E5-V is; batches are padded on the left."""

    def __init__(self, folder: Path, dtype: str, device: str, views: str) -> None:
        from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor

        model = LlavaNextForConditionalGeneration.from_pretrained(
            folder, dtype=dtype if dtype == "auto" else getattr(torch, dtype), local_files_only=True
        )
        processor = LlavaNextProcessor.from_pretrained(folder)
        # Processors saved before version 4.46 do not say how many tokens an image takes; the model does.
        processor.patch_size = model.config.vision_config.patch_size
        processor.vision_feature_select_strategy = model.config.vision_feature_select_strategy
        processor.num_additional_image_tokens = int(model.config.vision_config.model_type == "clip_vision_model")
        tokenizer = processor.tokenizer
        tokenizer.padding_side = "left"  # the last position is then a prompt's own in every row
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        super().__init__(model.eval().to(device), tokenizer, device)
        self.processor = processor
        self.base_only = views == "single"
        if self.base_only:
            # The model takes an image without a canvas as its base view and one newline token. The processor
            # wants a canvas; its tiles are thrown away, so that one of them is the least work.
            model.config.image_grid_pinpoints = [[0, 0]]
            processor.image_processor.image_grid_pinpoints = [[model.config.vision_config.image_size] * 2]

    @torch.inference_mode()
    def _text_states(self, prompts: Sequence[str]) -> Tensor:
        return self._last(self.tokenizer(list(prompts), padding=True, return_tensors="pt"))

    @torch.inference_mode()
    def _image_states(self, pictures: Sequence[Any], prompt: str) -> Tensor:
        if self.base_only:
            inputs = self._base_inputs(pictures, prompt)
        else:
            asked = [prompt] * len(pictures)
            inputs = self.processor(images=list(pictures), text=asked, padding=True, return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        return self._last(inputs)

    def _base_inputs(self, pictures: Sequence[Any], prompt: str) -> Any:
        """What the processor makes of images, without their tiles; prompts are then equally long."""
        vision = self.model.config.vision_config
        taken = (vision.image_size // vision.patch_size) ** 2 + 1
        asked = [prompt.replace(IMAGE_TOKEN, IMAGE_TOKEN * taken)] * len(pictures)
        inputs = self.processor.image_processor(list(pictures), return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"][:, :1]
        inputs.update(self.tokenizer(asked, return_tensors="pt"))
        return inputs

    def _last(self, inputs: Any) -> Tensor:
        states: Tensor = self.model.model(**inputs.to(self.device), use_cache=False).last_hidden_state
        return states[:, -1]


class OnevisionEmbedder(Embedder):
    """A LLaVA-OneVision, which takes prompts laid end to end, without padding."""

    def __init__(self, folder: Path, dtype: str, device: str, views: str) -> None:
        from transformers import AutoTokenizer

        model = load_backbone(folder, stored_dtype(folder) if dtype == "auto" else dtype).eval().to(device)
        super().__init__(model, AutoTokenizer.from_pretrained(folder), device)
        self.geometry = Geometry.from_config(model.config, views)
        self.packed = PackedModel(model)

    def _text_states(self, prompts: Sequence[str]) -> Tensor:
        return self._last([Item(ids=ids, targets=np.zeros(len(ids), np.bool_)) for ids in self._ids(prompts)])

    def _image_states(self, pictures: Sequence[Any], prompt: str) -> Tensor:
        (ids,) = self._ids([prompt])
        image = specials(self.tokenizer).image
        items = []
        for picture in pictures:
            taken = tokens_of(picture.height, picture.width, self.geometry)
            full = np.repeat(ids, np.where(ids == image, taken, 1))
            size = (picture.height, picture.width)
            tiles = [cut(picture, self.geometry)]
            items.append(Item(ids=full, targets=np.zeros(len(full), np.bool_), images=tiles, sizes=[size]))
        return self._last(items)

    def _ids(self, prompts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        encoded = self.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
        return [np.asarray(ids, dtype=np.int32) for ids in encoded]

    @torch.inference_mode()
    def _last(self, items: Sequence[Item]) -> Tensor:
        pack = collate(items, specials(self.tokenizer).image, blank(self.geometry)).to(self.device)
        states: Tensor = self.packed.model.model(pack)
        return states[torch.tensor(pack.bounds[1:], device=self.device) - 1]


EMBEDDERS: Final = {"llava_next": NextEmbedder, "llava_onevision": OnevisionEmbedder}


def load_embedder(folder: Path, dtype: str, device: str, views: str = "checkpoint") -> Embedder:
    """The embedder for a model folder, with all views of a picture its `checkpoint` has, or a `single` base view.

    Raises HarnessError for a model that is neither a LLaVA-NeXT nor a LLaVA-OneVision.
    """
    kind = json.loads((folder / "config.json").read_text()).get("model_type")
    if kind not in EMBEDDERS:
        raise HarnessError(f"e5v: {folder.name} is a {kind}; give one of {', '.join(EMBEDDERS)}.")
    made: Embedder = EMBEDDERS[kind](folder, dtype, device, views)
    return made
