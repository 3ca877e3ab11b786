"""A byte-level BPE tokenizer learnt from miniworld's own text, with the special tokens of Qwen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from harness.miniworld import vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD: Final = "<|endoftext|>"
IM_START: Final = "<|im_start|>"
IM_END: Final = "<|im_end|>"
IMAGE: Final = "<image>"
VIDEO: Final = "<video>"
SPECIAL: Final = (PAD, IM_START, IM_END, IMAGE, VIDEO)
VOCABULARY: Final = 2000

_PIECES: Final = r"\p{L}+|\p{N}|\s|[^\s\p{L}\p{N}]"
"""Words, single digits, single blanks, single signs. A blank is a piece of its own, so a word is the same token
at the start of an answer and inside a caption; what captions teach then carries over to answers."""


def corpus() -> list[str]:
    """Text that holds every word of miniworld often enough to become one token."""
    words = [*vocabulary.COLOURS, *vocabulary.GROUNDS, *vocabulary.SHAPES, *vocabulary.WORDS]
    words += [w for group in (vocabulary.PLACES, vocabulary.SIZES) for w in " ".join(group).split()]
    words += [w for c in (*vocabulary.CAPABILITIES, *vocabulary.STYLES) for w in c.split()]
    return [f"system user assistant You are a helpful assistant. {w} {w.capitalize()} {w.upper()}" for w in words]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train the tokenizer; the same text gives the same tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

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
    bpe.train_from_iterator(corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=IM_END,
        pad_token=PAD,
        additional_special_tokens=[IM_START, IMAGE, VIDEO],
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
        padding_side="right",
    )
