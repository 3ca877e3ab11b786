"""The forward pass: the tokens of training, the losses of training, whatever the batches."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from selector_zoo.passes import forward_model
from selector_zoo.passes.forward import ForwardConfig, ForwardPass, ahead, stored_dtype
from selector_zoo.passes.forward_model import Scorer, spectrum, spectrum_rows, token_statistics
from selector_zoo.passes.forward_samples import Sample, read_samples, summary

from harness.api import PassContext
from harness.errors import HarnessError
from harness.pool import Pool, open_pool
from harness.pool_write import PoolWriter
from harness.types import TrainSpec
from llava_train.chat import specials
from llava_train.model import PackedModel, load_backbone
from llava_train.packs import Item
from llava_train.pool_index import PoolIndex, Text
from tests.support import png, raw_record
from tests.unit.train_support import backbone, geometry, item, packed, tokenizer

N = 24
SIZES = ((24, 16), (60, 120), (48, 48), (130, 70))


def opened(**settings: Any) -> ForwardPass:
    feature = ForwardPass(ForwardConfig(**settings), PassContext(model_path=str(backbone())))
    feature.open()
    return feature


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Small and large pictures, text alone, one and two turns."""
    path = tmp_path_factory.mktemp("pool") / "pool"
    with PoolWriter(path, "mixed") as writer:
        for i in range(N):
            assert writer.add(raw_record(i), lambda key: png(int(key[:-4]), SIZES[int(key[:-4]) % 4]))
    return writer.pool()


@pytest.fixture(scope="module")
def feature() -> ForwardPass:
    return opened()


@pytest.fixture(scope="module")
def columns(pool: Pool, feature: ForwardPass) -> dict[str, Any]:
    found, reasons = feature.run(pool, 0, N)
    assert reasons == [""] * N
    return found


def unmeasured(values: Any) -> bool:
    """Whether values of a column are what stands for none."""
    empty = {"f": np.isnan(values), "i": values == -1, "b": values == 0}
    return bool(empty[values.dtype.kind].all())


def index(pool: Pool, **settings: Any) -> PoolIndex:
    return PoolIndex(pool=pool, tokenizer=tokenizer(), geometry=geometry(), **({"max_length": 12000} | settings))


def test_batches_and_shards_change_nothing(pool: Pool, columns: dict[str, Any]) -> None:
    alone = opened(spectrum=True, hidden="pre_norm")
    together, _ = alone.run(pool, 0, N)
    alone.limits = TrainSpec(pack_tokens=1)
    assert len(alone._packs(read_samples(index(pool), 0, N)[0])) == N
    one_by_one, _ = alone.run(pool, 0, N)
    sharded = [alone.run(pool, a, b)[0] for a, b in pairwise((0, 7, 8, N))]
    for name, whole in together.items():
        joined = np.concatenate([shard[name] for shard in sharded])
        for other in (one_by_one[name], joined, columns.get(name, whole)):
            assert other.dtype == whole.dtype
            np.testing.assert_allclose(other, whole, rtol=1e-5, atol=0.002 if name == "hidden" else 1e-5)


def test_losses_are_those_of_training(pool: Pool, columns: dict[str, Any]) -> None:
    trained = PackedModel(load_backbone(backbone()))
    for mask, name in (("llava", "sft"), ("answer", "ans")):
        seen = index(pool, mask=mask)
        for i in (0, 3, 4, 6, 7):
            text = seen.text(i)
            pack = packed([Item(ids=text.ids, targets=text.targets, images=seen.pixels(text), sizes=text.sizes)])
            tokens = trained(pack).tokens
            assert columns[f"n_tok_{name}"][i] == len(tokens) == text.supervised
            assert columns[f"nll_sum_{name}"][i] == pytest.approx(float(tokens.sum()), rel=1e-5)
            assert columns["length"][i] == len(text.ids)


def test_turns_are_the_answers_without_their_markers(pool: Pool, columns: dict[str, Any]) -> None:
    assert columns["turn_nll"].shape == columns["turn_ntok"].shape == (N, 2)
    for i in range(N):
        answers = [text for role, text in pool.record(i).conversations if role == "gpt"]
        counts = [len(tokenizer()(a, add_special_tokens=False).input_ids) for a in answers]
        assert columns["turn_ntok"][i].tolist() == [*counts, 0][:2]
        assert np.isfinite(columns["turn_nll"][i]).sum() == len(answers)
        assert columns["n_tok_ans"][i] == sum(counts) + len(counts)
        assert np.nansum(columns["turn_nll"][i]) < columns["nll_sum_ans"][i]


def test_a_single_view_is_the_sample_of_its_base_view(pool: Pool, columns: dict[str, Any]) -> None:
    """Shorter by the tokens of the tiles; the same loss as a model whose configuration has one view."""
    single, reasons = opened(views="single").run(pool, 0, N)
    assert reasons == [""] * N
    np.testing.assert_array_equal(single["n_tok_ans"], columns["n_tok_ans"])
    one_view = replace(geometry(), views="single")
    plainly = PoolIndex(pool=pool, tokenizer=tokenizer(), geometry=one_view, max_length=12000, mask="answer")
    trained = PackedModel(load_backbone(backbone()))
    for i in (0, 3, 4, 6, 7):
        text = plainly.text(i)
        pack = packed([Item(ids=text.ids, targets=text.targets, images=plainly.pixels(text), sizes=text.sizes)])
        assert single["length"][i] == len(text.ids) <= columns["length"][i]
        assert single["nll_sum_ans"][i] == pytest.approx(float(trained(pack).tokens.sum()), rel=1e-5)
    assert (single["length"] < columns["length"]).any()


def made_sample(answer: list[int], turn: dict[int, int], ids: int = 8) -> Sample:
    """A sample that speaks at some places, in the turns that `turn` gives for content."""
    place = np.arange(ids)
    text = Text(
        position=0,
        uid="a",
        ids=place.astype(np.int32),
        targets=place > 0,
        answer=np.isin(place, answer),
        images=(),
        sizes=(),
        tiles=0,
    )
    return Sample(text=text, turn=np.array([turn.get(i, -1) for i in range(ids)]), truncated=False)


def test_a_row_of_numbers_by_hand() -> None:
    """Turns of losses [1, 3] and [2]: mean 2, perplexity 7.389056, whatever their lengths."""
    told = np.zeros((3, 7), dtype=np.float32)
    told[:, [1, 2, 5]] = [[1, 3, 2], [0.2, 0.4, 0.3], [1, 1, 4]]
    row = summary(made_sample([2, 3, 6], {2: 0, 3: 0, 6: 1}), told, 3)
    assert row["nll_sum_ans"] / row["n_tok_ans"] == 2.0
    assert np.exp(row["nll_sum_ans"] / row["n_tok_ans"]) == pytest.approx(7.389056)
    assert (row["el2n_mean_ans"], row["ent_mean_ans"]) == pytest.approx((0.3, 2.0))
    assert (row["n_tok_sft"], row["nll_sum_sft"]) == (7, 6.0)
    assert row["turn_ntok"].tolist() == [2, 1, 0]
    assert row["turn_nll"][:2].tolist() == [4.0, 2.0]
    assert np.isnan(row["turn_nll"][2])
    marked = summary(made_sample([2, 3, 6], {2: 0}), told, 2)
    assert marked["turn_ntok"].tolist() == [1, 0]
    assert marked["nll_sum_ans"] == 6.0


def test_long_samples_are_cut_as_training_cuts_them(pool: Pool, columns: dict[str, Any]) -> None:
    position, whole = 6, int(columns["length"][6])
    cut, reasons = opened(max_length=whole - 5).run(pool, position, position + 1)
    assert reasons == [""]
    assert cut["length"].tolist() == [whole - 5]
    lost = 4  # of the answer: a newline stands after its closing marker
    assert cut["n_tok_ans"][0] == columns["n_tok_ans"][position] - lost
    assert 0 < cut["nll_sum_ans"][0] < columns["nll_sum_ans"][position]
    assert cut["turn_ntok"][0, 0] == columns["turn_ntok"][position, 0] - lost + 1


def test_cut_samples_are_marked(pool: Pool, columns: dict[str, Any], feature: ForwardPass) -> None:
    """Those that just fit are not; those cut where an answer ends, or where the image does, are."""
    assert columns["truncated"].dtype == np.bool_
    assert not columns["truncated"].any()
    position, whole = 7, int(columns["length"][7])
    end = specials(tokenizer()).end
    first_answer_ends = int(np.flatnonzero(index(pool).text(position).ids == end)[2]) + 2
    for length, cut in (
        (whole + 1, False),
        (whole, False),
        (whole - 1, True),
        (first_answer_ends, True),
        (9, True),
    ):
        found, _ = opened(max_length=length).run(pool, position, position + 1)
        assert found["truncated"].tolist() == [cut]


def test_a_sample_without_answer_tokens_has_no_number_and_a_reason(pool: Pool, columns: dict[str, Any]) -> None:
    cut, reasons = opened(max_length=12).run(pool, 0, 5)
    assert reasons == ["no_answer_tokens"] * 5
    assert cut["n_tok_ans"].tolist() == [0] * 5
    assert cut["turn_ntok"].tolist() == [[0, 0]] * 5
    for name in ("nll_sum_ans", "el2n_mean_ans", "ent_mean_ans", "turn_nll"):
        assert np.isnan(cut[name]).all()
    assert np.isfinite(cut["nll_sum_sft"]).all()


def test_failures_have_reasons_and_shift_nothing(tmp_path: Path, feature: ForwardPass) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(12):
        (images / f"{i}.png").write_bytes(png(i))
    with PoolWriter(tmp_path / "pool", "files", image_root=images) as writer:
        for i in range(12):
            assert writer.add(raw_record(i), lambda key: (images / key).read_bytes())
    pool = open_pool(tmp_path / "pool")
    before, _ = feature.run(pool, 0, 12)
    (images / "2.png").write_bytes(b"no picture")
    (images / "5.png").unlink()
    (images / "7.png").write_bytes(png(7, (50, 40)))
    after, reasons = feature.run(pool, 0, 12)
    assert [i for i, reason in enumerate(reasons) if reason] == [2, 5, 7]
    assert all(reasons[i].startswith("unusable_image: ") for i in (2, 5, 7))
    assert "cannot be read" in reasons[2]
    assert "changed after the import" in reasons[7]
    good = [i for i in range(12) if not reasons[i]]
    for name, values in after.items():
        np.testing.assert_allclose(values[good], before[name][good], rtol=1e-5)
        assert unmeasured(values[2])
    only, reasons = feature.run(pool, 5, 6)
    assert reasons[0].startswith("unusable_image")
    assert np.isnan(only["nll_sum_ans"]).all()


def test_too_little_memory_halves_the_batch(
    pool: Pool, feature: ForwardPass, columns: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    scored = Scorer._scored

    def small(self: Scorer, items: Any) -> Any:
        sizes.append(len(items))
        if len(items) > 3:
            raise torch.OutOfMemoryError("no memory")
        return scored(self, items)

    monkeypatch.setattr(Scorer, "_scored", small)
    halved, _ = feature.run(pool, 0, N)
    assert max(sizes) > 3
    np.testing.assert_allclose(halved["nll_sum_ans"], columns["nll_sum_ans"], rtol=1e-5)

    def never(self: Scorer, items: Any) -> Any:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(Scorer, "_scored", never)
    with pytest.raises(torch.OutOfMemoryError):
        feature.run(pool, 0, 2)


def statistics(logits: list[list[float]], targets: list[int]) -> Any:
    width = len(logits[0])
    return token_statistics(torch.tensor(logits), torch.eye(width), None, torch.tensor(targets))


def test_errors_by_hand() -> None:
    """Worked examples of EL2N."""
    p = [[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]]
    nll, error, entropy = statistics(np.log(p).tolist(), [0, 1])
    assert error.tolist() == pytest.approx([0.616441, 0.244949], abs=1e-6)
    assert float(error.mean()) == pytest.approx(0.430695, abs=1e-6)
    assert nll.tolist() == pytest.approx([-np.log(0.5), -np.log(0.8)], abs=1e-6)
    assert entropy[0].item() == pytest.approx(-sum(x * np.log(x) for x in p[0]), abs=1e-6)
    assert statistics([[0.0] * 4], [2])[1].item() == pytest.approx(0.866025, abs=1e-6)
    peaked = statistics([[2.0, 0, 0], [2.0, 0, 0]], [0, 1])[1]
    assert peaked.tolist() == pytest.approx([0.260888, 1.195416], abs=1e-6)
    assert statistics([[80.0, 0, 0]], [0])[1].item() == 0


def test_errors_keep_their_bounds_and_their_precision() -> None:
    logits = torch.randn(200, 30, generator=torch.Generator().manual_seed(0)) * 4
    targets = torch.arange(200) % 30
    nll, error, _ = token_statistics(logits, torch.eye(30), None, targets)
    shifted = token_statistics(logits + 100, torch.eye(30), None, targets)
    assert torch.allclose(shifted[1], error, atol=1e-4)
    assert bool(((error >= 0) & (error < 2**0.5) & (error >= 1 - torch.exp(-nll) - 1e-6)).all())
    # Near certainty: the other of two words has probability 1e-5, the error is sqrt(2) times that.
    sure = statistics([[float(np.log(1 - 1e-5)), float(np.log(1e-5))]], [0])[1].item()
    assert sure == pytest.approx(2**0.5 * 1e-5, rel=1e-3)


def test_logits_in_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    states, weight, bias = torch.randn(50, 16), torch.randn(40, 16), torch.randn(40)
    targets = torch.arange(50) % 40
    whole = token_statistics(states, weight, bias, targets)
    monkeypatch.setattr(forward_model, "LOGITS", 40 * 7)
    assert torch.allclose(token_statistics(states, weight, bias, targets), whole, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "entropy", "largest"),
    [
        ([[1, 0], [0, 1]], 0.693147, 0.5),
        ([[3, 0], [0, 1]], 0.562335, 0.75),
        ([[1, 2], [2, 4]], 0.0, 1.0),
        ([[2, 0, 0], [0, 1, 0], [0, 0, 1]], 1.039721, 0.5),
        ([[1, 1], [1, 0], [0, 1]], 0.656807, 0.633975),
        ([[1, 1, 0], [1, 0, 1]], 0.656807, 0.633975),
    ],
)
def test_spectra_by_hand(rows: list[list[float]], entropy: float, largest: float) -> None:
    assert spectrum(torch.tensor(rows, dtype=torch.float32)) == pytest.approx((entropy, largest), abs=1e-6)


def test_states_that_overflow_have_no_spectrum() -> None:
    states = torch.ones(4, 3)
    states[2, 1] = torch.inf
    assert np.isnan(spectrum(states)).all()


def test_a_spectrum_does_not_depend_on_scale_order_or_direction() -> None:
    made = torch.Generator().manual_seed(0)
    states = torch.randn(9, 5, generator=made)
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=made))
    for other in (states * 7, states.flip(0), states @ turn):
        assert spectrum(other) == pytest.approx(spectrum(states), abs=1e-5)
    assert 0 < spectrum(states)[0] < np.log(5)


def test_a_spectrum_reads_the_text_and_the_base_view(pool: Pool) -> None:
    from llava_train.chat import specials

    image = specials(tokenizer()).image
    large = item("What?", "This.", [(90, 90)])
    rows = spectrum_rows(large, image, geometry())
    assert (large.ids == image).sum() > geometry().tile_tokens
    assert (large.ids[rows] == image).sum() == geometry().tile_tokens
    assert (large.ids[rows] != image).sum() == (large.ids != image).sum()
    assert spectrum_rows(item("Which?", "Both.", [(24, 16), (60, 60)]), image, geometry()).all()
    assert spectrum_rows(item("Why?", "So."), image, geometry()).all()


def test_hidden_states_are_those_of_the_stock_model(pool: Pool) -> None:
    from transformers import LlavaOnevisionForConditionalGeneration

    stock = LlavaOnevisionForConditionalGeneration.from_pretrained(backbone(), dtype=torch.float32).eval()
    after = opened(hidden="post_norm").run(pool, 4, 5)[0]["hidden"]
    before = opened(hidden="pre_norm").run(pool, 4, 5)[0]["hidden"]
    text = index(pool).text(4)
    ids = torch.from_numpy(text.ids.astype(np.int64))[None]
    with torch.inference_mode():
        found = stock.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0, -2]
        normed = stock.model.language_model.norm(torch.from_numpy(before[0]).float())
    np.testing.assert_allclose(after[0], found.half().numpy(), atol=2e-3)
    np.testing.assert_allclose(normed.numpy(), found.numpy(), atol=5e-3)


def test_an_overflowing_model_is_a_failure_by_name(pool: Pool) -> None:
    broken = opened()
    broken._scorer.packed.model.lm_head.weight.data.fill_(float("nan"))
    found, reasons = broken.run(pool, 0, 3)
    assert reasons == ["not_finite"] * 3
    assert np.isnan(found["nll_sum_ans"]).all()


def test_an_infinite_loss_is_no_number(
    pool: Pool, feature: ForwardPass, columns: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would rank before all others."""
    scored = Scorer._scored

    def overflowing(self: Scorer, items: Any) -> Any:
        told = scored(self, items)
        for one, score in zip(items, told, strict=True):
            if len(one.ids) == columns["length"][3]:
                score.tokens[0, -2] = np.inf
        return told

    monkeypatch.setattr(Scorer, "_scored", overflowing)
    found, reasons = feature.run(pool, 0, N)
    lost = np.flatnonzero(columns["length"] == columns["length"][3])
    assert [i for i in range(N) if reasons[i] == "not_finite"] == lost.tolist()
    assert 0 < len(lost) < N
    for name, values in found.items():
        assert not np.isinf(values).any()
        good = np.setdiff1d(np.arange(N), lost)
        np.testing.assert_allclose(values[good], columns[name][good], rtol=1e-5)
        assert unmeasured(values[lost])


def pictured(path: Path, answers: list[str]) -> Pool:
    """A pool of one conversation whose answers name images."""
    said = [text for i, answer in enumerate(answers) for text in (f"Which {i}?", answer)]
    talk = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(said)]
    images = [f"{i}.png" for i in range("".join(said).count("<image>"))]
    with PoolWriter(path, "pictured") as writer:
        raw = {"id": "p", "conversations": talk, "image": images, "data_source": "s"}
        assert writer.add(raw, lambda key: png(int(key[:-4])))
    return writer.pool()


def test_images_in_an_answer_do_not_split_it(tmp_path: Path, feature: ForwardPass) -> None:
    """In a pool whose conversations have one turn, and in one that has room for more."""
    said = ["<image> or <image>: both, <image> too.", "<image><image>", "See <image>", "Yes."]
    image = specials(tokenizer()).image
    counts = [sum(i != image for i in tokenizer()(s, add_special_tokens=False).input_ids) for s in said[:2]]
    counts += [len(tokenizer()(s, add_special_tokens=False).input_ids) for s in ("\nSee", "Yes.")]
    for rounds in (1, 2, 4):
        pool = pictured(tmp_path / f"pool{rounds}", said[:rounds])
        found, reasons = feature.run(pool, 0, 1)
        assert reasons == [""]
        assert found["turn_ntok"].tolist() == [counts[:rounds]]
        assert np.isnan(found["turn_nll"]).tolist() == [[count == 0 for count in counts[:rounds]]]
        assert found["n_tok_ans"][0] == sum(counts[:rounds]) + rounds


def test_sixteen_bits_are_computed_as_bfloat16(tmp_path: Path, pool: Pool, columns: dict[str, Any]) -> None:
    for said, meant in (
        ('{"dtype": "float16"}', "bfloat16"),
        ('{"torch_dtype": "bfloat16"}', "bfloat16"),
        ('{"dtype": "float32"}', "float32"),
        ("{}", "float32"),
    ):
        (tmp_path / "config.json").write_text(said)
        assert stored_dtype(tmp_path) == meant
    low, _ = opened(dtype="bfloat16").run(pool, 0, 6)
    assert low["nll_sum_ans"].dtype == np.float32
    np.testing.assert_allclose(low["nll_sum_ans"], columns["nll_sum_ans"][:6], rtol=0.03)


def test_work_ahead_keeps_its_order_and_its_distance() -> None:
    started: list[int] = []
    lock = threading.Lock()

    def make(i: int) -> int:
        with lock:
            started.append(i)
        if i == 30:
            raise ValueError("thirty")
        return i * i

    results = ahead(make, range(50), 4)
    for i in range(30):
        assert next(results) == i * i
        assert len(started) <= i + 6
    with pytest.raises(ValueError, match="thirty"):
        next(results)


def test_planning_does_not_import_torch() -> None:
    code = "import sys, selector_zoo.passes.forward; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("settings", [{"dtype": "float16"}, {"hidden": "last"}, {"max_length": 0}])
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(HarnessError, match=next(iter(settings))):
        ForwardConfig(**settings)
