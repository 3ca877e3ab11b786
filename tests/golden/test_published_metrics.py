"""The published tables, recomputed: every summary the papers print, and reference values for the others."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from harness.benchmarks import Suite
from reports import metrics, published
from reports.curves import Curve, area, crossing, random_equivalent
from reports.grid import Grid, Group, grids
from reports.rows import RANDOM

HERE = Path(__file__).parent / "published"


def records(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def grid(name: str, backbone: str | None = None) -> Grid:
    rows, suite = published.load(name)
    return next(g for g in grids(rows, suite) if backbone in (None, g.backbone))


def rel(g: Grid, group: Group) -> float:
    assert g.full is not None
    value = metrics.rel_full(group.means(), g.full.means(), g.higher)
    assert value is not None
    return value


MMSSR = grid("mmssr")
BY_KEY = {(g.budget, g.method): g for g in MMSSR.groups}
LABELS = {"FULL": "100%"}
NAMES = {"FULL": "full", "Random": "random"}
PRINTED = {
    (LABELS.get(r["budget"], r["budget"]), NAMES.get(r["method"], r["method"])): r
    for r in records(Path(published.__file__).parent / "published" / "mmssr.csv")
}
DERIVED = records(HERE / "derived_mmssr.csv")
METHODS = [r for r in DERIVED if r["method"] != "Random"]
CURVES = records(HERE / "derived_mmssr_curves.csv")


def test_the_whole_table_is_there() -> None:
    assert BY_KEY.keys() == PRINTED.keys()
    assert len(BY_KEY) == 28
    assert sum(g.values.size for g in MMSSR.groups) == 280


@pytest.mark.parametrize("key", sorted(PRINTED), ids="-".join)
def test_printed_summaries(key: tuple[str, str]) -> None:
    row, group = PRINTED[key], BY_KEY[key]
    assert rel(MMSSR, group) == pytest.approx(float(row["reported_rel_full"]), abs=0.01)
    if row["reported_beats_k"]:
        reference = BY_KEY[key[0], RANDOM].means()
        count = metrics.beats(group.means(), reference, MMSSR.higher)
        assert str(count) == f"{row['reported_beats_k']}/{row['reported_beats_n']}"


@pytest.mark.parametrize("row", DERIVED, ids=lambda r: f"{r['budget']}-{r['method']}")
def test_other_summaries_to_four_decimals(row: dict[str, str]) -> None:
    method = NAMES.get(row["method"], row["method"])
    group, random = BY_KEY[row["budget"], method], BY_KEY[row["budget"], RANDOM]
    assert MMSSR.full is not None
    full = MMSSR.full.means()
    mine = metrics.relative(group.means(), full, MMSSR.higher)
    theirs = metrics.relative(random.means(), full, MMSSR.higher)
    margins, other = mine - theirs, metrics.averages(mine)
    peers = next(b for b in MMSSR.budgets if b[0].budget == row["budget"])
    ranking = metrics.rankings(np.array([g.means() for g in peers]), MMSSR.higher)[peers.index(group)]
    assert other is not None
    assert ranking is not None
    found = {
        "rel_arith": metrics.mean(mine),
        "rel_geo": other.geometric,
        "rel_median": other.median,
        "rel_iqm": other.iqm,
        "rel_loo_min": other.loo_min,
        "rel_loo_max": other.loo_max,
        "margin_mean": float(margins.mean()),
        "margin_min": float(margins.min()),
        "margin_max": float(margins.max()),
        "gap_closed": metrics.gap_closed(metrics.mean(mine), metrics.mean(theirs)),
        "mean_rank": ranking.mean_rank,
        "borda": ranking.borda,
        "mean_win_rate": ranking.win_rate,
    }
    assert found == pytest.approx({k: float(row[k]) for k in found}, abs=5.1e-5)
    if method != RANDOM:
        strict = metrics.beats(group.means(), random.means(), MMSSR.higher)
        by_one = metrics.beats(mine, theirs, MMSSR.higher, margin=1.0)
        assert strict is not None
        assert by_one is not None
        assert (strict.wins, by_one.wins) == (int(row["beats_strict"]), int(row["beats_margin_1relpt"]))


def curve(method: str) -> Curve:
    name = NAMES.get(method, method)
    return Curve.of({g.budget_fraction or 0: rel(MMSSR, g) for (_, m), g in BY_KEY.items() if m == name})


@pytest.mark.parametrize(
    "row", [r for r in DERIVED if r["method"] != "Random"], ids=lambda r: r["budget"] + r["method"]
)
def test_random_equivalent_budget(row: dict[str, str]) -> None:
    group = BY_KEY[row["budget"], row["method"]]
    found = random_equivalent(curve("Random"), rel(MMSSR, group))
    assert found is not None
    if not row["random_equivalent_budget_pct"]:
        assert found.bound == "<="
        return
    assert found.bound == ""
    assert 100 * found.budget == pytest.approx(float(row["random_equivalent_budget_pct"]), abs=5.1e-5)
    assert group.budget_fraction is not None
    assert found.budget / group.budget_fraction == pytest.approx(float(row["data_multiplier"]), abs=5.1e-5)


@pytest.mark.parametrize("row", CURVES, ids=lambda r: r["method"])
def test_curve_summaries(row: dict[str, str]) -> None:
    c = curve(row["method"])
    assert area(c) == pytest.approx(float(row["aubc_log10_5_30"]), abs=5.1e-5)
    assert area(c.with_full()) == pytest.approx(float(row["aubc_log10_5_100_with_full"]), abs=5.1e-5)
    for level in (95, 98):
        found = crossing(c.with_full(), level)
        assert found is not None
        assert 100 * found.budget == pytest.approx(float(row[f"budget_at_{level}"]), abs=5.1e-4)


LLAVA = grid("datatailor", "LLaVA-v1.5-7B")


@pytest.mark.parametrize(("method", "printed"), [("DataTailor", 99.7), ("TIVE", 93.2), ("DataTailor (2x)", 100.8)])
def test_datatailor_text(method: str, printed: float) -> None:
    group = next(g for g in LLAVA.groups if g.method == method)
    assert round(rel(LLAVA, group), 1) == printed


def test_datatailor_over_the_mllm_benchmarks_alone() -> None:
    rows, suite = published.load("datatailor")
    mllm = Suite(name="mllm", protocol=suite.protocol, benchmarks=suite.benchmarks[:6])
    g = next(g for g in grids(rows, mllm) if g.backbone == "LLaVA-v1.5-7B")
    group = next(x for x in g.groups if x.method == "DataTailor (2x)")
    assert round(rel(g, group), 1) == 102.9
    assert metrics.suite_digest(mllm) != metrics.suite_digest(suite)


@pytest.mark.parametrize(
    ("backbone", "method", "printed"),
    [
        ("mPLUG-Owl-7B", "random", 99.2),
        ("mPLUG-Owl-7B", "TIVE", 99.6),
        ("mPLUG-Owl-7B", "DataTailor", 102.1),
        ("Bunny-3B", "random", 93.7),
        ("Bunny-3B", "TIVE", 92.0),
        ("Bunny-3B", "DataTailor", 95.6),
    ],
)
def test_datatailor_transfer(backbone: str, method: str, printed: float) -> None:
    g = grid("datatailor_transfer", backbone)
    group = next(x for x in g.groups if x.method == method)
    # Two printed averages differ by what the rounding of their printed inputs allows.
    assert rel(g, group) == pytest.approx(printed, abs=0.11)
