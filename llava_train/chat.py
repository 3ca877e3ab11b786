"""Text: the one spelling of a conversation, shared by training, selection and evaluation.

ChatML as LLaVA-NeXT writes it (`preprocess_qwen`, `preprocess_multimodal`): a system turn always, every message
`<|im_start|>role\\ncontent<|im_end|>\\n`, and every newline and role marker supervised, wherever it stands.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from harness.errors import HarnessError

SYSTEM: Final = "You are a helpful assistant."
IMAGE: Final = "<image>"
START: Final = "<|im_start|>"
END: Final = "<|im_end|>"
_ROLES: Final = {"human": "user", "gpt": "assistant"}
_NOISE: Final = "QA_GT_caption_based_noisy"
"""Left in one released source; LLaVA-NeXT deletes it too."""

CHAT_TEMPLATE: Final = (
    "{%- if not messages or messages[0]['role'] != 'system' -%}"
    "{{ '" + START + "system\\n" + SYSTEM + END + "\\n' }}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '" + START + "' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string -%}"
    "{{ message['content'] }}"
    "{%- else -%}"
    "{%- set pictures = message['content'] | selectattr('type', 'equalto', 'image') | list -%}"
    "{%- for picture in pictures -%}{{ '" + IMAGE + "' }}{%- endfor -%}"
    "{%- if pictures -%}{{ '\\n' }}{%- endif -%}"
    "{%- for part in message['content'] | selectattr('type', 'equalto', 'text') -%}"
    "{{ part['text'] }}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{ '" + END + "\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '" + START + "assistant\\n' }}{%- endif -%}"
)
"""Jinja template of the exported processor: renders what `prompt_ids` encodes."""

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One conversation as tokens; a mask is true where the token is a *target* (position t predicts t + 1)."""

    ids: Ids
    """int32, shape (tokens,); image tokens expanded."""
    sft_mask: Mask
    """LLaVA-NeXT's labels: assistant messages whole, and every newline and role marker."""
    answer_mask: Mask
    """Only what the assistant says and its closing marker: no header, no newline after it."""


@dataclass(frozen=True, slots=True)
class Specials:
    """Token ids with a meaning, looked up by name in a tokenizer."""

    start: int
    end: int
    image: int
    newline: int


@functools.lru_cache(maxsize=8)
def specials(tokenizer: Any) -> Specials:
    """Find the marker tokens of a tokenizer.

    Raises HarnessError where one is missing or a newline is not a single token.
    """
    vocabulary = tokenizer.get_vocab()
    missing = [name for name in (START, END, IMAGE) if name not in vocabulary]
    if missing:
        raise HarnessError(
            f"the tokenizer of this model has no token {', '.join(missing)}: it is not the tokenizer of a "
            "LLaVA-OneVision model; add the special tokens to tokenizer.json."
        )
    newline = tokenizer("\n", add_special_tokens=False).input_ids
    if len(newline) != 1:
        raise HarnessError(
            f"the tokenizer of this model writes a newline as {len(newline)} tokens: training marks the newline "
            "token as supervised and needs exactly one."
        )
    return Specials(start=vocabulary[START], end=vocabulary[END], image=vocabulary[IMAGE], newline=newline[0])


def spell(text: str) -> str:
    """A message as training spells it: a lone `<image>` stands first, on a line of its own."""
    if text.count(IMAGE) == 1 and not text.startswith(IMAGE):
        text = f"{IMAGE}\n{text.replace(IMAGE, '').strip()}".strip()
    return text.replace(_NOISE, "")


def _messages(turns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    unknown = {role for role, _ in turns} - set(_ROLES)
    if unknown:
        raise HarnessError(f"a conversation has turns of {sorted(unknown)}: write them as 'human' and 'gpt'.")
    said = turns[1:] if turns and turns[0][0] != "human" else turns
    return [("system", SYSTEM), *((_ROLES[role], spell(text)) for role, text in said)]


def encode(tokenizer: Any, turns: Sequence[tuple[str, str]], image_tokens: Sequence[int]) -> Encoded:
    """Encode a conversation of (`human` or `gpt`, text) turns, `<image>` number i as `image_tokens[i]` tokens.

    Without images a literal `<image>` is text, as in LLaVA-NeXT.
    Raises HarnessError where images and placeholders do not match in number.
    """
    marks = specials(tokenizer)
    messages = _messages(turns)
    pieces = _pieces(tokenizer, [f"{role}\n{text}" for role, text in messages], literal=not image_tokens)
    lengths = [len(piece) + 3 for piece in pieces]
    ids = np.array([i for p in pieces for i in (marks.start, *p, marks.end, marks.newline)], dtype=np.int32)
    is_image = ids == marks.image if image_tokens else np.zeros(len(ids), dtype=np.bool_)
    spoken = np.repeat([role == "assistant" for role, _ in messages], lengths)
    offset = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    said = (offset >= len(_header(tokenizer))) & (offset < np.repeat(lengths, lengths) - 1)
    marked = np.isin(ids, (marks.start, marks.end, marks.newline))
    repeats = _repeats(is_image, image_tokens)
    return Encoded(
        ids=np.repeat(ids, repeats),
        sft_mask=np.repeat((spoken | marked) & ~is_image, repeats),
        answer_mask=np.repeat(spoken & said & ~is_image, repeats),
    )


def prompt_ids(tokenizer: Any, question: str, image_tokens: Sequence[int]) -> Ids:
    """Tokens of a question as training saw it, up to and including `<|im_start|>assistant\\n`; int32.

    Images stand in front unless the question already has one `<image>` for each.
    """
    if image_tokens and question.count(IMAGE) != len(image_tokens):
        question = f"{IMAGE * len(image_tokens)}\n{question}"
    prefix = encode(tokenizer, [("human", question)], image_tokens).ids
    return np.concatenate([prefix, np.asarray(_header(tokenizer), dtype=np.int32)])


@functools.lru_cache(maxsize=8)
def _header(tokenizer: Any) -> tuple[int, ...]:
    """Tokens of `<|im_start|>assistant\\n`."""
    return (specials(tokenizer).start, *tokenizer("assistant\n", add_special_tokens=False).input_ids)


def _pieces(tokenizer: Any, texts: list[str], *, literal: bool) -> list[list[int]]:
    """Token ids of several texts; `literal` reads `<image>` as the text it is."""
    plain = literal and any(IMAGE in text for text in texts)
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=plain)
    return list(encoded.input_ids)


def _repeats(is_image: Mask, image_tokens: Sequence[int]) -> npt.NDArray[np.int64]:
    """How often each token is repeated so that every placeholder takes the tokens of its image."""
    placeholders = int(is_image.sum())
    if placeholders != len(image_tokens):
        raise HarnessError(
            f"a conversation names {placeholders} images and has {len(image_tokens)}: give one {IMAGE} per image."
        )
    repeats = np.ones(len(is_image), dtype=np.int64)
    repeats[is_image] = image_tokens
    return repeats
