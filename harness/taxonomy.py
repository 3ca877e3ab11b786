"""The capabilities and styles of arXiv 2503.13383: how labels, scorers and miniworld name them."""

from __future__ import annotations

from typing import Final

CAPABILITIES: Final = (
    "object spatial understanding",
    "attribute identification",
    "logical deduction",
    "scene understanding",
    "fine-grained recognition",
    "language generation",
    "in-context learning",
    "comparative analysis",
    "activity recognition",
    "causal reasoning",
    "humanities",
    "stem knowledge",
    "data understanding",
    "optical character recognition",
)
"""The fourteen capabilities of arXiv 2503.13383, in the order of the columns of `scores`."""

STYLES: Final = (
    "multi-choice",
    "coordinate",
    "yes/no",
    "word/short-phrase",
    "short description",
    "detailed description",
    "comparison",
    "chain-of-thought",
    "specified style",
)
"""The nine interaction styles of arXiv 2503.13383, in the order the column `styles` numbers them."""
