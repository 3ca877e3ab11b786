"""The papers' main table: methods by benchmarks, a section per budget, a block per backbone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from harness.benchmarks import Suite
from reports.grid import Floats
from reports.metrics import BEATS_RANDOM, REL_FULL, Bools, suite_digest
from reports.rows import FULL, RANDOM, ScoreRow, Status
from reports.statistics import LEVEL
from reports.summary import FEW_RANDOM_RUNS, BackboneSummary, MethodSummary, summarise
from reports.table import DAGGER, DASH, Block, Column, Mark, Role, Row, Section, Table, TableCell, counted

DECIMALS: Final = 2
ROLES: Final[Mapping[str, Role]] = {RANDOM: "random", FULL: "full"}
TITLES: Final[Mapping[str, str]] = {RANDOM: "Random", FULL: "FULL"}
NO_FULL: Final = "the full run is missing, or 0 on a benchmark"
"""Why nothing is relative to full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableOptions:
    """Choices of a main table that do not change a number."""

    titles: Mapping[str, str] = field(default_factory=dict)
    """Printed names of methods; `Random` and `FULL` are built in, others print as they are called."""
    order: Sequence[str] = ()
    """Methods in the order of their lines; those not named follow by name."""
    smallest: float = 1.0
    """Smallest difference to random worth having, in REL points."""
    source: str = ""
    """Where the numbers come from, for the caption; no full stop at the end."""
    uncertain: Sequence[str] = ()
    """Methods of which something is not published and was decided here."""
    leaky: Sequence[str] = ()
    """Methods that may have seen what they judge or what is scored."""


def main_table(rows: Iterable[ScoreRow], suite: Suite, options: TableOptions | None = None) -> Table:
    """The paper-style table of all rows over `suite`, with marks, counts and relative performance."""
    options = options or TableOptions()
    return table_of(summarise(rows, suite, options.order, options.smallest), suite, options)


def table_of(summaries: Sequence[BackboneSummary], suite: Suite, options: TableOptions) -> Table:
    """The same from summaries that exist already."""
    columns = [Column(key=b.name, title=b.title) for b in suite.benchmarks]
    return Table(
        columns=(
            *columns,
            Column(key="beats_random", title=">Rand", kind="count"),
            Column(key="rel_full", title="/FULL", kind="summary"),
        ),
        blocks=tuple(_block(s, options) for s in summaries),
        caption=_caption(suite, options),
        notes=_notes(summaries, options),
        footnotes=_footnotes(summaries, options),
    )


def method_title(method: str, titles: Mapping[str, str]) -> str:
    return titles.get(method) or TITLES.get(method, method)


def _block(summary: BackboneSummary, options: TableOptions) -> Block:
    higher = summary.grid.higher
    sections = [
        Section(title=methods[0].group.budget, rows=_rows(methods, higher, options)) for methods in summary.budgets
    ]
    if summary.full:
        sections.append(Section(title=TITLES[FULL], rows=_rows((summary.full,), higher, options)))
    return Block(title=summary.grid.backbone, sections=tuple(sections))


def _rows(methods: Sequence[MethodSummary], higher: Bools, options: TableOptions) -> tuple[Row, ...]:
    best = _best(np.array([m.scores for m in methods]), higher)
    random = next((m for m in methods if m.group.method == RANDOM), None)
    return tuple(_row(m, random, best, higher, options) for m in methods)


def _best(scores: Floats, higher: Bools) -> Floats:
    """(benchmarks,) the best printed value among two or more methods; NaN where nothing is compared."""
    oriented = np.where(higher, 1.0, -1.0) * np.round(scores, DECIMALS)
    compared = np.isfinite(oriented).sum(axis=0) > 1
    best = np.where(np.isnan(oriented), -np.inf, oriented).max(axis=0)
    return np.where(compared, np.where(higher, best, -best), np.nan)


def _row(
    m: MethodSummary, random: MethodSummary | None, best: Floats, higher: Bools, options: TableOptions
) -> Row:
    above = np.zeros(higher.shape, dtype=np.bool_)
    if random is not None and m is not random:
        above = np.where(higher, m.scores > random.scores, m.scores < random.scores)
    n = len(higher)
    return Row(
        label=method_title(m.group.method, options.titles),
        cells=(
            *(_score_cell(m, j, bool(above[j]), float(best[j])) for j in range(n)),
            _count_cell(m, random),
            _rel_cell(m, n),
        ),
        role=ROLES.get(m.group.method, "method"),
        n=m.group.n_trials,
        dagger=bool(_defects(m)),
    )


def _score_cell(m: MethodSummary, j: int, above: bool, best: float) -> TableCell:
    value = float(m.scores[j])
    if not np.isfinite(value):
        return TableCell(status=_worst(m, j))
    marks: set[Mark] = {"above_random"} if above else set()
    if round(value, DECIMALS) == round(best, DECIMALS):
        marks.add("best")
    vs = m.vs_random
    if vs is not None and vs.benchmark_p[j] < LEVEL:
        marks.add("significant")
    return TableCell(
        value=value,
        sd=_finite(m.sds[j]),
        n=int(np.isfinite(m.group.values[:, j]).sum()),
        decimals=DECIMALS,
        marks=frozenset(marks),
        rel=_finite(m.relative[j]),
        margin=None if vs is None else _finite(vs.margins[j]),
    )


def _worst(m: MethodSummary, j: int) -> Status:
    found = {status[j] for status in m.group.status}
    return next(s for s in ("failed", "invalid", "pending", "missing") if s in found)


def _count_cell(m: MethodSummary, random: MethodSummary | None) -> TableCell:
    if m.group.method in ROLES:
        return TableCell(text="-")
    count = m.vs_random.beats if m.vs_random else None
    if count is None:
        return TableCell(text="n/a", note="no score of random at this budget and backbone")
    few = random is not None and random.group.n_trials < FEW_RANDOM_RUNS
    return TableCell(
        value=float(count.wins),
        text=str(count),
        decimals=0,
        marks=frozenset({"dagger"} if few else ()),
        note=f"{count.wins} won, {count.ties} tied, {count.losses} lost",
    )


def _rel_cell(m: MethodSummary, n: int) -> TableCell:
    if m.rel is None:
        have = n - m.group.n_missing
        return TableCell(
            text="n/a" if have == n else f"{DASH} {have}/{n}",
            status="missing",
            note=NO_FULL if have == n else f"{have} of {counted(n, 'benchmark')}",
        )
    marks: set[Mark] = set()
    comparison = m.vs_random.comparison if m.vs_random else None
    if comparison is not None and comparison.p_holm is not None and comparison.p_holm < LEVEL:
        marks.add("significant")
    return TableCell(
        value=m.rel,
        sd=m.rel_sd,
        n=m.group.n_trials,
        decimals=DECIMALS,
        marks=frozenset(marks),
        rel=m.rel,
        margin=comparison.delta if comparison else None,
    )


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _defects(m: MethodSummary) -> list[str]:
    """What a reader must know before trusting a row; each earns the row its dagger and a footnote."""
    group, found = m.group, []
    runs, complete = len(group.seeds), int(group.complete.sum())
    if 0 < complete < runs:
        lack = "lacks a benchmark and is" if runs - complete == 1 else "lack a benchmark and are"
        found.append(f"{runs - complete} of {runs} runs {lack} left out of /FULL")
    if group.external:
        found.append("scores come from outside of this study")
    if group.method == RANDOM and group.n_trials < FEW_RANDOM_RUNS:
        found.append(
            f"{counted(group.n_trials, 'run')} known; fewer than {FEW_RANDOM_RUNS} say little about the noise"
        )
    return found


def _caption(suite: Suite, options: TableOptions) -> str:
    of = f" {options.source}." if options.source else ""
    scales = "in its own scale" if len(suite.benchmarks) == 1 else "in their own scales"
    return (
        f"{counted(len(suite.benchmarks), 'benchmark')} of suite {suite.name} {scales}.{of} "
        f">Rand: {BEATS_RANDOM}. /FULL: {REL_FULL}, percent. Suite digest {suite_digest(suite)}."
    )


def _notes(summaries: Sequence[BackboneSummary], options: TableOptions) -> tuple[str, ...]:
    spread = any(m.rel_sd is not None for s in summaries for m in s.methods)
    return (
        "Bold: best of its section, random included, at printed precision. "
        "Underlined: strictly better than the mean of the random runs (not: second best). "
        "*: differs from random at 5% after Holm, over the benchmarks or, for /FULL, over the methods.",
        ">Rand: benchmarks strictly better than random's mean at the same budget and backbone. "
        "/FULL: unweighted mean of 100 × score / full run. "
        f"Runs: {_runs(summaries)}." + (" ±: sample SD over runs." if spread else ""),
        *_warnings(summaries, options),
    )


def _warnings(summaries: Sequence[BackboneSummary], options: TableOptions) -> Iterator[str]:
    shown = dict.fromkeys(m.group.method for s in summaries for m in s.methods)
    for methods, warning in (
        (
            options.uncertain,
            "Re-implementations whose adaptation to this kind of data is not wholly published (each selection's "
            "card says what was decided here)",
        ),
        (
            options.leaky,
            "May have seen the samples they choose from, or questions that are scored (each selection's card says "
            "which)",
        ),
    ):
        names = [method_title(m, options.titles) for m in shown if m in methods]
        if names:
            yield f"{warning}: {', '.join(names)}."


def _runs(summaries: Sequence[BackboneSummary]) -> str:
    found: dict[str, set[int]] = {}
    for m in (m for s in summaries for m in s.methods):
        found.setdefault(ROLES.get(m.group.method, "method"), set()).add(m.group.n_trials)
    names = {"random": "Random", "full": "FULL", "method": "other methods"}
    return ", ".join(
        f"{names[role]} {min(n)}" + (f" to {max(n)}" if len(n) > 1 else "")
        for role, n in sorted(found.items(), key=lambda item: list(names).index(item[0]))
    )


def _footnotes(summaries: Sequence[BackboneSummary], options: TableOptions) -> tuple[str, ...]:
    return tuple(note for s in summaries for note in _backbone_footnotes(s, options))


def _backbone_footnotes(s: BackboneSummary, options: TableOptions) -> Iterator[str]:
    if s.full is None:
        yield f"{s.grid.backbone}: no full run, so /FULL is not defined."
    for methods in s.budgets:
        if methods[0].group.method != RANDOM:
            yield f"{s.grid.backbone}, {methods[0].group.budget}: no random run, so >Rand is n/a."
    for m in s.methods:
        name = f"{s.grid.backbone}, {m.group.budget}, {method_title(m.group.method, options.titles)}"
        yield from (f"{DAGGER} {name}: {defect}." for defect in _defects(m))
