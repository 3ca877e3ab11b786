"""What scorers and stylers answer, read: a whole number from 0 to 5, and a list of styles."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from selector_zoo.prompts import STYLES

TOP_SCORE: Final = 5
OTHER: Final = len(STYLES)
"""Bit of `styles` for a style that is none of the nine."""
PLACES: Final = len(STYLES) + 1


def parse_score(text: str) -> float:
    """A score from 0 to 5; NaN for anything else."""
    try:
        value = int(text)
    except ValueError:
        return float("nan")
    return float(value) if 0 <= value <= TOP_SCORE else float("nan")


def parse_styles(text: str) -> tuple[str, ...]:
    """Styles of a comma-separated list, each once, in order; what is none of the nine becomes `other`."""
    return normal_styles(text.split(","))


def normal_styles(labels: Iterable[str]) -> tuple[str, ...]:
    """Styles as this project writes them: lower case, without a remark in brackets, each once."""
    plain = (re.sub(r"\s*\(.*\)$", "", label.strip().lower()) for label in labels)
    return tuple(dict.fromkeys(label if label in STYLES else "other" for label in plain if label))


def style_mask(styles: Iterable[str]) -> int:
    """Bit i for style i of STYLES, bit 9 for any other; 0 where none is known."""
    return sum({1 << _place(style) for style in styles})


def style_rank(styles: Iterable[str]) -> npt.NDArray[np.int8]:
    """At which place each style (and, last, any other) is named, from 0; -1 where it is not; (10,)."""
    ranks = np.full(PLACES, -1, dtype=np.int8)
    for at, style in enumerate(styles):
        ranks[_place(style)] = at
    return ranks


def styles_of(ranks: npt.NDArray[np.int8]) -> tuple[str, ...]:
    """The styles of a row of `style_rank`, in the order they were named."""
    named = sorted((int(rank), place) for place, rank in enumerate(ranks) if rank >= 0)
    return tuple((*STYLES, "other")[place] for _, place in named)


def _place(style: str) -> int:
    return STYLES.index(style) if style in STYLES else OTHER
