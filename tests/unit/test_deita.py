"""Deita: grades of a model that is read before it answers, their sum, and the filter of what is alike."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from selector_zoo.blocks import blocks
from selector_zoo.deita import Deita
from selector_zoo.diversity import cosine_quantiles, diverse, unit
from selector_zoo.passes.deita import DeitaConfig, DeitaPass, turns_of, without_image
from selector_zoo.passes.deita_model import Reader, digit_ids, expected_grade
from selector_zoo.passes.forward import ForwardConfig, ForwardPass
from selector_zoo.prompts import fill, load_pack
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.api import PassContext, Pool, Selection
from harness.errors import HarnessError
from harness.pool_write import PoolWriter
from harness.registry import configured
from harness.stages.select import checked
from tests import selector_references as plain
from tests.selector_settings import build_llama
from tests.support import write_pool
from tests.unit.train_support import backbone

N = 13
NAN = float("nan")
TEMPLATES = {
    "complexity": "How hard is this: {instruction} Hardness:",
    "quality": "Asked: {instruction} Said: {output} Grade:",
    "conversation": "{instruction} -> {output};",
    "system": "Talk.",
}


def make(**settings: Any) -> Deita:
    return Deita(configured(Deita, settings))


def chosen(made: Deita, pool: Pool, features: Any, n: int, seed: int = 0) -> Selection:
    selection = made.select(pool, made.score(pool, features) or {}, features, n, seed)
    checked(selection, pool, n, "deita")
    return selection


def columns(complexity: Any, quality: Any, rows: Any) -> dict[str, dict[str, Any]]:
    return {
        "complexity": {"turns": np.array(complexity, dtype=np.float32)},
        "quality": {"turns": np.array(quality, dtype=np.float32)},
        "embedding": {"hidden": np.array(rows, dtype=np.float16)},
    }


def test_a_grade_is_the_mean_of_the_digits() -> None:
    assert float(expected_grade(torch.tensor([[0.0, 1, 2, 3, 2, 1]]))) == pytest.approx(3.927361, abs=1e-6)
    assert float(expected_grade(torch.zeros(1, 6))) == 3.5
    assert float(expected_grade(torch.tensor([[0.0] * 5 + [500.0]], dtype=torch.bfloat16))) == 6


def test_grades_multiply_within_a_turn_and_add_over_turns(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", 4)  # the last one has two turns
    complexity = [[2, NAN], [4, NAN], [NAN, NAN], [3, 1]]
    quality = [[3, NAN], [1, NAN], [2, NAN], [2, 5]]
    features = columns(complexity, quality, np.eye(4))
    wanted = {
        ("product", "sum"): [6, 4, NAN, 11],
        ("product", "mean"): [6, 4, NAN, 5.5],
        ("product", "first"): [6, 4, NAN, 6],
        ("complexity", "sum"): [2, 4, NAN, 4],
        ("quality", "sum"): [3, 1, 2, 7],
    }
    for (grade, turns), scores in wanted.items():
        found = make(grade=grade, turns=turns).score(pool, features)
        assert found is not None
        np.testing.assert_allclose(found["score"], scores)
    features["embedding"]["hidden"][1] = NAN
    missing = make().score(pool, features)
    assert missing is not None
    np.testing.assert_allclose(missing["score"], [6, NAN, NAN, 11])


def test_a_later_turn_without_a_grade_matters_only_where_it_counts(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", 4)
    features = columns([[2, NAN], [4, NAN], [1, NAN], [3, NAN]], np.ones((4, 2)).tolist(), np.eye(4))
    for turns, last in (("first", 3), ("sum", NAN), ("mean", NAN)):
        found = make(turns=turns).score(pool, features)
        assert found is not None
        np.testing.assert_allclose(found["score"], [2, 4, 1, last])


def test_grades_of_millions_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = write_pool(tmp_path / "pool", 50)
    rng = np.random.default_rng(0)
    grades = np.where(rng.random((2, 50, 2)) < 0.2, NAN, rng.uniform(1, 6, (2, 50, 2)))
    features = columns(*grades, rng.normal(size=(50, 3)))
    for turns in ("sum", "mean", "first"):
        whole = make(turns=turns).score(pool, features)
        with monkeypatch.context() as patch:
            patch.setattr("selector_zoo.deita.blocks", lambda n: blocks(n, rows=7))
            parts = make(turns=turns).score(pool, features)
        assert whole is not None
        assert parts is not None
        np.testing.assert_array_equal(parts["score"], whole["score"])


def test_a_sample_that_is_cut_is_embedded_by_its_last_token(tmp_path: Path) -> None:
    """Not by the marker that closes the question: samples that differ in their answers alone would be the same."""
    answers = ["red and green and blue", "one and two and three"]
    with PoolWriter(tmp_path / "pool", "cut") as writer:
        for i, answer in enumerate(answers):
            turns = [{"from": "human", "value": "What is there?"}, {"from": "gpt", "value": answer}]
            assert writer.add({"id": f"{i}", "conversations": turns}, lambda key: b"")
    feature = ForwardPass(ForwardConfig(hidden="post_norm"), PassContext(model_path=str(backbone())))
    feature.open()
    whole, _ = feature.run(writer.pool(), 0, 2)
    for lost in (1, 2, 4):
        shorter = ForwardConfig(hidden="post_norm", max_length=int(whole["length"].min()) - lost)
        feature = ForwardPass(shorter, PassContext(model_path=str(backbone())))
        feature.open()
        cut, reasons = feature.run(writer.pool(), 0, 2)
        assert reasons == ["", ""]
        assert not np.array_equal(cut["hidden"][0], cut["hidden"][1])


@pytest.mark.parametrize(("n", "kept"), [(1, [0]), (3, [0, 2, 3]), (4, [0, 2, 3, 1]), (5, [0, 2, 3, 1, 4])])
def test_the_worked_example_of_the_filter(n: int, kept: list[int], tmp_path: Path) -> None:
    """b is too like a, e too like d; they fill up in the order of their scores."""
    pool = write_pool(tmp_path / "pool", 5)
    rows = [[1, 0], [0.95, (1 - 0.95**2) ** 0.5], [0.8, 0.6], [0, 1], [-0.1, 0.995]]
    grades = np.full((5, 2), NAN)
    grades[:, 0] = [12, 11, 9, 8, 7]
    grades[3, 1] = 0  # a second turn that adds nothing
    features = columns(grades, np.ones((5, 2)), rows)
    selection = chosen(make(), pool, features, n)
    assert selection.positions.tolist() == kept
    assert selection.card["n_topup"] == max(0, n - 3)
    assert selection.card["n_refused"] == {1: 0, 3: 1}.get(n, 2)
    told: Any = selection.card["cosine_quantiles"]
    assert told == cosine_quantiles(features["embedding"]["hidden"], np.arange(5, dtype=np.int32), 0)
    assert list(told.values()) == sorted(told.values())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("block", [1, 3, 8, 200])
def test_blocks_keep_what_one_by_one_keeps(seed: int, block: int, tmp_path: Path) -> None:
    """Duplicates, zeros, one candidate, and thresholds that refuse nearly all or nothing."""
    rng = np.random.default_rng(seed)
    for size in (1, 2, 90):
        rows = rng.normal(size=(size, 6)).astype(np.float16)
        rows[rng.random(size) < 0.2] = rows[0]
        rows[rng.random(size) < 0.05] = 0
        order = rng.permutation(size).astype(np.int32)
        score = np.empty(size)
        score[order] = -np.arange(size)
        for threshold in (-0.5, 0.3, 0.9, 1.0):
            for n in {1, size // 3 + 1, size}:
                kept, refused = diverse(rows, order, n, threshold, block)
                filled = [*kept.tolist(), *refused.tolist()]
                if threshold < 1:
                    # Where nothing was left unseen the plain reading agrees to the last one.
                    wanted = plain.diverse(score.tolist(), range(size), unit(rows), n, threshold)
                    assert filled[: len(wanted)] == wanted if len(kept) < n else kept.tolist() == wanted
                units = unit(rows[kept]).astype(np.float64)
                cosine = units @ units.T - 2 * np.eye(len(kept))
                assert len(kept) < 2 or cosine.max() <= threshold + 1e-6


def test_near_the_threshold_the_exact_similarity_decides() -> None:
    """Float32 cannot tell 0.9 from a billionth more."""
    for offset in (-3e-8, 3e-8):
        c = 0.9 + offset
        rows = np.array([[1.0, 0.0], [c, (1 - c * c) ** 0.5]])
        exact = float((unit(rows[:1]).astype(np.float64) * unit(rows[1:])).sum())
        for block in (1, 2):
            kept, _ = diverse(rows, np.array([0, 1], dtype=np.int32), 2, 0.9, block)
            assert len(kept) == (1 if exact > 0.9 else 2)


@pytest.mark.parametrize("seed", range(4))
def test_equals_a_plain_reading(seed: int, tmp_path: Path) -> None:
    """Ties, unknown grades, unknown embeddings."""
    rng = np.random.default_rng(seed)
    size = 60
    pool = write_pool(tmp_path / "pool", size)
    rounds = (pool.column("n_turns") // 2)[:, None]
    grades = rng.integers(1, 4, (2, size, 2)).astype(np.float32)
    grades[:, rng.random(size) < 0.1] = NAN
    grades[:, np.arange(2) >= rounds] = NAN
    rows = rng.normal(size=(size, 4)).astype(np.float16)
    rows[rng.random(size) < 0.1] = NAN
    features = columns(grades[0], grades[1], rows)
    made = make(tie="index", threshold=0.6)
    score = (made.score(pool, features) or {})["score"]
    for n in (1, 12, 40, 60):
        wanted = plain.diverse(score.tolist(), range(size), unit(rows), n, 0.6)
        selection = chosen(made, pool, features, n)
        assert selection.positions.tolist() == wanted
        assert selection.card["n_nan"] == int(np.isnan(score).sum())
    assert selection.card["n_topup"] > 0


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of Llama type whose grades differ from prompt to prompt."""
    out = tmp_path_factory.mktemp("llama") / "scorer"
    build_llama(out, tokenizer=backbone())
    return out


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return write_pool(tmp_path_factory.mktemp("pool") / "pool", N)


def opened(scorer: Path, part: str = "quality", **settings: Any) -> DeitaPass:
    template = TEMPLATES.get(part, TEMPLATES["conversation"])
    feature = DeitaPass(
        DeitaConfig(**{"part": part, "template": template, **settings}), PassContext(model_path=str(scorer))
    )
    feature.open()
    return feature


def test_grades_are_read_before_the_answer(scorer: Path, pool: Pool) -> None:
    """Against the model itself, one prompt at a time."""
    model = AutoModelForCausalLM.from_pretrained(scorer).eval()
    tokenizer = AutoTokenizer.from_pretrained(scorer)
    digits = [tokenizer.convert_tokens_to_ids(str(k)) for k in range(1, 7)]
    for part in ("complexity", "quality"):
        found, reasons = opened(scorer, part).run(pool, 0, N)
        assert reasons == [""] * N
        assert found["turns"].shape == (N, 2)
        assert found["turns"].dtype == np.float32
        for i in range(N):
            said = turns_of(pool, i)
            for turn, (q, a) in enumerate(said):
                ids = tokenizer(fill(TEMPLATES[part], instruction=q, output=a), return_tensors="pt").input_ids
                with torch.inference_mode():
                    share = model(input_ids=ids).logits[0, -1, digits].softmax(-1)
                wanted = float((share * torch.arange(1, 7)).sum())
                assert found["turns"][i, turn] == pytest.approx(wanted, rel=1e-4)
            assert np.isnan(found["turns"][i, len(said) :]).all()
        assert np.nanstd(found["turns"]) > 1e-3


def test_the_embedding_is_the_last_state_of_the_conversation(scorer: Path, pool: Pool) -> None:
    found, reasons = opened(scorer, "embedding", system=TEMPLATES["system"]).run(pool, 0, N)
    assert reasons == [""] * N
    model = AutoModelForCausalLM.from_pretrained(scorer).eval()
    tokenizer = AutoTokenizer.from_pretrained(scorer)
    for i in (0, 3, 4):
        said = "".join(f"{q} -> {a};" for q, a in turns_of(pool, i))
        ids = tokenizer(f"Talk. {said}", return_tensors="pt").input_ids
        with torch.inference_mode():
            state = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]
        np.testing.assert_allclose(found["hidden"][i], state.numpy(), rtol=2e-3, atol=2e-3)
    assert found["hidden"].dtype == np.float16


@pytest.mark.parametrize("part", ["quality", "embedding"])
def test_batches_and_shards_change_nothing(part: str, scorer: Path, pool: Pool) -> None:
    feature = opened(scorer, part)
    whole, _ = feature.run(pool, 0, N)
    sharded = [feature.run(pool, a, b)[0] for a, b in pairwise((0, 4, 5, N))]
    feature.tokens_at_once = 1
    one_by_one, _ = feature.run(pool, 0, N)
    for name, values in whole.items():
        joined = np.concatenate([shard[name] for shard in sharded])
        for other in (joined, one_by_one[name]):
            assert other.dtype == values.dtype
            np.testing.assert_allclose(other, values, rtol=1e-3 if part == "embedding" else 1e-5, atol=1e-3)


def test_long_texts_lose_their_end_and_the_template_keeps_its_own(scorer: Path) -> None:
    feature = opened(scorer, max_length=50)
    (prompt,) = feature._prompts([("What is that?", "word " * 40)])
    (ids,) = feature._reader.encode([prompt], 50)
    text = feature._reader.tokenizer.decode(ids)
    assert len(ids) == 50
    assert text.startswith("Asked: What is that? Said: word")
    assert text.endswith(" Grade:")
    (whole,) = feature._reader.encode([prompt], 2048)
    assert feature._reader.tokenizer.decode(whole) == prompt.text
    with pytest.raises(HarnessError, match="leaves no room"):
        feature._reader.encode([prompt], 3)


def test_too_little_memory_halves_the_batch(scorer: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    feature = opened(scorer)
    whole, _ = feature.run(pool, 0, N)
    sizes: list[int] = []
    read = Reader._read

    def small(self: Reader, prompts: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > 3:
            raise torch.OutOfMemoryError("no memory")
        return read(self, prompts)

    monkeypatch.setattr(Reader, "_read", small)
    halved, _ = feature.run(pool, 0, N)
    assert max(sizes) > 3
    np.testing.assert_allclose(halved["turns"], whole["turns"], rtol=1e-5)


def test_a_model_that_overflows_has_a_reason(scorer: Path, pool: Pool) -> None:
    for part, column in (("quality", "turns"), ("embedding", "hidden")):
        broken = opened(scorer, part)
        with torch.no_grad():
            broken._reader.model.model.norm.weight.fill_(NAN)
        found, reasons = broken.run(pool, 0, 4)
        assert reasons == ["not_finite"] * 4
        assert np.isnan(found[column]).all()


def test_placeholders_and_the_newlines_round_them_are_not_read() -> None:
    assert without_image("<image>\nWhat is it?\n") == "What is it?"
    assert without_image("Before.\n<image>\nAfter.") == "Before.\nAfter."
    assert without_image("\nno picture\n") == "\nno picture\n"


PUBLISHED = os.environ.get("SIEVEBENCH_DEITA")


@pytest.mark.skipif(not PUBLISHED, reason="set SIEVEBENCH_DEITA to the released scorer and its words")
def test_the_released_scorer_gives_the_published_grade(tmp_path: Path) -> None:
    """The example of Deita's own documentation: `quality`, a model folder, and `deita.yaml`, its prompt pack."""
    pack = load_pack(f"{PUBLISHED}/deita.yaml")
    assert pack.official == "deita"
    asked, said = "word to describe UI with helpful tooltips", "User-friendly or intuitive UI"
    with PoolWriter(tmp_path / "pool", "example") as writer:
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]
        assert writer.add({"id": "a", "conversations": turns}, lambda key: b"")
    found, _ = opened(Path(f"{PUBLISHED}/quality"), template=pack.template("quality")).run(writer.pool(), 0, 1)
    assert found["turns"][0, 0] == pytest.approx(2.0230105920381902, abs=1e-2)


def test_grades_are_the_digits_of_the_tokenizer() -> None:
    """Where the tokenizers of Llama 1 and of Mistral keep them, whatever else they have of these characters."""

    def with_digits(ids: list[int]) -> Any:
        known = {str(k): at for k, at in enumerate(ids, 1)} | {"▁1": 5, "11": 6, "7": 7}
        return SimpleNamespace(get_vocab=lambda: known)

    llama = [29896, 29906, 29941, 29946, 29945, 29953]
    mistral = [28740, 28750, 28770, 28781, 28782, 28784]
    for ids in (llama, mistral):
        assert digit_ids(with_digits(ids), "a") == ids


def write_pack(path: Path, **templates: str) -> Path:
    head = {"name": "mine", "version": "1", "source": "here", "licence": "none"}
    path.write_text(yaml.safe_dump(head | {"templates": templates}))
    return path


def test_a_prompt_pack_is_known_by_its_words(tmp_path: Path) -> None:
    path = write_pack(tmp_path / "mine.yaml", **TEMPLATES)
    refs = make(prompts=str(path), complexity="a", quality="b").needs()
    assert [(ref.name, ref.model, ref.label) for ref in refs] == [
        ("deita", "a", "complexity"),
        ("deita", "b", "quality"),
        ("forward", "mid", "embedding"),
    ]
    assert [ref.config.get("template") for ref in refs] == [TEMPLATES["complexity"], TEMPLATES["quality"], None]
    text = make(prompts=str(path), embedder="text", embedding_model="c", grade="quality", quality="b").needs()
    assert [(ref.name, ref.model, ref.label) for ref in text] == [
        ("deita", "b", "quality"),
        ("deita", "c", "embedding"),
    ]
    assert (text[1].config["template"], text[1].config["system"]) == (TEMPLATES["conversation"], "Talk.")
    assert make(prompts=str(path))._prompts()["words"] == "own"
    layout = write_pack(tmp_path / "layout.yaml", conversation="{instruction}: {output}. ")
    scorers = {"complexity": "a", "quality": "b", "embedder": "text", "embedding_model": "c"}
    apart = make(prompts=str(path), conversation=str(layout), **scorers).needs()[-1]
    assert (apart.config["template"], apart.config["system"]) == ("{instruction}: {output}. ", "")
    lacking = write_pack(tmp_path / "lacking.yaml", quality=TEMPLATES["quality"])
    with pytest.raises(HarnessError, match="no template 'complexity'"):
        make(prompts=str(lacking), complexity="a", quality="b").needs()


@pytest.mark.parametrize(
    "settings",
    [{"complexity": "a", "quality": "b"}, {"prompts": "mine.yaml"}, {"complexity": "a"}, {"prompts": ""}],
)
def test_scorers_are_asked_in_the_words_they_know(settings: dict[str, Any]) -> None:
    """Miniworld's pack is for miniworld's scorers, and the other way round."""
    assert [ref.model for ref in make().needs()] == [
        "miniworld:deita_complexity",
        "miniworld:deita_quality",
        "mid",
    ]
    with pytest.raises(HarnessError, match="set prompts to the YAML file"):
        make(**settings).needs()


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"grade": "both"}, "product, complexity, quality"),
        ({"turns": "last"}, "sum, mean, first"),
        ({"threshold": 2.0}, "is no cosine"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], hint: str) -> None:
    with pytest.raises(HarnessError, match=hint):
        make(**settings)
    with pytest.raises(HarnessError, match=r"lacks \{output\}"):
        DeitaConfig(part="quality", template="{instruction}")


def test_a_tokenizer_without_digits_is_named(scorer: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(scorer)

    class Without:
        """The same tokenizer, one digit short."""

        def get_vocab(self) -> dict[str, int]:
            return {k: v for k, v in tokenizer.get_vocab().items() if k != "4"}

    from selector_zoo.passes.deita_model import digit_ids

    with pytest.raises(HarnessError, match="has no token '4'"):
        digit_ids(Without(), "here")
