"""The e5v pass on tiny models of both real classes, and the selector on worked examples."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from selector_zoo.e5v import E5v, E5vSelectorConfig, nearness, prompt_pack
from selector_zoo.kmeans import spherical_kmeans
from selector_zoo.passes.e5v import SENTENCE, E5vConfig, E5vPass
from selector_zoo.passes.e5v_model import load_embedder
from selector_zoo.prompts import OFFICIAL
from selector_zoo.shares import largest_remainder

from harness.api import PassContext, Pool
from harness.errors import HarnessError
from harness.keys import mix64
from harness.pool_write import PoolWriter
from harness.registry import configured
from tests.models import build_llava_next
from tests.support import png, pool_of_files, raw_record, write_pool
from tests.unit.train_support import backbone

N = 12
SIZES = ((24, 16), (60, 120), (48, 48), (130, 70))
Open = Callable[..., E5vPass]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Small and large pictures, text alone, one and two turns."""
    path = tmp_path_factory.mktemp("pool") / "pool"
    with PoolWriter(path, "mixed") as writer:
        for i in range(N):
            assert writer.add(raw_record(i), lambda key: png(int(key[:-4]), SIZES[int(key[:-4]) % 4]))
    return writer.pool()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A LLaVA-NeXT with the chat format of Llama 3, and a LLaVA-OneVision, by the pack written for them."""
    out = tmp_path_factory.mktemp("models") / "next"
    build_llava_next(out, tokenizer=backbone())
    return {"e5v": out, "e5v_chatml": backbone()}


@pytest.fixture(scope="module")
def opened(folders: dict[str, Path]) -> Open:
    """Passes by prompt pack and settings, each opened once."""
    made: dict[str, E5vPass] = {}

    def get(pack: str, **settings: Any) -> E5vPass:
        key = f"{pack} {sorted(settings.items())}"
        if key not in made:
            made[key] = make(folders[pack], pack, **settings)
        return made[key]

    return get


def make(folder: Path, pack: str, **settings: Any) -> E5vPass:
    prompts = {f"{name}_prompt": prompt_pack(pack).template(name) for name in ("image", "text")}
    feature = E5vPass(E5vConfig(**prompts, **settings), PassContext(model_path=str(folder)))
    feature.open()
    return feature


PACKS = ("e5v", "e5v_chatml")


def test_the_published_prompts_are_shipped() -> None:
    pack = prompt_pack("e5v")
    assert pack.official == "e5v"
    assert (len(pack.template("image")), len(pack.template("text"))) == (142, 144)
    assert prompt_pack("e5v_chatml").official == ""


@pytest.mark.parametrize("pack", PACKS)
def test_batches_and_shards_change_nothing(pool: Pool, opened: Open, pack: str) -> None:
    """Texts and pictures of different lengths together, and each on its own."""
    feature = opened(pack, joint=True)
    whole, reasons = feature.run(pool, 0, N)
    text_only = [i for i in range(N) if i % 5 == 4]
    assert [i for i in range(N) if reasons[i]] == text_only
    assert {reasons[i] for i in text_only} == {"no_image"}
    sharded = [feature.run(pool, a, b)[0] for a, b in pairwise((0, 5, 6, N))]
    feature.batch = 1
    alone, _ = feature.run(pool, 0, N)
    feature.batch = 16
    for name, values in whole.items():
        for other in (alone[name], np.concatenate([shard[name] for shard in sharded])):
            assert other.dtype == values.dtype
            np.testing.assert_allclose(other, values, rtol=0, atol=2e-3 if name == "joint" else 2e-4)
            assert np.isnan(values[text_only]).all()
    good = [i for i in range(N) if i not in text_only]
    assert len(np.unique(whole["cosine"][good].round(3))) > 1
    np.testing.assert_allclose(np.linalg.norm(whole["joint"][good].astype(float), axis=1), 1, atol=1e-3)


@pytest.mark.parametrize("pack", PACKS)
def test_each_embedding_of_a_batch_is_the_lone_one(pool: Pool, opened: Open, pack: str) -> None:
    feature = opened(pack, joint=True)
    prompt = feature.config.text_prompt
    texts = [prompt.replace("<sent>", "red " * n) for n in (1, 9, 30, 2)]
    pictures = [pool.image(f"{i}.png") for i in (0, 1, 2, 3)]
    embed = feature._embedder
    for together, alone in (
        (embed.texts(texts), [embed.texts([t])[0] for t in texts]),
        (
            embed.images(pictures, feature.config.image_prompt),
            [embed.images([p], feature.config.image_prompt)[0] for p in pictures],
        ),
    ):
        assert together.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
        assert (np.sum(together * np.array(alone), axis=1) > 0.9999).all()
        cosines = together @ together.T
        assert cosines[~np.eye(4, dtype=bool)].max() < 0.9999  # or the test above says nothing


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize(("text", "said"), [("qa", "{q} {a}"), ("q", "{q}"), ("a", "{a}")])
def test_the_picture_is_set_against_the_first_turn(
    tmp_path: Path, folders: dict[str, Path], pack: str, text: str, said: str
) -> None:
    """Question and answer, either alone; no later turn, and no more than so many tokens."""
    words = {"q": "What colour is the circle?", "a": "The circle is red."}
    turns = [
        {"from": "human", "value": f"<image>\n{words['q']}"},
        {"from": "gpt", "value": words["a"]},
        {"from": "human", "value": "And the square?"},
        {"from": "gpt", "value": "Blue."},
    ]
    with PoolWriter(tmp_path / "pool", "one") as writer:
        assert writer.add(raw_record(0) | {"conversations": turns}, lambda key: png(0))
    for most in (512, 2):
        feature = make(folders[pack], pack, text=text, text_tokens=most, joint=True)
        embed, c = feature._embedder, feature.config
        read = embed.shortened(said.format(**words), most)
        assert (read == said.format(**words)) == (most == 512)
        seen = embed.images([writer.pool().image("0.png")], c.image_prompt)[0].astype(float)
        heard = embed.texts([c.text_prompt.replace(SENTENCE, read)])[0].astype(float)
        found, _ = feature.run(writer.pool(), 0, 1)
        assert found["cosine"][0] == pytest.approx(float(seen @ heard), abs=1e-4)
        both = (seen + heard) / np.linalg.norm(seen + heard)
        np.testing.assert_allclose(found["joint"][0], both, atol=2e-3)


def test_embeddings_are_last_states_of_the_stock_llava_next(pool: Pool, folders: Any, opened: Open) -> None:
    from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor

    stock = LlavaNextForConditionalGeneration.from_pretrained(folders["e5v"]).eval()
    processor = LlavaNextProcessor.from_pretrained(folders["e5v"])
    feature = opened("e5v", joint=True)
    prompt, picture = feature.config.image_prompt, pool.image("1.png")
    inputs = processor(images=picture, text=prompt, return_tensors="pt")
    with torch.inference_mode():
        state = stock(**inputs, output_hidden_states=True).hidden_states[-1][0, -1]
    wanted = (state / state.norm()).numpy()
    np.testing.assert_allclose(feature._embedder.images([picture], prompt)[0], wanted, atol=1e-5)


def test_embeddings_are_last_states_of_the_stock_onevision(pool: Pool, opened: Open) -> None:
    from transformers import LlavaOnevisionForConditionalGeneration

    from tests.unit.train_support import geometry, tokenizer

    stock = LlavaOnevisionForConditionalGeneration.from_pretrained(backbone(), dtype=torch.float32).eval()
    feature = opened("e5v_chatml", joint=True)
    prompt, picture = feature.config.image_prompt, pool.image("1.png")
    from llava_train.tiles import cut, tokens_of

    said = prompt.replace("<image>", "<image>" * tokens_of(picture.height, picture.width, geometry()))
    tiles = (torch.tensor(cut(picture, geometry())).float() / 255 - 0.5)[None] / 0.5
    inputs = tokenizer()(said, return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        sizes = torch.tensor([[picture.height, picture.width]])
        state = stock.model(**inputs, pixel_values=tiles, image_sizes=sizes).last_hidden_state[0, -1]
    wanted = (state / state.norm()).numpy()
    np.testing.assert_allclose(feature._embedder.images([picture], prompt)[0], wanted, atol=1e-5)


@pytest.mark.parametrize("pack", PACKS)
def test_a_base_view_is_one_tile_whatever_the_picture(pool: Pool, opened: Open, pack: str) -> None:
    """Batched or alone; what is seen of small pictures and large ones has the same length."""
    feature, tiled = opened(pack, views="single"), opened(pack, joint=True)
    prompt = feature.config.image_prompt
    pictures = [pool.image(f"{i}.png") for i in (0, 1, 2, 3)]
    together = feature._embedder.images(pictures, prompt)
    alone = np.concatenate([feature._embedder.images([p], prompt) for p in pictures])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert np.linalg.norm(together - tiled._embedder.images(pictures, prompt), axis=1).min() > 1e-3
    found, reasons = feature.run(pool, 0, N)
    whole, other = tiled.run(pool, 0, N)
    assert reasons == other
    assert (np.isnan(found["cosine"]) == np.isnan(whole["cosine"])).all()
    texts = [feature.config.text_prompt.replace("<sent>", "red")]
    np.testing.assert_allclose(feature._embedder.texts(texts), tiled._embedder.texts(texts), atol=1e-6)


def test_a_base_view_of_the_stock_llava_next_by_hand(pool: Pool, folders: Any, opened: Open) -> None:
    """The features of the first view and one newline, in place of the placeholder."""
    from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor

    stock = LlavaNextForConditionalGeneration.from_pretrained(folders["e5v"]).eval()
    processor = LlavaNextProcessor.from_pretrained(folders["e5v"])
    feature = opened("e5v", views="single")
    prompt, picture = feature.config.image_prompt, pool.image("1.png")
    pixels = processor.image_processor([picture], return_tensors="pt").pixel_values[0, :1]
    ids = processor.tokenizer(prompt, return_tensors="pt").input_ids
    at = int(torch.where(ids[0] == stock.config.image_token_id)[0])
    with torch.inference_mode():
        seen = stock.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        features = torch.cat([stock.model.multi_modal_projector(seen)[0], stock.model.image_newline[None]])
        assert len(features) == 17
        words = stock.get_input_embeddings()(ids)[0]
        embedded = torch.cat([words[:at], features, words[at + 1 :]])[None]
        state = stock.model.language_model(inputs_embeds=embedded).last_hidden_state[0, -1]
    wanted = (state / state.norm()).numpy()
    np.testing.assert_allclose(feature._embedder.images([picture], prompt)[0], wanted, atol=1e-5)


def test_a_base_view_of_the_stock_onevision(pool: Pool, opened: Open) -> None:
    """As the stock model sees it among several, where it takes one tile of each image."""
    from transformers import LlavaOnevisionForConditionalGeneration

    from llava_train.tiles import cut
    from tests.unit.train_support import geometry, tokenizer

    stock = LlavaOnevisionForConditionalGeneration.from_pretrained(backbone(), dtype=torch.float32).eval()
    feature = opened("e5v_chatml", views="single")
    prompt, picture = feature.config.image_prompt, pool.image("1.png")
    said = prompt.replace("<image>", "<image>" * geometry().lone_tokens)
    tile = (torch.tensor(cut(picture, geometry())[:1]).float() / 255 - 0.5)[None] / 0.5
    inputs = tokenizer()(said, return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        sizes, alone = torch.tensor([[picture.height, picture.width]]), torch.tensor([2])
        state = stock.model(**inputs, pixel_values=tile, image_sizes=sizes, batch_num_images=alone)
    wanted = torch.nn.functional.normalize(state.last_hidden_state[0, -1], dim=-1).numpy()
    np.testing.assert_allclose(feature._embedder.images([picture], prompt)[0], wanted, atol=1e-5)


RELEASED = os.environ.get("SIEVEBENCH_E5V")


@pytest.mark.skipif(not RELEASED, reason="set SIEVEBENCH_E5V to the folder of royokong/e5-v")
def test_the_released_model_knows_a_flower_from_a_temple(tmp_path: Path) -> None:
    """The check for right padding and for image tokens that do not fit: each picture is nearest its own words."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    said = {"china.jpg": "A Chinese temple by the water.", "flower.jpg": "A pink flower in close-up."}
    embedder = load_embedder(Path(str(RELEASED)), "auto", "cuda" if torch.cuda.is_available() else "cpu")
    words = prompt_pack("e5v")
    texts = embedder.texts([words.template("text").replace(SENTENCE, text) for text in said.values()])
    pictures = [Image.fromarray(load_sample_image(name)) for name in said]
    likeness = embedder.images(pictures, words.template("image")) @ texts.T
    assert likeness.argmax(axis=0).tolist() == likeness.argmax(axis=1).tolist() == [0, 1]


def test_placeholders_in_texts_are_not_images(tmp_path: Path, opened: Open) -> None:
    """The model would want pixels for them."""
    columns = []
    for i, said in enumerate((("Before.\n<image>\nAfter.", "See\n<image>"), ("<image>\nBefore.\nAfter.", "See"))):
        with PoolWriter(tmp_path / f"pool{i}", "pictured") as writer:
            turns = [{"from": role, "value": text} for role, text in zip(("human", "gpt"), said, strict=True)]
            images = ["0.png", "0.png"][: "".join(said).count("<image>")]
            raw = raw_record(0) | {"conversations": turns, "image": images}
            assert writer.add(raw, lambda key: png(int(key[:-4])))
        for pack in PACKS:
            found, reasons = opened(pack, joint=True).run(writer.pool(), 0, 1)
            assert reasons == [""]
            columns.append(found["cosine"])
    np.testing.assert_array_equal(columns[:2], columns[2:])


def test_a_processor_of_long_ago_is_told_about_images(pool: Pool, tmp_path: Path, opened: Open) -> None:
    build_llava_next(tmp_path / "old", tokenizer=backbone(), saved_before_4_46=True)
    old = make(tmp_path / "old", "e5v")
    found, _ = old.run(pool, 0, 4)
    np.testing.assert_allclose(found["cosine"], opened("e5v", joint=True).run(pool, 0, 4)[0]["cosine"], atol=1e-5)


def test_prompts_of_another_chat_format_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(HarnessError, match="prompts=e5v"):
        make(folders["e5v_chatml"], "e5v")


def test_other_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(HarnessError, match="is a clip"):
        make(tmp_path, "e5v")


def test_failures_have_reasons_and_shift_nothing(tmp_path: Path, opened: Open) -> None:
    pool, images = pool_of_files(tmp_path)
    feature = opened("e5v_chatml", joint=True)
    before, _ = feature.run(pool, 0, 8)
    (images / "2.png").write_bytes(b"no picture")
    (images / "5.png").unlink()
    after, reasons = feature.run(pool, 0, 8)
    assert [i for i in range(8) if reasons[i].startswith("unreadable_image: ")] == [2, 5]
    assert [i for i in range(8) if reasons[i] == "no_image"] == [4]
    good = [i for i in range(8) if not reasons[i]]
    np.testing.assert_allclose(after["cosine"][good], before["cosine"][good], atol=2e-4)
    for values in after.values():
        assert np.isnan(values[[2, 4, 5]]).all()


def test_an_overflowing_model_is_a_failure_by_name(pool: Pool, folders: dict[str, Path]) -> None:
    broken = make(folders["e5v_chatml"], "e5v_chatml")
    broken._embedder.model.model.language_model.norm.weight.data.fill_(float("nan"))
    found, reasons = broken.run(pool, 0, 5)
    assert reasons == ["not_finite"] * 4 + ["no_image"]
    assert np.isnan(found["cosine"]).all()


def test_long_texts_are_cut_at_a_token(opened: Open) -> None:
    embed = opened("e5v_chatml", joint=True)._embedder
    text = "What colour is the large circle?"
    ids = embed.tokenizer(text, add_special_tokens=False)["input_ids"]
    for most in (1, 3, len(ids) - 1):
        cut = embed.shortened(text, most)
        assert text.startswith(cut)
        assert embed.tokenizer(cut, add_special_tokens=False)["input_ids"] == ids[:most]
    assert embed.shortened(text, len(ids)) == text
    assert embed.shortened("", 5) == ""


@pytest.mark.parametrize(
    "settings",
    [
        {"text": "all"},
        {"dtype": "int8"},
        {"text_tokens": 0},
        {"image_prompt": "none"},
        {"text_prompt": ""},
        {"views": "base"},
    ],
)
def test_settings_of_the_pass_that_mean_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(HarnessError, match=next(iter(settings))):
        E5vConfig(**({"image_prompt": "<image>", "text_prompt": "<sent>"} | settings))


def test_planning_does_not_import_torch() -> None:
    code = "import sys, selector_zoo.passes.e5v, selector_zoo.e5v; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def chosen(**settings: Any) -> E5v:
    return E5v(configured(E5v, settings))


def kept(made: E5v, pool: Pool, columns: dict[str, Any], n: int, seed: int = 0) -> list[int]:
    features = {"e5v": columns}
    scores = made.score(pool, features)
    return [int(i) for i in made.select(pool, scores, features, n, seed).positions]


@pytest.fixture(scope="module")
def fifty(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return write_pool(tmp_path_factory.mktemp("pool") / "pool", 50)


def test_the_highest_cosines_and_text_alone_last(fifty: Pool) -> None:
    cosine = np.linspace(-1, 1, 50, dtype=np.float32)
    cosine[[7, 49]] = np.nan
    made = chosen()
    assert kept(made, fifty, {"cosine": cosine}, 3) == [48, 47, 46]
    assert set(kept(made, fifty, {"cosine": cosine}, 50)[48:]) == {7, 49}
    scores = made.score(fifty, {"e5v": {"cosine": cosine}})
    card = made.select(fifty, scores, {}, 49, 0).card
    said: Any = card["prompts"]
    assert (card["n_nan"], card["n_topup"], said["words"]) == (2, 1, "own")
    assert "similarity or clusters" in str(made.uncertain)
    official = chosen(prompts="e5v").select(fifty, scores, {}, 3, 0).card["prompts"]
    assert official == {"words": "official", **OFFICIAL["e5v"]}


def test_shares_of_clusters_by_hand() -> None:
    """5, 3 and 2 samples, 5 to keep: 2.5, 1.5, 1.0; of equal remainders the lower cluster's is rounded up."""
    names = ["000", "001", "002"]
    assert largest_remainder(np.array([5, 3, 2]), 5, names).tolist() == [3, 1, 1]


def clustered_columns(seed: int, failed: list[int]) -> dict[str, npt.NDArray[Any]]:
    """Embeddings in four loose groups, every third a copy of the one before; some without an image."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(4, 6))[rng.integers(0, 4, 50)] + 0.5 * rng.normal(size=(50, 6))
    rows[2::3] = rows[1:-1:3]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[failed] = np.nan
    return {"joint": rows.astype(np.float16), "cosine": rows[:, 0].astype(np.float32)}


@pytest.mark.parametrize("n", [1, 3, 10, 30, 46, 49, 50])
def test_clusters_give_their_share_from_the_centroid_outwards(fifty: Pool, n: int) -> None:
    columns = clustered_columns(n, [4, 9, 30, 31])
    tie = mix64(fifty.column("uid_hash64"), 3)
    first = mix64(fifty.column("uid_hash64"), 1234)
    valid = [i for i in range(50) if i not in (4, 9, 30, 31)]
    order = np.array(sorted(valid, key=lambda i: first[i]))
    found = spherical_kmeans(columns["joint"], min(n, 8), order, iterations=20)
    sizes = [int((found.labels == k).sum()) for k in range(len(found.centroids))]
    size = min(n, len(valid))
    exact = [size * s / len(valid) for s in sizes]
    share = [int(e) for e in exact]
    rest = sorted(range(len(sizes)), key=lambda k: (round(share[k] - exact[k], 9), k))
    for k in rest[: size - sum(share)]:
        share[k] += 1
    wanted: set[int] = set()
    for k, most in enumerate(share):
        centroid = found.centroids[k].astype(np.float64)
        members = [i for i in valid if found.labels[i] == k]
        near = {i: round(float(sum(columns["joint"][i].astype(np.float64) * centroid)), 11) for i in members}
        wanted |= set(sorted(members, key=lambda i: (-near[i], tie[i]))[:most])
    got = kept(chosen(mode="cluster", clusters=8), fifty, columns, n, seed=3)
    assert len(set(got)) == n
    assert set(got) & set(valid) == wanted
    assert set(got[len(wanted) :]) <= {4, 9, 30, 31}


def test_nearness_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from selector_zoo import e5v

    columns = clustered_columns(0, [])
    labels = np.array([i % 3 - 1 for i in range(50)], dtype=np.int32)
    centroids = np.eye(2, 6, dtype=np.float32)
    whole = nearness(columns["joint"], labels, centroids)
    assert np.flatnonzero(np.isnan(whole)).tolist() == np.flatnonzero(labels < 0).tolist()
    assert whole[1] == pytest.approx(float(columns["joint"][1, 0]), abs=1e-11)
    monkeypatch.setattr(e5v, "BLOCK", 7)
    np.testing.assert_array_equal(nearness(columns["joint"], labels, centroids), whole)


def test_the_pass_gets_the_words_and_not_their_place(tmp_path: Path) -> None:
    """The words are part of what the columns mean; where they were read from is not."""
    (ref,) = chosen(prompts="e5v", model="somewhere", mode="cluster", text="q").needs()
    assert (ref.name, ref.model) == ("e5v", "somewhere")
    assert ref.config["image_prompt"] == prompt_pack("e5v").template("image")
    assert ref.config["joint"] is True
    assert chosen(views="single").needs()[0].config["views"] == "single"
    from selector_zoo.prompts import write_pack

    write_pack(prompt_pack("e5v"), tmp_path / "copy.yaml")
    (copied,) = chosen(prompts=str(tmp_path / "copy.yaml"), model="somewhere", mode="cluster", text="q").needs()
    assert copied == ref


@pytest.mark.parametrize(
    "settings", [{"mode": "both"}, {"text": "all"}, {"clusters": 0}, {"tie": "name"}, {"views": "base"}]
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(HarnessError, match=next(iter(settings))):
        E5vSelectorConfig(**settings)
