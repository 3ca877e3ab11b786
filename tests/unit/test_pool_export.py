"""An exported selection, imported again, is the same samples in order of preference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml

from harness import cli, pool_export, pool_hf_write
from harness.errors import HarnessError
from harness.files import write_json
from harness.pool import Pool
from harness.pool_export import ExportOptions, Format, export
from harness.pool_import import import_hf, import_llava_json, import_llava_yaml
from harness.pool_write import PoolWriter
from harness.stages.select import selection_card
from harness.store import Store
from harness.types import Json, Stage
from tests.support import import_pool, png, write_pool

CHOSEN = np.array([7, 3, 31, 4, 0, 12, 25], dtype=np.int32)


def select(root: Path, pool: Pool, *, seed: int = 0) -> str:
    """A finished select stage; returns its key."""
    config: dict[str, Json] = {"direction": "long"}
    stage = Stage(
        kind="select",
        version=1,
        params={
            "pool": pool.digest,
            "selector": {"name": "length", "distribution": "sievebench", "version": 1, "config": config},
            "budget": "7n",
            "seed": seed,
        },
        settings={"pool_path": pool.path},
        label=f"length/7n/s{seed}/select",
    )
    directory = Store(root).create().at(stage)
    directory.begin(stage)
    out = directory.fresh_out()
    np.save(out / "positions.npy", CHOSEN)
    write_json(out / "card.json", selection_card(pool, CHOSEN, {"n_topup": 2}))
    write_json(out / "selection.json", {"pool": pool.digest, "n": len(CHOSEN), "of": pool.n})
    directory.commit(stage, {"n": len(CHOSEN)}, {})
    return directory.key


def content(pool: Pool, positions: Any) -> list[Any]:
    records = [pool.record(int(i)) for i in positions]
    return [(r.uid, r.source, r.conversations, [pool.image_bytes(k) for k in r.images]) for r in records]


@pytest.fixture(params=["inside", "files"])
def pool(tmp_path: Path, request: pytest.FixtureRequest) -> Pool:
    return write_pool(tmp_path / "pool") if request.param == "inside" else import_pool(tmp_path)


def test_llava_json(tmp_path: Path, pool: Pool) -> None:
    select(tmp_path / "store", pool)
    out = tmp_path / "out"
    assert export(tmp_path / "store", "length/7n/s0", out, ExportOptions(format="llava-json")) == 7
    inside = not pool.image_root
    assert (out / "images").exists() == inside
    again = import_llava_json(
        out / "data.json", out / "images" if inside else Path(pool.image_root), tmp_path / "p"
    )
    assert again.rejects == {}
    assert content(again.pool, range(7)) == content(pool, CHOSEN)
    assert len((out / "data.json").read_text().splitlines()) == 9


def test_a_selection_is_found_by_its_cell(tmp_path: Path) -> None:
    """What tables and `status` print is a cell's label; two selections of that label need a key."""
    pool = write_pool(tmp_path / "pool")
    cells: list[Json] = [
        {"label": f"length/7n/{backbone}/s0", "select": select(tmp_path / "store", pool)}
        for backbone in ("a", "b")
    ]
    write_json(tmp_path / "store" / "sweeps" / "x.json", {"cells": cells})
    options = ExportOptions(format="llava-json")
    assert export(tmp_path / "store", "length/7n/b/s0", tmp_path / "out", options) == 7
    with pytest.raises(HarnessError, match="no select stage 'length/7n/c/s0'"):
        export(tmp_path / "store", "length/7n/c/s0", tmp_path / "none", options)


def test_llava_yaml(tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_export, "HELD", 300)
    key = select(tmp_path / "store", pool)
    out = tmp_path / "out"
    export(tmp_path / "store", key[:12], out, ExportOptions(format="llava-yaml", copy_images=True))
    assert [e["json_path"] for e in yaml.safe_load((out / "data.yaml").read_text())["datasets"]] == [
        "json/shapes.json",
        "json/charts.json",
    ]
    again = import_llava_yaml(out / "data.yaml", out / "images", tmp_path / "p").pool
    by_source = sorted(content(pool, CHOSEN), key=lambda sample: ["shapes", "charts"].index(sample[1]))
    assert content(again, range(7)) == by_source
    card = (out / "README.md").read_text()
    assert "Start training from this folder" in card
    assert "the order across sources is lost" in card


def test_hf(tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_hf_write, "SHARD_BYTES", 3000)
    monkeypatch.setattr(pool_hf_write, "ROW_GROUP", 2)
    select(tmp_path / "store", pool)
    out = tmp_path / "out"
    export(tmp_path / "store", "length/7n/s0/select", out, ExportOptions(format="hf"))
    again = import_hf(str(out), tmp_path / "p").pool
    assert content(again, range(7)) == content(pool, CHOSEN)
    assert len(list((out / "data").iterdir())) > 1
    loaded = datasets.load_dataset(str(out), split="train", streaming=True)
    samples = list(loaded)
    assert [s["id"] for s in samples] == [f"s{i}" for i in CHOSEN]
    assert samples[0]["image"].size == (16, 24)
    assert samples[3]["image"] is None
    assert samples[0]["conversations"][0] == {"from": "human", "value": "<image>\nWhat is number 7?"}


def test_several_images_a_sample(tmp_path: Path) -> None:
    said = [{"from": "human", "value": "<image><image> same?"}, {"from": "gpt", "value": "no"}]
    with PoolWriter(tmp_path / "pool", "pairs") as writer:
        for i in range(40):
            pair = {
                "id": f"p{i}",
                "image": [f"{i}.png", f"{i + 1}.png"],
                "conversations": said,
                "data_source": "x",
            }
            assert writer.add(pair, lambda key: png(int(key.split(".")[0])))
    pool = writer.pool()
    select(tmp_path / "store", pool)
    hf, listed = tmp_path / "hf", tmp_path / "json"
    export(tmp_path / "store", "length/7n/s0", hf, ExportOptions(format="hf"))
    export(tmp_path / "store", "length/7n/s0", listed, ExportOptions(format="llava-json"))
    assert content(import_hf(str(hf), tmp_path / "a").pool, range(7)) == content(pool, CHOSEN)
    again = import_llava_json(listed / "data.json", listed / "images", tmp_path / "b").pool
    assert content(again, range(7)) == content(pool, CHOSEN)


def test_the_card_says_what_it_is(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", 40)
    key = select(tmp_path / "store", pool)
    for form in pool_export.FORMATS:
        export(tmp_path / "store", key, tmp_path / form, ExportOptions(format=form))
        card = (tmp_path / form / "README.md").read_text()
        head = yaml.safe_load(card.split("---")[1])
        assert head["pretty_name"] == "length 7n of small"
        for line in (
            "# length 7n of small",
            "| selector | length, version 1 (sievebench) |",
            '| settings | `{"direction": "long"}` |',
            "| budget | 7n |",
            "| samples | 7 of 40 |",
            "| seed | 0 |",
            f"| pool digest | `{pool.digest}` |",
            f"| selection key | `{key}` |",
            "| n_topup | 2 |",
            "| shapes | 4 |",
            "| charts | 3 |",
        ):
            assert f"\n{line}\n" in card, line


def test_user_errors_are_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    pool = write_pool(tmp_path / "pool", 40)
    select(store, pool)
    select(store, pool, seed=1)
    options = ExportOptions(format="llava-json")
    with pytest.raises(HarnessError, match="no select stage 'random/7n/s0'"):
        export(store, "random/7n/s0", tmp_path / "out", options)
    other = write_pool(tmp_path / "other", 39)
    wrong: Format = "hf"
    with pytest.raises(HarnessError, match="give the right one with --pool"):
        export(store, "length/7n/s0", tmp_path / "out", ExportOptions(format=wrong, pool=Path(other.path)))
    with pytest.raises(HarnessError, match="not an empty folder"):
        export(store, "length/7n/s0", tmp_path, options)
    (Path(pool.path)).rename(tmp_path / "moved")
    arguments = ["export", "length/7n/s1", "--format", "hf", "--store", str(store), "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    assert "there is no pool at" in capsys.readouterr().err
    assert cli.main([*arguments, "--pool", str(tmp_path / "moved")]) == 0
    assert "7 samples" in capsys.readouterr().out


def test_an_image_that_is_gone_is_named(tmp_path: Path) -> None:
    select(tmp_path / "store", import_pool(tmp_path))
    (tmp_path / "images" / "31.png").unlink()
    with pytest.raises(HarnessError, match=r"image 31.png .* is gone: 'sievebench pool verify"):
        export(tmp_path / "store", "length/7n/s0", tmp_path / "out", ExportOptions(format="hf"))
    assert not (tmp_path / "out").exists()
