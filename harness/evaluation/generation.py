"""How an answer is generated, read from a task's generation arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DEFAULT_NEW_TOKENS = 1024
"""Where a task names no limit; the same as in lmms-eval's own models."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Generation:
    """Settings of `generate`; items that share them may share a batch.

    A task's `until` strings are not applied, as in lmms-eval's own LLaVA models: the end of turn ends an answer.
    """

    max_new_tokens: int = DEFAULT_NEW_TOKENS
    num_beams: int = 1
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0

    @classmethod
    def read(cls, arguments: Mapping[str, Any]) -> Generation:
        """Read lmms-eval's `generation_kwargs`.

        Sampling needs a temperature above 0 and a `do_sample` that does not forbid it.
        """
        temperature = float(arguments.get("temperature") or 0.0)
        top_p = arguments.get("top_p")
        return cls(
            max_new_tokens=int(arguments.get("max_new_tokens") or DEFAULT_NEW_TOKENS),
            num_beams=int(arguments.get("num_beams") or 1),
            temperature=temperature if arguments.get("do_sample", True) else 0.0,
            top_p=1.0 if top_p is None else float(top_p),
        )

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of Hugging Face's `generate`."""
        shared = {"max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams}
        if self.temperature == 0:
            return shared | {"do_sample": False}
        return shared | {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
