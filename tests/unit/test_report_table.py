"""The main table's rules, and that every format says the same and breaks on nothing."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser

import pytest
from report_example import Study, example

from harness.benchmarks import LMMS14, Benchmark, Suite
from harness.errors import HarnessError
from reports.main_table import TableOptions, main_table
from reports.published_report import published_report
from reports.render import RENDERERS, render
from reports.render_latex import escape, latex
from reports.render_terminal import terminal
from reports.rows import ScoreRow, Status
from reports.table import Block, Column, Row, Section, Table, TableCell

NASTY = r"a_b%c&d#e$f{g}h~i^j\k<l>|m*`n"


def suite(*names: str) -> Suite:
    return Suite(
        name="s",
        protocol="test",
        benchmarks=tuple(Benchmark(name=n, title=n, task=n, metrics=("m",)) for n in names),
    )


def row(method: str, benchmark: str, value: float | None, seed: int = 0, status: Status = "ok") -> ScoreRow:
    return ScoreRow(
        method=method,
        budget="100%" if method == "full" else "10%",
        backbone="b",
        seed=seed,
        benchmark=benchmark,
        value=value,
        status=status,
    )


def cells(table: Table, label: str) -> tuple[TableCell, ...]:
    return next(r.cells for r in table.rows if r.label.startswith(label))


def test_best_goes_to_all_that_print_alike_and_full_takes_no_part() -> None:
    rows = [row("full", "x", 99.0), row("random", "x", 50.001), row("m", "x", 50.004), row("w", "x", 40.0)]
    table = main_table(rows, suite("x"))
    marks = {r.label: sorted(r.cells[0].marks) for r in table.rows}
    assert marks == {"Random": ["best"], "m": ["above_random", "best"], "w": [], "FULL": []}


def test_holes_are_dashes_with_their_number() -> None:
    rows = [row("full", n, 50.0) for n in "xyz"] + [row("random", n, 40.0, s) for n in "xyz" for s in range(3)]
    rows += [row("m", "x", 45.0), row("m", "y", None, status="failed")]
    table = main_table(rows, suite("x", "y", "z"))
    x, y, z, count, rel = cells(table, "m")
    assert [x.plain, y.plain, z.plain] == ["45.00", "—", "—"]
    assert [y.status, z.status] == ["failed", "missing"]
    assert [count.plain, rel.plain] == ["1/1", "— 1/3"]


def test_no_full_and_no_random_are_said() -> None:
    table = main_table([row("m", "x", 45.0)], suite("x"))
    _, count, rel = cells(table, "m")
    assert [count.plain, rel.plain] == ["n/a", "n/a"]
    assert len(table.footnotes) == 2


def test_few_random_runs_and_external_scores_earn_a_dagger() -> None:
    rows = [row("full", "x", 50.0, status="external"), row("random", "x", 40.0), row("m", "x", 45.0)]
    table = main_table(rows, suite("x"))
    daggers = {r.label: (r.dagger, "dagger" in r.cells[1].marks) for r in table.rows}
    assert daggers == {"Random": (True, False), "m": (False, True), "FULL": (True, False)}
    assert "outside" in "".join(table.footnotes)


def test_methods_that_are_not_wholly_published_are_named() -> None:
    rows = [row(name, "x", 45.0) for name in ("random", "deita", "mmssr")]
    options = TableOptions(uncertain=("deita", "mmssr", "elsewhere"), titles={"mmssr": "mmSSR"})
    assert main_table(rows, suite("x"), options).notes[-1].endswith(": deita, mmSSR.")
    assert "Re-implementations" not in "".join(main_table(rows, suite("x")).notes)


def test_methods_that_may_have_seen_what_they_judge_are_named() -> None:
    rows = [row(name, "x", 45.0) for name in ("random", "icons", "ppl_si")]
    notes = main_table(rows, suite("x"), TableOptions(leaky=("icons",))).notes
    assert notes[-1].startswith("May have seen")
    assert notes[-1].endswith(": icons.")
    assert "May have seen" not in "".join(main_table(rows, suite("x")).notes)


def test_captions_count_one_benchmark_as_one() -> None:
    assert main_table([row("m", "x", 1.0)], suite("x")).caption.startswith(
        "1 benchmark of suite s in its own scale."
    )
    assert main_table([], suite("x", "y")).caption.startswith("2 benchmarks of suite s in their own scales.")


def test_significant_differences_are_starred() -> None:
    rows, _ = example(Study(seeds=5, noise=0.2))
    table = main_table(rows, Study().suite)
    assert "significant" in cells(table, "mmssr")[-1].marks
    assert "significant" not in cells(table, "Random")[-1].marks
    assert [b.title for b in table.blocks] == ["tiny", "tiny_b"]
    assert [s.title for s in table.blocks[0].sections] == ["5%", "10%", "30%", "FULL"]


def test_titles_and_order_are_choices() -> None:
    rows, _ = example()
    options = TableOptions(titles={"mmssr": "mmSSR"}, order=("mmssr", "length"))
    labels = [r.label for r in main_table(rows, Study().suite, options).blocks[0].sections[0].rows]
    assert labels == ["Random", "mmSSR", "length", "clip_score", "coincide"]


@pytest.fixture
def nasty() -> Table:
    cell = TableCell(value=1.0, sd=0.5, marks=frozenset({"best", "above_random", "significant", "dagger"}))
    row = Row(label=NASTY, cells=(cell, cell))
    return Table(
        columns=(Column(key="x", title=NASTY), Column(key="rel_full", title="/FULL", kind="summary")),
        blocks=(Block(title=NASTY, sections=(Section(title="5%", rows=(row,)),)),),
        caption=NASTY,
        notes=(NASTY + " ± ×",),
        footnotes=("† " + NASTY,),
    )


def lint_latex(text: str) -> None:
    """Raise AssertionError on what TeX would stumble over: braces, environments, bare specials, uneven rows."""
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    depth = 0
    for match in re.finditer(r"\\.|[{}]", body, flags=re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        assert depth >= 0
    assert depth == 0
    stack: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{([^}]*)\}", body):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    assert body.count("$") - body.count(r"\$") == 2 * len(re.findall(r"\$\\(?:pm|times)\$", body))
    bare = re.sub(r"\$\\(?:pm|times)\$", "", body)
    assert not re.search(r"(?<!\\)[%#_^~$]", re.sub(r"\\[a-z]+size\b", "", bare))
    assert body.isascii()
    tables = re.findall(r"\\begin\{tabular\}\{l(r+)\}(.*?)\\end\{tabular\}", body, flags=re.DOTALL)
    assert tables
    for columns, rows in tables:
        for line in rows.splitlines():
            if line.endswith(r"\\") and "multicolumn" not in line:
                assert len(re.findall(r"(?<!\\)&", line)) == len(columns)


def test_latex_is_sound(nasty: Table) -> None:
    lint_latex(latex(nasty))
    lint_latex(latex(main_table(example()[0], Study().suite)))
    lint_latex(published_report("mmssr", "tex"))
    with pytest.raises(AssertionError):
        lint_latex(latex(nasty).replace(r"\%", "%"))
    assert escape("5% & a_b") == r"5\% \& a\_b"


def test_markdown_keeps_its_columns(nasty: Table) -> None:
    lines = [line for line in render(nasty, "md").splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4}


def test_csv_reads_back() -> None:
    rows, _ = example()
    table = main_table(rows, Study().suite)
    records = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert len(records) == len(table.rows)
    first = records[0]
    assert (first["block"], first["section"], first["row"], first["runs"]) == ("tiny", "5%", "Random", "3")
    assert float(first["rel_full"]) == pytest.approx(table.rows[0].cells[-1].value, abs=1e-6)
    assert records[1]["beats_random"] == "0/10"


class Tags(HTMLParser):
    """Collects open tags and the text, raising AssertionError on a wrong closing tag."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_nests_and_escapes(nasty: Table) -> None:
    parser = Tags()
    parser.feed(render(nasty, "html"))
    assert not parser.open
    assert parser.text.count(NASTY) == 6


def test_terminal_is_plain_in_a_pipe_and_never_cuts_numbers() -> None:
    rows, _ = example(Study(suite=LMMS14))
    table = main_table(rows, LMMS14)
    for width in (120, 80, 40):
        text = terminal(table, width)
        assert "\x1b" not in text
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= width
    assert "\x1b[1;4m" in terminal(table, 120, color=True)


def test_ten_benchmarks_fit_120_columns_with_all_decimals() -> None:
    text = published_report("mmssr", "terminal")
    assert max(map(len, text.splitlines())) <= 120
    (best,) = (line for line in text.splitlines() if line.startswith("  mmSSR") and line.endswith("99.12"))
    scores = "79.57^ 57.53^ 44.87+ 48.49^ 56.24^ 59.83^ 2132.93^ 81.25^ 92.46^ 57.40^"
    assert best.split() == ["mmSSR", *scores.split(), "10/10", "99.12"]


@pytest.mark.parametrize("form", sorted(RENDERERS))
@pytest.mark.parametrize("name", ["mmssr", "datatailor", "datatailor_transfer"])
def test_published_tables_in_every_format(name: str, form: str) -> None:
    text = published_report(name, form)  # type: ignore[arg-type]
    assert not re.search(r"\bnan\b", text, flags=re.IGNORECASE)
    assert "FULL" in text


def test_unknown_names_are_corrected() -> None:
    with pytest.raises(HarnessError, match="Did you mean 'mmssr'"):
        published_report("mmsr", "md")
    with pytest.raises(HarnessError, match="table format 'docx'"):
        published_report("mmssr", "docx")  # type: ignore[arg-type]


def test_a_row_must_fill_its_columns() -> None:
    with pytest.raises(ValueError, match="0 cells for 1 columns"):
        Table(
            columns=(Column(key="x", title="x"),),
            blocks=(Block(title="", sections=(Section(title="", rows=(Row(label="m", cells=()),)),)),),
        )
