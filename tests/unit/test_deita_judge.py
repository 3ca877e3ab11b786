"""A multimodal judge in place of Deita's text scorers, against the stock model and its processor."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from selector_zoo.deita import Deita, kind_of
from selector_zoo.passes.deita import DeitaConfig, DeitaPass, Prompt, turns_of
from selector_zoo.passes.deita_judge import Judge
from selector_zoo.prompts import fill, load_pack

from harness.api import PassContext, Pool
from harness.conformance_world import World
from harness.errors import HarnessError
from harness.keys import plain
from harness.pool_write import PoolWriter
from harness.registry import configured, selector_spec
from harness.types import TrainSpec
from llava_train.chat import IMAGE, specials
from tests.support import png, pool_of_files, raw_record
from tests.unit.train_support import backbone, geometry, tokenizer

N = 10
SIZES = ((24, 16), (60, 120), (48, 48), (130, 70))
SHARP = 3
"""Grades far apart, and still none of them next to a whole number (a softmax near one hides what it was given)."""
TEMPLATES = {
    "complexity": "How hard is this: {instruction} Hardness:",
    "quality": "Asked: {instruction} Said: {output} Grade:",
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Small and large pictures, text alone, one and two turns; the last has a picture in its answer, too."""
    pair = {**raw_record(3), "id": "pair", "image": ["3.png", "1.png"]}
    pair["conversations"] = [
        {"from": "human", "value": f"{IMAGE}\nIs there one like it?"},
        {"from": "gpt", "value": f"This: {IMAGE}"},
    ]
    with PoolWriter(tmp_path_factory.mktemp("pool") / "pool", "mixed") as writer:
        for raw in [*map(raw_record, range(N - 1)), pair]:
            assert writer.add(raw, lambda key: png(int(key[:-4]), SIZES[int(key[:-4]) % 4]))
    return writer.pool()


def opened(part: str = "quality", **settings: Any) -> DeitaPass:
    asked = {"part": part, "template": TEMPLATES[part], **settings}
    feature = DeitaPass(DeitaConfig(**asked), PassContext(model_path=str(backbone())))
    feature.open()
    with torch.no_grad():
        judge_of(feature).packed.model.lm_head.weight.mul_(SHARP)
    return feature


def judge_of(feature: DeitaPass) -> Judge:
    assert feature._judge is not None
    return feature._judge


@pytest.fixture(scope="module")
def feature() -> DeitaPass:
    return opened()


@pytest.fixture(scope="module")
def stock() -> Any:
    from transformers import LlavaOnevisionForConditionalGeneration

    model = LlavaOnevisionForConditionalGeneration.from_pretrained(backbone(), dtype=torch.float32).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(SHARP)
    return model


@torch.inference_mode()
def stock_grade(stock: Any, text: str, pictures: list[Any]) -> float:
    """One prompt the plain way: the model's own processor and chat template, and all of its logits."""
    from transformers import AutoProcessor, LlavaOnevisionImageProcessorPil

    processor = AutoProcessor.from_pretrained(backbone())
    processor.image_processor = LlavaOnevisionImageProcessorPil.from_pretrained(backbone())
    content = [{"type": "image"}] * len(pictures) + [{"type": "text", "text": text}]
    message = [{"role": "user", "content": content}]
    said = processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    inputs = processor(images=[pictures] if pictures else None, text=said, return_tensors="pt")
    digits = [tokenizer().convert_tokens_to_ids(str(k)) for k in range(1, 7)]
    share = stock(**inputs).logits[0, -1, digits].softmax(-1)
    return float((share * torch.arange(1, 7)).sum())


@pytest.mark.parametrize("part", ["complexity", "quality"])
def test_grades_are_those_of_the_stock_model(part: str, pool: Pool, stock: Any) -> None:
    """Read before it answers, one prompt at a time; text alone, one picture or two, one turn or two."""
    found, reasons = opened(part).run(pool, 0, N)
    assert reasons == [""] * N
    assert found["turns"].shape == (N, 2)
    assert found["turns"].dtype == np.float32
    for i in range(N):
        said, pictures = turns_of(pool, i), [pool.image(key) for key in pool.record(i).images]
        for turn, (q, a) in enumerate(said):
            text = fill(TEMPLATES[part], instruction=q, output=a.replace(IMAGE, ""))
            wanted = stock_grade(stock, text, pictures)
            assert found["turns"][i, turn] == pytest.approx(wanted, rel=1e-4), i
        assert np.isnan(found["turns"][i, len(said) :]).all()
    assert np.nanstd(found["turns"]) > 1e-2


def one_question(path: Path, pictures: list[bytes]) -> Pool:
    """The same question and answer about each of some pictures."""
    turns = [{"from": "human", "value": f"{IMAGE}\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
    with PoolWriter(path, "same") as writer:
        for i in range(len(pictures)):
            raw = {"id": f"{i}", "conversations": turns, "image": f"{i}.png"}
            assert writer.add(raw, lambda key: pictures[int(key[:-4])])
    return writer.pool()


def test_the_picture_matters(tmp_path: Path, feature: DeitaPass) -> None:
    pool = one_question(tmp_path / "pool", [png(0), png(1), png(0)])
    grades = feature.run(pool, 0, 3)[0]["turns"][:, 0]
    assert abs(grades[0] - grades[1]) > 1e-3
    assert grades[0] == pytest.approx(grades[2], rel=1e-5)


def test_a_single_view_sees_less_of_it(pool: Pool, feature: DeitaPass) -> None:
    """And is the default of nobody: a key without it is the key there was before."""
    single = opened(views="single")
    assert judge_of(single).geometry.views == "single"
    found, reasons = single.run(pool, 0, N)
    tiled = feature.run(pool, 0, N)[0]["turns"]
    assert reasons == [""] * N
    alone = [i for i in range(N) if len(pool.record(i).images) == 1]
    others = [i for i in range(N) if i not in alone]
    assert (np.abs(found["turns"] - tiled)[alone, 0] > 1e-5).all()
    np.testing.assert_allclose(found["turns"][others], tiled[others], rtol=1e-5)
    keys = {"part": "quality", "template": TEMPLATES["quality"], "system": "", "max_length": 2048}
    assert plain(configured(DeitaPass, {**keys, "views": "checkpoint"})) == keys
    assert "judge_views" not in plain(configured(Deita, {}))
    with pytest.raises(HarnessError, match="views=base is none of checkpoint, single"):
        DeitaConfig(template=TEMPLATES["quality"], views="base")


def test_batches_and_shards_change_nothing(pool: Pool) -> None:
    feature = opened()
    whole = feature.run(pool, 0, N)[0]["turns"]
    sharded = np.concatenate([feature.run(pool, a, b)[0]["turns"] for a, b in pairwise((0, 4, 5, N))])
    judge_of(feature).limits = TrainSpec(pack_tokens=1)
    one_by_one = feature.run(pool, 0, N)[0]["turns"]
    for other in (sharded, one_by_one):
        np.testing.assert_allclose(other, whole, rtol=1e-5)


def test_too_little_memory_halves_the_batch(
    pool: Pool, feature: DeitaPass, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = feature.run(pool, 0, N)[0]["turns"]
    sizes: list[int] = []
    read = Judge._read

    def small(self: Judge, items: Any) -> Any:
        sizes.append(len(items))
        if len(items) > 3:
            raise torch.OutOfMemoryError("no memory")
        return read(self, items)

    monkeypatch.setattr(Judge, "_read", small)
    halved = feature.run(pool, 0, N)[0]["turns"]
    assert max(sizes) > 3
    np.testing.assert_allclose(halved, whole, rtol=1e-5)


def test_pictures_that_cannot_be_seen_have_a_reason(tmp_path: Path, feature: DeitaPass) -> None:
    pool, images = pool_of_files(tmp_path, N)
    before = feature.run(pool, 0, N)[0]["turns"]
    (images / "2.png").write_bytes(b"no picture")
    (images / "3.png").unlink()
    (images / "7.png").write_bytes(png(7, (50, 40)))
    after, reasons = feature.run(pool, 0, N)
    assert [i for i, reason in enumerate(reasons) if reason] == [2, 3, 7]
    assert all(reasons[i].startswith("unusable_image: ") for i in (2, 3, 7))
    assert "cannot be read" in reasons[2]
    assert "changed after the import" in reasons[7]
    assert np.isnan(after["turns"][[2, 3, 7]]).all()
    good = [i for i in range(N) if not reasons[i]]
    np.testing.assert_allclose(after["turns"][good], before[good], rtol=1e-5)


def test_a_model_that_overflows_has_a_reason(pool: Pool) -> None:
    broken = opened()
    with torch.no_grad():
        judge_of(broken).packed.model.lm_head.weight.fill_(float("nan"))
    found, reasons = broken.run(pool, 0, 4)
    assert reasons == ["not_finite"] * 4
    assert np.isnan(found["turns"]).all()


@pytest.mark.parametrize("sizes", [[], [(60, 120)], [(60, 120), (24, 16)]])
def test_long_texts_lose_their_end_and_nothing_else(sizes: list[tuple[int, int]], feature: DeitaPass) -> None:
    """Not the template's tail, not what opens the answer, and not a token of a picture."""
    from llava_train.tiles import image_tokens

    judge, taken = judge_of(feature), image_tokens(sizes, geometry())
    (prompt,) = feature._prompts([("What is that?", "word " * 80)])
    whole = judge.encode(prompt, taken, 2048)
    marks, most = specials(tokenizer()), 70
    assert len(whole) - sum(taken) > most
    cut = judge.encode(prompt, taken, most)
    assert len(cut) == most + sum(taken)
    assert int((cut == marks.image).sum()) == sum(taken)
    lost = len(whole) - len(cut)
    at = int(np.flatnonzero(cut != whole[: len(cut)])[0])
    np.testing.assert_array_equal(cut, np.delete(whole, slice(at, at + lost)))
    text = tokenizer().decode(cut)
    assert "Asked: What is that? Said: word" in text
    assert text.endswith(" Grade:<|im_end|>\n<|im_start|>assistant\n")
    fixed = judge.encode(Prompt(text=" Grade:", tail=7), taken, 2048)
    with pytest.raises(HarnessError, match="leaves no room"):
        judge.encode(prompt, taken, len(fixed) - sum(taken))
    assert len(judge.encode(prompt, taken, len(fixed) - sum(taken) + 1)) == len(fixed) + 1


def test_a_template_without_a_tail_is_cut_at_its_end(feature: DeitaPass) -> None:
    cut = judge_of(feature).encode(Prompt(text="word " * 80, tail=0), [], 60)
    assert len(cut) == 60
    assert tokenizer().decode(cut).endswith("word word<|im_end|>\n<|im_start|>assistant\n")


def test_who_is_a_judge_is_known_without_a_download(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for model in ("mid", "warm", "miniworld:tiny", str(backbone())):
        assert kind_of(model) == "multimodal", model
    for model in ("miniworld:deita_quality", "hkust-nlp/deita-quality-scorer@0", str(tmp_path)):
        assert kind_of(model) == "text", model
    assert kind_of("someone/judge@0") == kind_of("a/b/c") == ""


def make(**settings: Any) -> Deita:
    return Deita(configured(Deita, settings))


def test_a_judge_takes_any_words_and_text_scorers_their_own(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    own = load_pack("own")
    for judge in ("mid", "warm", str(backbone()), "someone/judge@0"):
        made = make(complexity=judge, quality=judge, prompts="own", judge_views="single")
        for ref, part in zip(made.needs(), ("complexity", "quality"), strict=False):
            assert (ref.name, ref.model, ref.label) == ("deita", judge, part)
            assert ref.config["template"] == own.template(part)
            assert ref.config["views"] == "single"
    assert make(complexity="mid").needs()[1].model == "miniworld:deita_quality"
    refused = [
        {"prompts": "own"},
        {"prompts": "own", "complexity": "mid"},
        {"prompts": "own", "complexity": "hkust-nlp/deita-complexity-scorer@0", "quality": "mid"},
        {"prompts": "own", "complexity": "mid", "quality": str(tmp_path)},
        {"complexity": "mid", "quality": "someone/scorer@0"},
    ]
    for settings in refused:
        with pytest.raises(HarnessError, match="prompts=own is for judges"):
            make(**settings).needs()


def test_the_card_says_who_graded() -> None:
    assert make(complexity="mid", quality="warm", prompts="own")._prompts()["judge"] == "multimodal"
    assert make()._prompts()["judge"] == "text"
    assert make(complexity="mid")._prompts()["judge"] == "multimodal, text"
    assert make(grade="quality")._prompts()["judge"] == "text"
    assert "judge" not in make(complexity="someone/judge@0", quality="mid", prompts="own")._prompts()


def test_the_shipped_backbone_judges_a_pool(tmp_path: Path) -> None:
    settings = {"complexity": "mid", "quality": "mid", "prompts": "own", "judge_views": "single"}
    world = World.make(tmp_path, selector_spec("deita", settings), 30)
    trial = world.trial()
    for part in ("complexity", "quality"):
        grades = np.asarray(trial.features[part]["turns"])
        known = grades[~np.isnan(grades)]
        assert (~np.isnan(grades[:, 0])).mean() > 0.8
        assert known.min() >= 1
        assert known.max() <= 6
        assert len(np.unique(known)) > 10
    selection = trial.select(10, 0)
    assert len(set(selection.positions.tolist())) == 10
    said = selection.card["prompts"]
    assert isinstance(said, dict)
    assert (said["words"], said["judge"]) == ("own", "multimodal")
