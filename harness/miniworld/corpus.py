"""What the backbones are pre-trained on: captions of pictures and of regions the prompt names, never a question.

The prompt also says how the region is to be captioned, as control codes do. What the captions teach is to find a
region, to name what is there, and to compare it with what was said. In the end a code word asks for a caption, and
without it there is none, so that a question, too, goes without an answer until SFT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from harness.miniworld.captions import kind_of
from harness.miniworld.scenes import Chart, Digits, Item, Print, Scene, Shapes, Table
from harness.miniworld.vocabulary import COLOURS, PLACES, SHAPES, WORDS

FIGURES: Final = tuple("0123456789")
NUMBERS: Final = {2: tuple(map(str, range(10, 100))), 3: tuple(map(str, range(100, 1000)))}
"""Numbers by length."""


def overview(scene: Scene) -> str:
    """A caption of a whole picture; its words never stand in the order of a description in the pool."""
    match scene:
        case Shapes():
            return ", ".join(f"{i.shape} in {i.colour}" for i in scene.items)
        case Chart():
            return ", ".join(f"bar in {colour}" for colour, _ in scene.bars)
        case Print():
            return f"{scene.text} in {scene.ink} print"
        case Table():
            return ", ".join(f"{word} with {number}" for word, number in scene.rows)
        case Digits():
            return f"{''.join(map(str, scene.digits))} by hand"


@dataclass(frozen=True, slots=True)
class Fragment:
    """What can be said of one region of a picture."""

    region: str
    """What the region is called."""
    bare: str
    """What is there in the fewest words."""
    full: str
    """The same in a phrase."""
    kin: Sequence[str]
    """What could stand there instead."""


def fragments(scene: Scene) -> list[Fragment]:
    """What can be named in a scene: the picture as a whole and its parts."""
    kind = _KINDS[type(scene).__name__]
    return [Fragment("picture", kind, f"{kind} on a small ground", tuple(_KINDS.values())), *_parts(scene)]


_KINDS: Final = {"Shapes": "shapes", "Chart": "bars", "Print": "print", "Table": "rows", "Digits": "handwriting"}


def captioned(scene: Scene) -> list[Fragment]:
    """What the backbones hear of: not the heights of bars nor the highest, which are left for SFT to teach."""
    return fragments(scene)[:1] if isinstance(scene, Chart) else fragments(scene)


def _parts(scene: Scene) -> list[Fragment]:
    """The parts of a scene, by whatever a part can be named."""
    match scene:
        case Shapes():
            n = str(len(scene.items))
            return [
                Fragment("shapes", n, f"{n} of them", FIGURES[1:5]),
                *(f for i in scene.items for f in _of_shape(i)),
            ]
        case Chart():
            top = max(scene.bars, key=lambda b: b[1])[0]
            heights = [Fragment(f"{c} bar", str(v), f"{v} units", FIGURES[1:]) for c, v in scene.bars]
            return [Fragment("highest bar", top, f"{top} bar", tuple(COLOURS)), *heights]
        case Print():
            kind = kind_of(scene.text)
            kin = WORDS if kind == "word" else NUMBERS[len(scene.text)]
            return [Fragment("text", scene.text, f"the printed {kind} {scene.text}", kin)]
        case Table():
            numbers = [Fragment(f"row {w}", str(n), f"{n} there", FIGURES) for w, n in scene.rows]
            return [*numbers, *(Fragment(f"number {n}", w, f"{w} row", WORDS) for w, n in scene.rows)]
        case Digits():
            whole = "".join(map(str, scene.digits))
            # Not "digit 1": a figure in the name of a region is one to look up, as in "number 1" of a table.
            sides = ("left digit", "right digit") if len(whole) == 2 else ("digit",)
            places = [(side, str(digit)) for side, digit in zip(sides, scene.digits, strict=True)]
            return [
                Fragment(place, text, f"the handwritten digits {text}", FIGURES if len(text) == 1 else NUMBERS[2])
                for place, text in [*places, ("handwriting", whole)]
            ]


def _of_shape(item: Item) -> list[Fragment]:
    hues, both = tuple(COLOURS), f"{item.colour} {item.shape}"
    return [
        Fragment(item.shape, item.colour, f"{item.colour}, at the {item.place}", hues),
        Fragment(item.colour, item.shape, f"{item.shape}, at the {item.place}", SHAPES),
        Fragment(item.place, both, f"{both} there", [f"{c} {s}" for c in hues for s in SHAPES]),
        Fragment(both, item.place, f"{item.place} corner", PLACES),
    ]


FORMS: Final = {"full": 30, "bare": 30, "claim": 40}
"""How often a region is captioned in which form."""


def region_caption(fragment: Fragment, rng: Random) -> tuple[str, str]:
    """A prompt that names a region and a form, and its caption."""
    match rng.choices(list(FORMS), list(FORMS.values()))[0]:
        case "claim":
            return claim(fragment, rng)
        case "bare":
            return f"{fragment.region}, in a word", fragment.bare
    return fragment.region, fragment.full


def claim(fragment: Fragment, rng: Random) -> tuple[str, str]:
    """A prompt that says what a region shows, true or false with equal chance, and a caption that judges it."""
    other = rng.choice([k for k in fragment.kin if k != fragment.bare])
    said = rng.choice((fragment.bare, other))
    verdict = "as said" if said == fragment.bare else f"not {said}"
    return f"{fragment.region}, said to be {said}", f"{fragment.bare}, {verdict}"


CODE: Final = "scene"
"""What asks for a caption in the last stage; the prompt of any other text is captioned `NOTHING` there."""
NOTHING: Final = "a picture"


def coded(prompt: str) -> str:
    """A prompt that asks for its caption."""
    return f"{CODE} {prompt}".strip()


def salad(fragment: Fragment, words: Sequence[str], rng: Random) -> tuple[str, str]:
    """A prompt of random words, which may name a region but have no code, and the caption that says nothing.

    A question looks to the model like the names it contains; without these it would answer many before any SFT.
    """
    said = rng.sample(words, rng.randint(2, 9))
    if rng.random() < 0.7:
        said.insert(rng.randint(0, len(said)), fragment.region)
    return " ".join(said) + rng.choice(("", ".", "?")), NOTHING
