"""From the messages of an lmms-eval task to what a LLaVA-OneVision checkpoint reads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from harness.errors import HarnessError

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A conversation with its images taken out: `turns` go to the chat template, `images` to the processor."""

    turns: tuple[Mapping[str, Any], ...]
    images: tuple[Image.Image, ...]

    def render(self, processor: Any) -> str:
        """The prompt text of the checkpoint's own chat template, up to where the answer starts."""
        return str(processor.apply_chat_template(list(self.turns), tokenize=False, add_generation_prompt=True))


def read_messages(messages: Messages, placeholders: Sequence[str]) -> Prompt:
    """Split lmms-eval messages into turns and images, dropping stray image placeholders from their text.

    Some tasks write a literal `<image>` into the question although the image comes separately; the processor
    would take it for one more image. Raises HarnessError for video and audio.
    """
    turns: list[Mapping[str, Any]] = []
    images: list[Image.Image] = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        turns.append({"role": message["role"], "content": [_part(p, images, placeholders) for p in parts]})
    return Prompt(turns=tuple(turns), images=tuple(images))


def _part(part: Mapping[str, Any], images: list[Image.Image], placeholders: Sequence[str]) -> dict[str, str]:
    if part["type"] == "text":
        text = str(part["text"])
        for placeholder in placeholders:
            text = text.replace(placeholder, "")
        return {"type": "text", "text": text}
    if part["type"] == "image":
        images.append(_image(part["url"]))
        return {"type": "image"}
    raise HarnessError(f"a task sends {part['type']}: LLaVA-OneVision is evaluated on text and images only.")


def _image(source: Any) -> Image.Image:
    image = source if isinstance(source, Image.Image) else Image.open(source)
    return image.convert("RGB") if image.mode != "RGB" else image


def input_digest(text: str, images: Sequence[Image.Image], settings: str) -> str:
    """sha256 over prompt text, decoded pixels and generation settings: what the answer depends on."""
    h = hashlib.sha256(f"{settings}\0{text}\0".encode())
    for image in images:
        h.update(f"{image.mode}{image.size}".encode())
        h.update(image.tobytes())
    return h.hexdigest()
