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
"""Number of any style that is none of the nine."""


def parse_score(text: str) -> float:
    """A score from 0 to 5; NaN for anything else."""
    try:
        value = int(text)
    except ValueError:
        return float("nan")
    return float(value) if 0 <= value <= TOP_SCORE else float("nan")


def label_score(value: object) -> int | None:
    """The score a label gives, None where it gives none (None or NaN).

    Raises ValueError for what is no whole number from 0 to 5.
    """
    if value is None or value != value:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value not in range(TOP_SCORE + 1):
        raise ValueError(f"{value!r}, no whole number from 0 to {TOP_SCORE}")
    return int(value)


def parse_styles(text: str) -> tuple[str, ...]:
    """Styles of a comma-separated list, each once, in order; what is none of the nine becomes `other`."""
    return normal_styles(text.split(","))


def normal_styles(labels: Iterable[str]) -> tuple[str, ...]:
    """Styles as this project writes them: lower case, without a remark in brackets, each once."""
    plain = (re.sub(r"\s*\(.*\)$", "", label.strip().lower()) for label in labels)
    return tuple(dict.fromkeys(label if label in STYLES else "other" for label in plain if label))


def style_row(styles: Iterable[str]) -> npt.NDArray[np.int8]:
    """Numbers of styles in STYLES in the order given, 9 for any other, -1 in the places left over; (10,)."""
    row = np.full(OTHER + 1, -1, dtype=np.int8)
    for at, style in enumerate(styles):
        row[at] = STYLES.index(style) if style in STYLES else OTHER
    return row
