"""A built report: what it writes, that the bytes repeat, and that the page stands alone."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from report_example import Study, example
from test_report_table import Tags

from harness.types import Cost
from reports.build import Report, ReportMeta, build_report, summarise_report
from reports.cost import (
    break_even,
    cost_lines,
    device,
    equal_compute_budget,
    total,
)
from reports.rows import CellRow, StageUse
from reports.summary import summarise
from reports.verdicts import sentences

STUDY = Study(seeds=3)
ROWS, CELLS = example(STUDY)
META = ReportMeta(title="Example <of> a & study", created="2026-01-02", provenance={"code": "abc"})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    out = tmp_path_factory.mktemp("report")
    return build_report(ROWS, CELLS, STUDY.suite, out, META), out


def test_everything_is_written(built: tuple[Report, Path]) -> None:
    report, out = built
    assert {p.relative_to(out).as_posix() for p in report.files} == {
        "table.md",
        "table.tex",
        "table.csv",
        "cost.md",
        "cost.csv",
        "report.json",
        "index.html",
        *(
            f"figures/{figure}-{backbone}.{kind}"
            for figure in ("budget_curves", "difference_to_random")
            for backbone in STUDY.backbones
            for kind in ("svg", "pdf")
        ),
    }
    assert all(p.stat().st_size for p in report.files)
    assert report.counts == {"ok": 94, "failed": 1, "missing": 1}


def test_bytes_do_not_depend_on_order_cost_or_date(built: tuple[Report, Path], tmp_path: Path) -> None:
    _, first = built
    rows = ROWS.copy()
    random.Random(0).shuffle(rows)
    resumed = [
        dataclasses.replace(
            c, stages=tuple(dataclasses.replace(s, cost=s.cost + Cost(wall_s=9, attempts=1)) for s in c.stages)
        )
        for c in reversed(CELLS)
    ]
    build_report(rows, resumed, STUDY.suite, tmp_path, dataclasses.replace(META, created="2027-01-01"))
    for path in [
        tmp_path / "table.md",
        tmp_path / "table.tex",
        tmp_path / "table.csv",
        *tmp_path.glob("figures/*"),
    ]:
        assert path.read_bytes() == (first / path.relative_to(tmp_path)).read_bytes(), path.name
    a, b = (json.loads((folder / "report.json").read_text()) for folder in (first, tmp_path))
    assert a["cost"] != b["cost"]
    assert a["created"] != b["created"]
    for key in ("cost", "created"):
        del a[key], b[key]
    assert a == b


def test_json_has_no_holes_filled_in(built: tuple[Report, Path]) -> None:
    _, out = built
    found = json.loads((out / "report.json").read_text())
    tiny_b = next(b for b in found["backbones"] if b["backbone"] == "tiny_b")
    holed = next(m for m in tiny_b["methods"] if (m["method"], m["budget"]) == ("clip_score", "10%"))
    assert holed["trials"] == 2
    assert [r["values"][-1] is None for r in holed["runs"]] == [False, True, False]
    assert {t["cell"] for t in found["troubles"]} == {"coincide/30%/tiny_b/s2", "clip_score/10%/tiny_b/s1"}
    assert found["metrics"]["rel_full"].startswith("rel_full@v1+")


def test_page_stands_alone(built: tuple[Report, Path]) -> None:
    _, out = built
    html = (out / "index.html").read_text()
    parser = Tags()
    parser.feed(html)
    assert not parser.open
    for tag, attributes in parser.seen:
        assert tag not in ("link", "img", "iframe")
        for name in ("src", "href", "xlink:href"):
            assert re.match(r"#|data:|$", attributes.get(name) or ""), (tag, attributes)
    assert not re.search(r"url\((?!#)|@import", html)
    assert "Example &lt;of&gt; a &amp; study" in html
    assert "loss is not finite at step 12" in html
    assert "python -m harness selector=coincide budget=30% backbone=tiny_b seed=2" in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    for target in re.findall(r'(?:href="#|url\(#)([^")]+)', html):
        assert target in ids


def test_verdicts_name_the_planted_winner(built: tuple[Report, Path]) -> None:
    report, _ = built
    first = sentences(report.summaries[0], {"mmssr": "mmSSR"})[0]
    assert first.method == "mmSSR"
    assert first.verdict == "better"
    assert re.search(r"30%: better, \+\d\.\d \[\+", first.text)


def test_without_cells_statuses_come_from_the_scores() -> None:
    report = summarise_report(ROWS, (), STUDY.suite, META)
    assert report.counts == {"ok": 94, "failed": 1, "missing": 1}
    assert not report.costs


@pytest.mark.parametrize("rows", [[], [r for r in ROWS if r.method == "mmssr"], [r for r in ROWS if r.seed == 0]])
def test_poor_studies_still_make_a_report(rows: list, tmp_path: Path) -> None:
    report = build_report(rows, (), STUDY.suite, tmp_path, META)
    assert (tmp_path / "index.html").read_text().count("<h2>") >= 5
    assert len(report.table.rows) == len({(r.method, r.budget, r.backbone) for r in rows})


def test_numbers_need_no_heavy_imports() -> None:
    code = (
        "import sys, reports.main_table, reports.build, reports.published_report; "
        "print([m for m in ('torch', 'hydra', 'pandas', 'matplotlib', 'pyarrow', 'wandb') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def cell(method: str, fraction: float, select: float, train: float) -> CellRow:
    costs = {"select": select, "train": train}
    return CellRow(
        method=method,
        budget=f"{fraction:.0%}",
        budget_fraction=fraction,
        backbone="b",
        seed=0,
        stages=tuple(
            StageUse(part=p, key=f"{p}/{method}/{fraction}", cost=Cost(wall_s=3600 * h, gpu_s=3600 * h))  # type: ignore[arg-type]
            for p, h in costs.items()
        ),
    )


def test_published_hours_give_the_published_savings() -> None:
    """DataTailor's Table 6: hours of warm-up, selection and training at 15 % against 90 for the full run."""
    cells = [cell("full", 1.0, 0, 90), cell("DataTailor", 0.15, 15, 15), cell("TIVE", 0.15, 108, 15)]
    lines = {line.method: line for line in cost_lines(cells, [])}
    assert lines["DataTailor"].saved == pytest.approx(0.667, abs=1e-3)
    assert lines["DataTailor"].equal_compute_budget == pytest.approx(0.15 + 15 / 90)
    assert 1 / (1 - (lines["TIVE"].saved or 0)) == pytest.approx(0.73, abs=5e-3)
    assert lines["TIVE"].break_even == pytest.approx(1.44)
    assert lines["TIVE"].equal_compute_budget == 1.0
    assert lines["full"].saved is None
    assert device(cells) == "GPU"


def test_shared_stages_are_paid_once_and_split_evenly() -> None:
    cells = [c for c in CELLS if c.method == "mmssr"]
    assert total(CELLS)["select"].wall_s == pytest.approx(
        sum(40.0 + len(m) for m in STUDY.methods if m != "random")
    )
    (line, *_) = cost_lines(cells, [])
    assert line.select == 45.0
    assert line.select_shared == pytest.approx(45.0 / len(cells))


def test_equal_compute_compares_with_more_random_data() -> None:
    summaries = summarise(ROWS, STUDY.suite)
    line = next(c for c in cost_lines(CELLS, summaries) if (c.method, c.budget) == ("mmssr", "5%"))
    m = summaries[0].find("mmssr", "5%")
    assert m is not None
    assert m.vs_random is not None
    assert m.vs_random.comparison is not None
    assert line.equal_compute_budget == pytest.approx(0.05 + 45 / 305)
    assert line.equal_compute_lead is not None
    assert line.equal_compute_lead < m.vs_random.comparison.delta


def test_edges_of_cost() -> None:
    assert break_even(10, 90, 90) is None
    assert equal_compute_budget(None, 1, 1) is None
    assert equal_compute_budget(0.9, 50, 100) == 1.0
