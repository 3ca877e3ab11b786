"""A byte-level BPE tokenizer learnt from miniworld's own text, with the special tokens of Qwen.

It is shipped, since weights only fit the one they were trained with: miniworld's text may change, its tokens may
not. `python -m harness.miniworld.tokenizer FILE` learns one from the present text, for which all models are to be
made anew.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

from harness.miniworld import captions, corpus, questions, vocabulary
from harness.miniworld.scenes import DRAW
from llava_train.chat import END, IMAGE, START, SYSTEM

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

PAD: Final = "<|endoftext|>"
VIDEO: Final = "<video>"
SPECIAL: Final = (PAD, START, END, IMAGE, VIDEO)
VOCABULARY: Final = 2000
SHIPPED: Final = Path(__file__).parent / "weights" / "tokenizer" / "tokenizer.json"

_PIECES: Final = r"\p{L}+|\p{N}|\s|[^\s\p{L}\p{N}]"
"""Words, single digits, single blanks, single signs. A blank is a piece of its own, so a word is the same token
at the start of an answer and inside a caption; what captions teach then carries over to answers."""


def text() -> list[str]:
    """Questions, answers and captions of miniworld, and the words of its teachers, in a fixed order."""
    rng = Random(0)
    names = (*vocabulary.COLOURS, *vocabulary.SHAPES, *vocabulary.WORDS)
    texts = [*vocabulary.CAPABILITIES, *vocabulary.STYLES, f"system\n{SYSTEM} user assistant Question: Answer:"]
    texts += [f"{w} {w.upper()} {w.capitalize()}" for w in names]
    for kind, draw in DRAW.items():
        asks = (questions.choice, questions.yes_no, questions.styled, questions.brief, *questions.ASK[kind])
        for _ in range(150):
            scene = draw(rng)
            asked = [ask(scene, rng) for ask in asks] + [questions.text_only(rng)]
            texts += [captions.detailed(scene), corpus.overview(scene)]
            texts += [" ".join(corpus.region_caption(f, rng)) for f in corpus.fragments(scene) for _ in range(2)]
            texts += [f"{q.text}\n{q.answer}" for q in asked]
    return texts * 2


@cache
def words() -> tuple[str, ...]:
    """All words of miniworld's text, sorted."""
    return tuple(sorted({word for line in text() for word in re.findall("[A-Za-z]+", line)}))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The shipped tokenizer."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(SHIPPED)),
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START, IMAGE, VIDEO],
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
        padding_side="right",
    )


def learn_tokenizer() -> Tokenizer:
    """Learn a tokenizer from miniworld's text; the same text gives the same one."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(text(), trainer)
    return bpe


if __name__ == "__main__":
    learn_tokenizer().save(sys.argv[1])
