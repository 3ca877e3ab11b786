"""The models of miniworld: folders that load, read as training does, and hold what is claimed of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from harness.errors import HarnessError
from harness.miniworld import ensure_pool, train_backbone, truth_file, weights_dir
from harness.miniworld.architecture import PINPOINTS, build_processor, build_untrained
from harness.miniworld.corpus import captioned, claim, fragments
from harness.miniworld.midstage import collate, collate_told, draw_batch, draw_scene, draw_tagged
from harness.miniworld.muon import Muon
from harness.miniworld.regions import FIGURES, INKS, NONE, SLOTS, THINGS, tags
from harness.miniworld.scenes import Chart, Digits, Item, Scene, Shapes, Table
from harness.miniworld.tagged import TaggedPictures, features
from harness.miniworld.tokenizer import build_tokenizer, learn_tokenizer, text, words
from harness.miniworld.train_backbone import RECIPES, Descent, Midstage, loss, made_by, scale, train
from harness.miniworld.vocabulary import COLOURS, SHAPES, WORDS
from harness.pool import open_pool
from llava_train.chat import prompt_ids
from llava_train.model import load_backbone
from llava_train.tiles import Geometry, cut, tokens_of

GEOMETRY = Geometry(tile=48, patch=8, pinpoints=PINPOINTS)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("untrained")
    build_untrained("tiny", out)
    return out


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


def test_the_untrained_folder_loads_strictly_and_is_small(untrained: Path) -> None:
    model = load_backbone(untrained)
    assert 1e6 < sum(p.numel() for p in model.parameters()) < 3e6


def test_an_unknown_backbone_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="Did you mean 'tiny'"):
        build_untrained("tinny", tmp_path)
    with pytest.raises(HarnessError, match="miniworld model 'huge' is not known"):
        weights_dir("huge")


@pytest.mark.parametrize("size", [(48, 48), (96, 48), (48, 96), (96, 96), (60, 90)])
def test_the_processor_reads_as_training_does(size: tuple[int, int]) -> None:
    from PIL import Image

    processor = build_processor()
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    content = [{"type": "image"}, {"type": "text", "text": "What colour is the ring?\nA. red"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    theirs = processor(text=[text], images=[image], return_tensors="np")
    ours = prompt_ids(processor.tokenizer, content[1]["text"], [tokens_of(size[1], size[0], GEOMETRY)])
    assert theirs["input_ids"][0].tolist() == ours.tolist()
    tiles = cut(image, GEOMETRY).astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(theirs["pixel_values"][0], tiles, atol=0.02)


def test_words_of_the_world_are_single_tokens_wherever_they_stand(tokenizer: Any) -> None:
    for word in (*COLOURS, *SHAPES, *WORDS):
        assert len(tokenizer.tokenize(word)) == 1
        assert tokenizer.tokenize(f"a {word}.")[2] == tokenizer.tokenize(word)[0]
    assert len(tokenizer.tokenize("372")) == 3


def test_every_word_of_the_world_is_a_token_of_the_shipped_tokenizer(tokenizer: Any) -> None:
    """What miniworld says may change, but not to words that its models would have to spell."""
    assert [word for word in words() if len(tokenizer.tokenize(word)) > 1] == []


def test_the_same_text_gives_the_same_tokenizer() -> None:
    assert learn_tokenizer().to_str() == learn_tokenizer().to_str()


def test_the_tokenizer_loses_nothing(tokenizer: Any) -> None:
    for written in (*text()[:200], "déjà vu, 北京 🙂\n\n  two  blanks"):
        assert tokenizer.decode(tokenizer(written).input_ids) == written


def test_captions_of_a_picture_see_the_prompt_and_themselves_only(tokenizer: Any) -> None:
    batch = draw_batch(Random(0), 4, tokenizer, GEOMETRY)
    seen = batch.mask[:, 0] == 0
    for row in range(4):
        starts = [i for i in range(1, seen.shape[1]) if not seen[row, i, i - 1]]
        prompt = starts[0] if starts else 0
        for token in range(prompt, seen.shape[1]):
            mine = max((s for s in starts if s <= token), default=prompt)
            visible = set(torch.nonzero(seen[row, token]).flatten().tolist())
            assert set(range(mine, token + 1)) <= visible
            assert not visible & set(range(token + 1, seen.shape[1]))
            assert all(v >= mine or batch.targets[row, v] == -100 for v in visible if v < mine)


def test_claims_are_judged_by_what_is_said() -> None:
    rng = Random(0)
    parts = [part for _ in range(60) for part in captioned(draw_scene(rng))]
    verdicts = []
    for part in parts:
        prompt, text = claim(part, rng)
        said, (seen, verdict) = prompt.partition(", said to be ")[2], text.split(", ", 1)
        assert seen == part.bare
        assert verdict == ("as said" if seen == said else f"not {said}")
        verdicts.append(verdict == "as said")
    assert 0.4 < sum(verdicts) / len(verdicts) < 0.6


def test_a_picture_that_is_told_has_its_captions_and_tags_in_place_of_pixels(
    tokenizer: Any, untrained: Path
) -> None:
    scenes: list[Scene] = [Chart((("red", 3), ("blue", 7), ("pink", 1)), wide=True)] * 2
    shown, told = (make(scenes, Random(3), tokenizer, GEOMETRY) for make in (collate, collate_told))
    assert shown.pixels is not None
    assert shown.tags is None
    assert told.pixels is None
    assert told.tags is not None
    assert told.tags.shape == (2, 3, 36, len(SLOTS))
    model = load_backbone(untrained, attention="eager")
    is_image = model.config.image_token_index
    assert int((told.ids[0] == is_image).sum()) == int((shown.ids[0] == is_image).sum())
    pictures = TaggedPictures(model, tokenizer)
    embedded = pictures(told.tags)
    known = model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(["bar", "blue", "7"])]
    places = pictures.embed_places
    blue = (told.tags[0, 0, :, 1] == INKS.index("blue")).nonzero()[0, 0]
    torch.testing.assert_close(embedded[0, 0, blue], known.sum(0) + places[blue])
    value = loss(model, told, pictures)
    value.backward()
    assert model.model.image_newline.grad.abs().sum() > 0
    assert all(table.grad.abs().sum() > 0 for table in list(pictures.embed_tags)[:3])
    assert model.model.multi_modal_projector.linear_1.weight.grad is None


def test_captions_tell_neither_the_heights_of_bars_nor_the_highest() -> None:
    chart = Chart((("red", 3), ("blue", 7), ("pink", 1)), wide=True)
    bars = [f"{colour} bar" for colour, _ in chart.bars]
    assert [f.region for f in fragments(chart)] == ["picture", "highest bar", *bars]
    assert [f.region for f in captioned(chart)] == ["picture"]


def test_a_figure_in_the_name_of_a_region_is_one_to_look_up() -> None:
    """Digits are named by their sides: a first digit called 1 would be looked for among the ones."""
    names = [f.region for scene in (Digits((4,), (1,)), Digits((4, 2), (1, 2))) for f in fragments(scene)]
    assert names == ["picture", "digit", "handwriting", "picture", "left digit", "right digit", "handwriting"]
    named = {f.region for f in fragments(Table((("hat", 7), ("cat", 0))))}
    assert {name for name in named if name[-1].isdigit()} == {"number 7", "number 0"}


def test_region_tags_name_what_stands_where() -> None:
    scene = Shapes((Item("red", "ring", "top right"),), "white")
    found = tags(scene, 48, GEOMETRY).reshape(2, 6, 6, len(SLOTS))
    assert (found[0] == found[1]).all(), "the grid tile of a small picture is the picture"
    corner = [THINGS.index("ring"), INKS.index("red"), 0, 0, 0]
    assert (found[0, :3, 3:] == corner).all()
    assert not found[0, 3:].any()
    chart = Chart((("red", 3), ("blue", 7), ("pink", 1)), wide=True)
    base, left, right = tags(chart, 96, GEOMETRY).reshape(3, 6, 6, len(SLOTS))
    assert {FIGURES[v] for v in base[0, :, 2]} == {"3", "7", "1"}
    assert {FIGURES[v] for v in left[0, :, 2]} == {NONE, "3", "7"}
    assert {FIGURES[v] for v in right[0, :, 2]} == {"7", "1"}


def test_scaling_a_tower_scales_its_features_and_changes_nothing_else(untrained: Path) -> None:
    model = load_backbone(untrained)
    tower = model.model.vision_tower
    tiles, _ = draw_tagged(Random(1), 16, GEOMETRY)
    with torch.no_grad():
        before = features(tower, tiles)
        scale(tower, tiles)
        after = features(tower, tiles)
    assert after.square().mean() == pytest.approx(1, rel=1e-3)
    torch.testing.assert_close(after / after.norm(), before / before.norm(), rtol=1e-3, atol=1e-5)


def test_mid_stage_training_lowers_the_loss_and_goes_on_from_a_finished_tower(
    tmp_path: Path, tokenizer: Any
) -> None:
    held_out = draw_batch(Random(9), 8, tokenizer, GEOMETRY)
    recipe = Midstage(
        tower=Descent(steps=3, batch=8, learning_rate=2e-3, warmup=2),
        words=Descent(steps=3, batch=4, learning_rate=2e-3, warmup=2),
        projector=Descent(steps=3, batch=4, learning_rate=2e-3, warmup=2),
        captions=Descent(steps=12, batch=4, learning_rate=2e-3, warmup=2),
        code=Descent(steps=2, batch=4, learning_rate=2e-4, warmup=1, silent=0.3),
    )
    train("tiny", tmp_path / "tiny", recipe)
    trained = load_backbone(tmp_path / "tiny", attention="eager")
    build_untrained("tiny", tmp_path / "fresh")
    with torch.no_grad():
        assert loss(trained, held_out) < loss(load_backbone(tmp_path / "fresh", attention="eager"), held_out) - 1
    whole = (tmp_path / "tiny" / "model.safetensors").read_bytes()
    beside = sorted(tmp_path.glob("tiny-*.safetensors"))
    shutil.rmtree(tmp_path / "tiny")
    train("tiny", tmp_path / "tiny", recipe)
    assert (tmp_path / "tiny" / "model.safetensors").read_bytes() == whole
    assert len(beside) == 5
    train("tiny", tmp_path / "tiny", replace(recipe, words=replace(recipe.words, steps=2)))
    others = [file.name for file in tmp_path.glob("tiny-*.safetensors") if file not in beside]
    shares = {"words", "projector", "captions", "code"}
    assert {name.split("-")[1] for name in others} == shares, "another recipe takes what it shares"


def test_mid_stage_training_killed_in_any_stage_goes_on_as_if_it_had_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_backbone, "KEPT", 2)
    one = Descent(steps=5, batch=4, learning_rate=2e-3, warmup=2)
    recipe = Midstage(tower=one, words=one, projector=one, captions=one, code=replace(one, silent=0.3))
    train("tiny", tmp_path / "tiny", recipe)
    whole = (tmp_path / "tiny" / "model.safetensors").read_bytes()
    schedule, calls = train_backbone.schedule, []

    def stumble(step: int, how: Descent) -> float:
        calls.append(step)
        if len(calls) in (8, 18, 28, 38, 48):  # in the midst of five stages: two calls a step, lost ones again
            raise KeyboardInterrupt
        return schedule(step, how)

    monkeypatch.setattr(train_backbone, "schedule", stumble)
    again = tmp_path / "again" / "tiny"
    again.parent.mkdir()
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            train("tiny", again, recipe)
    train("tiny", again, recipe)
    assert (again / "model.safetensors").read_bytes() == whole
    assert not list(again.parent.glob("*.part"))


@pytest.mark.parametrize("name", ["tiny", "tiny_b"])
def test_the_shipped_backbones_are_small_whole_and_of_this_tokenizer(name: str, tokenizer: Any) -> None:
    folder = weights_dir(name)
    assert (folder / "model.safetensors").stat().st_size <= 8 * 2**20
    model = load_backbone(folder)
    assert 1e6 < sum(p.numel() for p in model.parameters()) < 4e6
    from transformers import AutoProcessor

    assert AutoProcessor.from_pretrained(folder).tokenizer.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("name", ["tiny", "tiny_b"])
def test_the_shipped_backbones_are_built_as_the_command_builds_them(name: str, tmp_path: Path) -> None:
    build_untrained(name, tmp_path)
    mine, shipped = (json.loads((f / "config.json").read_text()) for f in (tmp_path, weights_dir(name)))
    version = {"transformers_version": ""}
    assert mine | version == shipped | version


@pytest.mark.parametrize("name", ["tiny", "tiny_b"])
def test_the_shipped_backbones_were_made_from_what_is_here(name: str) -> None:
    """Another recipe or other captions need other weights."""
    shipped = json.loads((weights_dir(name) / "made_by.json").read_text())
    assert shipped == json.loads(json.dumps(made_by(name, RECIPES[name])))


@pytest.mark.parametrize("name", ["tiny", "tiny_b"])
def test_the_shipped_backbones_know_captions(name: str, tokenizer: Any) -> None:
    with torch.no_grad():
        value = loss(
            load_backbone(weights_dir(name), attention="eager"),
            draw_batch(Random(77), 32, tokenizer, GEOMETRY),
        )
    assert value < 0.6, "an untrained model has 7.6, one that sees no picture about 0.9"


def test_the_shipped_clip_tells_off_topic_samples(tmp_path: Path) -> None:
    """Area under the curve of cosine(picture, first question and answer) on sound against off-topic samples."""
    from scipy.stats import mannwhitneyu
    from selector_zoo.passes.clip import ClipConfig, ClipPass

    from harness.api import PassContext

    pool = open_pool(ensure_pool(400, 3, tmp_path))
    clip = ClipPass(ClipConfig(), PassContext(model_path=str(weights_dir("clip"))))
    clip.open()
    cosine = clip.run(pool, 0, pool.n)[0]["cosine"]
    truth = {r["uid"]: r["defect"] for r in pq.read_table(truth_file(Path(pool.path))).to_pylist()}
    defects = np.array([truth[uid] for uid in pool.uids()])
    sound, off = cosine[(defects == "") & ~np.isnan(cosine)], cosine[defects == "off_topic"]
    assert mannwhitneyu(sound, off).statistic / (len(sound) * len(off)) > 0.9
    assert (weights_dir("clip") / "model.safetensors").stat().st_size <= 8 * 2**20


@pytest.mark.parametrize("shape", [(24, 48), (48, 24)])
def test_muon_is_torchs_but_for_the_rounding(shape: tuple[int, int]) -> None:
    """torch.optim.Muon computes directions in bfloat16; several matrices of a shape move as each alone."""
    generator = torch.Generator().manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for _ in range(3)]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    steps = (Muon(ours, 0.02, weight_decay=0.01), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.01))
    for _ in range(5):
        begun = [p.detach().clone() for p in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(shape, generator=generator)
            other.grad = mine.grad.clone()
        for optimizer in steps:
            optimizer.step()
        for mine, other, before in zip(ours, theirs, begun, strict=True):
            moved = (other - before).norm()
            assert (mine - other).norm() < 0.05 * moved
            mine.data.copy_(other.data)
