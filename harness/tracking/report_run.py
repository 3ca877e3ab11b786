"""The report run: a sweep's tables, as a tracker shows them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.keys import digest
from harness.reporting import write_report
from harness.store import Store
from harness.tracking.content import (
    SCHEMA,
    ArtifactContent,
    RunContent,
    Scalar,
    TableContent,
    artifact_name,
    run_id,
)
from reports.build import Report
from reports.cost import device
from reports.records import Records
from reports.rows import write_scores
from reports.summary import BackboneSummary, MethodSummary

Row = Mapping[str, Scalar]


def report_run(store: Store, records: Records, report: Report) -> RunContent:
    """One run with every table of a report; its id follows the results, because tables are only ever added to."""
    tables = {
        f"report/{name}": table for name, rows in _tables(records, report).items() if (table := _table(rows))
    }
    content = digest([[name, t.columns, t.rows] for name, t in tables.items()])
    summary: dict[str, Scalar] = {f"report/cells_{status}": n for status, n in report.counts.items()}
    for s in report.summaries:
        for m in s.methods:
            summary[f"report/{m.group.method}/{s.grid.backbone}/{m.group.budget}/rel_full"] = m.rel
    return RunContent(
        id=run_id("report", records.name, content),
        name=f"report/{records.name}",
        job="report",
        group=records.name,
        tags=(f"suite:{records.suite.name}",),
        config={
            "schema": SCHEMA,
            "sweep": records.name,
            "job": "report",
            "suite": records.suite.name,
            "identity": content,
        },
        summary={k: v for k, v in summary.items() if v is not None},
        tables=tables,
        artifacts=(
            ArtifactContent(
                name=artifact_name("report", records.name, digest(records.name)),
                type="report",
                digest=content,
                files=lambda scratch: _files(store, records, scratch / "report" / records.name),
            ),
        ),
    )


def _files(store: Store, records: Records, folder: Path) -> dict[str, Path]:
    """The report folder, and the scores as parquet: a table may be too long for a tracker, this is not."""
    write_report(store, records.name, folder)
    write_scores(records.scores, folder / "long.parquet")
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}


def _tables(records: Records, report: Report) -> dict[str, list[Row]]:
    pairs = [(s, m) for s in report.summaries for m in s.methods]
    held = device(report.cells)
    return {
        "main": [_main(s, m) for s, m in pairs],
        "long": [dataclasses.asdict(row) for row in records.scores],
        "vs_random": [row for s, m in pairs for row in _vs_random(s, m)],
        "per_benchmark": [row for s, m in pairs for row in _per_benchmark(s, m)],
        "curves": [row for s in report.summaries for row in _curves(s)],
        "cost": [{**dataclasses.asdict(line), "device": held} for line in report.costs],
        "missing": [
            {"cell": c.name, "status": c.status, "failure": c.failure, "command": c.command}
            for c in report.troubles
        ],
    }


def _where(s: BackboneSummary, m: MethodSummary) -> dict[str, Scalar]:
    g = m.group
    return {
        "backbone": s.grid.backbone,
        "budget": g.budget,
        "budget_fraction": g.budget_fraction,
        "method": g.method,
    }


def _main(s: BackboneSummary, m: MethodSummary) -> Row:
    """A row of the paper's table."""
    v = m.vs_random
    missing = m.group.n_missing
    return {
        **_where(s, m),
        "n_runs": m.group.n_trials,
        **{b.name: float(x) for b, x in zip(s.grid.suite.benchmarks, m.scores, strict=True)},
        "beats_k": v.beats.wins if v and v.beats else None,
        "beats_n": v.beats.n if v and v.beats else None,
        "rel_full": m.rel,
        "rel_sd": m.rel_sd,
        "multiplier": v.multiplier if v else None,
        "status": "ok" if not missing else f"{missing} of {m.scores.size} benchmarks incomplete",
    }


def _vs_random(s: BackboneSummary, m: MethodSummary) -> Iterator[Row]:
    """A method against random, in REL points; nothing for random itself and the full run."""
    v = m.vs_random
    if v is None or v.comparison is None:
        return
    c = v.comparison
    better, worse = v.significant
    yield {
        **_where(s, m),
        "delta": c.delta,
        "ci_lo": c.low,
        "ci_hi": c.high,
        "test": c.test,
        "p": c.p,
        "p_holm": c.p_holm,
        "p_permutation": c.p_permutation,
        "p_dunnett": c.p_dunnett,
        "verdict": c.verdict,
        "n_method": c.n,
        "n_random": c.n_reference,
        "significantly_better": better,
        "significantly_worse": worse,
        "improvement_probability": v.improvement,
        "gap_closed": v.gap_closed,
        "random_equivalent": str(v.equivalent) if v.equivalent else None,
        "multiplier": v.multiplier,
    }


def _per_benchmark(s: BackboneSummary, m: MethodSummary) -> Iterator[Row]:
    v = m.vs_random
    for j, benchmark in enumerate(s.grid.suite.benchmarks):
        yield {
            **_where(s, m),
            "benchmark": benchmark.name,
            "score": float(m.scores[j]),
            "score_sd": float(m.sds[j]),
            "rel_full": float(m.relative[j]),
            "margin": float(v.margins[j]) if v else None,
            "ci_lo": float(v.benchmark_low[j]) if v else None,
            "ci_hi": float(v.benchmark_high[j]) if v else None,
            "p_holm": float(v.benchmark_p[j]) if v else None,
        }


def _curves(s: BackboneSummary) -> Iterator[Row]:
    for c in s.curves:
        for budget, value in zip(c.curve.budgets, c.curve.values, strict=True):
            yield {
                "backbone": s.grid.backbone,
                "method": c.method,
                "budget_fraction": float(budget),
                "rel_full": float(value),
            }


def _table(rows: Sequence[Row]) -> TableContent | None:
    """Rows of one shape as a table; None where there are none."""
    if not rows:
        return None
    columns = tuple(rows[0])
    return TableContent(columns=columns, rows=tuple(tuple(_values(row[c] for c in columns)) for row in rows))


def _values(row: Iterable[Any]) -> Iterator[Scalar]:
    """Plain values; what is not finite becomes None, which W&B would otherwise write as a bare NaN."""
    for value in row:
        yield None if isinstance(value, float) and not math.isfinite(value) else value
