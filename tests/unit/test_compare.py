"""Comparing selections: the names they are found by, chance, composition, files, and the command line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.benchmarks import LMMS14, Suite
from harness.cells import Cell
from harness.cli import main
from harness.compare import read_subsets
from harness.errors import HarnessError
from harness.id_lists import find_ids, read_ids
from harness.plan import make_plan
from harness.pool import Pool
from harness.registry import selector_spec
from harness.store import Store
from harness.types import Backbone, Budget, TrainSpec
from harness.worker import Job, run_stage
from reports.compare import CompareOptions, Comparison, Subset, compare, effective
from reports.compare_figure import heat_map, write_heat_map
from reports.compare_table import compare_json, compare_table
from reports.overlap import by_chance, overlap
from reports.render import render
from tests.support import write_pool

N = 40


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return write_pool(tmp_path_factory.mktemp("pool") / "pool", N)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, pool: Pool) -> Store:
    """A store with three random selections, made by their real stages, and the sweep that asked for them."""
    store = Store(tmp_path_factory.mktemp("store")).create()
    cell = Cell(
        pool=pool,
        selector=selector_spec("random", {}),
        budget=Budget.parse("10%"),
        backbone=Backbone(name="tiny", path="nowhere", revision="r", processor="p"),
        recipe=TrainSpec(global_batch=8),
        suite=Suite(name="one", protocol="p", benchmarks=LMMS14.benchmarks[6:7]),
    )
    cells = [cell, replace(cell, budget=Budget.parse("50%")), replace(cell, seed=1)]
    plan = make_plan(cells)
    listed = []
    for planned in plan.cells:
        stage = plan.stages[planned.select]
        assert run_stage(store, stage, Job(name="select", stages=(stage,)), {}) == "done"
        listed.append(
            {
                "key": planned.key,
                "label": planned.cell.label,
                "select": planned.select,
                "method": planned.cell.method,
                "n_selected": planned.cell.budget.size(N),
                "seed": planned.cell.seed,
            }
        )
    store.write_sweep("study", {"cells": listed})
    return store


def names(store: Store, *given: str, pool: Path | None = None) -> list[str]:
    return [s.name for s in read_subsets(store, given, pool)[1]]


def test_a_selection_is_found_by_everything_it_is_called(store: Store) -> None:
    (cell,) = [c for c in store.sweep("study")["cells"] if c["label"] == "random/50%/tiny/s0"]
    path = store.by_key("select", cell["select"]).path
    for name in ("random/50%/tiny/s0", cell["key"][:8], "random/50%/s0", cell["select"][:8], str(path)):
        pool, (subset,) = read_subsets(store, [name])
        assert subset.origin == cell["select"], name
        assert len(subset.positions) == 20
        assert pool.n == N


def test_a_sweep_is_all_of_its_selections_smallest_first(store: Store) -> None:
    assert names(store, "study") == ["random/10%/s0", "random/10%/s1", "random/50%/s0"]


def test_names_that_are_the_same_are_numbered(store: Store) -> None:
    assert names(store, "random/10%/s0", "random/10%/s0") == ["random/10%/s0#1", "random/10%/s0#2"]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("a.txt", "s3\n\n s1 \ns3\nelsewhere\n"),
        ("a.json", '["s3", "s1", "s3", "elsewhere"]'),
        ("a.json", '{"method": "x", "ids": ["s3", "s1", "s3", "elsewhere"]}'),
        ("a.json", '[{"id": "s3"}, {"uid": "s1", "id": 5}, {"idx": "s3"}, {"id": "elsewhere"}]'),
        ("a.jsonl", '{"id": "s3"}\n"s1"\n\n{"id": "s3", "score": 1}\n"elsewhere"\n'),
        ("a.csv", "score,id\n1,s3\n2,s1\n3,s3\n4,elsewhere\n"),
        ("a.csv", "\ufeffid\r\ns3\r\ns1\r\ns3\r\nelsewhere\r\n"),
    ],
)
def test_lists_of_others_keep_their_order_and_say_what_is_unknown(
    tmp_path: Path, store: Store, pool: Pool, file: str, text: str
) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8")
    _, (subset,) = read_subsets(store, [str(tmp_path / file)], Path(pool.path))
    assert subset.positions.tolist() == [3, 1]
    assert subset.unknown == ("elsewhere",)
    assert subset.repeated == 1
    assert subset.name == "a"


def test_numbers_are_ids_too(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[7, 12]")
    assert read_ids(tmp_path / "a.json") == ["7", "12"]


def test_finding_ids_is_the_inverse_of_reading_them(pool: Pool) -> None:
    positions, unknown, repeated = find_ids(pool, reversed(pool.uids()))
    assert positions.tolist() == list(range(N))[::-1]
    assert (unknown, repeated) == ([], 0)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("a.parquet", "", "not a list of ids: give a file that ends in .txt"),
        ("a.txt", "\n", "has no ids"),
        ("a.json", "{", "is not JSON"),
        ("a.json", '{"a": [1], "b": [2]}', "object with 2 lists"),
        ("a.json", '"s1"', "holds no list"),
        ("a.json", '["s1", {"name": "x"}]', "item 2 has no id"),
        ("a.jsonl", '"s1"\nnothing', "line 2 is not JSON"),
        ("a.csv", "name\ns1\n", "no column uid, id, idx"),
        ("a.csv", "id,score\ns1,1\n,2\n", "row 2 has no id"),
        ("a.txt", "x1\nx2\n", r"none of the 2 ids .*\(x1, for example; the pool has s0\).*--pool DIR"),
    ],
)
def test_a_list_that_cannot_be_used_is_one_sentence(
    tmp_path: Path, store: Store, pool: Pool, file: str, text: str, said: str
) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(HarnessError, match=said) as e:
        read_subsets(store, [str(tmp_path / file)], Path(pool.path))
    assert "\n" not in str(e.value)


def test_what_is_not_there_says_what_to_do(tmp_path: Path, store: Store, pool: Pool) -> None:
    (tmp_path / "a.txt").write_text("s1\n")
    other = write_pool(tmp_path / "other", 10)
    stage = store.by_key("select", store.sweep("study")["cells"][0]["select"]).path
    wrong: list[tuple[list[str], Path | None, str]] = [
        (["nobody/10%/s0"], None, "has no select stage 'nobody/10%/s0'"),
        (["missing.txt"], None, "there is no file missing.txt"),
        ([str(tmp_path / "a.txt")], None, "which pool they are of: give it with --pool DIR"),
        (["random/10%/s0"], Path(other.path), "compare selections of one pool, or give it with --pool DIR"),
        ([str(stage.parent.parent / "nothing" / "here")], None, "has no select stage"),
    ]
    for given, where, said in wrong:
        with pytest.raises(HarnessError, match=said):
            read_subsets(store, given, where)


def test_an_unfinished_selection_is_not_compared(tmp_path: Path, store: Store, pool: Pool) -> None:
    fresh = Store(tmp_path).create()
    cell = store.sweep("study")["cells"][0]
    fresh.write_sweep("study", {"cells": [cell]})
    with pytest.raises(HarnessError, match=rf"selection {cell['label']} is missing: run its cell first"):
        read_subsets(fresh, [cell["label"]])
    with pytest.raises(HarnessError, match=rf"has no finished selection \({cell['label']}, for example\)"):
        read_subsets(fresh, ["study"])


def test_what_a_sweep_has_not_finished_is_left_out_and_named(store: Store) -> None:
    cells = store.sweep("study")["cells"]
    store.write_sweep("more", {"cells": [*cells, {**cells[0], "select": "f" * 64, "label": "length/10%/tiny/s0"}]})
    pool, subsets = read_subsets(store, ["more"])
    assert len(subsets) == 3
    found = compare(pool, subsets, CompareOptions(texts=False))
    assert compare_table(found).footnotes == ("Not finished and left out: length/10%/tiny/s0.",)
    assert compare_json(found)["unfinished"] == ["length/10%/tiny/s0"]


def test_files_of_one_stem_are_called_by_their_names(tmp_path: Path, store: Store, pool: Pool) -> None:
    for name in ("theirs.txt", "theirs.csv", "ours.txt"):
        (tmp_path / name).write_text("id\ns1\n")
    given = [str(tmp_path / name) for name in ("theirs.txt", "theirs.csv", "ours.txt")]
    assert names(store, *given, pool=Path(pool.path)) == ["theirs.txt", "theirs.csv", "ours"]


def positions(*numbers: int) -> Any:
    return np.array(numbers, dtype=np.int32)


def test_overlap_by_hand() -> None:
    found = overlap([positions(0, 1, 2, 3), positions(2, 3, 4), positions(9)], 10)
    assert found.shared.tolist() == [[4, 2, 0], [2, 3, 0], [0, 0, 1]]
    assert found.jaccard[0, 1] == pytest.approx(2 / 5)
    assert np.diag(found.jaccard).tolist() == [1, 1, 1]
    assert (found.expected == found.expected.T).all()


def test_chance_is_the_mean_over_every_pair_of_subsets() -> None:
    n, a, b = 7, 3, 4
    both = [
        (len(set(x) & set(y)), len(set(x) | set(y)))
        for x in itertools.combinations(range(n), a)
        for y in itertools.combinations(range(n), b)
    ]
    shared = np.array([s for s, _ in both])
    mean, spread, jaccard = by_chance(a, b, n)
    assert mean == pytest.approx(shared.mean())
    assert spread == pytest.approx(shared.std())
    assert jaccard == pytest.approx(np.mean([s / u for s, u in both]))


def test_chance_with_millions_is_quick_and_near_the_ratio_of_means() -> None:
    mean, _, jaccard = by_chance(130_000, 780_000, 2_600_000)
    assert jaccard == pytest.approx(mean / (910_000 - mean), rel=1e-4)


def test_the_whole_pool_surprises_nobody() -> None:
    found = overlap([np.arange(10, dtype=np.int32), positions(1, 2)], 10)
    assert found.expected[0, 1] == pytest.approx(0.2) == found.jaccard[0, 1]
    assert np.isnan(found.surprise).all()


@pytest.fixture(scope="module")
def compared(pool: Pool) -> Comparison:
    subsets = [
        Subset(name="first", positions=np.arange(0, 20, dtype=np.int32)),
        Subset(name="charts", positions=np.arange(0, N, 3, dtype=np.int32), unknown=("a", "b"), repeated=2),
    ]
    return compare(pool, subsets, CompareOptions(whole_pool=True))


def values(compared: Comparison, chapter: str, name: str) -> tuple[float | None, ...]:
    found = compared.chapter(chapter)
    assert found is not None
    (measure,) = [m for m in found.measures if m.name == name]
    return measure.values


def test_composition_by_hand(compared: Comparison) -> None:
    assert values(compared, "Size", "samples") == (20, 14, N)
    assert values(compared, "Size", "unknown ids") == (0, 2, None)
    assert values(compared, "Size", "repeated ids") == (0, 2, None)
    assert values(compared, "% by source", "charts") == pytest.approx((35, 100, 35))
    assert values(compared, "% by source", "effective sources")[1] == pytest.approx(1)
    assert values(compared, "% by source", "% to move to the pool's mix")[1:] == pytest.approx((65, 0))
    assert values(compared, "Images", "% without image") == pytest.approx((20, 100 * 3 / 14, 20))
    assert values(compared, "Images", "width, median") == (16, 16, 16)
    assert values(compared, "Images", "height, median") == (24, 24, 24)
    assert values(compared, "Lengths", "exchanges, mean") == pytest.approx((1.25, 1 + 4 / 14, 1.25))


def test_shares_add_up(compared: Comparison) -> None:
    for title, left_out in (("% by source", 2), ("% by style", 0)):
        chapter = compared.chapter(title)
        assert chapter is not None
        lines = chapter.measures[: len(chapter.measures) - left_out]
        sums = [sum(column) for column in zip(*(m.values for m in lines), strict=True)]  # type: ignore[arg-type]
        assert sums == pytest.approx([100, 100, 100]), title


def test_effective_number_counts_equal_parts() -> None:
    assert effective(np.array([0.25, 0.25, 0.25, 0.25, 0])) == pytest.approx(4)
    assert effective(np.array([1.0, 0])) == pytest.approx(1)


def test_columns_only_reads_no_sample(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: Pool, position: int) -> None:
        raise AssertionError("a sample was read")

    sources = pool.sources()
    monkeypatch.setattr(Pool, "sources", lambda self: sources)
    monkeypatch.setattr(Pool, "record", never)
    found = compare(pool, [Subset(name="a", positions=positions(1, 2))], CompareOptions(texts=False))
    assert [c.title for c in found.chapters] == ["Size", "% by source", "Lengths", "Images"]


def test_tables_say_it_in_every_format(compared: Comparison) -> None:
    table = compare_table(compared)
    assert [c.key for c in table.columns] == ["first", "charts", "pool"]
    text = render(table, "md")
    assert "charts: 2 of its ids are not in the pool and are left out, for example a, b." in text
    jaccard = compared.overlap.jaccard[0, 1]
    assert f"| first | — | {jaccard:.3f} | — |" in text
    assert "runs" not in render(table, "csv").splitlines()[0].split(",")
    for form in ("csv", "tex", "html", "terminal"):
        assert f"{jaccard:.3f}" in render(table, form)  # type: ignore[arg-type]


def test_many_long_names_become_letters(pool: Pool) -> None:
    subsets = [Subset(name=f"a_rather_long_name/{i}%/s0", positions=positions(i)) for i in range(5)]
    table = compare_table(compare(pool, subsets, CompareOptions(texts=False)))
    assert [c.title for c in table.columns] == ["A", "B", "C", "D", "E", "pool"]
    assert table.rows[1].label == "B a_rather_long_name/1%/s0"
    assert table.columns[1].key == "a_rather_long_name/1%/s0"


def test_json_has_everything_and_no_nan(compared: Comparison) -> None:
    found = json.loads(json.dumps(compare_json(compared), allow_nan=False))
    assert found["subsets"][1]["unknown"] == ["a", "b"]
    assert found["overlap"]["surprise"][0][0] is None
    assert found["overlap"]["shared"][0] == [20, 7]
    assert found["chapters"]["% by source"]["charts"] == pytest.approx([35, 100, 35])


def test_the_heat_map_writes_every_number_it_colours(compared: Comparison, tmp_path: Path) -> None:
    left, right = heat_map(compared).axes
    written = [t.get_text() for t in left.texts]
    o = compared.overlap
    assert written == ["20", *[f"{o.jaccard[0, 1]:.2f}\n({o.expected[0, 1]:.2f})"] * 2, "14"]
    assert [t.get_text() for t in right.texts][:2] == ["35.0", "100.0"]
    first = [p.read_bytes() for p in write_heat_map(compared, tmp_path)]
    assert [p.read_bytes() for p in write_heat_map(compared, tmp_path)] == first
    assert first[1].startswith(b"\x89PNG")


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["compare", *arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_the_command_line(store: Store, tmp_path: Path, say: Callable[..., tuple[int, str, str]]) -> None:
    (tmp_path / "theirs.txt").write_text("s1\nx\n")
    status, out, err = say(
        "study", str(tmp_path / "theirs.txt"), "--store", str(store.root), "--out", str(tmp_path)
    )
    assert (status, err) == (0, "")
    assert "theirs: 1 of its ids are not in the pool" in out
    files = ("compare.md", "compare.csv", "compare.json", "overlap.svg", "overlap.png")
    assert all((tmp_path / name).stat().st_size for name in files)
    status, out, _ = say("random/10%/s0", "--store", str(store.root), "--format", "json", "--columns-only")
    assert status == 0
    assert json.loads(out)["subsets"][0]["n"] == 4


def test_mistakes_on_the_command_line(store: Store, say: Callable[..., tuple[int, str, str]]) -> None:
    for arguments, said in (
        (["study", "--distance", "65"], "give 0 to 64"),
        (["study", "--columns-only", "--whole-pool"], "give one of them"),
        (["nobody"], "has no select stage 'nobody'"),
    ):
        status, out, err = say(*arguments, "--store", str(store.root))
        assert (status, out) == (2, "")
        assert err.startswith("sievebench: ")
        assert said in err
        assert err.count("\n") == 1
