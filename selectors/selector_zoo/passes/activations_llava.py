"""What the attention of a LLaVA writes, one that sees each image once as LLaVA-1.5 and TinyLLaVA do.

TinyLLaVA-2.0B (StableLM-2-1.6B and SigLIP-384, 729 tokens an image) is the model of COINCIDE (arXiv 2406.10995).
Images are padded to a square in the mean colour of the folder's image processor, as in the released code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from harness.errors import HarnessError
from harness.pool import Pool
from harness.types import TrainSpec
from llava_train.chat import IMAGE, Ids, Mask
from selector_zoo.passes.activations import ActivationsConfig, Shard
from selector_zoo.passes.activations_model import (
    ActivationReader,
    Activations,
    Reader,
    averaged,
    cut_off,
    decoders,
    in_halves,
    listening,
)
from selector_zoo.passes.forward import ahead, stored_dtype
from selector_zoo.passes.forward_samples import Reasons
from selector_zoo.passes.llava_chat import Spelling, messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """One sample as tokens, images expanded."""

    uid: str
    ids: Ids
    image: Mask
    text: Mask
    """What follows the first image, other images left out; without an image, what follows the system message."""
    pictures: tuple[str, ...]
    """Keys of its images in the pool."""


Shown = tuple[Tokens, Sequence[Tensor]]
"""A sample on its way into the model, with its images (3, side, side)."""


@dataclass(slots=True, kw_only=True)
class LlavaReader:
    """A LLaVA cut off above the last block that is read; batches are padded on the right."""

    model: Any
    tokenizer: Any
    image_processor: Any
    spelling: Spelling
    device: torch.device
    layers: tuple[int, ...]
    image_tokens: int
    """Tokens of an image."""

    @classmethod
    def load(cls, folder: Path, dtype: str, device: str, layers: tuple[int, ...]) -> LlavaReader:
        """Load a LLaVA folder onto a device; no `layers` are five at equal distances.

        Raises HarnessError for weights, a processor or a tokenizer that do not fit config.json, for a language
        model without `o_proj`, and for blocks it does not have.
        """
        from transformers import AutoProcessor

        model = _weights(folder, dtype).eval().to(device)
        # The release scales with PIL; torchvision differs by a step of 255 here and there.
        processor = AutoProcessor.from_pretrained(folder, backend="pil")
        tokenizer = processor.tokenizer
        made = cls(
            model=model,
            tokenizer=tokenizer,
            image_processor=processor.image_processor,
            spelling=Spelling.of(tokenizer, processor.chat_template or tokenizer.chat_template),
            device=torch.device(device),
            layers=cut_off(model.model.language_model, layers),
            image_tokens=tokens_of_an_image(model.config),
        )
        made.check(folder.name)
        return made

    @property
    def width(self) -> int:
        """Numbers in a feature."""
        return 2 * len(self.layers) * int(self.model.config.text_config.hidden_size)

    @torch.inference_mode()
    def check(self, name: str) -> None:
        """Raise HarnessError where tokenizer, image processor and weights do not agree about an image."""
        from PIL import Image

        config, side = self.model.config, self.model.config.vision_config.image_size
        known = self.tokenizer.get_vocab().get(IMAGE)
        if known != config.image_token_id:
            raise HarnessError(
                f"activations: {IMAGE} is token {known} in the tokenizer of {name} and {config.image_token_id} in "
                "config.json (image_token_index): make them the same."
            )
        pixels = self.view(Image.new("RGB", (side, side)))
        if pixels.shape != (3, side, side):
            raise HarnessError(
                f"activations: the image processor of {name} makes {tuple(pixels.shape)} of an image and its "
                f"config.json says {(3, side, side)}: set size, and crop_size, in preprocessor_config.json."
            )
        seen = self.model.model.get_image_features(pixel_values=self._moved([pixels]), return_dict=True)
        if (found := len(seen.pooler_output[0])) != self.image_tokens:
            raise HarnessError(
                f"activations: {name} makes {found} features of an image and its config.json says "
                f"{self.image_tokens}: mend patch_size or vision_feature_select_strategy there."
            )

    def rows(self, shard: Shard) -> Iterator[tuple[int, Activations | str]]:
        """Each row of a shard, from 0, once: what was read, or why nothing was."""
        samples, reasons = self._samples(shard)
        yield from reasons.items()
        groups, workers = batches(samples, shard.limits), decoders(self.device)
        for items, failed in ahead(lambda rows: self._build(shard.pool, samples, rows), groups, workers):
            yield from failed.items()
            yield from zip(items, in_halves(self._read, list(items.values())), strict=True)

    def _samples(self, shard: Shard) -> tuple[dict[int, Tokens], Reasons]:
        """Tokenise a shard; samples and failures by row."""
        samples: dict[int, Tokens] = {}
        reasons: Reasons = {}
        for row in range(shard.stop - shard.start):
            try:
                samples[row] = self.tokens(shard.pool, shard.start + row, shard.config.max_length)
            except HarnessError as e:
                reasons[row] = f"bad_conversation: {e}"
        return samples, reasons

    def tokens(self, pool: Pool, position: int, max_length: int) -> Tokens:
        """Tokenise one sample; cut from the right where it is too long, but never into an image.

        Raises HarnessError, naming the sample, where its images and placeholders do not match.
        """
        record = pool.record(position)
        try:
            ids, begun = self.spelling.encode(messages(record.conversations), literal=not record.images)
            image = (ids == self.model.config.image_token_id) & bool(record.images)
            named, had = int(image.sum()), len(record.images)
            if named != had:
                raise HarnessError(f"a conversation names {named} images and has {had}: give one {IMAGE} each.")
        except HarnessError as e:
            raise HarnessError(f"sample '{record.uid}' of pool {pool.name}: {e}") from None
        first = np.flatnonzero(image if record.images else begun)[:1]
        text = (np.arange(len(ids)) >= (first[0] if len(first) else len(ids))) & ~image
        ids, image, text = (np.repeat(part, np.where(image, self.image_tokens, 1)) for part in (ids, image, text))
        keep = max([max_length, *(np.flatnonzero(image)[-1:] + 1)])
        return Tokens(uid=record.uid, ids=ids[:keep], image=image[:keep], text=text[:keep], pictures=record.images)

    def _build(
        self, pool: Pool, samples: Mapping[int, Tokens], rows: list[int]
    ) -> tuple[dict[int, Shown], Reasons]:
        """Decode the images of some rows; what goes into the model, and failures, by row."""
        items: dict[int, Shown] = {}
        reasons: Reasons = {}
        for row in rows:
            sample = samples[row]
            try:
                items[row] = (sample, [self.view(pool.image(key)) for key in sample.pictures])
            except (OSError, KeyError, ValueError) as error:
                reasons[row] = (
                    f"unusable_image: an image of sample '{sample.uid}' of pool {pool.name} cannot be read "
                    f"({error}): run 'sievebench pool verify', or restore the file."
                )
        return items, reasons

    def view(self, picture: Any) -> Tensor:
        """A PIL image as the model takes it, (3, side, side)."""
        mean = tuple(int(255 * part) for part in self.image_processor.image_mean)
        pixels: Tensor = self.image_processor(squared(picture, mean), return_tensors="pt")["pixel_values"][0]
        return pixels

    def _moved(self, pictures: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(pictures)).to(self.device, self.model.dtype)

    @torch.inference_mode()
    def _read(self, items: Sequence[Shown]) -> list[Activations]:
        pictures = [picture for _, pictures in items for picture in pictures]
        # Any token but the image's: what stands behind a sample is not seen by it.
        filler = int(self.model.config.image_token_id == 0)
        ids = _padded([sample.ids for sample, _ in items], filler)
        seen = _padded([np.ones_like(sample.ids) for sample, _ in items], 0)
        with listening(self.model.model.language_model, self.layers) as caught:
            self.model.model(
                input_ids=ids.to(self.device),
                attention_mask=seen.to(self.device),
                pixel_values=self._moved(pictures) if pictures else None,
                use_cache=False,
            )
        written = torch.stack(caught, dim=1)
        return [
            averaged(states[:, : len(sample.ids)], sample.image, sample.text)
            for states, (sample, _) in zip(written, items, strict=True)
        ]


def _weights(folder: Path, dtype: str) -> Any:
    """The model of a folder, on the CPU.

    Raises HarnessError where weights are missing, and for a language model without `o_proj`.
    """
    from transformers import LlavaForConditionalGeneration

    model, info = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=getattr(torch, dtype), local_files_only=True, output_loading_info=True
    )
    if wrong := sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]])):
        raise HarnessError(
            f"the weights in {folder} do not fit its config.json ({', '.join(wrong[:3])} ({len(wrong)})): a "
            "checkpoint of other code is first converted to transformers' LlavaForConditionalGeneration."
        )
    blocks = getattr(model.model.language_model, "layers", [None])
    if any(not hasattr(getattr(block, "self_attn", None), "o_proj") for block in blocks):
        raise HarnessError(
            f"activations: the language model of {folder.name}, a {model.config.text_config.model_type}, has no "
            "blocks with self_attn.o_proj: give a model that has, such as one of stablelm, llama or qwen2."
        )
    return model


def tokens_of_an_image(config: Any) -> int:
    """Tokens of an image by a model's configuration: patches, and a class token that is there and not left out."""
    vision = config.vision_config
    patches = (int(vision.image_size) // int(vision.patch_size)) ** 2
    return (
        patches
        + int(vision.model_type == "clip_vision_model")
        - int(config.vision_feature_select_strategy == "default")
    )


def squared(picture: Any, colour: tuple[int, ...]) -> Any:
    """A PIL image in the middle of a square of that colour; a square one as it is."""
    from PIL import Image

    longest = max(picture.size)
    if min(picture.size) == longest:
        return picture
    board = Image.new(picture.mode, (longest, longest), colour)
    board.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
    return board


def batches(samples: Mapping[int, Tokens], limits: TrainSpec) -> list[list[int]]:
    """Rows that go through the model together: the longest first, as many as the limits allow, padding counted."""
    made: list[list[int]] = []
    longest = images = 0
    for row in sorted(samples, key=lambda row: (-len(samples[row].ids), row)):
        sample = samples[row]
        images += len(sample.pictures)
        if not made or (len(made[-1]) + 1) * longest > limits.pack_tokens or images > limits.pack_tiles:
            made.append([])
            longest, images = len(sample.ids), len(sample.pictures)
        made[-1].append(row)
    return made


def _padded(rows: Sequence[npt.NDArray[np.int32]], filler: int) -> Tensor:
    """Rows of different length as one array, filled up on the right; int64, (rows, longest)."""
    return pad_sequence([torch.from_numpy(row).long() for row in rows], batch_first=True, padding_value=filler)


READERS: Final[Mapping[str, type[LlavaReader] | type[ActivationReader]]] = {
    "llava": LlavaReader,
    "llava_onevision": ActivationReader,
}


def load_reader(folder: Path, config: ActivationsConfig, device: str) -> Reader:
    """The reader for a model folder, by the type of model its config.json names.

    Raises HarnessError for a model that is neither a LLaVA nor a LLaVA-OneVision, for one that cannot show images
    as asked, and for blocks it does not have.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise HarnessError(f"there is no model at {folder}: it has no config.json.")
    kind = json.loads(file.read_text()).get("model_type")
    if kind not in READERS:
        raise HarnessError(f"activations: {folder.name} is a {kind}; give one of {', '.join(READERS)}.")
    if kind == "llava" and config.view != "square":
        raise HarnessError(
            f"activations: {folder.name} is a llava and shows each image as one view: set view=square, or give a "
            f"llava_onevision for view={config.view}."
        )
    dtype = stored_dtype(folder) if config.dtype == "auto" else config.dtype
    return READERS[kind].load(folder, dtype, device, tuple(config.layers))
