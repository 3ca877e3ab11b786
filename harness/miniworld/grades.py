"""Grades from 1 to 6 a careful annotator would give to text alone: what a question demands, what an answer offers.

Who sees no picture cannot tell a wrong answer from a right one, and neither do these.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from harness.miniworld.questions import Question

TOP: Final = 6

_DEMANDS: Final[dict[str, int]] = {
    "colour": 1,
    "shape": 1,
    "digit": 1,
    "read word": 1,
    "read number": 1,
    "place": 2,
    "count": 2,
    "value": 2,
    "lookup": 2,
    "digits": 2,
    "sum": 2,
    "row": 3,
    "spell": 3,
    "short description": 3,
    "highest": 3,
    "point": 4,
    "compare": 4,
    "detailed description": 5,
    "difference": 6,
}
"""What a question of each skill demands: look at one thing, find it, go over all of them, reckon in steps."""

_OFFERS: Final[dict[str, int]] = {
    "word/short-phrase": 2,
    "multi-choice": 2,
    "comparison": 3,
    "coordinate": 3,
    "specified style": 4,
    "short description": 4,
    "yes/no": 5,
    "detailed description": 6,
    "chain-of-thought": 6,
}
"""What a proper answer of each style offers: a bare word, a form that was asked for, its grounds, the whole."""


def complexity(question: Question) -> int:
    """How much a question demands, from 1 to 6; options, a statement or a form to obey are one more."""
    skill = question.skill.removeprefix("yes/no ").removeprefix("choice ")
    harder = skill != question.skill or question.style == "specified style"
    return min(TOP, _DEMANDS[skill] + harder)


def quality(question: Question) -> int:
    """How complete and well formed the answer is, from 1 to 6, as long as nobody has spoilt it."""
    return _OFFERS[question.style]


def answers(question: Question, rng: Random) -> list[tuple[str, int]]:
    """Answers to a question with the grades of their quality, among them broken ones.

    The right and the wrong answer have the same form and so the same grade; to repeat the question is no answer.
    """
    good = quality(question)
    graded = [(question.answer, good), (question.wrong, good), (question.text, 1)]
    words = question.answer.split()
    if len(words) > 1:
        graded.append((rng.choice(_BREAK)(words, rng), max(1, good - 3)))
    return graded


def _cut_off(words: list[str], rng: Random) -> str:
    return " ".join(words[: rng.randint(1, len(words) - 1)]).rstrip(".,:")


def _turned_round(words: list[str], rng: Random) -> str:
    return " ".join(reversed(words))


def _stammered(words: list[str], rng: Random) -> str:
    return " ".join(word for word in words for _ in range(2))


_BREAK: Final[tuple[Callable[[list[str], Random], str], ...]] = (_cut_off, _turned_round, _stammered)
