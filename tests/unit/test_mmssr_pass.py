"""The mmssr pass: sharing a prefix changes no answer, and neither do batches."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from selector_zoo.passes import mmssr_model
from selector_zoo.passes.mmssr import MmssrConfig, MmssrPass, asking, squashed
from selector_zoo.passes.mmssr_answers import (
    normal_styles,
    parse_score,
    parse_styles,
    style_row,
)
from selector_zoo.passes.mmssr_model import Answerer, Sample
from selector_zoo.passes.mmssr_questions import Spelling, ask, flattened, message, queries, tree
from selector_zoo.prompts import CAPABILITIES, STYLES

from harness.api import PassContext
from harness.errors import HarnessError
from harness.pool import IMAGE_TOKEN, Pool, Record
from harness.pool_write import PoolWriter
from llava_train.chat import encode, specials
from llava_train.tiles import cut_sample, image_tokens
from tests.support import png, raw_record
from tests.unit.train_support import backbone, geometry, picture, tokenizer

N = 12
SIZES = ((24, 16), (60, 120), (48, 48), (130, 70))
SCORE = "How much does this teach about {cap_keyword}?"
WAYS = [Spelling(), Spelling(clean="charset", image="inline")]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Pictures of several sizes, text alone, one and two turns, and one sample with two pictures."""
    path = tmp_path_factory.mktemp("pool") / "pool"
    with PoolWriter(path, "mixed") as writer:
        for i in range(N):
            raw = raw_record(i)
            if i == N - 1:
                turns = [{"from": "human", "value": "<image>\n<image>\nSame?"}, {"from": "gpt", "value": "No."}]
                raw |= {"image": ["0.png", "1.png"], "conversations": turns}
            assert writer.add(raw, lambda key: png(int(key[:-4]), SIZES[int(key[:-4]) % 4]))
    return writer.pool()


def opened(**settings: Any) -> MmssrPass:
    asked = {"score": SCORE, "styles": "Which styles?", "max_new_tokens": 6}
    feature = MmssrPass(MmssrConfig(**(asked | settings)), PassContext(model_path=str(backbone())))
    feature.open()
    return feature


@pytest.fixture(scope="module")
def feature() -> MmssrPass:
    """An untrained model whose answers change from token to token and end now and then."""
    made = opened()
    with torch.no_grad():
        made._answerer.model.lm_head.weight.mul_(5)
    return made


def samples(feature: MmssrPass, pool: Pool, rows: Sequence[int]) -> list[Sample]:
    records = [pool.record(i) for i in rows]
    asked = {i: feature._ask(pool, row, records[i]) for i, row in enumerate(rows)}
    found, failed = feature._decode(pool, records, asked, list(range(len(rows))))
    assert not failed
    return list(found.values())


def stock_answer(model: Any, ids: Sequence[int], sample: Sample, tokens: int) -> str:
    """One question the plain way: the whole prompt through the model again for every token."""
    said: list[int] = []
    image, end = specials(tokenizer()).image, specials(tokenizer()).end
    inputs = model.get_input_embeddings()(torch.as_tensor(list(ids))[None])
    if sample.images:
        several = [len(sample.images)] if len(sample.images) > 1 else None
        most = max(len(t) for t in sample.images)
        pixels = torch.zeros(len(sample.images), most, *sample.images[0].shape[1:])
        for i, tiles in enumerate(sample.images):
            pixels[i, : len(tiles)] = (torch.from_numpy(tiles.copy()).float() / 255 - 0.5) / 0.5
        found = model.model.get_image_features(
            pixels, torch.as_tensor(sample.sizes), batch_num_images=torch.as_tensor(several) if several else None
        )
        features = found.pooler_output if hasattr(found, "pooler_output") else found
        inputs[0, torch.as_tensor(list(ids)) == image] = torch.cat(list(features))
    while len(said) < tokens:
        hidden = model.model.language_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        said.append(int(model.lm_head(hidden[0, -1]).argmax()))
        if said[-1] == end:
            said.pop()
            break
        inputs = torch.cat([inputs, model.get_input_embeddings()(torch.tensor([[said[-1]]]))], dim=1)
    return str(tokenizer().decode(said, skip_special_tokens=True)).strip()


@torch.inference_mode()
def test_sharing_changes_no_answer(pool: Pool, feature: MmssrPass) -> None:
    """Fifteen questions as one tree, against each alone through the stock model."""
    from transformers import LlavaOnevisionForConditionalGeneration

    stock = LlavaOnevisionForConditionalGeneration.from_pretrained(backbone(), dtype=torch.float32).eval()
    stock.lm_head.weight.mul_(5)
    rows = samples(feature, pool, [0, 1, 4, 11])
    for sample, answers in zip(rows, feature._answerer(rows), strict=True):
        assert len(answers) == 15
        for i in (0, 6, 13, 14):
            assert answers[i] == stock_answer(stock, sample.asked.prompt(i), sample, 6), i
    assert len({text for answers in feature._answerer(rows) for text in answers}) > 4


@torch.inference_mode()
def test_hidden_states_are_those_of_a_prompt_alone(
    pool: Pool, feature: MmssrPass, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    extend = mmssr_model._Row.extend

    def spy(row: Any, *given: Any) -> Any:
        hidden = extend(row, *given)
        seen.append(hidden)
        return hidden

    monkeypatch.setattr(mmssr_model._Row, "extend", spy)
    (sample, other) = samples(feature, pool, [1, 4])
    feature._answerer([other, sample])
    together, asked = seen[0][1], sample.asked
    starts = np.cumsum([0, *(len(s) for s in asked.segments)])
    for i in range(len(asked.leaves)):
        seen.clear()
        feature._answerer([replace(sample, asked=tree([asked.prompt(i)]))])
        at = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in asked.path(asked.leaves[i])])
        torch.testing.assert_close(together[at], seen[0][0], rtol=1e-4, atol=1e-4, msg=str(i))


def test_a_tree_holds_every_prompt_and_no_token_twice() -> None:
    words = ["abcxy1", "abcxz1", "abd1", "abd1", "q"]
    asked = tree([np.array([ord(c) for c in word], dtype=np.int32) for word in words])
    assert ["".join(map(chr, asked.prompt(i))) for i in range(5)] == words
    assert ["".join(map(chr, s)) for s in asked.segments] == ["ab", "cx", "y1", "z1", "d", "1", "1", "q"]
    assert asked.parents == (-1, 0, 1, 1, 0, 4, 4, -1)
    assert len(set(asked.leaves)) == 5
    alone = tree([np.arange(3, dtype=np.int32)])
    assert (alone.leaves, alone.parents, alone.tokens) == ((0,), (-1,), 3)


def test_batches_and_shards_change_nothing(pool: Pool, feature: MmssrPass) -> None:
    whole, reasons = feature.run(pool, 0, N)
    feature.tokens_at_once, before = 1, feature.tokens_at_once
    alone, reasons_alone = feature.run(pool, 0, N)
    feature.tokens_at_once = before
    sharded = [feature.run(pool, a, b)[0] for a, b in pairwise((0, 5, 6, N))]
    assert reasons == reasons_alone
    assert whole["scores"].shape == (N, 14)
    assert whole["styles"].shape == (N, 10)
    assert whole["styles"].dtype == np.int8
    for name, values in whole.items():
        assert alone[name].dtype == values.dtype
        np.testing.assert_array_equal(values, alone[name])
        np.testing.assert_array_equal(values, np.concatenate([s[name] for s in sharded]))


@pytest.mark.parametrize("spelling", WAYS)
def test_a_question_in_a_tree_is_the_question_alone(pool: Pool, spelling: Spelling) -> None:
    for row in (0, 3, 4, 11):
        record = pool.record(row)
        counts = [geometry().lone_tokens] * len(record.images)
        asked = ask(tokenizer(), record, queries(SCORE, "Which styles?"), counts, spelling)
        for i, query in enumerate(queries(SCORE, "Which styles?")):
            alone = ask(tokenizer(), record, [query], counts, spelling)
            np.testing.assert_array_equal(alone.prompt(0), asked.prompt(i))
        only_scores = ask(tokenizer(), record, queries(SCORE, ""), counts, spelling)
        assert only_scores.tokens < 3 * len(only_scores.prompt(0))
        assert (asked.segments[0] == specials(tokenizer()).image).sum() == sum(counts)


def test_what_is_asked_is_what_training_saw(pool: Pool) -> None:
    """The prompt of a sample is, token by token, the start of the conversation a scorer is trained on."""
    for row in (0, 1, 4, 11):
        record = pool.record(row)
        sizes = [(int(pool.column("height")[row]), int(pool.column("width")[row]))] * len(record.images)
        counts = image_tokens(sizes, geometry())
        turns = [("human", message(record, "Rate it.", Spelling())), ("gpt", "4")]
        trained = encode(tokenizer(), turns, counts).ids
        asked = ask(tokenizer(), record, ["Rate it."], counts, Spelling())
        ids = asked.prompt(0)
        np.testing.assert_array_equal(trained[: len(ids)], ids)
        assert tokenizer().decode(trained[len(ids) :]) == "4<|im_end|>\n"


def test_conversations_are_flattened_as_released() -> None:
    turns = [("human", "<image>\nDescribe the question"), ("gpt", "A list."), ("human", "Why?"), ("gpt", "So.")]
    released = flattened(turns, Spelling(clean="charset", image="inline"))
    assert released == "Question: <image>\nDescribe the q Answer: A list.\nQuestion: Why? Answer: So."
    plain = flattened([("human", "Question: What is it?"), ("gpt", "")], Spelling())
    assert plain == "Question: What is it? Answer: "
    hint = [("human", "<image>\nHint: Pick one.\nQuestion: Which?"), ("gpt", "A")]
    assert flattened(hint, Spelling()) == "<image>\nHint: Pick one.\nQuestion: Which? Answer: A"
    bare = [("human", "Hint: Pick one.\nQuestion: Which?"), ("gpt", "A")]
    assert flattened(bare, Spelling()) == "Hint: Pick one.\nQuestion: Which? Answer: A"
    assert flattened([("human", "list"), ("gpt", "x")], Spelling(clean="charset")) == "Question: l Answer: x"
    system = [("system", "Be kind."), ("human", "Who?"), ("gpt", "I.")]
    assert flattened(system, Spelling()) == "Question: Who? Answer: I."


def test_pictures_stand_in_front_or_where_they_were() -> None:
    turns = (("human", "Look.\n<image>"), ("gpt", "Yes."))
    record = Record(uid="a", source="s", conversations=turns, images=("a.png",))
    assert message(record, "Q", Spelling()) == "<image>\nQuestion: Look. Answer: Yes.\nQ"
    assert message(record, "Q", Spelling(image="inline")) == "Question: Look.\n<image> Answer: Yes.\nQ"
    ids = ask(tokenizer(), record, ["Q"], [3], Spelling(clean="charset", image="inline")).prompt(0)
    marks = specials(tokenizer())
    at = np.flatnonzero(ids == marks.image)
    assert at.tolist() == list(range(at[0], at[0] + 3))
    assert ids[at[-1] + 1] == marks.newline  # the released inference puts one after every picture
    with pytest.raises(HarnessError, match="names 1 images and has 2"):
        ask(tokenizer(), record, ["Q"], [3, 3], Spelling(image="inline"))


@pytest.mark.parametrize(
    ("text", "score"),
    [("4", 4), (" 0\n", 0), ("5", 5), ("6", math.nan), ("-1", math.nan), ("3.5", math.nan), ("", math.nan),
     ("4 out of 5", math.nan), ("five", math.nan)],
)  # fmt: skip
def test_scores_are_whole_numbers_from_0_to_5(text: str, score: float) -> None:
    assert parse_score(text) == score or (math.isnan(score) and math.isnan(parse_score(text)))


def test_styles_are_read_in_order_and_once() -> None:
    told = parse_styles("Yes/No, chain-of-thought (step-by-step),yes/no , haiku,, riddle")
    assert told == ("yes/no", "chain-of-thought", "other")
    assert style_row(told).tolist() == [2, 7, 9, *[-1] * 7]
    assert style_row(parse_styles("")).tolist() == [-1] * 10
    assert style_row((*STYLES, "other")).tolist() == list(range(10))
    assert normal_styles(STYLES) == STYLES


def test_capabilities_and_styles_are_the_published_ones_in_their_order() -> None:
    """The order decides: capabilities take turns in it. README of the released code, and its style list."""
    assert "; ".join(CAPABILITIES) == (
        "object spatial understanding; attribute identification; logical deduction; scene understanding; "
        "fine-grained recognition; language generation; in-context learning; comparative analysis; "
        "activity recognition; causal reasoning; humanities; stem knowledge; data understanding; "
        "optical character recognition"
    )
    assert "; ".join(STYLES) == (
        "multi-choice; coordinate; yes/no; word/short-phrase; short description; detailed description; "
        "comparison; chain-of-thought; specified style"
    )


def test_what_cannot_be_asked_is_a_failure_by_name(tmp_path: Path, pool: Pool, feature: MmssrPass) -> None:
    short = opened(max_length=60)
    short._answerer = feature._answerer
    columns, reasons = short.run(pool, 0, 5)
    assert all(r.startswith("too_long: ") for r in reasons)
    assert np.isnan(columns["scores"]).all()
    assert (columns["styles"] == -1).all()
    with PoolWriter(tmp_path / "p", "gone", image_root=tmp_path) as writer:
        (tmp_path / "0.png").write_bytes(png(0))
        assert writer.add(raw_record(0), lambda key: (tmp_path / key).read_bytes())
    (tmp_path / "0.png").unlink()
    assert feature.run(writer.pool(), 0, 1)[1][0].startswith("unusable_image: ")
    (tmp_path / "0.png").write_bytes(png(0, (90, 20)))
    assert feature.run(writer.pool(), 0, 1)[1] == ["unusable_image: its size changed after the import"]


def test_a_squashed_view_is_one_tile(pool: Pool, feature: MmssrPass) -> None:
    tiles = squashed(picture(60, 120), geometry().tile)
    np.testing.assert_array_equal(tiles, cut_sample([picture(60, 120)], geometry())[0][:1])
    released = opened(view="squash", clean="charset", image="inline")
    released._answerer = feature._answerer
    large = released._ask(pool, 1, pool.record(1))
    assert (large.segments[0] == specials(tokenizer()).image).sum() == geometry().lone_tokens
    assert released.run(pool, 0, 3)[0]["scores"].shape == (3, 14)


def test_unreadable_answers_are_counted_and_never_guessed(pool: Pool, feature: MmssrPass) -> None:
    answers = [*["3"] * 13, "three", "haiku"]
    columns = feature._empty(1)
    assert feature._keep(columns, 0, answers) == (
        "unreadable_answer: optical character recognition 'three', 2 in all"
    )
    assert columns["scores"][0, :13].tolist() == [3.0] * 13
    assert np.isnan(columns["scores"][0, 13])
    assert columns["styles"].tolist() == [[9, *[-1] * 9]]


def test_memory_running_out_halves_a_batch(
    pool: Pool, feature: MmssrPass, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = samples(feature, pool, [0, 1, 2])
    expected = feature._answerer(rows)
    whole = Answerer._answers

    def tight(self: Answerer, given: Sequence[Sample]) -> list[list[str]]:
        if len(given) > 1:
            raise torch.OutOfMemoryError("small device")
        return whole(self, given)

    monkeypatch.setattr(Answerer, "_answers", tight)
    assert feature._answerer(rows) == expected


def test_settings_come_from_a_pack() -> None:
    own = MmssrConfig(**asking("own"))
    assert "{cap_keyword}" in own.score
    assert all(style in own.styles for style in STYLES)
    released = MmssrConfig(**asking("own", styles=False, released=True))
    assert MmssrConfig() == own
    assert (released.styles, released.clean, released.image, released.view) == ("", "charset", "inline", "squash")
    assert released.max_new_tokens == 1024
    assert IMAGE_TOKEN not in own.score + own.styles


@pytest.mark.parametrize(
    "settings",
    [{"score": "no slot"}, {"score": SCORE, "view": "x"}, {"score": SCORE, "clean": "x"},
     {"score": SCORE, "image": "x"}, {"score": SCORE, "max_new_tokens": 0}],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(HarnessError, match="mmssr"):
        MmssrConfig(**settings)


def test_planning_does_not_import_torch() -> None:
    code = "import sys, selector_zoo.passes.mmssr; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
