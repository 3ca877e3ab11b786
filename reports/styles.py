"""How a sample asks and answers, read off its first exchange by rules: a stand-in where no styler has run.

The nine styles are those of arXiv 2503.13383 (mmSSR), whose styler is a trained model; these rules look at the
form of question and answer alone and give each sample exactly one style.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from harness.pool import IMAGE_TOKEN, Record

PHRASE_WORDS: Final = 8
"""Words of the longest answer that is a phrase."""
DETAILED_WORDS: Final = 40
"""Words of the shortest answer that describes in detail whatever was asked."""

_OPTION: Final = re.compile(r"(?:^|\s)\(?[A-J][.):]\s")
"""What stands before an option; the option goes to the next one or the end of its line."""
_LETTER: Final = re.compile(r"\(?[A-J][.):]?")
_PLACE: Final = re.compile(r"[\[(]\s*-?\d*\.?\d+(?:\s*,\s*-?\d*\.?\d+)+\s*[\])]")
_STEPS: Final = re.compile(r"step[ -]by[ -]step|chain[ -]of[ -]thought|rationale|your reasoning", re.I)
_FORMS: Final = r"json|poem|haiku|list|table|story|headline|tweet|rhyme|capitals|capital letters|upper case|quotes"
_FORM: Final = re.compile(rf"\b(?:in|as|into) (?:an? )?(?:{_FORMS})\b|in the style of", re.I)
_COMPARE: Final = re.compile(r"\bcompar\w+|\bdifferences? between\b|\bin common\b|\bsimilarit\w+", re.I)
_DESCRIBE: Final = re.compile(r"\bdescri\w+|\bcaption\b|\bsummari[sz]e\b", re.I)
_DETAIL: Final = re.compile(r"\bdetail|\belaborat\w+|\bthorough\w*", re.I)


def style_of(record: Record) -> str:
    """The style of a sample's first exchange, one of `STYLES`: the first one whose rule fits."""
    question = next((text for role, text in record.conversations if role == "human"), "")
    answer = next((text for role, text in record.conversations if role != "human"), "")
    question = question.replace(IMAGE_TOKEN, "").strip()
    return next(name for name, fits in _RULES.items() if fits(question, answer.split()))


def _ends(words: list[str]) -> set[str]:
    """The first and the last word of a phrase; of anything longer, none."""
    return {words[0], words[-1]} if 0 < len(words) <= PHRASE_WORDS else set()


def _chooses(question: str, words: list[str]) -> bool:
    """Whether options are offered, and the answer is the letter or the text of one."""
    options = [text.partition("\n")[0] for text in _OPTION.split(question)[1:]]
    chosen = {_bare(text) for text in options} - {""}
    return len(options) >= 2 and (any(map(_LETTER.fullmatch, _ends(words))) or _bare(" ".join(words)) in chosen)


def _bare(text: str) -> str:
    return " ".join(text.split()).rstrip(".,;").lower()


def _describes(question: str, words: list[str]) -> bool:
    return bool(_DESCRIBE.search(question)) or len(words) > PHRASE_WORDS


def _in_detail(question: str, words: list[str]) -> bool:
    return _describes(question, words) and (bool(_DETAIL.search(question)) or len(words) >= DETAILED_WORDS)


_RULES: Final[dict[str, Callable[[str, list[str]], bool]]] = {
    "chain-of-thought": lambda question, words: bool(_STEPS.search(question)),
    "multi-choice": _chooses,
    "coordinate": lambda question, words: len(words) < DETAILED_WORDS and bool(_PLACE.search(" ".join(words))),
    "yes/no": lambda question, words: bool({"yes", "no"} & {w.strip(".,!").lower() for w in _ends(words)}),
    "specified style": lambda question, words: bool(_FORM.search(question)),
    "comparison": lambda question, words: bool(_COMPARE.search(question)),
    "detailed description": _in_detail,
    "short description": _describes,
    "word/short-phrase": lambda question, words: True,
}

STYLES: Final = tuple(_RULES)
"""The nine styles, in the order in which their rules are tried."""
