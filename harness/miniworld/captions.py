"""What can be said of a scene without being asked: descriptions, and statements about its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from harness.miniworld.scenes import Chart, Digits, Item, Print, Scene, Shapes, Table
from harness.miniworld.vocabulary import COLOURS, PLACES, SHAPES, WORDS


def kind_of(text: str) -> str:
    """`number` or `word`, for printed text."""
    return "number" if text.isdigit() else "word"


def plural(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("s" if n != 1 else "")


def brief(scene: Scene) -> str:
    """A description in one phrase."""
    match scene:
        case Shapes():
            return f"{plural(len(scene.items), 'shape')}: " + ", ".join(
                f"{i.colour} {i.shape}" for i in scene.items
            )
        case Chart():
            return f"a chart of {plural(len(scene.bars), 'bar')}: " + ", ".join(c for c, _ in scene.bars)
        case Print():
            return f"a printed {kind_of(scene.text)}: {scene.text}"
        case Table():
            return f"a table of {plural(len(scene.rows), 'row')}: " + ", ".join(w for w, _ in scene.rows)
        case Digits():
            return "handwritten digits: " + "".join(map(str, scene.digits))


def statements(scene: Scene) -> list[str]:
    """One sentence about each part; together they say all there is."""
    match scene:
        case Shapes():
            return [f"The {i.colour} {i.shape} is at the {i.place}." for i in scene.items]
        case Chart():
            return [f"The {colour} bar is {value}." for colour, value in scene.bars]
        case Print():
            return [f"The {scene.ink} text says {scene.text}."]
        case Table():
            return [f"The row {word} has {number}." for word, number in scene.rows]
        case Digits():
            return [f"The handwritten digits are {''.join(map(str, scene.digits))}."]


def detailed(scene: Scene) -> str:
    """A description in full sentences."""
    return " ".join(statements(scene))


def facts(scene: Scene) -> list[str]:
    """The phrases a brief description has to contain."""
    return brief(scene).replace(": ", ", ").split(", ")


@dataclass(frozen=True, slots=True)
class Fragment:
    """A caption of one region, as a pre-training corpus has them: never a question."""

    region: str
    """What the region is called."""
    bare: str
    """What is there in the fewest words."""
    full: str
    """The same in a phrase that answers no question word for word."""
    kin: Sequence[str]
    """What could stand there instead."""


def fragments(scene: Scene) -> list[Fragment]:
    """Captions of the parts of a scene, by whatever a part can be named."""
    match scene:
        case Shapes():
            return [f for item in scene.items for f in _of_shape(item)]
        case Chart():
            top = max(scene.bars, key=lambda b: b[1])[0]
            heights = [Fragment(f"{c} bar", str(v), f"{v} units", FIGURES[1:]) for c, v in scene.bars]
            return [Fragment("highest bar", top, f"{top} bar", tuple(COLOURS)), *heights]
        case Print():
            kind = kind_of(scene.text)
            return [Fragment("text", scene.text, f"the printed {kind} {scene.text}", KIN[kind, len(scene.text)])]
        case Table():
            numbers = [Fragment(f"row {w}", str(n), f"{n} there", FIGURES) for w, n in scene.rows]
            return [*numbers, *(Fragment(f"number {n}", w, f"{w} row", WORDS) for w, n in scene.rows)]
        case Digits():
            whole = "".join(map(str, scene.digits))
            places = [(f"digit {i + 1}", str(digit)) for i, digit in enumerate(scene.digits)]
            return [
                Fragment(place, text, f"the handwritten digits {text}", KIN["digits", len(text)])
                for place, text in [*places, ("handwriting", whole)]
            ]


FIGURES: Final = tuple("0123456789")
KIN: Final = {
    ("word", 3): WORDS,
    ("number", 2): tuple(map(str, range(10, 100))),
    ("number", 3): tuple(map(str, range(100, 1000))),
    ("digits", 1): FIGURES,
    ("digits", 2): tuple(f"{n:02}" for n in range(100)),
}
"""Texts of one kind and length."""


def _of_shape(item: Item) -> list[Fragment]:
    hues, both = tuple(COLOURS), f"{item.colour} {item.shape}"
    return [
        Fragment(item.shape, item.colour, f"{item.colour}, at the {item.place}", hues),
        Fragment(item.colour, item.shape, f"{item.shape}, at the {item.place}", SHAPES),
        Fragment(item.place, both, f"{both} there", [f"{c} {s}" for c, s in zip(hues, SHAPES, strict=False)]),
        Fragment(both, item.place, f"{item.place} corner", PLACES),
    ]


FORMS: Final = {"full": 40, "bare": 25, "legend": 20, "correction": 15}
"""How often a region is captioned in which form. Bare captions are a minority, so that without SFT the model does
not answer in one word, yet could."""


def region_caption(fragment: Fragment, rng: Random) -> tuple[str, str]:
    """A prompt that names a region, and its caption.

    A legend lists what may be there and the caption points to an entry; a correction confirms or corrects a claim.
    """
    form = rng.choices(list(FORMS), list(FORMS.values()))[0]
    others = rng.sample([k for k in fragment.kin if k != fragment.bare], 3)
    match form:
        case "legend":
            entries = rng.sample([fragment.bare, *others], 4)
            lines = "\n".join(f"{letter}. {entry}" for letter, entry in zip("ABCD", entries, strict=True))
            return f"{fragment.region}\n{lines}", f"{fragment.bare}, entry {'ABCD'[entries.index(fragment.bare)]}"
        case "correction":
            claim = rng.choice((fragment.bare, others[0]))
            verdict = "as said" if claim == fragment.bare else f"not {claim}"
            return f"{fragment.region}, said to be {claim}", f"{fragment.bare}, {verdict}"
        case "bare":
            return fragment.region, fragment.bare
    return fragment.region, fragment.full


def region_captions(scene: Scene) -> list[str]:
    """Captions of regions that name the region themselves."""
    return [f"{f.region}: {f.full}" for f in fragments(scene)]
