"""Make the shipped text scorers: `python -m harness.miniworld.train_scorers --out DIR`.

Two Llamas of 170,000 parameters learn to grade questions and answers as `grades` does, from text
alone. `DIR/deita_complexity` and `DIR/deita_quality` are what selector `deita` asks on miniworld.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

from selector_zoo.passes.deita_model import digit_ids
from selector_zoo.prompts import fill, load_pack

from harness.miniworld import grades
from harness.miniworld.architecture import INIT_STD
from harness.miniworld.minimise import minimise
from harness.miniworld.questions import Question
from harness.miniworld.sources import SOURCES, draw_sample
from harness.miniworld.tokenizer import build_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

log = logging.getLogger(__name__)

PACK: Final = "miniworld"
BATCH: Final = 64
STEPS: Final = 300
LEARNING_RATE: Final = 2e-3
WIDTH: Final = 64

Lesson = tuple[str, int]
"""A prompt and the grade that is to follow it."""


def questions(rng: Random) -> Iterator[Question]:
    """Questions without end, each source as often as any other."""
    for number in count():
        yield from draw_sample(rng.choice(list(SOURCES)), number, rng).turns


def complexity_lessons(rng: Random) -> Iterator[Lesson]:
    """Questions and what they demand."""
    template = load_pack(PACK).template("complexity")
    for question in questions(rng):
        yield fill(template, instruction=question.text), grades.complexity(question)


def quality_lessons(rng: Random) -> Iterator[Lesson]:
    """Questions with good, wrong and broken answers, and what these offer."""
    template = load_pack(PACK).template("quality")
    for question in questions(rng):
        for answer, grade in grades.answers(question, rng):
            yield fill(template, instruction=question.text, output=answer), grade


LESSONS: Final[dict[str, Callable[[Random], Iterator[Lesson]]]] = {
    "deita_complexity": complexity_lessons,
    "deita_quality": quality_lessons,
}


def build_model(tokenizer: Any) -> LlamaForCausalLM:
    """A scorer with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        initializer_range=INIT_STD,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def train(name: str, out: Path, steps: int = STEPS, seed: int = 0) -> None:
    """Train one scorer and write its folder, weights as bfloat16.

    It is taught the grade alone, by the cross-entropy of the one token after the prompt.
    """
    import torch

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    digits = torch.tensor(digit_ids(tokenizer, str(out)))
    model: Any = build_model(tokenizer)
    lessons = LESSONS[name](Random(seed))

    def loss() -> Any:
        prompts, said = zip(*islice(lessons, BATCH), strict=True)
        inputs = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="right")
        last = inputs["attention_mask"].sum(dim=1) - 1
        states = model.base_model(**inputs).last_hidden_state[torch.arange(BATCH), last]
        return torch.nn.functional.cross_entropy(model.lm_head(states), digits[torch.tensor(said) - 1])

    log.info("%s", name)
    minimise(model, loss, steps, LEARNING_RATE)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    for name in LESSONS:
        train(name, args.out / name, args.steps)


if __name__ == "__main__":
    main()
