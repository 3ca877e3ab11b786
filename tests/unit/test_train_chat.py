"""Token ids and labels against hand-written ones, and training prompts against the exported chat template."""

import os
from functools import cache

import numpy as np
import pytest

from harness.errors import HarnessError
from llava_train.chat import CHAT_TEMPLATE, encode, prompt_ids, specials, spell

os.environ.setdefault("HF_HUB_OFFLINE", "1")
CORPUS = ["system user assistant You are a helpful assistant. red blue circle What colour? A. one B. two"] * 3


@cache
def _tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        CORPUS, trainers.BpeTrainer(special_tokens=names, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=names[2], pad_token=names[0], additional_special_tokens=names[1:]
    )


@cache
def _processor():
    from transformers import (
        LlavaOnevisionImageProcessorPil,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    half, size = [0.5, 0.5, 0.5], {"height": 48, "width": 48}
    images = LlavaOnevisionImageProcessorPil(
        size=size, image_mean=half, image_std=half, image_grid_pinpoints=[[48, 48], [48, 96], [96, 48]]
    )
    return LlavaOnevisionProcessor(
        image_processor=images,
        tokenizer=_tokenizer(),
        video_processor=LlavaOnevisionVideoProcessor(size=size, image_mean=half, image_std=half),
        num_image_tokens=36,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )


def _text(ids: np.ndarray, keep: np.ndarray | None = None) -> str:
    return str(_tokenizer().decode(ids if keep is None else ids[keep], clean_up_tokenization_spaces=False))


SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
MARKS = "<|im_start|>\n<|im_end|>\n"


def test_one_turn_with_an_image_in_the_middle() -> None:
    turns = [("human", "What colour? <image> "), ("gpt", "red")]
    encoded = encode(_tokenizer(), turns, [3])
    assert _text(encoded.ids) == (
        f"{SYSTEM}<|im_start|>user\n<image><image><image>\nWhat colour?<|im_end|>\n"
        "<|im_start|>assistant\nred<|im_end|>\n"
    )
    user = "<|im_start|>\n\n<|im_end|>\n"
    assert _text(encoded.ids, encoded.sft_mask) == f"{MARKS}{user}<|im_start|>assistant\nred<|im_end|>\n"
    assert _text(encoded.ids, encoded.answer_mask) == "red<|im_end|>"


def test_newlines_of_the_question_are_supervised_and_its_words_are_not() -> None:
    turns = [("human", "What?\nA. one\nB. two"), ("gpt", "A"), ("human", "blue"), ("gpt", "B\ntwo")]
    encoded = encode(_tokenizer(), turns, [])
    supervised = _text(encoded.ids, encoded.sft_mask)
    question, second = "<|im_start|>\n\n\n<|im_end|>\n", "<|im_start|>\n<|im_end|>\n"
    answers = ["<|im_start|>assistant\nA<|im_end|>\n", "<|im_start|>assistant\nB\ntwo<|im_end|>\n"]
    assert supervised == MARKS + question + answers[0] + second + answers[1]
    assert _text(encoded.ids, encoded.answer_mask) == "A<|im_end|>B\ntwo<|im_end|>"


def test_the_answer_mask_is_part_of_the_sft_mask() -> None:
    encoded = encode(_tokenizer(), [("human", "<image>\nred"), ("gpt", "a\n\n blue")], [5])
    assert not (encoded.answer_mask & ~encoded.sft_mask).any()
    assert not encoded.sft_mask[encoded.ids == specials(_tokenizer()).image].any()
    assert encoded.ids.dtype == np.int32


def test_a_literal_placeholder_in_a_sample_without_images_is_text() -> None:
    encoded = encode(_tokenizer(), [("human", "the tag <image> is"), ("gpt", "text")], [])
    assert specials(_tokenizer()).image not in encoded.ids
    assert (encoded.ids == specials(_tokenizer()).start).sum() == 3
    assert "<image>" in _text(encoded.ids)


def test_the_leading_turn_is_the_humans() -> None:
    turns = [("human", "red"), ("gpt", "blue")]
    np.testing.assert_array_equal(
        encode(_tokenizer(), [("gpt", "hello"), *turns], []).ids, encode(_tokenizer(), turns, []).ids
    )


def test_images_and_placeholders_must_match() -> None:
    with pytest.raises(HarnessError, match="names 1 images and has 2"):
        encode(_tokenizer(), [("human", "<image> red"), ("gpt", "x")], [3, 3])
    with pytest.raises(HarnessError, match="'human' and 'gpt'"):
        encode(_tokenizer(), [("user", "red")], [])


@pytest.mark.parametrize(
    ("text", "spelt"),
    [
        ("<image>\nred ", "<image>\nred "),
        ("red <image>", "<image>\nred"),
        ("red <image> blue <image>", "red <image> blue <image>"),
        ("<image>", "<image>"),
        ("QA_GT_caption_based_noisyred", "red"),
    ],
)
def test_spelling(text: str, spelt: str) -> None:
    assert spell(text) == spelt


@pytest.mark.parametrize(
    ("question", "images", "trained"),
    [
        ("What colour?", [], "What colour?"),
        ("red <image> odd", [], "red <image> odd"),
        ("What colour?", [4], "<image>\nWhat colour?"),
        ("A\nB  two ", [4], "<image>\nA\nB  two "),
        ("\n\nred", [4], "<image>\n\n\nred"),
        ("odd <image>", [4], "odd <image>"),
        ("What colour?", [4, 5], "<image><image>\nWhat colour?"),
        ("this <image> or <image>", [4, 5], "this <image> or <image>"),
    ],
)
def test_the_prompt_is_a_prefix_of_training(question: str, images: list[int], trained: str) -> None:
    encoded = encode(_tokenizer(), [("human", trained), ("gpt", "blue")], images)
    prompt = prompt_ids(_tokenizer(), question, images)
    np.testing.assert_array_equal(prompt, encoded.ids[: len(prompt)])
    assert _text(prompt).endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("sizes", [[], [(40, 60)], [(30, 90)], [(40, 60), (90, 20)]])
def test_the_exported_template_gives_the_prompt_of_training(sizes: list[tuple[int, int]]) -> None:
    """`processor.apply_chat_template` and the processor's expansion equal `prompt_ids`."""
    from PIL import Image

    from llava_train.tiles import Geometry, image_tokens

    geometry = Geometry(tile=48, patch=8, pinpoints=((48, 48), (48, 96), (96, 48)))
    question = "What colour?\nA. one\nB. two"
    content = [{"type": "text", "text": question}, *({"type": "image"} for _ in sizes)]
    messages = [{"role": "user", "content": content}]
    text = _processor().apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    images = [Image.new("RGB", (w, h)) for h, w in sizes]
    inputs = _processor()(text=[text], images=[images] if images else None)
    ours = prompt_ids(_tokenizer(), question, image_tokens(sizes, geometry))
    np.testing.assert_array_equal(ours, np.asarray(inputs["input_ids"][0]))


def test_the_template_renders_whole_conversations_and_keeps_a_given_system_turn() -> None:
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What colour?"}]},
        {"role": "assistant", "content": "red"},
    ]
    rendered = _processor().apply_chat_template(messages, tokenize=False)
    encoded = encode(_tokenizer(), [("human", "<image>\nWhat colour?"), ("gpt", "red")], [1])
    assert rendered == _text(encoded.ids)
    own = [{"role": "system", "content": "Be brief."}, *messages]
    assert (
        _processor()
        .apply_chat_template(own, tokenize=False)
        .startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    )
