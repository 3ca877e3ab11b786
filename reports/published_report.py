"""The published tables through our own metrics and renderers."""

from __future__ import annotations

from reports import published
from reports.build import Report, ReportMeta, drawings_of, summarise_report
from reports.render import Format, render


def published_study(name: str) -> Report:
    """A published paper's scores as a report: its table, recomputed, and everything else that follows from it."""
    rows, suite = published.load(name)
    meta = ReportMeta(
        title=published.TABLES[name].citation,
        order=tuple(dict.fromkeys(row.method for row in rows)),
        source="Scores as printed; summaries recomputed from them",
    )
    return summarise_report(rows, (), suite, meta)


def published_report(name: str, form: Format = "md") -> str:
    """A published table as text, or as a whole page where `form` is `html`.

    An unknown name or format raises HarnessError with the known ones.
    """
    report = published_study(name)
    if form != "html":
        return render(report.table, form)
    from reports.page import page  # with Jinja2 and matplotlib, which text does without

    downloads = {"table.md": render(report.table, "md"), "table.csv": render(report.table, "csv")}
    return page(report, drawings_of(report), downloads)
