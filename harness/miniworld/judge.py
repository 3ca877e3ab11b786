"""The rule-based judge of free text: which of the required facts does an answer state, and does it guess?"""

from __future__ import annotations

import re
from collections.abc import Sequence


def judge(answer: str, facts: Sequence[str]) -> float:
    """Share of `facts` that `answer` states, from 0 to 1; claims beyond their number lower it.

    A fact is a phrase that has to stand in one clause, its words in order; clauses are divided by commas, colons,
    full stops and line ends.
    """
    clauses = [c for c in (_words(c) for c in re.split(r"[,:.;\n]", answer)) if c]
    found = sum(any(_contains(c, _words(fact)) for c in clauses) for fact in facts)
    return found / max(len(facts), len(clauses)) if facts else 0.0


def facts(description: str) -> list[str]:
    """The phrases a brief description consists of."""
    return description.replace(": ", ", ").split(", ")


def free_text(answer: str, target: str) -> float:
    """The judge of benchmark `mini_free`: which facts of the description `target` does an answer state?"""
    return judge(answer, facts(target))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _contains(clause: list[str], fact: list[str]) -> bool:
    return any(clause[i : i + len(fact)] == fact for i in range(len(clause) - len(fact) + 1))
