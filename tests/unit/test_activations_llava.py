"""The activations pass on a LLaVA built like TinyLLaVA, against the stock model asked one sample at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from selector_zoo.passes import activations_llava
from selector_zoo.passes.activations import ActivationsConfig, ActivationsPass
from selector_zoo.passes.activations_llava import LlavaReader, batches, squared
from selector_zoo.passes.llava_chat import Spelling, messages

from harness.api import PassContext
from harness.conformance_world import World
from harness.errors import HarnessError
from harness.models import backbone
from harness.pool import Pool
from harness.pool_write import PoolWriter
from harness.registry import selector_spec
from harness.types import TrainSpec
from tests.support import png, pool_of_files, raw_record
from tests.unit import train_support  # noqa: F401 - one thread, no hub

WIDTH, TAKEN = 32, 16
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions."
)
END = "<|endoftext|>"
PARTS = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' }}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ';' }}{% endfor %}"
    "{% endfor %}"
)
"""A chat template as those of llava-hf: messages are lists of images and words."""
TEXTS = (
    "{{ 'Be kind.\n' }}{% for m in messages %}"
    "{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
)
"""A chat template as those of language models: messages are texts."""
RECORDS: Sequence[tuple[str, Sequence[str]]] = (
    ("3.png", ["<image>\nWhat is it?", "A dog."]),
    ("", ["What is two and two?", "Four, always."]),
    ("0.png 1.png", ["<image>\n<image>\nWhich is larger?", "The second, by far."]),
    ("2.png", ["What is it? <image>", "A cat.", "Sure?", "Yes, it is very much a cat, and an odd one."]),
    ("", ["Say <image> twice.", "<image> <image>", "Thanks.", "Sure."]),
    ("1.png 0.png", ["This <image>", "Is odd.", "And this <image>", "Is odd too."]),
)
SIZES = ((24, 16), (32, 64), (48, 48), (70, 30))
Build = Callable[..., Path]


def made_tokenizer() -> Any:
    """Byte-level pairs like StableLM's, without a token to begin with."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=[END, "<image>"], initial_alphabet=alphabet, show_progress=False
    )
    words.train_from_iterator([f"{SYSTEM} USER: What is it? ASSISTANT: It is very odd."] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token=END, additional_special_tokens=["<image>"], model_max_length=512
    )


def build_llava(
    out: Path, *, depth: int = 4, strategy: str = "full", clip: bool = False, template: str = "", **said: Any
) -> Path:
    """Write a random LlavaForConditionalGeneration on StableLM with its processor; `said` changes its config."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        SiglipImageProcessor,
        SiglipVisionConfig,
        StableLmConfig,
    )

    torch.manual_seed(0)
    read = made_tokenizer()
    small = {"hidden_size": WIDTH, "intermediate_size": 64, "num_attention_heads": 2}
    tower = (CLIPVisionConfig if clip else SiglipVisionConfig)(
        **small, num_hidden_layers=2, image_size=32, patch_size=8
    )
    text = StableLmConfig(
        **small,
        num_hidden_layers=depth,
        num_key_value_heads=2,
        vocab_size=len(read),
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=read.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=tower,
        text_config=text,
        vision_feature_select_strategy=strategy,
        **{"image_token_index": read.convert_tokens_to_ids("<image>"), **said},
    )
    LlavaForConditionalGeneration(config).save_pretrained(out)
    side = {"height": 32, "width": 32}
    sizes = {"size": {"shortest_edge": 32}, "crop_size": side} if clip else {"size": side}
    images = (CLIPImageProcessor if clip else SiglipImageProcessor)(**sizes, image_mean=[0.5, 0.25, 0.75])
    LlavaProcessor(
        images,
        read,
        patch_size=8,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(clip),
        chat_template=template or None,
    ).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Model folders by their settings, each built once."""
    root = tmp_path_factory.mktemp("models")
    made: dict[str, Path] = {}

    def get(**settings: Any) -> Path:
        key = str(sorted(settings.items()))
        if key not in made:
            made[key] = build_llava(root / str(len(made)), **settings)
        return made[key]

    return get


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """One picture, none, two, several turns; then a dozen of the usual records."""
    with PoolWriter(tmp_path_factory.mktemp("pool") / "pool", "mixed") as writer:
        for i, (images, said) in enumerate(RECORDS):
            turns = [{"from": ("human", "gpt")[j % 2], "value": text} for j, text in enumerate(said)]
            raw: dict[str, Any] = {"id": f"r{i}", "conversations": turns, "data_source": "made"}
            if images:
                raw["image"] = images.split() if " " in images else images
            assert writer.add(raw, lambda key: png(int(key[0]), SIZES[int(key[0])]))
        for i in range(12):
            assert writer.add(raw_record(i), lambda key: png(int(key[:-4]), SIZES[int(key[:-4]) % 4]))
    return writer.pool()


def opened(folder: Path, **settings: Any) -> ActivationsPass:
    feature = ActivationsPass(ActivationsConfig(**settings), PassContext(model_path=str(folder)))
    feature.open()
    return feature


def in_square(picture: Image.Image) -> Image.Image:
    """A picture in the middle of a square of (127, 63, 191), pixel by pixel."""
    pixels = np.asarray(picture)
    height, width, _ = pixels.shape
    side = max(height, width)
    board = np.empty((side, side, 3), dtype=np.uint8)
    board[:] = (127, 63, 191)
    top, left = (side - height) // 2, (side - width) // 2
    board[top : top + height, left : left + width] = pixels
    return Image.fromarray(board)


def stock_states(folder: Path, text: str, pictures: list[Image.Image], layers: Sequence[int]) -> tuple[Any, Any]:
    """Token ids of one sample, and what the o_proj of some layers gives for each, by stock model and processor."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    stock = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    caught: list[torch.Tensor] = []
    for i in layers:
        o_proj = stock.model.language_model.layers[i].self_attn.o_proj
        o_proj.register_forward_hook(lambda _, __, out: caught.append(out[0]))
    inputs = processor(images=pictures or None, text=text, return_tensors="pt")
    with torch.inference_mode():
        stock(**inputs)
    return inputs["input_ids"][0].numpy(), caught


def plain_feature(states: Sequence[torch.Tensor], masks: Sequence[npt.NDArray[np.bool_]]) -> npt.NDArray[Any]:
    """The definition, one half at a time; states (tokens, d) by layer."""
    halves = []
    for mask in masks:
        for layer in states:
            mean = layer[torch.from_numpy(mask)].mean(dim=0) if mask.any() else torch.zeros(WIDTH)
            squashed = torch.tanh(mean)
            halves.append(squashed / max(float(squashed.norm()), 1e-12))
    return (torch.cat(halves) / len(halves) ** 0.5).numpy()


SPELLED = [
    (0, ["3.png"], f"{SYSTEM} USER: <image>\nWhat is it? ASSISTANT: A dog.{END}"),
    (1, [], f"{SYSTEM} USER: What is two and two? ASSISTANT: Four, always.{END}"),
    (
        2,
        ["0.png", "1.png"],
        f"{SYSTEM} USER: <image>\n<image>\nWhich is larger? ASSISTANT: The second, by far.{END}",
    ),
    (
        3,
        ["2.png"],
        f"{SYSTEM} USER: <image>\nWhat is it? ASSISTANT: A cat.{END}"
        f"USER: Sure? ASSISTANT: Yes, it is very much a cat, and an odd one.{END}",
    ),
    (
        5,
        ["1.png", "0.png"],
        f"{SYSTEM} USER: <image>\nThis ASSISTANT: Is odd.{END}USER: <image>\nAnd this ASSISTANT: Is odd too.{END}",
    ),
]


@pytest.mark.parametrize(("position", "keys", "text"), SPELLED)
def test_features_are_those_of_the_stock_model(
    pool: Pool, built: Build, position: int, keys: list[str], text: str
) -> None:
    layers = (0, 2)
    columns, reasons = opened(built(), layers=layers).run(pool, 0, len(RECORDS))
    assert reasons == [""] * len(RECORDS)
    assert columns["feature"].shape == (len(RECORDS), 2 * 2 * WIDTH)
    assert columns["feature"].dtype == np.float16
    assert pool.record(position).images == tuple(keys)
    ids, states = stock_states(built(), text, [in_square(pool.image(key)) for key in keys], layers)
    read = made_tokenizer()
    image = ids == read.convert_tokens_to_ids("<image>")
    assert image.sum() == TAKEN * len(keys)
    # Text begins behind the first image; without one, behind the system message.
    begin = int(np.flatnonzero(image)[0]) if keys else len(read(SYSTEM).input_ids)
    words = (np.arange(len(ids)) >= begin) & ~image
    wanted = plain_feature(states, (image, words))
    np.testing.assert_allclose(columns["feature"][position].astype(np.float32), wanted, atol=3e-4)
    assert (columns["n_image"][position], columns["n_text"][position]) == (image.sum(), words.sum())


def test_as_many_tokens_come_before_an_image_as_in_the_release(pool: Pool, built: Build) -> None:
    """The released code counts 31, with a tokenizer that has a token for each of these words."""
    tokens = opened(built())._reader.tokens(pool, 0, 12000)
    assert int(np.flatnonzero(tokens.image)[0]) == 31
    assert tokens.image[31 : 31 + TAKEN].all()
    assert tokens.text[31 + TAKEN :].all()


def test_features_have_length_one(pool: Pool, built: Build) -> None:
    feature = opened(built())
    columns, reasons = feature.run(pool, 0, pool.n)
    assert reasons == [""] * pool.n
    lengths = np.linalg.norm(columns["feature"].astype(np.float64), axis=1)
    images = pool.column("n_images")
    np.testing.assert_allclose(lengths[images > 0], 1, atol=1e-3)
    np.testing.assert_allclose(lengths[images == 0], 0.5**0.5, atol=1e-3)
    assert columns["n_image"].tolist() == (TAKEN * images).tolist()
    assert feature._reader.width == columns["feature"].shape[1]


def test_batches_and_shards_change_nothing(pool: Pool, built: Build) -> None:
    feature = opened(built())
    samples, _ = feature._reader._samples(shard(feature, pool))
    assert max(map(len, batches(samples, feature.limits))) > 4
    whole, _ = feature.run(pool, 0, pool.n)
    sharded = [feature.run(pool, a, b)[0] for a, b in pairwise((0, 7, 8, pool.n))]
    feature.limits = TrainSpec(pack_tokens=1)
    assert len(batches(samples, feature.limits)) == pool.n
    one_by_one, _ = feature.run(pool, 0, pool.n)
    for name, values in whole.items():
        joined = np.concatenate([part[name] for part in sharded])
        for other in (one_by_one[name], joined):
            assert other.dtype == values.dtype
            np.testing.assert_allclose(other, values, rtol=0, atol=2e-4)


def shard(feature: ActivationsPass, pool: Pool) -> Any:
    from selector_zoo.passes.activations import Shard

    return Shard(pool=pool, start=0, stop=pool.n, config=feature.config, limits=feature.limits)


def test_batches_keep_within_their_limits(pool: Pool, built: Build) -> None:
    feature = opened(built())
    samples, _ = feature._reader._samples(shard(feature, pool))
    for limits in (TrainSpec(pack_tokens=300), TrainSpec(pack_tiles=3)):
        groups = batches(samples, limits)
        assert sorted(row for rows in groups for row in rows) == list(range(pool.n))
        for rows in groups:
            padded = len(rows) * max(len(samples[row].ids) for row in rows)
            assert len(rows) == 1 or padded <= limits.pack_tokens
            assert len(rows) == 1 or sum(len(samples[row].pictures) for row in rows) <= limits.pack_tiles


def test_too_little_memory_halves_the_batch(pool: Pool, built: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    feature = opened(built())
    wanted, _ = feature.run(pool, 0, pool.n)
    read, sizes = LlavaReader._read, []

    def small(self: LlavaReader, items: Sequence[Any]) -> Any:
        sizes.append(len(items))
        if len(items) > 2:
            raise torch.OutOfMemoryError("no memory")
        return read(self, items)

    monkeypatch.setattr(activations_llava.LlavaReader, "_read", small)
    found, reasons = feature.run(pool, 0, pool.n)
    assert max(sizes) > 4
    assert reasons == [""] * pool.n
    np.testing.assert_allclose(found["feature"], wanted["feature"], atol=2e-4)


def test_a_placeholder_without_an_image_is_text(pool: Pool, built: Build) -> None:
    """A token for it would be one the model fills with an image."""
    tokens = opened(built())._reader.tokens(pool, 4, 12000)
    read = made_tokenizer()
    assert not tokens.image.any()
    assert read.convert_tokens_to_ids("<image>") not in tokens.ids
    said = (
        f"{SYSTEM} USER: <image>\nSay  twice. ASSISTANT: <image> <image>{END}USER: Thanks. ASSISTANT: Sure.{END}"
    )
    assert read.decode(tokens.ids) == said
    assert (tokens.ids == read.eos_token_id).sum() == 2
    assert read.decode(tokens.ids[tokens.text]) == said.removeprefix(SYSTEM)


def test_text_is_cut_and_images_are_not(pool: Pool, built: Build) -> None:
    feature = opened(built(), max_length=1)
    columns, reasons = feature.run(pool, 0, len(RECORDS))
    assert columns["n_image"].tolist() == [TAKEN, 0, 2 * TAKEN, TAKEN, 0, 2 * TAKEN]
    # Between two images there is a line, or a question with its answer; the text of the rest is gone.
    assert columns["n_text"].tolist()[:5] == [0, 0, 1, 0, 0]
    assert columns["n_text"][5] > 5
    assert reasons == [""] * len(RECORDS)
    half = columns["feature"].shape[1] // 2
    assert columns["feature"][0, :half].any()
    assert not columns["feature"][0, half:].any()
    whole = feature._reader.tokens(pool, 3, 12000)
    cut = feature._reader.tokens(pool, 3, len(whole.ids) - 5)
    assert cut.ids.tolist() == whole.ids[:-5].tolist()
    assert cut.text.sum() == whole.text.sum() - 5


def test_failures_have_reasons_and_shift_nothing(tmp_path: Path, built: Build) -> None:
    pool, images = pool_of_files(tmp_path)
    feature = opened(built())
    before, _ = feature.run(pool, 0, pool.n)
    (images / "2.png").write_bytes(b"no picture")
    (images / "5.png").unlink()
    after, reasons = feature.run(pool, 0, pool.n)
    assert [i for i, reason in enumerate(reasons) if reason] == [2, 5]
    assert all(reasons[i].startswith("unusable_image: an image of sample 's") for i in (2, 5))
    good = [i for i in range(pool.n) if not reasons[i]]
    np.testing.assert_allclose(after["feature"][good], before["feature"][good], atol=2e-4)
    for i in (2, 5):
        assert np.isnan(after["feature"][i]).all()
        assert (after["n_image"][i], after["n_text"][i]) == (-1, -1)


def test_an_overflowing_model_is_a_failure_by_name(pool: Pool, built: Build) -> None:
    broken = opened(built())
    broken._reader.model.model.language_model.layers[1].self_attn.o_proj.weight.data.fill_(float("nan"))
    columns, reasons = broken.run(pool, 0, 3)
    assert reasons == ["not_finite"] * 3
    assert np.isnan(columns["feature"]).all()


def test_only_the_layers_below_are_kept(built: Build) -> None:
    reader = opened(built(), layers=(2, 0, 2))._reader
    assert reader.layers == (0, 2)
    assert len(reader.model.model.language_model.layers) == 3
    with pytest.raises(HarnessError, match="of a model with 4"):
        opened(built(), layers=(4,))
    deep = opened(built(depth=24))._reader
    assert deep.layers == (3, 7, 11, 15, 19)
    assert len(deep.model.model.language_model.layers) == 20


@pytest.mark.parametrize(
    ("clip", "strategy", "taken"),
    [(False, "full", 16), (False, "default", 15), (True, "default", 16), (True, "full", 17)],
)
def test_an_image_takes_the_tokens_its_model_makes(
    pool: Pool, built: Build, tmp_path: Path, clip: bool, strategy: str, taken: int
) -> None:
    """Whatever a processor that was saved before version 4.46 says, or rather does not."""
    folder = copied(built(clip=clip, strategy=strategy), tmp_path / "old")
    file = folder / "processor_config.json"
    old = json.loads(file.read_text())
    for name in ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"):
        del old[name]
    file.write_text(json.dumps(old))
    columns, reasons = opened(folder, layers=(0,)).run(pool, 0, 3)
    assert reasons == [""] * 3
    assert columns["n_image"].tolist() == [taken, 0, 2 * taken]


def copied(folder: Path, out: Path) -> Path:
    out.mkdir()
    for file in folder.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    return out


def changed(folder: Path, out: Path, file: str, **settings: Any) -> Path:
    """A copy of a model folder with some settings of a JSON file changed."""
    found = json.loads((copied(folder, out) / file).read_text())
    (out / file).write_text(json.dumps(found | settings))
    return out


def test_a_folder_that_does_not_fit_itself_is_refused(built: Build, tmp_path: Path) -> None:
    other = changed(built(), tmp_path / "a", "config.json", image_token_index=7)
    with pytest.raises(HarnessError, match="<image> is token 1 in the tokenizer of a and 7"):
        opened(other)
    images = json.loads((built() / "processor_config.json").read_text())["image_processor"]
    large = changed(
        built(),
        tmp_path / "b",
        "processor_config.json",
        image_processor=images | {"size": {"height": 40, "width": 40}},
    )
    with pytest.raises(HarnessError, match=r"makes \(3, 40, 40\) of an image"):
        opened(large)
    text = json.loads((built() / "config.json").read_text())["text_config"]
    deeper = changed(built(), tmp_path / "c", "config.json", text_config=text | {"num_hidden_layers": 5})
    with pytest.raises(HarnessError, match=r"the weights in .* do not fit"):
        opened(deeper)


def test_other_models_and_views_are_refused(built: Build, tmp_path: Path) -> None:
    other = changed(built(), tmp_path / "other", "config.json", model_type="tiny_llava_stablelm")
    with pytest.raises(HarnessError, match="other is a tiny_llava_stablelm; give one of llava, llava_onevision"):
        opened(other)
    with pytest.raises(HarnessError, match="set view=square"):
        opened(built(), view="tiles")
    with pytest.raises(HarnessError, match="there is no model at"):
        opened(tmp_path)


def test_a_folder_has_an_identity(built: Build, tmp_path: Path) -> None:
    """Of its weights with its processor and chat template, which decide what they read."""
    plain = backbone("reference", str(built()))
    templated = backbone("reference", str(built(template=PARTS)))
    assert plain.revision != templated.revision
    assert plain.processor != templated.processor


@pytest.mark.parametrize("template", [PARTS, TEXTS])
def test_a_chat_template_is_followed(pool: Pool, built: Build, template: str) -> None:
    reader = opened(built(template=template))._reader
    read = made_tokenizer()
    tokens = reader.tokens(pool, 3, 12000)
    alone = reader.tokens(pool, 1, 12000)
    shown = read.decode(tokens.ids).replace("<image>" * TAKEN, "<image>")
    if template == PARTS:
        answer = "Yes, it is very much a cat, and an odd one."
        assert shown == f"<user><image>\nWhat is it?;<assistant>A cat.;<user>Sure?;<assistant>{answer};"
        assert read.decode(alone.ids) == "<user>What is two and two?;<assistant>Four, always.;"
        assert alone.text.all()
    else:
        assert shown.startswith(
            f"Be kind.\n<|user|>\n<image>\nWhat is it?{END}\n<|assistant|>\nA cat.{END}\n<|user|>"
        )
        said = read.decode(alone.ids[alone.text])
        assert said == f"<|user|>\nWhat is two and two?{END}\n<|assistant|>\nFour, always.{END}\n"
    assert tokens.image.sum() == TAKEN


def test_a_template_that_loses_words_is_refused() -> None:
    for template in ("{{ 'Hello' }}", "{% for m in messages %}{{ m['role'] }}{% endfor %}"):
        with pytest.raises(HarnessError, match="chat template of this model does not write"):
            Spelling.of(made_tokenizer(), template)
    picky = "{% if messages | length > 2 %}{{ raise_exception('too long') }}{% endif %}" + TEXTS
    with pytest.raises(HarnessError, match="refuses a conversation"):
        Spelling.of(made_tokenizer(), picky)


def test_a_conversation_the_template_refuses_has_a_reason(pool: Pool, built: Build) -> None:
    picky = "{% if 'two' in messages[0]['content'] %}{{ raise_exception('not two') }}{% endif %}" + TEXTS
    columns, reasons = opened(built(template=picky)).run(pool, 0, 3)
    assert [reason == "" for reason in reasons] == [True, False, True]
    assert reasons[1].startswith("bad_conversation: sample 'r1' of pool mixed: the model's chat template refuses")
    assert np.isnan(columns["feature"][1]).all()


def test_a_first_token_is_written_once() -> None:
    """By the tokenizer where the template does not; it belongs to the system message."""
    from tokenizers.processors import TemplateProcessing

    read = made_tokenizer()
    read.add_special_tokens({"bos_token": "<s>"})
    first = read.convert_tokens_to_ids("<s>")
    read.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", first)])
    turns = [("user", "What is it?"), ("assistant", "It.")]
    for template in ("", PARTS, TEXTS, "{{ bos_token }}" + TEXTS):
        ids, begun = Spelling.of(read, template).encode(turns)
        assert (ids == first).sum() == 1
        assert ids[0] == first
        assert not begun[0]
        header = {"": " USER", PARTS: "<user"}.get(template, "<|user|>")
        assert read.decode(ids[begun]).startswith(header)


def test_turns_are_those_of_training() -> None:
    assert messages([("gpt", "Hi."), ("human", "What? <image>"), ("gpt", "It.")]) == [
        ("user", "<image>\nWhat?"),
        ("assistant", "It."),
    ]
    with pytest.raises(HarnessError, match="turns of \\['system'\\]"):
        messages([("system", "Be kind."), ("human", "What?")])


def test_pictures_are_squared_in_the_middle() -> None:
    for size in ((5, 2), (2, 7), (3, 3)):
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
        assert np.array_equal(squared(picture, (127, 63, 191)), in_square(picture))


def test_coincide_selects_with_such_a_model(built: Build, tmp_path: Path) -> None:
    world = World.make(tmp_path, selector_spec("coincide", {"clusters": 4, "model": str(built())}), 40)
    trial = world.trial()
    assert trial.features["activations"]["feature"].shape == (40, 2 * 3 * WIDTH)
    kept = trial.kept(15, 0)
    assert len(set(kept)) == 15
    shuffled = np.random.default_rng(0).permutation(40).tolist()
    assert set(world.trial(shuffled).kept(15, 0)) == set(kept)
