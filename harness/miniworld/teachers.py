"""Labels a careful annotator would give: how helpful a sample is for each capability, and its styles."""

from __future__ import annotations

from typing import Final

from harness.miniworld.scenes import Chart, Digits, Print, Shapes, Table
from harness.miniworld.sources import Sample
from harness.miniworld.vocabulary import CAPABILITIES

_SKILLS: Final[dict[str, dict[str, int]]] = {
    "colour": {"attribute identification": 4, "fine-grained recognition": 2},
    "shape": {"attribute identification": 3, "fine-grained recognition": 4},
    "place": {"object spatial understanding": 5, "scene understanding": 2},
    "point": {"object spatial understanding": 5, "fine-grained recognition": 1},
    "count": {"scene understanding": 3, "logical deduction": 2},
    "value": {"data understanding": 4, "stem knowledge": 1},
    "highest": {"data understanding": 3, "comparative analysis": 3},
    "compare": {"comparative analysis": 5, "data understanding": 3, "logical deduction": 2},
    "difference": {"logical deduction": 5, "causal reasoning": 2, "data understanding": 3, "stem knowledge": 3},
    "read word": {"optical character recognition": 5, "humanities": 1},
    "read number": {"optical character recognition": 5, "stem knowledge": 1},
    "lookup": {"optical character recognition": 3, "data understanding": 5},
    "row": {"optical character recognition": 4, "data understanding": 4, "logical deduction": 1},
    "digit": {"fine-grained recognition": 3, "optical character recognition": 3},
    "digits": {"fine-grained recognition": 3, "optical character recognition": 4},
    "short description": {"scene understanding": 3, "language generation": 3},
    "detailed description": {
        "scene understanding": 4,
        "language generation": 5,
        "object spatial understanding": 2,
    },
    "sum": {"stem knowledge": 3, "logical deduction": 2},
    "spell": {"language generation": 2, "humanities": 2},
}
"""Capabilities by skill, on the scale of 0 (irrelevant) to 5 (extremely helpful)."""
_FORMS: Final[dict[str, dict[str, int]]] = {
    "multi-choice": {"in-context learning": 3, "logical deduction": 1},
    "yes/no": {"logical deduction": 2},
    "specified style": {"in-context learning": 4, "language generation": 2},
}


def scores(sample: Sample) -> dict[str, int]:
    """A score from 0 to 5 for each of the fourteen capabilities.

    Rich pictures and long conversations are worth one point more; wrong answers cost two, and questions about
    another picture are worth nothing.
    """
    total = dict.fromkeys(CAPABILITIES, 0)
    for turn in sample.turns:
        skill = turn.skill.removeprefix("yes/no ").removeprefix("choice ")
        for capability, score in (*_SKILLS[skill].items(), *_FORMS.get(turn.style, {}).items()):
            total[capability] = max(total[capability], score)
    change = (len(sample.turns) > 1) + (_parts(sample) > 2) - 1 - 2 * (sample.defect == "wrong")
    if sample.defect == "off_topic":
        return dict.fromkeys(CAPABILITIES, 0)
    return {c: min(5, max(0, s + change)) if s else 0 for c, s in total.items()}


def styles(sample: Sample) -> list[str]:
    """Interaction styles in order of appearance."""
    return list({turn.style: None for turn in sample.turns})


def _parts(sample: Sample) -> int:
    match sample.scene:
        case Shapes(items=parts) | Chart(bars=parts) | Table(rows=parts) | Digits(digits=parts):
            return len(parts)
        case Print(text=text):
            return len(text)
    return 0
