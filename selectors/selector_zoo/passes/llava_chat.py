"""How a LLaVA's conversations are written: by the chat template of its folder or, where it has none, in the format
of Vicuna, which LLaVA-1.5 and TinyLLaVA were trained with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from jinja2 import TemplateError

from harness.errors import HarnessError
from llava_train.chat import IMAGE, Ids, Mask, spell

Turns = Sequence[tuple[str, str]]
"""(role, text) in order."""

SYSTEM: Final = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""How Vicuna's format begins."""
_ROLES: Final = {"human": "user", "gpt": "assistant"}
_ASKED, _SAID, _NEXT = "qzx1", "qzx2", "qzx3"
"""Words that no template has of itself, to see where it puts what is said."""


def messages(conversation: Turns) -> list[tuple[str, str]]:
    """(`user` or `assistant`, text) from the first question on, a lone image first and on a line of its own.

    Raises HarnessError for roles other than `human` and `gpt`.
    """
    unknown = {role for role, _ in conversation} - set(_ROLES)
    if unknown:
        raise HarnessError(f"a conversation has turns of {sorted(unknown)}: write them as 'human' and 'gpt'.")
    turns = conversation[1:] if conversation and conversation[0][0] != "human" else conversation
    return [(_ROLES[role], spell(text)) for role, text in turns]


def vicuna(turns: Turns, end: str) -> str:
    """`user` and `assistant` turns in Vicuna's format, `end` after every answer.

    It is `v1` of LLaVA-1.5, which ends answers with `</s>`, and `phi` of TinyLLaVA, with `<|endoftext|>`.
    """
    written = f"{SYSTEM} "
    for role, text in turns:
        name, after = ("USER", " ") if role == "user" else ("ASSISTANT", end)
        written += f"{name}: {text}{after}" if text else f"{name}:"
    return written


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """How one folder's conversations are written."""

    tokenizer: Any
    template: str = ""
    """Jinja template; empty: Vicuna's format, in which the tokenizer's end of text ends an answer."""
    parts: bool = False
    """Whether the template is given a message as a list of images and words, or as one text."""
    system: int = 0
    """Characters before the first turn."""

    @classmethod
    def of(cls, tokenizer: Any, template: str | Mapping[str, str] | None) -> Spelling:
        """The spelling of a folder with this chat template (or several, by name), or with none.

        Raises HarnessError for a template that loses images or words.
        """
        chosen = template.get("default") if isinstance(template, Mapping) else template
        for parts in (True, False):
            made = cls(tokenizer=tokenizer, template=chosen or "", parts=parts)
            if made._keeps_all():
                return replace(made, system=made._before_turns())
        raise HarnessError(
            f"the chat template of this model does not write an image as one {IMAGE} with the words after it: "
            "mend it, or remove it for Vicuna's format."
        )

    def write(self, turns: Turns, *, literal: bool = False) -> str:
        """`user` and `assistant` turns as text, `<image>` for each image; `literal`: there are no images.

        Raises HarnessError where the template refuses them.
        """
        if not self.template:
            return vicuna(turns, self.tokenizer.eos_token or "</s>")
        given = [{"role": r, "content": _parts(text, literal) if self.parts else text} for r, text in turns]
        try:
            return str(self.tokenizer.apply_chat_template(given, chat_template=self.template, tokenize=False))
        except (TemplateError, TypeError) as e:  # TypeError: a list where the template adds to a text
            raise HarnessError(f"the model's chat template refuses a conversation ({e}).") from None

    def encode(self, turns: Turns, *, literal: bool = False) -> tuple[Ids, Mask]:
        """Token ids of `user` and `assistant` turns, and which of them end behind the system message.

        `literal` reads `<image>` as the text it is: there are no images. Raises HarnessError where the template
        refuses the turns.
        """
        text = self.write(turns, literal=literal)
        # As transformers' processors do: a template may have written the first token already.
        begun = bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)
        ids: list[int] = []
        ends: list[int] = []
        at = 0
        for i, piece in enumerate(re.split(f"({IMAGE})", text) if literal else [text]):
            found = self.tokenizer(
                piece,
                add_special_tokens=i == 0 and not begun,
                split_special_tokens=literal and piece == IMAGE,
                return_offsets_mapping=True,
            )
            ids += found["input_ids"]
            ends += [at + end for _, end in found["offset_mapping"]]
            at += len(piece)
        return np.array(ids, dtype=np.int32), np.array(ends) > self.system

    def _before_turns(self) -> int:
        """Characters before the header of the first turn, whatever it says."""
        once = self.write([("user", _ASKED), ("assistant", _SAID)])
        more = self.write([("user", _ASKED), ("assistant", _SAID), ("user", _NEXT)])
        closing = once.partition(_SAID)[2]
        header = more.partition(_SAID)[2].partition(_NEXT)[0].removeprefix(closing)
        return len(more.partition(_ASKED)[0].removesuffix(header))

    def _keeps_all(self) -> bool:
        """Whether an image, what is asked and what is said are all written, in this order."""
        try:
            text = self.write([("user", f"{IMAGE}\n{_ASKED}"), ("assistant", _SAID)])
        except HarnessError:
            return False
        places = [text.find(word) for word in (IMAGE, _ASKED, _SAID)]
        return text.count(IMAGE) == 1 and -1 not in places and places == sorted(places)


def _parts(text: str, literal: bool) -> list[dict[str, str]]:
    """A message as a list of its images and words, without the lines between them: templates write their own."""
    pieces = [text] if literal else text.split(IMAGE)
    parts: list[dict[str, str]] = []
    for i, words in enumerate(pieces):
        if i > 0:
            parts.append({"type": "image"})
        if bare := words.strip("\n") if len(pieces) > 1 else words:
            parts.append({"type": "text", "text": bare})
    return parts
