"""Pools from mixtures, tar files and Hugging Face data sets."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from harness import pool_fill
from harness.errors import HarnessError
from harness.pool import Pool
from harness.pool_hf import _hub, _samples, read_hf
from harness.pool_import import ImportOptions, import_hf, import_llava_json, import_llava_yaml
from tests.support import png, raw_record


def content(pool: Pool) -> list[Any]:
    """Everything of a pool's samples but the names of their images."""
    records = [pool.record(i) for i in range(pool.n)]
    return [(r.uid, r.source, r.conversations, [pool.image_bytes(k) for k in r.images]) for r in records]


def write_json(file: Path, records: list[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(records))
    return file


def write_tar(file: Path, names: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w") as tar:
        for name, data in names.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for i in range(40):
        (folder / f"{i}.png").write_bytes(png(i))
    (folder / "7.png").write_bytes(b"not a picture")
    return folder


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Forty records, some of which cannot be used, and some of which share pictures."""
    records: list[Any] = [raw_record(i) for i in range(40)]
    records[11] |= {"image": "10.png"}
    records[12] |= {"image": "gone.png"}
    records[13] |= {"image": "7.png"}
    records[20] = "no record"
    records[30] |= {"id": "s1"}
    records[31] |= {"conversations": [{"from": "human", "value": "<image>\ud800"}, {"from": "gpt", "value": "a"}]}
    return write_json(tmp_path / "data.json", records)


REJECTS = {"corrupt_image": 2, "duplicate_id": 1, "missing_image": 1, "not_an_object": 1, "not_unicode": 1}


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(
    tmp_path: Path, images: Path, listed: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = import_llava_json(listed, images, tmp_path / "alone", ImportOptions(name="p"))
    monkeypatch.setattr(pool_fill, "RECORDS", 3)
    told: list[int] = []
    options = ImportOptions(name="p", workers=workers, progress=told.append)
    report = import_llava_json(listed, images, tmp_path / "pool", options)
    assert report.rejects == alone.rejects == REJECTS
    assert report.seen == 40
    assert told == sorted(told)
    assert told[-1] == 40
    for file in ("pool.json", "meta.parquet", "text.arrow", "rejects.parquet"):
        assert (tmp_path / "pool" / file).read_bytes() == (tmp_path / "alone" / file).read_bytes(), file
    rows = {row["idx"]: row for row in pq.read_table(tmp_path / "pool" / "rejects.parquet").to_pylist()}
    assert sorted(rows) == [7, 12, 13, 20, 30, 31]
    assert rows[13]["detail"].startswith("7.png: ")
    assert rows[12]["detail"] == "gone.png: no such file or directory"


@pytest.mark.parametrize("key", ["3.png", "all/3.png"])
def test_images_in_tar_files_are_read_where_they_are(tmp_path: Path, images: Path, listed: Path, key: str) -> None:
    folder = tmp_path / "tars"
    folder.mkdir()
    names = {f"./{i}.png": (images / f"{i}.png").read_bytes() for i in range(40)}
    write_tar(folder / "all.tar", names | {"d" * 120 + "/x.png": png(1)})
    write_tar(folder / "more.tar", {"10.png": png(1)})
    records = json.loads(listed.read_text())
    records[3]["image"] = key
    write_json(listed, records)
    one = import_llava_json(listed, folder / "all.tar", tmp_path / "one")
    assert one.rejects == REJECTS
    by_file = import_llava_json(listed, images, tmp_path / "files") if key == "3.png" else None
    assert by_file is None or one.pool.digest == by_file.pool.digest
    assert one.pool.image_bytes(key) == png(3)
    assert one.pool.image("0.png").size == (16, 24)
    with pytest.raises(KeyError, match="gone"):
        one.pool.image_bytes("gone.png")
    both = import_llava_json(listed, folder, tmp_path / "both")
    assert both.rejects == REJECTS | {"ambiguous_image": 2}


def test_a_tar_file_must_be_plain(tmp_path: Path, listed: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w:gz"):
        pass
    with pytest.raises(HarnessError, match="not a plain tar file"):
        import_llava_json(listed, tmp_path / "x.tar", tmp_path / "pool")


def test_a_mixture_keeps_every_record_of_its_parts(tmp_path: Path, images: Path) -> None:
    text = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    for name, ids in {"a": [1, 2, 3, 3], "b": [2, 3, 4], "c": [9, 10]}.items():
        write_json(tmp_path / f"{name}.json", [{"id": i, "conversations": text} for i in ids])
    file = tmp_path / "mix.yaml"
    file.write_text(
        "datasets:\n"
        "- {json_path: '{a,b}.json'}\n"
        "- {json_path: c.json, sampling_strategy: 'end:1'}\n"
        "- {json_path: b.json}\n"
        "- {json_path: b.json}\n"
    )
    report = import_llava_yaml(file, images, tmp_path / "pool")
    expected = ["1", "2", "3", "b/2", "b/3", "4", "10", "b#2/2", "b#2/3", "b#2/4", "b#3/2", "b#3/3", "b#3/4"]
    # "b/b" stands between the file's own name and the numbered ones.
    folder = tmp_path.name
    expected = [u.replace("b#2", f"{folder}/b").replace("b#3", "b#2") for u in expected]
    assert report.pool.uids() == expected
    assert report.renamed == 8
    assert report.rejects == {"duplicate_id": 1}
    assert report.pool.sources().tolist() == ["a"] * 3 + ["b"] * 3 + ["c"] + [f"{folder}/b"] * 3 + ["b#2"] * 3


def rows(numbers: range) -> list[dict[str, Any]]:
    """Records as LLaVA-OneVision-Data has them; the pictures are embedded and not named."""
    out = []
    for i in numbers:
        raw: Any = raw_record(i)
        image = {"bytes": png(i), "path": None} if "image" in raw else None
        out.append({k: v for k, v in raw.items() if k != "image"} | {"image": image})
    return out


def features() -> datasets.Features:
    text = datasets.Value("string")
    turns = [{"from": text, "value": text}]
    return datasets.Features({"id": text, "conversations": turns, "data_source": text, "image": datasets.Image()})


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """Two subsets, as a data set on the hub lays them out."""
    folder = tmp_path / "hub"
    for name, numbers in {"one(x)": range(10), "two": range(5, 20)}.items():
        (folder / name).mkdir(parents=True)
        table = pa.Table.from_pylist(rows(numbers), schema=features().arrow_schema)
        pq.write_table(table, folder / name / "train-00000-of-00001.parquet", row_group_size=4)
    return folder


def test_parquet_with_embedded_images(tmp_path: Path, hub_folder: Path) -> None:
    report = import_hf(str(hub_folder), tmp_path / "pool")
    assert report.seen == 25
    assert report.rejects == {}
    assert report.renamed == 5
    assert report.pool.uids()[10:16] == ["two/s5", "two/s6", "two/s7", "two/s8", "two/s9", "s10"]
    expected: Any = raw_record(8)
    assert content(report.pool)[8] == (
        "s8",
        expected["data_source"],
        tuple((t["from"], t["value"]) for t in expected["conversations"]),
        [png(8)],
    )
    keys = {k for i in range(25) for k in report.pool.record(i).images}
    assert len(keys) == 16  # the same bytes are kept once
    assert all(Image.open(io.BytesIO(report.pool.image_bytes(k))).size == (16, 24) for k in keys)
    one = import_hf(str(hub_folder / "one(x)"), tmp_path / "one", ImportOptions(workers=2))
    assert one.pool.n == 10
    assert content(one.pool) == content(report.pool)[:10]


def test_a_saved_data_set(tmp_path: Path) -> None:
    made = datasets.Dataset.from_list(rows(range(12)), features=features())
    made.save_to_disk(tmp_path / "one")
    halves = {"train": made.select(range(6)), "rest": made.select(range(6, 12))}
    datasets.DatasetDict(halves).save_to_disk(tmp_path / "two")
    one = import_hf(str(tmp_path / "one"), tmp_path / "a").pool
    two = import_hf(str(tmp_path / "two"), tmp_path / "b").pool
    assert one.uids() == [f"s{i}" for i in range(12)]
    assert content(one) == content(two)
    assert [c[3] for c in content(one)][:5] == [[png(0)], [png(1)], [png(2)], [png(3)], []]


def test_the_hub_is_read_by_subsets(hub_folder: Path) -> None:
    """The library reads a data set's repository from a folder of the same name as it does from the hub."""
    configs = [{"config_name": n, "data_files": f"{n}/*.parquet"} for n in ("one(x)", "two")]
    (hub_folder / "README.md").write_text("---\n" + json.dumps({"configs": configs}) + "\n---\n")
    local = list(read_hf(str(hub_folder), "", (), embedded=True))
    assert list(_samples("x/hub", _hub(str(hub_folder), "", ()), True)) == local
    two = list(_samples("x/hub", _hub(str(hub_folder), "", ("two",)), True))
    assert two == [s for s in local if s.part == "two"]
    assert len(two) == 15


def test_images_that_a_data_set_only_names(tmp_path: Path, images: Path) -> None:
    folder = tmp_path / "named"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist([raw_record(i) for i in range(6)]), folder / "x.parquet")
    report = import_hf(str(folder), tmp_path / "pool", images=images)
    assert (report.pool.n, report.pool.image_root) == (6, str(images))
    assert report.pool.image_bytes("3.png") == png(3)
    bare = import_hf(str(folder), tmp_path / "bare")
    assert bare.rejects == {"missing_image": 5}


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> str:
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "x.parquet")
    return str(folder)


def test_rows_of_many_shapes(tmp_path: Path) -> None:
    """Bytes without a struct, one picture twice, turns as lists: read; what is not there: set aside by its id."""
    said = [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}]
    twice = [{"from": "human", "value": "<image><image>q"}, {"from": "gpt", "value": "a"}]
    lists = {"from": ["human", "gpt"], "value": ["<image>q", "a"]}
    picture = {"bytes": png(1), "path": "/home/x/1.png"}
    shapes: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
        "bytes": ({"image": png(1), "conversations": said}, {}),
        "twice": ({"images": [picture, picture], "conversations": twice}, {}),
        "lists": ({"image": picture, "conversations": lists}, {}),
        "ending": ({"image": {"bytes": png(1), "path": "x." + "y" * 500}, "conversations": said}, {}),
        "named": ({"image": "/home/x/1.png", "conversations": said}, {"missing_image": 1}),
        "empty": ({"image": {"bytes": b"", "path": None}, "conversations": said}, {"missing_image": 1}),
        "text": ({"image": {"bytes": "x", "path": "x"}, "conversations": said}, {"missing_image": 1}),
        "null": ({"image": picture, "conversations": None}, {"no_turns": 1}),
        "string": ({"image": picture, "conversations": json.dumps(said)}, {"no_turns": 1}),
        "uneven": ({"image": picture, "conversations": lists | {"value": ["<image>q"]}}, {"non_string": 1}),
        "holes": ({"image": picture, "conversations": lists | {"value": None}}, {"no_turns": 1}),
        "integers": ({"image": picture, "conversations": [1, 2]}, {"non_string": 1}),
    }
    for name, (row, rejects) in shapes.items():
        source = write_rows(tmp_path / name, [{"id": name, **row}])
        if not rejects:
            assert import_hf(source, tmp_path / f"{name}.pool").pool.uids() == [name]
            continue
        with pytest.raises(HarnessError, match=rf"no usable record .*: {next(iter(rejects))} \(1\) \(the first: "):
            import_hf(source, tmp_path / f"{name}.pool")


def test_text_that_is_not_unicode_costs_its_row_alone(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "answer"}]
    table = pa.Table.from_pylist([{"id": f"r{i}", "conversations": turns} for i in range(3)])
    ids = pa.array([b"r0", b"\xff\xfe", b"r2"]).view(pa.string())
    (tmp_path / "data").mkdir()
    pq.write_table(table.set_column(0, "id", ids), tmp_path / "data" / "x.parquet")
    report = import_hf(str(tmp_path / "data"), tmp_path / "pool")
    assert report.pool.uids() == ["r0", "r2"]
    assert report.rejects == {"not_unicode": 1}


def test_damaged_parquet_is_no_traceback(tmp_path: Path) -> None:
    source = Path(write_rows(tmp_path / "data", rows(range(4)))) / "x.parquet"
    whole = source.read_bytes()
    random = np.random.default_rng(0)
    for i in range(15):
        damaged = bytearray(whole)
        damaged[int(random.integers(len(damaged)))] ^= 1 << int(random.integers(8))
        source.write_bytes(damaged)
        with contextlib.suppress(HarnessError):  # anything else is a traceback to the user
            import_hf(str(tmp_path / "data"), tmp_path / f"pool{i}")


def test_damaged_tar_files(tmp_path: Path, listed: Path) -> None:
    whole = write_tar(tmp_path / "x.tar", {f"{i}.png": png(i) for i in range(40)}).read_bytes()
    for content in (b"", whole[:5000]):
        (tmp_path / "x.tar").write_bytes(content)
        with pytest.raises(HarnessError, match=r"x.tar is not a plain tar file"):
            import_llava_json(listed, tmp_path / "x.tar", tmp_path / "pool")


def test_user_errors_are_sentences(tmp_path: Path, hub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.parquet").write_bytes(b"PAR1 and nothing")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text("junk")
    (tmp_path / "other").mkdir()
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "other" / "x.parquet")
    cases = {
        str(tmp_path / "none"): "no folder",
        str(tmp_path / "empty"): "no parquet file",
        str(tmp_path / "bad"): "not a parquet file",
        str(tmp_path / "saved"): "not a data set that save_to_disk wrote",
        "word": "no folder word, and a data set on the hub is named OWNER/NAME",
        str(tmp_path / "other"): "no column 'conversations' .it has text",
        "somebody/something": "cannot be read from the hub",
    }
    for source, hint in cases.items():
        with pytest.raises(HarnessError, match=hint):
            import_hf(source, tmp_path / "pool")
        assert not (tmp_path / "pool").exists()
    with pytest.raises(HarnessError, match="for data sets on the hub"):
        import_hf(str(hub_folder), tmp_path / "pool", revision="abc")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(HarnessError, match="not an empty folder"):
        import_hf(str(hub_folder), tmp_path / "full")
