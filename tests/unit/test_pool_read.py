"""Files of records read piece by piece give what reading them whole gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import pool_read
from harness.errors import HarnessError
from harness.pool_parts import Part, read_yaml
from harness.pool_read import expand, read_records

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
AT_WILL = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_read, "CHUNK", 5)


@AT_WILL
@given(records=st.lists(VALUES, max_size=6), indent=st.sampled_from([None, 1]), escaped=st.booleans())
def test_a_list_read_in_pieces_is_the_list(
    tmp_path: Path, records: list[Any], indent: int | None, escaped: bool
) -> None:
    file = tmp_path / "data.json"
    file.write_text(json.dumps(records, indent=indent, ensure_ascii=escaped), encoding="utf-8")
    assert list(read_records(file)) == records


@AT_WILL
@given(records=st.lists(VALUES, min_size=1, max_size=4), at=st.integers(0, 10**6), bad=st.sampled_from(']}{,:x"'))
def test_what_json_refuses_is_refused(tmp_path: Path, records: list[Any], at: int, bad: str) -> None:
    text = json.dumps(records)
    text = text[: at % len(text)] + bad + text[at % len(text) + 1 :]
    file = tmp_path / "data.json"
    file.write_text(text)
    try:
        expected = json.loads(text)
    except ValueError:
        expected = None
    if isinstance(expected, list):
        assert list(read_records(file)) == expected
    else:
        with pytest.raises(HarnessError):
            list(read_records(file))


def test_records_come_before_the_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text('[{"id": 1}, {"id": 2}, {"id": ')
    records = read_records(file)
    assert [next(records), next(records)] == [{"id": 1}, {"id": 2}]
    with pytest.raises(HarnessError, match="not JSON after 2 records"):
        next(records)


def test_a_broken_record_does_not_read_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_read, "LONGEST", 100)
    file = tmp_path / "data.json"
    file.write_text('[{"id": 1}, {"id" 2}, ' + " " * 1000 + "\x00" * 10)
    with pytest.raises(HarnessError, match="not JSON after 1 record"):
        list(read_records(file))


def test_bytes_that_are_not_text_are_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_bytes(b'[{"id": "\xff\xfe"}]')
    with pytest.raises(HarnessError, match="not UTF-8"):
        list(read_records(file))
    file.write_bytes(b"\xef\xbb\xbf[1]")
    assert list(read_records(file)) == [1]
    file.write_text("[" * 100_000)
    with pytest.raises(HarnessError, match="nested too deeply"):
        list(read_records(file))


def test_a_number_too_long_for_python_costs_nobody_else(tmp_path: Path) -> None:
    digits = "9" * 10_000
    for name, text in (("a.json", f"[{digits}, 1]"), ("a.jsonl", f"{digits}\n1\n")):
        (tmp_path / name).write_text(text)
        assert list(read_records(tmp_path / name)) == [digits, 1]


def test_braces_name_several_files() -> None:
    assert expand(Path("d/{a, b}.json")) == [Path("d/a.json"), Path("d/b.json")]
    assert expand(Path("d/a.json")) == [Path("d/a.json")]


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    file = tmp_path / "ten.json"
    file.write_text(json.dumps(list(range(10))))
    return file


@pytest.mark.parametrize(
    ("take", "expected"),
    [
        ("all", list(range(10))),
        ("first:3", [0, 1, 2]),
        ("first:99", list(range(10))),
        ("first:10%", [0]),
        ("first:11%", [0, 1]),
        ("first:0.1%", [0]),
        ("end:3", [7, 8, 9]),
        ("end:99", list(range(10))),
        ("end:21%", [7, 8, 9]),
        ("end:0", []),
    ],
)
def test_sampling_strategies(ten: Path, take: str, expected: list[int]) -> None:
    assert list(Part(name="ten", file=ten, take=take).records(seed=0)) == expected


def test_random_samples_are_drawn_by_the_seed(ten: Path) -> None:
    def drawn(take: str, seed: int) -> list[int]:
        return list(Part(name="ten", file=ten, take=take).records(seed))

    assert drawn("random:4", 0) == drawn("random:40%", 0) == sorted(drawn("random:4", 0))
    assert len(set(drawn("random:4", 0))) == 4
    assert len({tuple(drawn("random:4", seed)) for seed in range(8)}) > 4
    assert drawn("random:99", 0) == list(range(10))
    assert set(drawn("random:3", 1)) < set(drawn("random:6", 1))


def test_a_yaml_names_its_parts(tmp_path: Path) -> None:
    file = tmp_path / "mix.yaml"
    file.write_text(
        "datasets:\n"
        "- {json_path: 'sub/{a,b}.json', sampling_strategy: 'first:10%'}\n"
        "- {json_path: other/a.json}\n"
        "- {json_path: other/a.json, sampling_strategy: all}\n"
        f"- json_path: {tmp_path}/abs.json\n"
    )
    parts = read_yaml(file)
    assert [(p.name, p.take) for p in parts] == [
        ("a", "first:10%"),
        ("b", "first:10%"),
        ("other/a", "all"),
        ("a#2", "all"),
        ("abs", "all"),
    ]
    assert [p.file for p in parts][:2] == [tmp_path / "sub" / "a.json", tmp_path / "sub" / "b.json"]


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("datasets: [", "as YAML"),
        ("datasets:\n\t- x", "as YAML .while scanning .* correct it there"),
        ("!!python/object:os.system {}", "as YAML"),
        ("datasets: &a [*a]", "entry 1 .* no json_path"),
        ("datasets: [{json_path: a.json, sampling_strategy: 'random:101%'}]", "'random:101%' cannot be read"),
        (f"datasets: [{{json_path: a.json, sampling_strategy: 'first:{'9' * 5000}'}}]", "cannot be read"),
        ("data: []", "no list 'datasets'"),
        ("datasets: [{sampling_strategy: all}]", "entry 1 .* no json_path"),
        ("datasets: [{json_path: a.json, folder: b}]", "folder, which means nothing"),
        ("datasets: [{json_path: a.json, sampling_strategy: most}]", "'most' cannot be read"),
        ("datasets: [{json_path: a.json, sampling_strategy: 'first:1.5'}]", "'first:1.5' cannot be read"),
    ],
)
def test_wrong_yamls_are_sentences(tmp_path: Path, content: str, hint: str) -> None:
    file = tmp_path / "mix.yaml"
    file.write_text(content)
    with pytest.raises(HarnessError, match=hint):
        read_yaml(file)
