"""The clip pass against the stock model, in every view of the text, and the score it gives."""

from __future__ import annotations

import io
import json
import weakref
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from selector_zoo.clip_score import ClipScore, ClipScoreConfig
from selector_zoo.passes import clip
from selector_zoo.passes.clip import VIEWS, ClipConfig, ClipPass, texts_of

from harness.api import PassContext
from harness.errors import HarnessError
from harness.pool import Pool, Record, open_pool
from harness.pool_write import PoolWriter
from tests.models import build_clip
from tests.support import png, raw_record
from tests.unit.train_support import backbone

N = 10
LENGTH = 32
"""Tokens of a text of the small model."""
LONG = 8
"""A sample whose answer is several times as long."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "clip"
    build_clip(out, tokenizer=backbone())
    return out


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Pictures and text alone, one and two turns, and one long answer."""
    with PoolWriter(tmp_path_factory.mktemp("pool") / "pool", "mixed") as writer:
        for i in range(N):
            raw: Any = raw_record(i)
            if i == LONG:
                raw["conversations"][1]["value"] = "a red square and a blue circle " * 12
            assert writer.add(raw, lambda key: png(int(key[:-4]), (24 + 8 * int(key[:-4]), 40)))
    return writer.pool()


def opened(folder: Path, text: str = "qa", image: str = "crop") -> ClipPass:
    feature = ClipPass(ClipConfig(text=text, image=image), PassContext(model_path=str(folder)))
    feature.open()
    return feature


def stock_text(feature: ClipPass, ids: list[int]) -> npt.NDArray[Any]:
    """The unit embedding of one text, by its tokens."""
    with torch.inference_mode():
        found = feature._model.text_model(input_ids=torch.tensor([ids])).pooler_output
        found = feature._model.text_projection(found)[0].double().numpy()
    return np.asarray(found / np.linalg.norm(found))


def stock_image(feature: ClipPass, pool: Pool, position: int) -> npt.NDArray[Any]:
    pixels = feature._processor.image_processor(pool.image(f"{position}.png"), return_tensors="pt").pixel_values
    with torch.inference_mode():
        found = feature._model.vision_model(pixel_values=pixels).pooler_output
        found = feature._model.visual_projection(found)[0].double().numpy()
    return np.asarray(found / np.linalg.norm(found))


@pytest.mark.parametrize("view", VIEWS)
def test_cosines_are_those_of_the_stock_model(folder: Path, pool: Pool, view: str) -> None:
    """One sample, one text, and one part of a text at a time."""
    feature = opened(folder, view)
    columns, reasons = feature.run(pool, 0, N)
    text_only = [i for i in range(N) if i % 5 == 4]
    assert [i for i, reason in enumerate(reasons) if reason == "no_image"] == text_only
    assert np.isnan(columns["cosine"][text_only]).all()
    assert np.isnan(columns["image"][text_only]).all()
    assert np.isfinite(columns["text"]).all()
    for i in set(range(N)) - set(text_only):
        image = stock_image(feature, pool, i)
        found = []
        for text in texts_of(pool.record(i), view):
            ids = feature._processor.tokenizer(text, verbose=False).input_ids
            if view == "chunk_mean":
                parts = [stock_text(feature, ids[at : at + LENGTH]) for at in range(0, len(ids), LENGTH)]
                mean = np.mean(parts, axis=0)
                found.append(mean / np.linalg.norm(mean))
            else:
                found.append(stock_text(feature, ids[:LENGTH]))
        best = max(found, key=lambda text: float(image @ text))
        assert columns["cosine"][i] == pytest.approx(float(image @ best), abs=1e-5)
        np.testing.assert_allclose(columns["text"][i], best, atol=1e-3)
        np.testing.assert_allclose(columns["image"][i], image, atol=1e-3)


def test_views_of_a_conversation() -> None:
    said = (("human", "<image>\nWhat is it?"), ("gpt", "A cat."), ("human", "Sure?"), ("gpt", " Yes. "))
    record = Record(uid="a", source="s", conversations=said, images=("a.png",))
    assert {view: texts_of(record, view) for view in VIEWS} == {
        "qa": ["What is it? A cat."],
        "q": ["What is it?"],
        "a": ["A cat."],
        "all": ["What is it? A cat. Sure? Yes."],
        "chunk_mean": ["What is it? A cat. Sure? Yes."],
        "turn_max": ["What is it? A cat.", "Sure? Yes."],
    }


def test_no_view_has_placeholders_or_the_newlines_next_to_them() -> None:
    said = (
        ("human", "Before.\n<image>\nAfter."),
        ("gpt", "See\n<image>\n"),
        ("human", "Sure?"),
        ("gpt", "<image>"),
    )
    record = Record(uid="a", source="s", conversations=said, images=("a.png", "b.png", "c.png"))
    assert {view: texts_of(record, view) for view in VIEWS} == {
        "qa": ["Before.\nAfter. See"],
        "q": ["Before.\nAfter."],
        "a": ["See"],
        "all": ["Before.\nAfter. See Sure?"],
        "chunk_mean": ["Before.\nAfter. See Sure?"],
        "turn_max": ["Before.\nAfter. See", "Sure?"],
    }


def test_parts_of_what_fits_are_the_whole(folder: Path, pool: Pool) -> None:
    """Of one part the mean is the part; of a longer text it is not its beginning."""
    feature = opened(folder, "all")
    plain, parts = feature.run(pool, 0, N)[0], opened(folder, "chunk_mean").run(pool, 0, N)[0]
    texts = [texts_of(pool.record(i), "all")[0] for i in range(N)]
    lengths = [len(ids) for ids in feature._processor.tokenizer(texts, verbose=False).input_ids]
    short = [i for i in range(N) if lengths[i] <= LENGTH]
    assert len(short) > 3
    assert lengths[LONG] > 3 * LENGTH
    np.testing.assert_allclose(parts["cosine"][short], plain["cosine"][short], atol=1e-6)
    assert abs(parts["cosine"][LONG] - plain["cosine"][LONG]) > 1e-4


def test_every_part_of_a_text_begins_and_ends_as_the_model_has_learnt(pool: Pool, tmp_path: Path) -> None:
    """CLIP's tokenizer puts its marks around a text; of a text in parts every part has them."""
    from transformers import CLIPTokenizer

    marks, letters = ("<|startoftext|>", "<|endoftext|>"), "abcdefghijklmnopqrstuvwxyz0123456789.,?:"
    known = [*marks, *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(known)}, merges=[])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    build_clip(tmp_path / "clip", tokenizer=tmp_path / "tokenizer")
    feature = opened(tmp_path / "clip", "chunk_mean")
    text = texts_of(pool.record(LONG), "chunk_mean")[0]
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    size = LENGTH - len(marks)
    assert len(ids) > 3 * size
    parts = [stock_text(feature, [0, *ids[at : at + size], 1]) for at in range(0, len(ids), size)]
    mean = np.mean(parts, axis=0)
    found = feature.run(pool, LONG, LONG + 1)[0]["text"][0]
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=1e-3)


@pytest.mark.parametrize("view", ["qa", "chunk_mean", "turn_max"])
def test_batches_and_shards_change_nothing(
    folder: Path, pool: Pool, view: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    feature = opened(folder, view)
    whole, _ = feature.run(pool, 0, N)
    sharded = [feature.run(pool, a, b)[0] for a, b in pairwise((0, 4, 5, N))]
    monkeypatch.setattr(clip, "BATCH", 1)
    alone, _ = feature.run(pool, 0, N)
    for name, values in whole.items():
        for other in (alone[name], np.concatenate([shard[name] for shard in sharded])):
            assert other.dtype == values.dtype
            np.testing.assert_allclose(other, values, rtol=0, atol=1e-6 if name == "cosine" else 1e-3)


def test_texts_are_cut_where_the_model_ends(folder: Path, pool: Pool, tmp_path: Path) -> None:
    """Whatever the tokenizer says of it."""
    other = tmp_path / "clip"
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    said = json.loads((other / "tokenizer_config.json").read_text())
    assert said.pop("model_max_length") == LENGTH
    (other / "tokenizer_config.json").write_text(json.dumps(said))
    expected = opened(folder).run(pool, 0, N)[0]
    np.testing.assert_array_equal(opened(other).run(pool, 0, N)[0]["cosine"], expected["cosine"])


def test_the_score_is_the_cosine_whatever_the_lengths(pool: Pool) -> None:
    """Image (1, 0) with texts (1, 0), (0.6, 0.8) and (0, 1); the first two are kept."""
    texts = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    for scale in (1.0, 1e-3, 250.0):
        image = clip._unit(SimpleNamespace(pooler_output=scale * torch.tensor([[1.0, 0.0]])))
        cosine = np.full(N, np.nan, dtype=np.float32)
        cosine[2:5] = (image * clip._unit(texts * 3 / scale)).sum(axis=1)
        assert cosine[2:5].tolist() == pytest.approx([1, 0.6, 0], abs=1e-7)
        chosen = ClipScore(ClipScoreConfig())
        features = {"clip": {"cosine": cosine}}
        kept = chosen.select(pool, chosen.score(pool, features), features, 2, 0)
        assert kept.positions.tolist() == [2, 3]


def test_what_disagrees_is_ranked_too(pool: Pool) -> None:
    """Hessel's score is `2.5 * max(cos, 0)`: ranked by that, all below zero would be equal."""
    cosine = np.full(N, np.nan, dtype=np.float32)
    cosine[:4] = [-0.3, -0.1, 0.2, -0.2]
    chosen = ClipScore(ClipScoreConfig())
    features = {"clip": {"cosine": cosine}}
    for seed in range(5):
        kept = chosen.select(pool, chosen.score(pool, features), features, 4, seed)
        assert kept.positions.tolist() == [2, 1, 3, 0]


def test_failures_have_reasons_and_shift_nothing(folder: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(6):
        (images / f"{i}.png").write_bytes(png(i))
    with PoolWriter(tmp_path / "pool", "files", image_root=images) as writer:
        for i in range(6):
            assert writer.add(raw_record(i), lambda key: (images / key).read_bytes())
    pool, feature = open_pool(tmp_path / "pool"), opened(folder)
    before, _ = feature.run(pool, 0, 6)
    (images / "1.png").write_bytes(b"no picture")
    (images / "3.png").unlink()
    after, reasons = feature.run(pool, 0, 6)
    assert [reason.split(":")[0] for reason in reasons] == [
        "", "unreadable_image", "", "unreadable_image", "no_image", "",
    ]  # fmt: skip
    good = [i for i, reason in enumerate(reasons) if not reason]
    np.testing.assert_allclose(after["cosine"][good], before["cosine"][good], atol=1e-6)
    assert np.isnan(after["cosine"][[1, 3, 4]]).all()


def test_a_threshold_is_met_by_chance_and_missed_in_order(pool: Pool) -> None:
    cosine = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, np.nan], dtype=np.float32)
    chosen = ClipScore(ClipScoreConfig(direction="threshold", threshold=0.35))
    scores = chosen.score(pool, {"clip": {"cosine": cosine}})
    kept = [set(chosen.select(pool, scores, {}, 3, seed).positions.tolist()) for seed in range(20)]
    assert set.union(*kept) == set(range(6)), "any of those that agree well enough"
    assert set(chosen.select(pool, scores, {}, 8, 0).positions.tolist()) == set(range(8))
    filled = [chosen.select(pool, scores, {}, n, 0).card["n_topup"] for n in (6, 8, 10)]
    assert filled == [0, 2, 4]


def test_a_padded_picture_is_seen_whole(folder: Path, tmp_path: Path) -> None:
    """Two wide pictures that differ at their ends only are one to a model that sees the middle."""

    def wide(key: str) -> bytes:
        out, picture = io.BytesIO(), Image.new("RGB", (120, 20), (255, 255, 255))
        picture.paste({"a.png": (255, 0, 0), "b.png": (0, 0, 255)}[key], (0, 0, 30, 20))
        picture.save(out, format="png")
        return out.getvalue()

    with PoolWriter(tmp_path / "pool", "wide") as writer:
        for key in ("a.png", "b.png"):
            assert writer.add(raw_record(0) | {"id": key, "image": key}, wide)
    cropped, padded = (
        opened(folder, image=view).run(writer.pool(), 0, 2)[0]["cosine"] for view in ("crop", "pad")
    )
    assert cropped[0] == pytest.approx(cropped[1], abs=1e-6)
    assert abs(padded[0] - padded[1]) > 1e-4


def test_no_two_pictures_are_in_memory_at_once(folder: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Any]] = []
    decode, most = Pool.image, []

    def counted(self: Pool, key: str) -> Any:
        most.append(sum(ref() is not None for ref in alive))
        picture = decode(self, key)
        alive.append(weakref.ref(picture))
        return picture

    monkeypatch.setattr(Pool, "image", counted)
    opened(folder).run(pool, 0, N)
    assert len(most) == 8
    assert max(most) <= 1


def test_pictures_of_any_mode_are_read_as_rgb(folder: Path, tmp_path: Path) -> None:
    """A palette, a transparent and a CMYK picture of one colour agree with the plain one."""

    def spelled(key: str) -> bytes:
        mode, form = key.split(".")
        out = io.BytesIO()
        Image.new("RGB", (30, 20), (255, 0, 0)).convert(mode).save(out, format=form)
        return out.getvalue()

    with PoolWriter(tmp_path / "pool", "modes") as writer:
        for i, key in enumerate(("RGB.png", "P.gif", "RGBA.png", "CMYK.tiff")):
            raw = raw_record(0) | {"id": f"m{i}", "image": key}
            assert writer.add(raw, spelled)
    columns, reasons = opened(folder).run(writer.pool(), 0, 4)
    assert reasons == [""] * 4
    np.testing.assert_allclose(columns["cosine"], columns["cosine"][0], atol=0.02)


def test_a_view_that_is_none_is_refused() -> None:
    with pytest.raises(HarnessError, match="text=first is none of qa, q, a, all, chunk_mean, turn_max"):
        ClipConfig(text="first")
    with pytest.raises(HarnessError, match="image=whole is none of crop, pad"):
        ClipConfig(image="whole")
    with pytest.raises(HarnessError, match="threshold=2 is no cosine"):
        ClipScoreConfig(threshold=2)
