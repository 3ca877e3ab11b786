"""PPL-si in both readings, and the losses of answers alone that one of them divides by."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from selector_zoo.passes.answer_only import AnswerOnlyConfig, AnswerOnlyPass, answers
from selector_zoo.passes.forward import ForwardConfig, ForwardPass
from selector_zoo.passes.forward_samples import read_sample
from selector_zoo.ppl_si import ifd
from transformers import LlavaOnevisionForConditionalGeneration

from harness.api import PassContext, Pool, Selection
from harness.errors import HarnessError
from harness.pool_write import PoolWriter
from harness.registry import configured, selector
from harness.types import TrainSpec
from llava_train.pool_index import PoolIndex
from tests import selector_references as plain
from tests.support import png, raw_record, write_pool
from tests.unit.train_support import backbone, geometry, tokenizer

N = 18
NAN = float("nan")


def make(name: str = "ppl_si", **settings: Any) -> Any:
    plugin = selector(name)
    return plugin.cls(configured(plugin.cls, settings))


def chosen(made: Any, pool: Pool, features: Any, n: int, seed: int = 0) -> Selection:
    selection = made.select(pool, made.score(pool, features) or {}, features, n, seed)
    assert isinstance(selection, Selection)
    return selection


def turns(nll: list[list[float]], count: list[list[int]]) -> dict[str, Any]:
    return {"turn_nll": np.array(nll, dtype=np.float32), "turn_ntok": np.array(count, dtype=np.int32)}


def test_the_same_losses_give_the_same_choice_as_ppl_mid(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", 40)
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 5, 40).astype(np.int32)
    columns = {"nll_sum_ans": rng.integers(1, 4, 40).astype(np.float32) * counts, "n_tok_ans": counts}
    for band in ("middle", "top", "bottom"):
        for n in (1, 7, 20, 40):
            ours = chosen(make(band=band), pool, {"forward": columns}, n, 5).positions
            mid = chosen(make("ppl_mid", band=band), pool, {"forward": columns}, n, 5).positions
            assert ours.tolist() == mid.tolist()
    assert make().needs()[0].model == "warm"
    assert make("ppl_mid").needs()[0].model == "mid"


def test_the_card_says_that_the_judge_has_seen_what_it_judges(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", 4)
    columns = turns([[1.0]] * 4, [[1]] * 4)
    columns |= {"nll_sum_ans": np.ones(4, dtype=np.float32), "n_tok_ans": np.ones(4, dtype=np.int32)}
    features = {"forward": columns, "answer_only": columns}
    for reading in ("stage", "ifd"):
        assert "was trained on" in str(chosen(make(reading=reading), pool, features, 2).card["leakage"])
        assert "leakage" not in chosen(make(reading=reading, model="mid"), pool, features, 2).card


def test_ratios_by_hand() -> None:
    """Losses [.9, .3] with and [2, 1] without give .4; turns of 1.2/3 and .2/.25 give 1.4/3.25 together."""
    with_all = turns([[1.2, NAN], [1.2, 0.2], [2.0, NAN], [1.0, NAN]], [[2, 0], [2, 1], [2, 0], [1, 0]])
    alone = turns([[3.0, NAN], [3.0, 0.25], [4.0, NAN], [0.0, NAN]], [[2, 0], [2, 1], [2, 0], [1, 0]])
    np.testing.assert_allclose(ifd(with_all, alone), [0.4, 0.430769, 0.5, NAN], rtol=1e-5)


def test_a_ratio_needs_the_same_tokens_and_a_loss_to_divide_by() -> None:
    with_all = turns([[1.0], [1.0], [NAN], [NAN], [NAN]], [[2], [2], [0], [-1], [2]])
    alone = turns([[2.0], [2e-7], [NAN], [3.0], [3.0]], [[3], [2], [0], [2], [2]])
    assert np.isnan(ifd(with_all, alone)).all()


def test_ratios_below_one_come_first(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", 6)
    ratios = [0.9, 1.2, 0.5, 0.99, NAN, 3.0]
    features = {
        "forward": turns([[r] for r in ratios], [[1]] * 6),
        "answer_only": turns([[1.0]] * 6, [[1]] * 6),
    }
    made = make(reading="ifd")
    assert chosen(made, pool, features, 2).positions.tolist() == [3, 0]
    full = chosen(made, pool, features, 6)
    assert full.positions.tolist() == [3, 0, 2, 5, 1, 4]
    assert (full.card["n_topup"], full.card["n_above_1"], full.card["n_nan"]) == (3, 2, 1)
    assert chosen(made, pool, features, 3).card["n_topup"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_equals_a_plain_reading(seed: int, tmp_path: Path) -> None:
    """Ties, unknown scores, pools of one and two samples."""
    rng = np.random.default_rng(seed)
    for size in (1, 2, 37):
        pool = write_pool(tmp_path / f"pool{size}", size)
        loss = rng.choice([0.2, 0.5, 1.0, 1.5, 2.0, NAN], size)
        features = {
            "forward": turns(loss[:, None], [[1]] * size),
            "answer_only": turns([[1.0]] * size, [[1]] * size),
        }
        features["forward"] |= {"nll_sum_ans": loss.astype(np.float32), "n_tok_ans": np.ones(size, dtype=np.int32)}
        below, above = [np.where(keep, loss, np.nan).tolist() for keep in (loss < 1, loss >= 1)]
        for n in {1, size // 2 + 1, size}:
            band = chosen(make(tie="index"), pool, features, n).positions
            assert set(band.tolist()) == plain.band(loss.tolist(), range(size), n, "middle")
            low = min(n, int((loss < 1).sum()))
            high = min(n - low, int((loss >= 1).sum()))
            wanted = plain.band(below, range(size), low, "top") | plain.band(above, range(size), high, "top")
            kept = chosen(make(tie="index", reading="ifd"), pool, features, n).positions
            assert set(kept[: low + high].tolist()) == wanted
            assert len(set(kept.tolist())) == n


@pytest.mark.parametrize(
    ("settings", "hint"),
    [({"reading": "r1"}, "neither stage nor ifd"), ({"reading": "ifd", "band": "top"}, "belong to reading=stage")],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], hint: str) -> None:
    with pytest.raises(HarnessError, match=hint):
        make(**settings)


def test_both_passes_are_asked_alike() -> None:
    forward, alone = make(reading="ifd", model="some/folder", max_length=99).needs()
    assert (forward.name, alone.name) == ("forward", "answer_only")
    assert (forward.model, forward.config) == (alone.model, alone.config)
    assert (forward.model, forward.config["max_length"]) == ("some/folder", 99)


def opened(**settings: Any) -> AnswerOnlyPass:
    feature = AnswerOnlyPass(AnswerOnlyConfig(**settings), PassContext(model_path=str(backbone())))
    feature.open()
    return feature


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Pictures and text alone, one and two turns."""
    return write_pool(tmp_path_factory.mktemp("pool") / "pool", N)


@pytest.fixture(scope="module")
def feature() -> AnswerOnlyPass:
    return opened()


def test_answers_are_read_after_a_bare_header(pool: Pool, feature: AnswerOnlyPass) -> None:
    """Against the model itself, one answer at a time."""
    columns, reasons = feature.run(pool, 0, N)
    assert reasons == [""] * N
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(backbone(), dtype=torch.float32).eval()
    for i in (0, 3, 4, 7):
        answers = [text for role, text in pool.record(i).conversations if role == "gpt"]
        for turn, text in enumerate(answers):
            ids = tokenizer()(f"<|im_start|>assistant\n{text}", return_tensors="pt").input_ids
            size = len(tokenizer()(text, add_special_tokens=False).input_ids)
            with torch.inference_mode():
                log_p = model(input_ids=ids).logits[0].float().log_softmax(-1)
            losses = -log_p[torch.arange(ids.shape[1] - 1), ids[0, 1:]][-size:]
            assert columns["turn_ntok"][i, turn] == size
            assert columns["turn_nll"][i, turn] == pytest.approx(float(losses.sum()), rel=1e-4)
        assert np.isnan(columns["turn_nll"][i, len(answers) :]).all()


def test_the_tokens_are_those_of_the_forward_pass(pool: Pool) -> None:
    for length in (12000, 90, 60):
        forward = ForwardPass(ForwardConfig(max_length=length), PassContext(model_path=str(backbone())))
        forward.open()
        seen, first = forward.run(pool, 0, N)
        alone, second = opened(max_length=length).run(pool, 0, N)
        np.testing.assert_array_equal(seen["turn_ntok"], alone["turn_ntok"])
        np.testing.assert_array_equal(seen["truncated"], alone["truncated"])
        assert alone["truncated"].any() == (length < 12000)
        assert first == second or length == 60
    assert "no_answer_tokens" in second


def test_an_answer_with_images_is_one_answer(tmp_path: Path) -> None:
    """What is said around them, in the turn where it is said, as the forward pass has it."""
    said = ("What?", "<image> or <image>, both.", "Sure?", "Yes.")
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(said)]
    for rounds in (1, 2):
        with PoolWriter(tmp_path / f"pool{rounds}", "pictured") as writer:
            raw = raw_record(0) | {"conversations": turns[: 2 * rounds], "image": ["0.png", "1.png"]}
            assert writer.add(raw, lambda key: png(int(key[:-4])))
        index = PoolIndex(pool=writer.pool(), tokenizer=tokenizer(), geometry=geometry(), max_length=12000)
        spoken = {turn: tokenizer().decode(ids) for turn, ids in answers(read_sample(index, 0)).items()}
        assert spoken == dict(enumerate((" or , both.", "Yes.")[:rounds]))
        forward = ForwardPass(ForwardConfig(), PassContext(model_path=str(backbone())))
        forward.open()
        seen, _ = forward.run(writer.pool(), 0, 1)
        alone, reasons = opened().run(writer.pool(), 0, 1)
        assert reasons == [""]
        np.testing.assert_array_equal(seen["turn_ntok"], alone["turn_ntok"])
        assert np.isfinite(alone["turn_nll"]).all()


def test_batches_and_shards_change_nothing(pool: Pool, feature: AnswerOnlyPass) -> None:
    whole, _ = feature.run(pool, 0, N)
    sharded = [feature.run(pool, a, b)[0] for a, b in pairwise((0, 5, 6, N))]
    single = opened()
    single.limits = TrainSpec(pack_tokens=1)
    one_by_one, _ = single.run(pool, 0, N)
    for name, values in whole.items():
        joined = np.concatenate([shard[name] for shard in sharded])
        for other in (joined, one_by_one[name]):
            np.testing.assert_allclose(other, values, rtol=1e-5)


def test_pictures_are_not_opened(tmp_path: Path, feature: AnswerOnlyPass) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "0.png").write_bytes(png(0))
    with PoolWriter(tmp_path / "pool", "files", image_root=images) as writer:
        assert writer.add(raw_record(0), lambda key: (images / key).read_bytes())
    before, _ = feature.run(writer.pool(), 0, 1)
    (images / "0.png").unlink()
    after, reasons = feature.run(writer.pool(), 0, 1)
    assert reasons == [""]
    np.testing.assert_array_equal(before["turn_nll"], after["turn_nll"])


def test_a_model_that_overflows_has_a_reason(pool: Pool) -> None:
    broken = opened()
    with torch.no_grad():
        broken._scorer.packed.model.lm_head.weight.fill_(float("nan"))
    columns, reasons = broken.run(pool, 0, 3)
    assert reasons == ["not_finite"] * 3
    assert np.isnan(columns["turn_nll"]).all()


def test_a_sample_with_one_infinite_answer_has_no_numbers(
    pool: Pool, feature: AnswerOnlyPass, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = feature.run(pool, 0, N)
    two = int(np.flatnonzero(whole["turn_ntok"].all(axis=1))[0])
    lost = float(whole["turn_nll"][two, 0])
    measured = feature._measured

    def overflowing(items: Any) -> Any:
        return [(place, np.inf if nll == pytest.approx(lost) else nll) for place, nll in measured(items)]

    monkeypatch.setattr(feature, "_measured", overflowing)
    columns, reasons = feature.run(pool, 0, N)
    failed = [i for i in range(N) if reasons[i] == "not_finite"]
    assert two in failed
    assert len(failed) < N
    assert np.isnan(columns["turn_nll"][failed]).all()
    assert (columns["turn_ntok"][failed] == -1).all()
    good = np.setdiff1d(np.arange(N), failed)
    np.testing.assert_array_equal(columns["turn_nll"][good], whole["turn_nll"][good])
