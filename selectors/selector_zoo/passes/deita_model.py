"""A causal language model that is read, not sampled: the grade it is about to give, or its last state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.errors import HarnessError

if TYPE_CHECKING:
    from selector_zoo.passes.deita import Prompt

GRADES: Final = ("1", "2", "3", "4", "5", "6")


@dataclass(slots=True, kw_only=True)
class Reader:
    """A model in evaluation mode; `digits` are the tokens of the grades, empty where states are wanted."""

    model: Any
    tokenizer: Any
    device: torch.device
    digits: list[int]

    @classmethod
    def load(cls, folder: str, device: str, *, grades: bool) -> Reader:
        """Load a model folder onto a device, in the dtype it was stored in.

        Raises HarnessError where grades are wanted and a digit is not one token.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval().to(device)
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True)
        digits = digit_ids(tokenizer, folder) if grades else []
        return cls(model=model, tokenizer=tokenizer, device=torch.device(device), digits=digits)

    def encode(self, prompts: Sequence[Prompt], max_length: int) -> list[list[int]]:
        """Token ids of prompts, with what the tokenizer puts before a text, cut to `max_length`.

        Raises HarnessError where a template alone is longer than that.
        """
        encoded = self.tokenizer([p.text for p in prompts], return_offsets_mapping=True)
        rows = zip(prompts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return [shortened(ids, ends, prompt, max_length) for prompt, ids, ends in rows]

    def __call__(self, prompts: Sequence[list[int]]) -> list[npt.NDArray[np.float32]]:
        """Grades from 1 to 6, shape (), or states (d,); in two batches of half the size where memory runs out."""
        try:
            return self._read(prompts)
        except torch.OutOfMemoryError:
            if len(prompts) == 1:
                raise
        half = len(prompts) // 2
        return self(prompts[:half]) + self(prompts[half:])

    @torch.inference_mode()
    def _read(self, prompts: Sequence[list[int]]) -> list[npt.NDArray[np.float32]]:
        # Padding stands on the right, where a causal model does not see it.
        longest = max(map(len, prompts))
        ids = torch.tensor([p + [p[-1]] * (longest - len(p)) for p in prompts], device=self.device)
        states = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        last = states[torch.arange(len(prompts)), torch.tensor([len(p) - 1 for p in prompts])]
        if self.digits:
            last = expected_grade(self.model.get_output_embeddings()(last)[:, self.digits])
        return list(last.float().cpu().numpy())


def expected_grade(logits: Tensor) -> Tensor:
    """Mean of 1 to 6 under the softmax of their logits, (n, 6), in float32."""
    share = logits.float().softmax(dim=-1)
    return share @ torch.arange(1, 7, dtype=torch.float32, device=share.device)


def digit_ids(tokenizer: Any, folder: str) -> list[int]:
    """The tokens of 1 to 6, as they stand after other text.

    Raises HarnessError where one of them is not a token.
    """
    vocabulary = tokenizer.get_vocab()
    missing = [digit for digit in GRADES if digit not in vocabulary]
    if missing:
        raise HarnessError(
            f"the tokenizer of {folder} has no token '{missing[0]}': a scorer's grades cannot be read."
        )
    return [vocabulary[digit] for digit in GRADES]


def shortened(ids: list[int], spans: list[tuple[int, int]], prompt: Prompt, max_length: int) -> list[int]:
    """Ids cut to length before the template's tail; `spans` are the characters of each."""
    surplus = len(ids) - max_length
    if surplus <= 0:
        return ids
    kept = sum(begin >= len(prompt.text) - prompt.tail for begin, _ in spans) if prompt.tail else 0
    cut = len(ids) - kept
    if surplus >= cut:
        raise HarnessError(
            f"deita: max_length={max_length} leaves no room for text beside the template; raise it."
        )
    return ids[: cut - surplus] + ids[cut:]
