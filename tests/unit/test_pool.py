"""Pools: what goes in comes out, and what cannot be used is counted with its reason."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from harness import pool_write
from harness.errors import HarnessError
from harness.keys import uid_hash64
from harness.pool import Pool, open_pool
from harness.pool_import import ImportOptions, import_llava_json
from harness.pool_write import PoolWriter
from tests.support import png, raw_record, write_pool


def test_records_come_back_as_they_went_in(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", 40)
    assert pool.n == 40
    for i in (0, 3, 4, 39):
        raw: Any = raw_record(i)
        record = pool.record(i)
        assert record.uid == raw["id"]
        assert [{"from": r, "value": v} for r, v in record.conversations] == raw["conversations"]
        assert record.images == ((raw["image"],) if "image" in raw else ())
    assert pool.image_bytes("7.png") == png(7)
    assert pool.image("7.png").size == (16, 24)
    assert pool.column("height")[7] == 24
    assert pool.column("width")[7] == 16
    assert pool.column("n_turns")[3] == 4
    assert pool.column("n_images")[4] == 0
    assert pool.column("uid_hash64").tolist() == [uid_hash64(u) for u in pool.uids()]


def test_the_digest_is_the_content_and_not_the_place(tmp_path: Path) -> None:
    a, b = write_pool(tmp_path / "a", 10), write_pool(tmp_path / "b", 10)
    assert a.digest == b.digest
    assert a.digest != write_pool(tmp_path / "c", 11).digest
    assert a.digest != write_pool(tmp_path / "d", 10, order=list(reversed(range(10)))).digest


def truncated() -> bytes:
    return png(1, (64, 64))[:-200]


def bomb() -> bytes:
    out = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(out, format="png")
    return out.getvalue()


def png_with(kind: bytes, content: bytes) -> bytes:
    """A small PNG with one more chunk behind its header, or another header."""
    whole = png(0)
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return whole[: 8 if kind == b"IHDR" else 33] + chunk + whole[33:]


def turns(*texts: str, roles: tuple[str, ...] = ("human", "gpt")) -> list[dict[str, Any]]:
    return [{"from": roles[i % len(roles)], "value": t} for i, t in enumerate(texts)]


BAD: list[tuple[str, Any]] = [
    ("not_an_object", "text"),
    ("not_an_object", [[[]]]),
    ("bad_id", {"id": ["x"], "conversations": turns("q", "a")}),
    ("bad_id", {"id": float("nan"), "conversations": turns("q", "a")}),
    ("bad_id", {"id": True, "conversations": turns("q", "a")}),
    ("bad_id", {"id": " ", "conversations": turns("q", "a")}),
    ("nul_byte", {"id": "a\0", "conversations": turns("q", "a")}),
    ("not_unicode", {"id": "1", "conversations": turns("q", "\ud800")}),
    ("not_unicode", {"id": "1", "image": "\ud800.png", "conversations": turns("<image>", "a")}),
    ("non_string", {"id": "1", "conversations": turns("q", "a"), "data_source": ["x"]}),
    ("video", {"id": "1", "conversations": turns("<image>q", "a"), "video": "x.mp4"}),
    ("too_long", {"id": "1", "conversations": turns("q", "a" * 1_000_000)}),
    ("too_many_turns", {"id": "1", "conversations": turns(*["q"] * 40_000)}),
    ("too_many_images", {"id": "1", "image": ["ok.png"] * 40_000, "conversations": turns("<image>", "a")}),
    ("no_turns", {"id": "1", "conversations": []}),
    ("no_turns", {"id": "1"}),
    ("no_turns", {"id": "1", "conversations": "q"}),
    ("roles", {"id": "1", "conversations": turns("q")}),
    ("roles", {"id": "1", "conversations": turns("q", "a", roles=("user", "assistant"))}),
    ("roles", {"id": "1", "conversations": turns("q", "a", "b")}),
    ("roles", {"id": "1", "conversations": turns("q", "a", roles=("human", "human"))}),
    ("empty_answer", {"id": "1", "conversations": turns("q", "  ")}),
    ("non_string", {"id": "1", "conversations": [{"from": "human", "value": 3}, {"from": "gpt", "value": "a"}]}),
    ("non_string", {"id": "1", "conversations": [{"role": "user", "content": "q"}] * 2}),
    ("non_string", {"id": "1", "conversations": [[[[[[[[]]]]]]]]}),
    ("nul_byte", {"id": "1", "conversations": turns("q\0", "a")}),
    ("image_count", {"id": "1", "image": "ok.png", "conversations": turns("no placeholder", "a")}),
    ("image_count", {"id": "1", "image": "ok.png", "conversations": turns("<image><image>", "a")}),
    ("escaping_path", {"id": "1", "image": "/etc/passwd", "conversations": turns("<image>", "a")}),
    ("escaping_path", {"id": "1", "image": "../x.png", "conversations": turns("<image>", "a")}),
    ("bad_image_path", {"id": "1", "image": 0, "conversations": turns("<image>", "a")}),
    ("bad_image_path", {"id": "1", "image": [["ok.png"]], "conversations": turns("<image>", "a")}),
    ("image_count", {"id": "1", "images": ["ok.png"] * 2, "conversations": turns("<image>", "a")}),
    *(
        (reason, {"id": "1", "image": image, "conversations": turns("<image>", "a")})
        for reason, image in (
            ("missing_image", "gone.png"),
            ("missing_image", "x" * 300),
            ("missing_image", "folder.png"),
            ("missing_image", "loop.png"),
            ("missing_image", "endless.png"),
            ("missing_image", "waiting.png"),
            ("corrupt_image", "noise.png"),
            ("corrupt_image", "empty.png"),
            ("corrupt_image", "truncated.png"),
            ("corrupt_image", "packed_text.png"),
            ("image_bomb", "bomb.png"),
            ("image_bomb", "said_bomb.png"),
            ("deep_image", "deep.png"),
            ("deep_image", "floats.tiff"),
        )
    ),
    ("duplicate_id", {"id": "good", "conversations": turns("q", "a")}),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (folder / "ok.png").write_bytes(png(0))
    (folder / "noise.png").write_bytes(b"not a picture")
    (folder / "truncated.png").write_bytes(truncated())
    (folder / "bomb.png").write_bytes(bomb())
    (folder / "empty.png").write_bytes(b"")
    (folder / "said_bomb.png").write_bytes(png_with(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 9, 8, 2, 0, 0, 0)))
    (folder / "packed_text.png").write_bytes(png_with(b"zTXt", b"x\0\0" + zlib.compress(b"a" * 9_000_000)))
    Image.fromarray(np.full((9, 9), 60_000, dtype=np.uint16)).save(folder / "deep.png")
    Image.fromarray(np.full((9, 9), 0.5, dtype=np.float32)).save(folder / "floats.tiff")
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "endless.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "waiting.png")
    return folder


@pytest.mark.parametrize(("reason", "record"), BAD, ids=[f"{i}-{r}" for i, (r, _) in enumerate(BAD)])
def test_bad_records_are_set_aside_with_their_reason(
    tmp_path: Path, images: Path, reason: str, record: Any
) -> None:
    good = {"id": "good", "image": "ok.png", "conversations": turns("<image>\nq", "a")}
    file = tmp_path / "data.json"
    file.write_text(json.dumps([good, record]))
    report = import_llava_json(file, images, tmp_path / "pool")
    assert report.rejects == {reason: 1}
    assert report.pool.n == 1
    assert report.seen == 2
    (row,) = pq.read_table(tmp_path / "pool" / "rejects.parquet").to_pylist()
    assert row["reason"] == reason
    assert row["idx"] == 1
    with pytest.raises(HarnessError, match=reason):
        import_llava_json(file, images, tmp_path / "strict", ImportOptions(strict=True))
    assert not (tmp_path / "strict").exists()


def turned() -> Image.Exif:
    """Metadata that ask a viewer to turn the picture by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


ODD: dict[str, tuple[Image.Image, dict[str, Any]]] = {
    "animated.gif": (
        Image.new("P", (9, 5)),
        {"save_all": True, "append_images": [Image.new("P", (9, 5), 7)]},
    ),
    "cmyk.jpg": (Image.new("CMYK", (9, 5)), {}),
    "turned.jpg": (Image.new("RGB", (9, 5)), {"exif": turned()}),
    "one.png": (Image.new("RGB", (1, 1)), {}),
    "thin.png": (Image.new("RGB", (1, 20_000)), {}),
    "wide.png": (Image.new("L", (20_000, 1)), {}),
    "clear.png": (Image.new("LA", (9, 5)), {}),
    "ünï ☃\n.png": (Image.new("1", (9, 5)), {}),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_pictures_are_seen_as_training_sees_them(tmp_path: Path, name: str) -> None:
    """Their first frame, unturned, in RGB."""
    image, how = ODD[name]
    image.save(tmp_path / name, **how)
    file = tmp_path / "data.json"
    record = {"id": 10**300, "images": [f"./{name}"], "conversations": turns("<image>q", "a")}
    file.write_text(json.dumps([record]))
    report = import_llava_json(file, tmp_path, tmp_path / "pool")
    assert report.rejects == {}
    (key,) = report.pool.record(0).images
    seen = report.pool.image(key)
    assert (seen.size, seen.mode) == (image.size, "RGB")
    assert (report.pool.column("width")[0], report.pool.column("height")[0]) == image.size
    assert report.pool.sources().tolist() == ["data"]


def test_a_leading_turn_that_is_not_the_humans_is_dropped(tmp_path: Path) -> None:
    with PoolWriter(tmp_path / "pool", "p") as writer:
        said = turns("hello", "q", "a", roles=("gpt", "human", "gpt"))
        assert writer.add({"id": "1", "conversations": said}, lambda key: b"")
    assert writer.pool().record(0).conversations == (("human", "q"), ("gpt", "a"))


def test_jsonl_keeps_the_lines_that_are_json(tmp_path: Path, images: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps({"id": 1, "conversations": turns("q", "a")}) + "\n{broken\n\n")
    report = import_llava_json(file, images, tmp_path / "pool")
    assert (report.pool.n, report.seen, report.rejects) == (1, 2, {"not_json": 1})


def test_sources_follow_the_fallback_chain(tmp_path: Path, images: Path) -> None:
    (images / "geo(qa)").mkdir(exist_ok=True)
    (images / "geo(qa)" / "1.png").write_bytes(png(1))
    said = turns("<image>", "a")
    records = [
        {"id": "1", "image": "ok.png", "conversations": said, "image_source": "a", "data_source": "b"},
        {"id": "2", "image": "ok.png", "conversations": said, "data_source": "b"},
        {"id": "3", "image": "geo(qa)/1.png", "conversations": said},
        {"id": "4", "image": "ok.png", "conversations": said},
    ]
    file = tmp_path / "set.json"
    file.write_text(json.dumps(records))
    pool = import_llava_json(file, images, tmp_path / "pool").pool
    assert pool.sources().tolist() == ["a", "b", "geo(qa)", "set"]


def test_user_errors_are_sentences(tmp_path: Path, images: Path) -> None:
    file = tmp_path / "data.json"
    for content, hint in (
        (b"{", "is not JSON"),
        (b"{}", "a JSON list of records"),
        (b'{"data": []}', "an object .with a list at 'data'."),
        (b'{"id": 1}\n{"id": 2}\n', "name it .jsonl"),
        (b" ", "is empty"),
        (b"[]", "no usable record"),
        (b"[7]", r"not_an_object .1. .the first: not_an_object: int."),
        (gzip.compress(b"[]"), "compressed .gzip.: unpack it"),
        ("[]".encode("utf-16"), "not UTF-8 text"),
        (b"[" * 100_000, "nested too deeply"),
    ):
        file.write_bytes(content)
        with pytest.raises(HarnessError, match=hint):
            import_llava_json(file, images, tmp_path / "pool")
        assert not (tmp_path / "pool").exists()
    with pytest.raises(HarnessError, match="no image folder"):
        import_llava_json(file, tmp_path / "nowhere", tmp_path / "pool")
    with pytest.raises(HarnessError, match="there is no file"):
        import_llava_json(tmp_path / "none.json", images, tmp_path / "pool")
    with pytest.raises(HarnessError, match="but a folder"):
        import_llava_json(tmp_path, images, tmp_path / "pool")
    with pytest.raises(HarnessError, match="no pool at"):
        open_pool(tmp_path / "pool")
    pool = write_pool(tmp_path / "taken", 3)
    with pytest.raises(HarnessError, match="already holds a pool"):
        write_pool(Path(pool.path), 3)


def test_a_damaged_head_is_a_sentence(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", 3)
    head = Path(pool.path, "pool.json")
    for content in ("{", "[]", '{"format": 1}'):
        head.write_text(content)
        with pytest.raises(HarnessError, match=r"cannot be read any more .*: import it again\."):
            open_pool(pool.path)


def test_long_texts_are_written_before_they_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(name: str) -> Pool:
        with PoolWriter(tmp_path / name, "p") as writer:
            for i in range(600):
                assert writer.add({"id": f"u{i}", "conversations": turns("q", f"a{i}")}, lambda key: b"")
        return writer.pool()

    usual = write("usual")
    monkeypatch.setattr(pool_write, "HELD", 100)
    early = write("early")
    assert early.digest == usual.digest
    assert [early.record(i).uid for i in (0, 255, 256, 599)] == ["u0", "u255", "u256", "u599"]


def test_records_are_found_across_batches_and_from_threads(tmp_path: Path) -> None:
    n = 600  # more than two batches of text.arrow
    with PoolWriter(tmp_path / "pool", "long") as writer:
        for i in range(n):
            raw = {"id": f"u{i}", "conversations": turns(f"q{i}", f"a{i}"), "data_source": f"d{i % 7}"}
            writer.add(raw, lambda key: b"")
    pool = writer.pool()
    order = np.random.default_rng(0).permutation(n)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda i: pool.record(int(i)), order))
    assert [r.uid for r in found] == [f"u{i}" for i in order]
    assert [r.conversations[1] for r in found] == [("gpt", f"a{i}") for i in order]
    assert pool.uids() == [f"u{i}" for i in range(n)]
    assert pool.sources().tolist() == [f"d{i % 7}" for i in range(n)]


def test_a_pool_that_was_cut_is_not_read(tmp_path: Path) -> None:
    long, short = write_pool(tmp_path / "long", 9), write_pool(tmp_path / "short", 8)
    shutil.copy(Path(short.path, "text.arrow"), Path(long.path, "text.arrow"))
    with pytest.raises(ValueError, match="does not hold 9 records"):
        long.record(0)


def test_columns_are_read_only(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", 5)
    with pytest.raises(ValueError, match="read-only"):
        pool.column("n_turns")[0] = 9
    with pytest.raises(KeyError, match="no column 'nothing'"):
        pool.column("nothing")
    assert pool.column("uid_hash64").dtype == np.uint64
