"""Samples on their way into a forward and out of it again: tokens in, one row of numbers out."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import HarnessError
from llava_train.chat import Mask, Specials, specials
from llava_train.plan import Ints
from llava_train.pool_index import PoolIndex, Text

Reasons = dict[int, str]
"""Why a row has no numbers, by row of the shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample as tokens."""

    text: Text
    """Its `targets` are those that training supervises."""
    turn: Ints
    """Which answer each token is content of, from 0; -1 for closing markers and all that is no answer."""
    truncated: bool
    """Whether text was cut off."""


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
    return Sample(text=text, turn=answer_turns(text, specials(index.tokenizer)), truncated=truncated(index, text))


def answer_turns(text: Text, marks: Specials) -> Ints:
    """Which answer each token is content of, from 0; -1 for closing markers and all that is no answer."""
    # Images are left out first: one inside an answer would make two of it.
    words = np.flatnonzero(text.ids != marks.image)
    spoken = text.answer[words]
    first = spoken & ~np.append(False, spoken[:-1])
    last = spoken & ~np.append(spoken[1:], False)
    content = spoken & ~(last & (text.ids[words] == marks.end))
    turn = np.full(len(text.ids), -1, dtype=np.int64)
    turn[words[content]] = (np.cumsum(first) - 1)[content]
    return turn


def truncated(index: PoolIndex, text: Text) -> bool:
    """Whether a tokenised sample has lost text to the maximal length."""
    # Only what fills the length can have been cut; to know, it is tokenised again whole.
    if len(text.ids) < index.max_length:
        return False
    return len(text.ids) < len(replace(index, max_length=sys.maxsize).text(text.position).ids)


def truncated_rows(samples: Mapping[int, Sample], n: int) -> Mask:
    """Which of `n` rows were cut, (n,); rows that could not be tokenised were not."""
    return np.array([row in samples and samples[row].truncated for row in range(n)], dtype=np.bool_)


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
    content = sample.turn >= 0
    counts = np.bincount(sample.turn[content], minlength=rounds)
    sums = np.bincount(sample.turn[content], weights=placed[0, content], minlength=rounds)
    return row | {"turn_ntok": counts, "turn_nll": np.where(counts > 0, sums, np.nan)}


def complaint(row: dict[str, Any]) -> str:
    """Why a row has no numbers: the model overflows; or its answer none: nothing of it is left; else ""."""
    if row["n_tok_sft"] > 0 and not np.isfinite(row["nll_sum_sft"]):
        return "not_finite"
    return "" if row["n_tok_ans"] > 0 else "no_answer_tokens"
