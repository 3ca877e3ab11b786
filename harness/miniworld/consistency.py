"""Whether the answers of a conversation, right or wrong, can all be true of one picture.

Wrong answers that contradict each other would be found by reading alone, and right ones by their agreement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Final

from harness.miniworld.questions import Question

Fact = tuple[str, tuple[str, ...], str]
"""A skill, what it was asked about, and the bare answer."""


def agree(turns: Sequence[Question]) -> bool:
    """Whether the right answers fit together, and the wrong ones do; neither repeats what another turn says."""
    return all(_possible([(_skill(t), t.about, t.values[which]) for t in turns]) for which in (0, 1))


def _skill(turn: Question) -> str:
    return turn.skill.removeprefix("yes/no ")


def _possible(facts: list[Fact]) -> bool:
    return all(rule(facts) for rule in (_shapes, _bars, _rows))


def _shapes(facts: list[Fact]) -> bool:
    """Every fact is of a shape of its own, colours and shapes occur once, and no more are named than counted."""
    pairs = [pair for fact in facts for pair in _pairs(fact, {"colour": (1, 0), "shape": (0, 1)}, "place")]
    counted = [int(value) for skill, _, value in facts if skill == "count"]
    return _one_to_one(pairs) and all(len(pairs) <= n for n in counted)


def _rows(facts: list[Fact]) -> bool:
    """Every fact is of a row of its own, and words and numbers occur once."""
    return _one_to_one([p for fact in facts for p in _pairs(fact, {"lookup": (0, 1), "row": (1, 0)}, "")])


def _pairs(fact: Fact, order: dict[str, tuple[int, int]], whole: str) -> list[tuple[str, str]]:
    """The pair a fact names: what was asked about and the answer, in `order`, or the two it was asked about."""
    skill, about, value = fact
    if skill == whole:
        return [(about[0], about[1])]
    if skill not in order:
        return []
    both = (about[0], value)
    first, second = order[skill]
    return [(both[first], both[second])]


def _one_to_one(pairs: list[tuple[str, str]]) -> bool:
    return all(len({pair[side] for pair in pairs}) == len(pairs) for side in (0, 1))


def _bars(facts: list[Fact]) -> bool:
    """Some heights of the bars that are named make every fact true."""
    rules = [(_BARS[skill], about, value) for skill, about, value in facts if skill in _BARS]
    named = sorted({name for _, about, value in rules for name in (*about, value) if not name[0].isdigit()})
    if len(rules) < 2 or len(named) < 1:
        return True
    return len(named) <= MOST_BARS and any(
        all(rule(dict(zip(named, heights, strict=True)), about, value) for rule, about, value in rules)
        for heights in permutations(range(1, 10), len(named))
    )


MOST_BARS: Final = 4
Heights = dict[str, int]
_BARS: Final[dict[str, Callable[[Heights, tuple[str, ...], str], bool]]] = {
    "value": lambda bars, about, value: bars[about[0]] == int(value),
    "highest": lambda bars, about, value: bars[value] == max(bars.values()),
    "compare": lambda bars, about, value: bars[value] == max(bars[name] for name in about),
    "difference": lambda bars, about, value: [bars[name] for name in about] == [int(v) for v in value.split()],
}
