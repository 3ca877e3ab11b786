"""Verifying a pool finds what has changed since it was made, and says what."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from harness import cli
from harness.errors import HarnessError
from harness.pool import Pool
from harness.pool_import import import_llava_json
from harness.pool_verify import verify_pool
from tests.support import png, raw_record, write_pool


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    """Twelve records with their pictures as files."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.png").write_bytes(png(i))
    file = tmp_path / "data.json"
    file.write_text(json.dumps([*(raw_record(i) for i in range(12)), "no record"]))
    return import_llava_json(file, folder, tmp_path / "pool").pool


def edit_text(path: Path, change: Callable[[str], str]) -> None:
    with pa.memory_map(str(path / "text.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
    rows = table.to_pylist()
    rows[3]["conversations"][1]["value"] = change(rows[3]["conversations"][1]["value"])
    new = pa.Table.from_pylist(rows, schema=table.schema)
    (path / "text.arrow").unlink()
    with pa.ipc.new_file(str(path / "text.arrow"), table.schema) as sink:
        sink.write_table(new)


def edit_meta(path: Path, column: str, value: int) -> None:
    table = pq.read_table(path / "meta.parquet")
    values = table.column(column).to_pylist()
    values[2] = value
    i = table.column_names.index(column)
    pq.write_table(table.set_column(i, column, pa.array(values, table.schema.types[i])), path / "meta.parquet")


def edit_head(path: Path, **changes: object) -> None:
    head = json.loads((path / "pool.json").read_text())
    (path / "pool.json").write_text(json.dumps(head | changes))


def test_a_whole_pool_is_said_to_be_whole(pool: Pool, tmp_path: Path) -> None:
    verdict = verify_pool(Path(pool.path))
    assert verdict.whole
    assert verdict.sentence.endswith(f"12 records and 10 images hash to {pool.digest[:12]}.")
    inside = write_pool(tmp_path / "inside", 20)
    assert verify_pool(Path(inside.path), workers=1).whole


DAMAGE: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "image gone": (lambda p, i: (i / "5.png").unlink(), r"1 image is gone \(5.png\)\."),
    "image changed": (
        lambda p, i: (i / "5.png").write_bytes(png(99)),
        r"1 record's images have changed \(5.png\)\.",
    ),
    "several": (
        lambda p, i: [(i / f"{k}.png").write_bytes(b"x") for k in (0, 1, 2, 3)],
        r"4 records' images have changed \(0.png, 1.png, 2.png, …\)\.",
    ),
    "text changed": (lambda p, i: edit_text(p, lambda t: t + "!"), r"1 record's text has changed \(s3\)\."),
    "number changed": (lambda p, i: edit_meta(p, "width", 7), r"numbers have changed \(s2: width\)\."),
    "hash changed": (lambda p, i: edit_meta(p, "uid_hash64", 7), r"\(s2: uid_hash64\)\."),
    "digest changed": (lambda p, i: edit_head(p, digest="0" * 64), r"its digest is \w{12} and not 0{12}\."),
    "size changed": (lambda p, i: edit_head(p, n=13), r"it has 12 records and not 13\."),
    "rejects changed": (lambda p, i: edit_head(p, rejects={}), r"rejects.parquet has 1 rows and not 0\."),
    "file gone": (lambda p, i: (p / "meta.parquet").unlink(), "cannot be read any more"),
    "file cut": (
        lambda p, i: (p / "text.arrow").write_bytes((p / "text.arrow").read_bytes()[:-100]),
        "cannot be read any more",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(pool: Pool, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage, expected = DAMAGE[kind]
    damage(Path(pool.path), tmp_path / "images")
    moved = tmp_path / "moved"  # files are mapped once in a process, by name
    shutil.move(pool.path, moved)
    verdict = verify_pool(moved)
    assert not verdict.whole
    assert re.search(expected, verdict.sentence), verdict.sentence
    assert cli.main(["pool", "verify", str(moved)]) == 1
    assert capsys.readouterr().out == verdict.sentence + "\n"


def test_a_damaged_image_index_is_a_sentence(tmp_path: Path) -> None:
    """Not a crash: Arrow itself would follow it out of its memory."""
    random = np.random.default_rng(0)
    pool = write_pool(tmp_path / "pool", 20)
    whole = Path(pool.path, "image_index.arrow").read_bytes()
    found = 0
    for i in range(20):
        damaged = bytearray(whole)
        start = int(random.integers(len(damaged) - 8))
        damaged[start : start + 8] = random.bytes(8)
        copy = tmp_path / f"copy{i}"  # files are mapped once in a process, by name
        shutil.copytree(pool.path, copy)
        (copy / "image_index.arrow").write_bytes(damaged)
        verdict = verify_pool(copy, workers=1)
        assert "\n" not in verdict.sentence
        found += not verdict.whole
    assert found > 8  # some bytes are padding


def test_no_pool_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no pool at"):
        verify_pool(tmp_path)


def test_pools_that_kept_images_in_arrow_are_still_read(tmp_path: Path) -> None:
    """How images were kept inside before pools had an index."""
    new = write_pool(tmp_path / "new", 10)
    old = tmp_path / "old"
    shutil.copytree(new.path, old)
    (old / "image_index.arrow").unlink()
    (old / "images.tar").unlink()
    keys = [key for i in range(10) for key in new.record(i).images]
    schema = pa.schema([("key", pa.string()), ("data", pa.binary())])
    with pa.ipc.new_file(str(old / "images.arrow"), schema) as sink:
        for key in keys:
            sink.write_table(pa.table({"key": [key], "data": [new.image_bytes(key)]}, schema=schema))
    verdict = verify_pool(old)
    assert verdict.whole, verdict.sentence
