"""A LLaVA-OneVision checkpoint in memory, ready to answer."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from harness.errors import HarnessError


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model with its processor on one device."""

    model: Any
    processor: Any
    device: torch.device
    end_ids: tuple[int, ...]
    """Tokens that end a turn."""
    pad_id: int

    def own_processor(self) -> Any:
        """A processor for one thread: tokenizers cannot be shared by threads that pad."""
        return copy.deepcopy(self.processor)

    @property
    def placeholders(self) -> tuple[str, ...]:
        return (str(self.processor.image_token), str(self.processor.video_token))

    def visual_tokens(self, images: Sequence[Image.Image]) -> int:
        """How many tokens the images of one prompt become; several images are not cut into tiles."""
        if len(images) > 1:
            return len(images) * (int(self.processor.num_image_tokens) + 1)
        sizes = [(image.height, image.width) for image in images]
        if not sizes:
            return 0
        return sum(self.processor._get_num_multimodal_tokens(image_sizes=sizes).num_image_tokens)


def load_checkpoint(path: Path, *, device: str, dtype: str, attention: str) -> Checkpoint:
    """Load model and processor of a LLaVA-OneVision folder for inference.

    Raises HarnessError where the folder is not one, or holds weights that are not finite.
    """
    from transformers import AutoProcessor, GenerationConfig, LlavaOnevisionForConditionalGeneration

    if not (path / "config.json").is_file():
        raise HarnessError(f"there is no checkpoint at {path}: it has no config.json.")
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(
        path,
        dtype=getattr(torch, dtype),
        attn_implementation=attention,
        device_map=None if device == "cpu" else {"": device},  # straight to the device, shard by shard
    )
    model = model.eval().requires_grad_(False)
    _check_finite(model, path)
    processor = AutoProcessor.from_pretrained(path)
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "left"
    ends = _end_ids(model.generation_config.eos_token_id, tokenizer.eos_token_id)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    # Sampling defaults that a checkpoint brings along would decide the benchmark's number.
    model.generation_config = GenerationConfig(eos_token_id=list(ends), pad_token_id=pad, use_cache=True)
    return Checkpoint(model=model, processor=processor, device=torch.device(device), end_ids=ends, pad_id=pad)


def _end_ids(*sources: int | Sequence[int] | None) -> tuple[int, ...]:
    ids: list[int] = []
    for source in sources:
        ids.extend([source] if isinstance(source, int) else source or ())
    if not ids:
        raise HarnessError("the checkpoint names no end-of-turn token: set eos_token in its tokenizer.")
    return tuple(dict.fromkeys(ids))


def _check_finite(model: torch.nn.Module, path: Path) -> None:
    for name, parameter in model.named_parameters():
        if not math.isfinite(float(parameter.detach().sum(dtype=torch.float32))):
            raise HarnessError(
                f"the weights of {path} are not finite (first: {name}): the training diverged; look at its loss."
            )
