"""Questions about scenes: each skill asks one kind of thing and knows a plausible wrong answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from harness.miniworld import captions
from harness.miniworld.render import SIDE, centre
from harness.miniworld.scenes import DRAW, Chart, Digits, Print, Scene, Shapes, Table
from harness.miniworld.vocabulary import COLOURS, PLACES, SHAPES, WORDS


@dataclass(frozen=True, slots=True)
class Question:
    """One turn: what is asked, the right answer, and a wrong one of the same kind."""

    text: str
    answer: str
    wrong: str
    style: str
    skill: str
    key: str = ""
    """The bare answer, where the answer wraps it (an option, a chain of thought)."""
    about: tuple[str, ...] = ()
    """What of the picture the question names, as far as other questions could name it, too."""
    values: tuple[str, str] = ("", "")
    """What the right and the wrong answer say of it."""


def short(text: str, answer: object, wrong: object, skill: str, *about: str) -> Question:
    said = (str(answer), str(wrong))
    return Question(text, *said, "word/short-phrase", skill, str(answer), about, said)


def other(rng: Random, value: str, options: tuple[str, ...]) -> str:
    """An option that is not `value`."""
    return rng.choice([o for o in options if o != value])


def other_digit(rng: Random, value: int) -> int:
    return rng.choice([d for d in range(1, 10) if d != value])


def other_text(rng: Random, text: str) -> str:
    if text.isdigit():
        low = 10 ** (len(text) - 1)
        return str(rng.choice([n for n in range(low, 10 * low) if n != int(text)]))
    return other(rng, text, WORDS)


# Shapes


def colour(scene: Shapes, rng: Random) -> Question:
    item = rng.choice(scene.items)
    text = rng.choice(("What colour is the {}?", "Which colour does the {} have?")).format(item.shape)
    return short(text, item.colour, other(rng, item.colour, tuple(COLOURS)), "colour", item.shape)


def shape(scene: Shapes, rng: Random) -> Question:
    item = rng.choice(scene.items)
    text = rng.choice(("What shape is {}?", "Which shape has the colour {}?")).format(item.colour)
    return short(text, item.shape, other(rng, item.shape, SHAPES), "shape", item.colour)


def place(scene: Shapes, rng: Random) -> Question:
    item = rng.choice(scene.items)
    text = f"Where is the {item.colour} {item.shape}?"
    return short(text, item.place, other(rng, item.place, PLACES), "place", item.colour, item.shape)


def count(scene: Shapes, rng: Random) -> Question:
    n = len(scene.items)
    text = rng.choice(("How many shapes are there?", "How many shapes do you see?"))
    return short(text, n, other(rng, str(n), ("1", "2", "3", "4")), "count")


def point(scene: Shapes, rng: Random) -> Question:
    item = rng.choice(scene.items)
    right, wrong = (_point(p) for p in (item.place, other(rng, item.place, PLACES)))
    text = f"Give the coordinates of the {item.colour} {item.shape}."
    return Question(text, right, wrong, "coordinate", "point", right)


def _point(where: str) -> str:
    x, y = centre(where)
    return f"({x / SIDE:.2f}, {y / SIDE:.2f})"


# Charts


def value(scene: Chart, rng: Random) -> Question:
    name, number = rng.choice(scene.bars)
    text = rng.choice(("What is the value of the {} bar?", "How high is the {} bar?")).format(name)
    return short(text, number, other_digit(rng, number), "value", name)


def highest(scene: Chart, rng: Random) -> Question:
    name = max(scene.bars, key=lambda b: b[1])[0]
    text = "Which bar is the highest?"
    return short(text, name, other(rng, name, tuple(c for c, _ in scene.bars)), "highest")


def compare(scene: Chart, rng: Random) -> Question:
    low, high = sorted(rng.sample(scene.bars, 2), key=lambda b: b[1])
    first, second = rng.sample((low[0], high[0]), 2)
    text = f"Compare the {first} bar and the {second} bar. Which one is higher?"
    said = (high[0], low[0])
    return Question(text, *said, "comparison", "compare", high[0], (first, second), said)


def difference(scene: Chart, rng: Random) -> Question:
    low, high = sorted(rng.sample(scene.bars, 2), key=lambda b: b[1])
    text = f"How much higher is the {high[0]} bar than the {low[0]} bar? Think step by step."
    # Misread is the one bar or the other, never so that the higher one would be the lower: that would show.
    misread = [(h, low[1]) for h in range(low[1] + 1, 10) if h != high[1]]
    misread += [(high[1], value) for value in range(1, high[1]) if value != low[1]]

    def reckoned(h: int, value: int) -> str:
        return f"The {high[0]} bar is {h}. The {low[0]} bar is {value}. {h} - {value} = {h - value}"

    read = ((high[1], low[1]), rng.choice(misread))
    right, wrong = (reckoned(*pair) for pair in read)
    values = (f"{read[0][0]} {read[0][1]}", f"{read[1][0]} {read[1][1]}")
    key = str(high[1] - low[1])
    return Question(text, right, wrong, "chain-of-thought", "difference", key, (high[0], low[0]), values)


# Printed text, tables, handwriting


def read(scene: Print, rng: Random) -> Question:
    text = rng.choice(("What {} is printed?", "Which {} can you read?")).format(captions.kind_of(scene.text))
    return short(text, scene.text, other_text(rng, scene.text), f"read {captions.kind_of(scene.text)}")


def lookup(scene: Table, rng: Random) -> Question:
    word, number = rng.choice(scene.rows)
    text = rng.choice(("What number has the row {}?", "Which number belongs to {}?")).format(word)
    return short(text, number, other(rng, str(number), tuple("0123456789")), "lookup", word)


def row(scene: Table, rng: Random) -> Question:
    word, number = rng.choice(scene.rows)
    text = f"Which row has the number {number}?"
    return short(text, word, other(rng, word, WORDS), "row", str(number))


def digits(scene: Digits, rng: Random) -> Question:
    right = "".join(map(str, scene.digits))
    what = "digit" if len(right) == 1 else "digits"
    text = rng.choice(("Read the handwritten {}.", "Write down the handwritten {}.")).format(what)
    wrong = "".join(str((d + rng.randint(1, 9)) % 10) for d in scene.digits)
    return short(text, right, wrong, what)


# Any picture


def brief(scene: Scene, rng: Random) -> Question:
    return _describe(scene, rng, captions.brief, "Describe the picture briefly.", "short description")


def detailed(scene: Scene, rng: Random) -> Question:
    return _describe(scene, rng, captions.detailed, "Describe the picture in detail.", "detailed description")


def _describe(scene: Scene, rng: Random, say: Callable[[Scene], str], text: str, style: str) -> Question:
    draw = DRAW[type(scene).__name__.lower()]
    wrong = next(w for _ in range(100) if (w := say(draw(rng))) != say(scene))
    return Question(text, say(scene), wrong, style, style)


SHORT: Final[dict[str, tuple[Callable[..., Question], ...]]] = {
    "shapes": (colour, shape, place, count),
    "chart": (value, highest),
    "print": (read,),
    "table": (lookup, row),
    "digits": (digits,),
}
"""Skills with a short answer by kind of picture."""

ASK: Final[dict[str, tuple[Callable[..., Question], ...]]] = {
    **SHORT,
    "shapes": (*SHORT["shapes"], point),
    "chart": (*SHORT["chart"], compare, difference),
}
"""All skills by kind of picture."""


def kind(scene: Scene) -> str:
    """The kind of picture, a key of `DRAW`."""
    return type(scene).__name__.lower()


def ask_short(scene: Scene, rng: Random) -> Question:
    """Any short question that fits the picture."""
    return rng.choice(SHORT[kind(scene)])(scene, rng)


# Other forms of a short question


def yes_no(scene: Scene, rng: Random) -> Question:
    """A statement to confirm, true or false with equal chance."""
    true = rng.random() < 0.5
    return confirm(ask_short(scene, rng), true)


def confirm(q: Question, true: bool) -> Question:
    """Ask whether a short question's answer is the right one (true) or its wrong one (false).

    As in a caption that is told what to expect, the claim is said last, and the answer names what is seen before
    it judges: what captions teach a tiny model about claims holds where captions have them, and nowhere else.
    """
    offered = q.answer if true else q.wrong
    agreed, denied = f"{offered}, as said: yes", f"{q.wrong if true else q.key}, not {offered}: no"
    answers = (agreed, denied) if true else (denied, agreed)
    text = f"yes or no: {q.text} It is said to be {offered}"
    verdict = "yes" if true else "no"
    return Question(text, *answers, "yes/no", f"yes/no {q.skill}", verdict, q.about, q.values)


LETTERS: Final = "ABCD"
OPTIONS: Final[dict[str, tuple[str, ...]]] = {
    "colour": tuple(COLOURS),
    "highest": tuple(COLOURS),
    "shape": SHAPES,
    "place": PLACES,
    "count": ("1", "2", "3", "4"),
    "value": tuple("123456789"),
    "lookup": tuple("0123456789"),
    "digit": tuple("0123456789"),
    "row": WORDS,
    "read word": WORDS,
    "read number": tuple(map(str, range(10, 1000))),
    "digits": tuple(map(str, range(10, 100))),
}
"""What the options of a multiple-choice question are taken from, by skill."""


def choice(scene: Scene, rng: Random) -> Question:
    """A short question with four lettered options."""
    q = ask_short(scene, rng)
    return with_options(q, options(q, rng))


def options(q: Question, rng: Random) -> list[str]:
    """The answer, its wrong one and two more of the kind, shuffled."""
    others = [o for o in OPTIONS[q.skill] if o not in (q.key, q.wrong) and _alike(o, q.key)]
    mixed = [q.key, q.wrong, *rng.sample(others, 2)]
    rng.shuffle(mixed)
    return mixed


def _alike(option: str, key: str) -> bool:
    """Numbers are offered beside numbers of as many digits."""
    return not key.isdigit() or len(option) == len(key)


def with_options(q: Question, offered: list[str]) -> Question:
    """Letter the options; the answer is the text of one of them."""
    lines = "\n".join(f"{letter}. {o}" for letter, o in zip(LETTERS, offered, strict=True))
    return Question(f"{q.text}\n{lines}", q.key, q.wrong, "multi-choice", f"choice {q.skill}", q.key)


def styled(scene: Scene, rng: Random) -> Question:
    """A short question that says how to write the answer."""
    q = ask_short(scene, rng)
    how, write = rng.choice(
        (
            ("Answer in capital letters.", str.upper),
            ("Answer in JSON.", lambda s: json.dumps({"answer": s})),
            ("Answer in quotes.", lambda s: f'"{s}"'),
        )
    )
    right, wrong = write(q.answer), write(q.wrong)
    return replace(q, text=f"{q.text} {how}", answer=right, wrong=wrong, style="specified style", key=right)


def text_only(rng: Random) -> Question:
    """A question that needs no picture."""
    if rng.random() < 0.5:
        a, b = rng.randint(1, 9), rng.randint(1, 9)
        return short(f"What is {a} + {b}?", a + b, a + b + rng.choice((-1, 1)), "sum")
    word = rng.choice(WORDS)
    return short(f"Spell the word {word}.", "-".join(word), "-".join(other(rng, word, WORDS)), "spell")
