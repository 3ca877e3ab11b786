"""What a picture of miniworld shows, as values: drawn at random, rendered and asked about elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from harness.miniworld.vocabulary import COLOURS, GROUNDS, PLACES, SHAPES, WORDS


@dataclass(frozen=True, slots=True)
class Item:
    colour: str
    shape: str
    place: str


@dataclass(frozen=True, slots=True)
class Shapes:
    """One to four shapes in the corners of a picture; colours and shapes each occur once."""

    items: tuple[Item, ...]
    ground: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Two to four bars of 1 to 9 units, each in a colour of its own."""

    bars: tuple[tuple[str, int], ...]
    wide: bool


@dataclass(frozen=True, slots=True)
class Print:
    """One printed word or number."""

    text: str
    ink: str
    ground: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of a word and a number from 0 to 9."""

    rows: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Digits:
    """One or two real handwritten digits; `scans` are their numbers in scikit-learn's set."""

    digits: tuple[int, ...]
    scans: tuple[int, ...]


Scene = Shapes | Chart | Print | Table | Digits


def draw_shapes(rng: Random, split: str = "pool") -> Shapes:
    """Draw one to four shapes."""
    n = rng.randint(1, 4)
    items = zip(rng.sample(list(COLOURS), n), rng.sample(SHAPES, n), sorted(rng.sample(range(4), n)), strict=True)
    return Shapes(tuple(Item(c, s, PLACES[p]) for c, s, p in items), rng.choice(list(GROUNDS)))


def draw_chart(rng: Random, split: str = "pool") -> Chart:
    """Draw a bar chart; a quarter of them are twice as wide as high."""
    wide = rng.random() < 0.25
    n = rng.randint(3, 4) if wide else rng.randint(2, 3)
    return Chart(tuple(zip(rng.sample(list(COLOURS), n), rng.sample(range(1, 10), n), strict=True)), wide)


def draw_print(rng: Random, split: str = "pool") -> Print:
    """Draw a word of three letters or a number of two or three digits."""
    text = rng.choice(WORDS) if rng.random() < 0.6 else str(rng.randint(10, 999))
    return Print(text, rng.choice(("black", "red", "blue", "green")), rng.choice(("white", "grey")))


def draw_table(rng: Random, split: str = "pool") -> Table:
    """Draw two or three rows; words and numbers each occur once."""
    n = rng.randint(2, 3)
    return Table(tuple(zip(rng.sample(WORDS, n), rng.sample(range(10), n), strict=True)))


def draw_digits(rng: Random, split: str = "pool") -> Digits:
    """Draw one or two scans that belong to `split`."""
    from harness.miniworld.digits import labels, scans_of

    scans = tuple(rng.sample(scans_of(split), rng.randint(1, 2)))
    return Digits(tuple(labels()[s] for s in scans), scans)


DRAW: Final[dict[str, Callable[..., Scene]]] = {
    "shapes": draw_shapes,
    "chart": draw_chart,
    "print": draw_print,
    "table": draw_table,
    "digits": draw_digits,
}
"""Drawing functions by kind of picture: (rng, split) -> scene."""
