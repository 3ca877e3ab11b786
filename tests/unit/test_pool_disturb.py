"""A disturbed pool is the old one and what its truth says was added, no more and no less."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from harness import cli
from harness.errors import HarnessError
from harness.pool import Pool, Record, open_pool
from harness.pool_disturb import DisturbOptions, disturb_pool, draw, truth_file
from harness.pool_verify import verify_pool
from harness.pool_write import PoolWriter
from harness.types import Budget
from tests.support import import_pool, png, raw_record, write_pool

AMOUNTS = {"duplicate": "100%", "wrong": "30%", "off_topic": "8n"}


@pytest.fixture(params=["inside", "files"])
def pool(tmp_path: Path, request: pytest.FixtureRequest) -> Pool:
    return write_pool(tmp_path / "pool") if request.param == "inside" else import_pool(tmp_path)


def disturb(pool: Pool, out: Path, amounts: dict[Any, str], **how: Any) -> tuple[dict[str, Record], list[Any]]:
    """The new pool's records by uid, and its truth."""
    made = disturb_pool(pool, out, {d: Budget.parse(a) for d, a in amounts.items()}, DisturbOptions(**how))
    records = {(r := made.record(i)).uid: r for i in range(made.n)}
    return records, pq.read_table(truth_file(out)).to_pylist()


def test_what_was_there_stays_and_what_is_added_is_as_the_truth_says(pool: Pool, tmp_path: Path) -> None:
    records, truth = disturb(pool, tmp_path / "new", AMOUNTS)
    new = open_pool(tmp_path / "new")
    assert Counter(row["defect"] for row in truth) == {"": 40, "duplicate": 40, "wrong": 12, "off_topic": 8}
    assert new.n == len(records) == 100
    before = {(r := pool.record(i)).uid: r for i in range(pool.n)}
    assert {row["original"] for row in truth if not row["defect"]} == set(before)
    assert {row["uid"] for row in truth} == set(records)
    for row in truth:
        was, now = before[row["original"]], records[row["uid"]]
        assert now.source == was.source == row["source"]
        pictures = [[p.image_bytes(k) for k in r.images] for p, r in ((pool, was), (new, now))]
        asked = [[t for role, t in r.conversations if role == "human"] for r in (was, now)]
        said = [[t for role, t in r.conversations if role == "gpt"] for r in (was, now)]
        assert asked[0] == asked[1]
        assert (pictures[0] == pictures[1]) == (row["defect"] != "off_topic")
        if row["defect"] == "wrong":
            assert len(said[0]) == len(said[1])
            assert all(a != b for a, b in zip(*said, strict=True))
        else:
            assert said[0] == said[1]
    assert verify_pool(tmp_path / "new").whole
    assert new.image_root == pool.image_root


def test_uids_and_order_tell_nothing(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", 40)
    records, truth = disturb(pool, tmp_path / "new", AMOUNTS)
    bad = {row["uid"] for row in truth if row["defect"]}
    order = [uid in bad for uid in open_pool(tmp_path / "new").uids()]
    assert 25 < sum(order[:50]) < 35  # 60 of 100 are bad
    assert all(re.fullmatch("[0-9a-f]{16}", uid) for uid in records)
    assert set("".join(bad)) == set("".join(set(records) - bad))
    assert not set(records) & set(pool.uids())


def test_names_of_pictures_tell_nothing(tmp_path: Path) -> None:
    """Miniworld's are `SOURCE/UID.bmp`: another source's picture would show by its name."""
    with PoolWriter(tmp_path / "pool", "named") as writer:
        for i in range(20):
            raw = raw_record(i)
            named = {"image": f"{raw['data_source']}/{raw['image']}"} if "image" in raw else {}
            assert writer.add(raw | named, lambda key: png(int(Path(key).stem)))
    records, truth = disturb(writer.pool(), tmp_path / "new", {"off_topic": "50%"})
    assert all(re.fullmatch(r"[0-9a-f]{32}\.png", key) for r in records.values() for key in r.images)
    shown = [records[row["uid"]].images for row in truth if row["defect"]]
    others = {records[row["uid"]].images for row in truth if not row["defect"]}
    assert shown
    assert set(shown) <= others


def test_the_seed_decides_and_the_workers_do_not(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", 40)
    same, other = {"seed": 3, "workers": 2, "name": "a"}, {"seed": 4, "name": "a"}
    disturb(pool, tmp_path / "a", AMOUNTS, seed=3, name="a")
    disturb(pool, tmp_path / "b", AMOUNTS, **same)
    disturb(pool, tmp_path / "c", AMOUNTS, **other)
    digests = [open_pool(tmp_path / name).digest for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("defect", ["duplicate", "wrong", "off_topic"])
def test_fewer_are_part_of_more(defect: Any, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", 40)
    few, many = (draw(pool, defect, Budget(count=n), 0) for n in (4, 20))
    assert many[:4] == few
    assert len({one.original for one in many}) == 20


def test_wrong_answers_are_of_the_same_source_where_it_has_any(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", 40)
    sources = pool.sources()
    found = draw(pool, "wrong", Budget(count=20), 0)
    assert sum(sources[one.original] == sources[one.donor] for one in found) >= 15


def test_pools_without_enough_to_spoil_say_so(tmp_path: Path) -> None:
    said = [{"from": "human", "value": "Is it?"}, {"from": "gpt", "value": "Yes."}]
    with PoolWriter(tmp_path / "pool", "yes") as writer:
        for i in range(5):
            assert writer.add({"id": f"y{i}", "conversations": said}, lambda key: b"")
    pool = writer.pool()
    for defect, amount in (("wrong", "1n"), ("off_topic", "20%")):
        with pytest.raises(HarnessError, match=f"0 samples .* can be made {defect}, and {amount}"):
            disturb(pool, tmp_path / "new", {defect: amount})
    assert not (tmp_path / "new").exists()
    with pytest.raises(HarnessError, match="nothing to add"):
        disturb(pool, tmp_path / "new", {})


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pool(tmp_path / "pool", 40)
    given = ["pool", "disturb", str(tmp_path / "pool"), "--out", str(tmp_path / "new"), "--workers", "1"]
    assert cli.main([*given, "--off-topic", "10%"]) == 0
    said = capsys.readouterr()
    made, truth = said.out.splitlines()  # no bar where there is no terminal
    assert "44 records, 4 of them added" in made
    assert "new.truth.parquet" in truth
    assert said.err == ""
    assert cli.main([*given, "--duplicate", "7"]) == 2
    assert "write 0.05 or 5%" in capsys.readouterr().err
