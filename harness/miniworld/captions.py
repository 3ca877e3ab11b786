"""What can be said of a scene without being asked: descriptions, and statements about its parts."""

from __future__ import annotations

from dataclasses import dataclass

from harness.miniworld.scenes import Chart, Digits, Item, Print, Scene, Shapes, Table


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


def fragments(scene: Scene) -> list[Fragment]:
    """Captions of the parts of a scene, by whatever a part can be named."""
    match scene:
        case Shapes():
            return [f for item in scene.items for f in _of_shape(item)]
        case Chart():
            top = max(scene.bars, key=lambda b: b[1])[0]
            heights = [Fragment(f"{colour} bar", str(value), f"{value} units") for colour, value in scene.bars]
            return [Fragment("highest bar", top, f"{top} bar"), *heights]
        case Print():
            return [Fragment("text", scene.text, f"the printed {kind_of(scene.text)} {scene.text}")]
        case Table():
            numbers = [Fragment(f"row {word}", str(number), f"{number} there") for word, number in scene.rows]
            words = [Fragment(f"number {number}", word, f"{word} row") for word, number in scene.rows]
            return [*numbers, *words]
        case Digits():
            places = [(f"digit {i + 1}", str(digit)) for i, digit in enumerate(scene.digits)]
            places.append(("handwriting", "".join(map(str, scene.digits))))
            return [Fragment(place, text, f"the handwritten digits {text}") for place, text in places]


def _of_shape(item: Item) -> list[Fragment]:
    return [
        Fragment(item.shape, item.colour, f"{item.colour}, at the {item.place}"),
        Fragment(item.colour, item.shape, f"{item.shape}, at the {item.place}"),
        Fragment(item.place, f"{item.colour} {item.shape}", f"{item.colour} {item.shape} there"),
        Fragment(f"{item.colour} {item.shape}", item.place, f"{item.place} corner"),
    ]


def region_captions(scene: Scene) -> list[str]:
    """Captions of regions that name the region themselves."""
    return [f"{f.region}: {f.full}" for f in fragments(scene)]
