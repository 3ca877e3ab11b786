"""Samples on their way into a forward and out of it again: tokens in, one row of numbers out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import HarnessError
from llava_train.chat import Mask, specials
from llava_train.pool_index import PoolIndex, Text

Reasons = dict[int, str]
"""Why a row has no numbers, by row of the shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample as tokens."""

    text: Text
    """Its `targets` are those that training supervises."""
    closing: Mask
    """The closing markers among those of its answers."""


def read_samples(index: PoolIndex, start: int, stop: int) -> tuple[dict[int, Sample], Reasons]:
    """Tokenise positions [start, stop); samples and failures by row of the shard."""
    samples: dict[int, Sample] = {}
    reasons: Reasons = {}
    for row in range(stop - start):
        try:
            samples[row] = read_sample(index, start + row)
        except HarnessError as e:
            reasons[row] = f"bad_conversation: {e}"
    return samples, reasons


def read_sample(index: PoolIndex, position: int) -> Sample:
    """Tokenise one sample, cut to length as training cuts it.

    Raises HarnessError, naming the sample, where its images and placeholders do not match.
    """
    text = index.text(position)
    last = text.answer & ~np.append(text.answer[1:], False)
    return Sample(text=text, closing=last & (text.ids == specials(index.tokenizer).end))


def summary(sample: Sample, tokens: npt.NDArray[np.float32], rounds: int) -> dict[str, Any]:
    """A sample's row: sums and means of its tokens' statistics under both masks, and sums by turn.

    `tokens` has shape (3, targets): negative log-likelihood, EL2N, entropy. Turns fill `rounds` places.
    """
    targets, answer = sample.text.targets, sample.text.answer
    placed = np.full((3, len(targets)), np.nan)
    placed[:, targets] = tokens
    row: dict[str, Any] = {"length": len(targets)}
    for name, mask in (("ans", answer), ("sft", targets)):
        count = int(mask.sum())
        nll, el2n, entropy = placed[:, mask].sum(axis=1) if count else np.full(3, np.nan)
        row[f"n_tok_{name}"] = count
        row[f"nll_sum_{name}"] = nll
        row[f"el2n_mean_{name}"] = el2n / max(count, 1)
        row[f"ent_mean_{name}"] = entropy / max(count, 1)
    starts = answer & ~np.concatenate([[False], answer[:-1]])
    content = answer & ~sample.closing
    turn = (np.cumsum(starts) - 1)[content]
    counts = np.bincount(turn, minlength=rounds)
    sums = np.bincount(turn, weights=placed[0, content], minlength=rounds)
    return row | {"turn_ntok": counts, "turn_nll": np.where(counts > 0, sums, np.nan)}


def complaint(row: dict[str, Any]) -> str:
    """Why a row's answer has no number: nothing of it is left, or the model overflows; "" where it has one."""
    if row["n_tok_ans"] == 0:
        return "no_answer_tokens"
    return "" if np.isfinite(row["nll_sum_ans"]) else "not_finite"
