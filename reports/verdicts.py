"""What the numbers say, in sentences: one per method and backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reports.main_table import NO_FULL, method_title
from reports.rows import FULL, RANDOM
from reports.statistics import Verdict
from reports.summary import BackboneSummary, MethodSummary
from reports.table import counted, signed


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """A method's verdict at its largest budget, and the sentence about all its budgets."""

    method: str
    verdict: Verdict | None
    text: str


def sentences(summary: BackboneSummary, titles: Mapping[str, str]) -> list[Sentence]:
    """One sentence per method, the best REL at the largest budget first."""
    lines: dict[str, list[MethodSummary]] = {}
    for m in summary.methods:
        if m.group.method not in (RANDOM, FULL):
            lines.setdefault(m.group.method, []).append(m)
    ordered = sorted(lines.items(), key=lambda item: -(item[1][-1].rel or 0.0))
    return [_sentence(method_title(name, titles), line) for name, line in ordered]


def _sentence(title: str, line: list[MethodSummary]) -> Sentence:
    parts = [_part(m) for m in line]
    comparison = line[-1].vs_random.comparison if line[-1].vs_random else None
    text = "; ".join(parts) + "."
    worth = _worth(line)
    return Sentence(
        method=title,
        verdict=comparison.verdict if comparison else None,
        text=f"{text} {worth}" if worth else text,
    )


def _part(m: MethodSummary) -> str:
    budget = m.group.budget
    if m.rel is None:
        return f"{budget}: no result, because {_reason(m)}"
    comparison = m.vs_random.comparison if m.vs_random else None
    if comparison is None:
        return f"{budget}: {m.rel:.1f}% of full, no random runs to compare with"
    interval = (
        f" [{signed(comparison.low)}, {signed(comparison.high)}]"
        if comparison.low is not None and comparison.high is not None
        else ""
    )
    return f"{budget}: {comparison.words}, {signed(comparison.delta)}{interval}"


def _reason(m: MethodSummary) -> str:
    missing = m.group.n_missing
    if missing:
        return f"{missing} of {counted(m.scores.size, 'benchmark')} {'is' if missing == 1 else 'are'} missing"
    return NO_FULL


def _worth(line: list[MethodSummary]) -> str:
    """How much random data the largest budget is worth, where the random curve tells."""
    last = line[-1]
    if last.vs_random is None or last.vs_random.equivalent is None or last.vs_random.multiplier is None:
        return ""
    return (
        f"For what its {last.group.budget} reaches, random sampling needs {last.vs_random.equivalent} of the pool "
        f"(×{last.vs_random.multiplier:.1f})."
    )
